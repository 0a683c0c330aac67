"""The same negatives and the same losses on 1, 2 and 8 devices and on 2 processes of 2 devices."""

import socket

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_project

STAGES = "--stages=embed,search,mine,train"
# Another backend than 'auto' picks on one CPU device, so that all runs take the same path.
# Small chunks, so that texts are encoded in groups of several widths.
COMMON = (STAGES, "--config.search.backend=device", "--config.train.chunk_tokens=64")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_project.make(folder)
    tiny_project.run(folder, folder / "one", *COMMON)
    return folder


CLUSTERS = ("--config.train.cluster_size=4",)


def two_processes(folder, workdir, *more):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        tiny_project.start(
            folder,
            workdir,
            *COMMON,
            *more,
            f"--config.distributed.coordinator=localhost:{port}",
            "--config.distributed.num_processes=2",
            f"--config.distributed.process_id={number}",
            devices=2,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(o[-3000:] for o in outputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        "2 devices",
        "8 devices",
        "8 devices, fsdp 2, tensor 2",
        "2 processes",
        "2 processes, clusters",
    ],
)
def test_negatives_and_losses_do_not_depend_on_the_mesh(project, layout):
    workdir = project / layout.replace(" ", "-").replace(",", "")
    alone = project / "one"
    if layout == "2 processes, clusters":
        alone = project / "one-clusters"
        tiny_project.run(project, alone, *COMMON, *CLUSTERS)
        two_processes(project, workdir, *CLUSTERS)
    elif layout == "2 processes":
        two_processes(project, workdir)
    else:
        axes = ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"] if "fsdp" in layout else []
        tiny_project.run(project, workdir, *COMMON, *axes, devices=int(layout[0]))

    ours = pq.read_table(workdir / "negatives" / "train.parquet").to_pylist()
    theirs = pq.read_table(alone / "negatives" / "train.parquet").to_pylist()
    assert [row["query_id"] for row in ours] == [row["query_id"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for ids, scores, other_ids in zip(
            mine["negative_ids"], mine["negative_scores"], other["negative_ids"], strict=True
        ):
            if ids != other_ids:  # two passages may swap places only where they tie
                at = other["negative_ids"].index(ids)
                assert abs(scores - other["negative_scores"][at]) <= 1e-6
        np.testing.assert_allclose(mine["negative_scores"], other["negative_scores"], atol=2e-6)

    lines, expected = tiny_project.metrics(workdir), tiny_project.metrics(alone)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20
    np.testing.assert_allclose(
        losses, [line["loss"] for line in expected if "loss" in line], rtol=1e-4
    )
    at_random = [line["loss"] for line in tiny_project.metrics(project / "one") if "loss" in line]
    assert np.allclose(losses, at_random, rtol=1e-3) == (alone.name == "one")
