"""The same rows, in the same order, on 1, 2 and 8 devices and on 2 processes of 2 devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import mesh_worker
import numpy as np
import pytest
from search_reference import assert_same, brute_force

WORKER = Path(mesh_worker.__file__)


def _start(devices: int, *arguments) -> subprocess.Popen:
    environment = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices))
    environment["XLA_FLAGS"] = ""
    return subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Per way of running: the npz of mesh_worker."""
    folder = tmp_path_factory.mktemp("mesh")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [
        _start(8, folder / "devices.npz", "1,2,8"),
        _start(2, folder / "process0.npz", "4", port, 0, 2),
        _start(2, folder / "process1.npz", "4", port, 1, 2),
    ]
    for process in running:
        _finish(process)
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


@pytest.mark.parametrize(
    ("run", "devices"),
    [("devices", 1), ("devices", 2), ("devices", 8), ("process0", 4), ("process1", 4)],
)
def test_same_answer_on_every_mesh(answers, run, devices):
    for name, queries_qd, passages_nd, arguments in mesh_worker.cases():
        found = answers[run]
        got = found[f"{devices}/{name}/scores"], found[f"{devices}/{name}/rows"]
        if name == "copies":
            alone = answers["devices"]
            np.testing.assert_array_equal(got[1], alone[f"1/{name}/rows"])
            np.testing.assert_allclose(got[0], alone[f"1/{name}/scores"], atol=1e-5)
            continue
        masks = {key: arguments.get(key) for key in ("ceiling_q", "exclude")}
        assert_same(got, brute_force(queries_qd, passages_nd, arguments["k"], **masks))


def test_a_process_reads_only_its_own_rows(answers):
    for name, _, passages_nd, _ in mesh_worker.cases():
        read = [int(answers[run][f"4/{name}/read"]) for run in ("process0", "process1")]
        assert sum(read) == len(passages_nd)
        if len(passages_nd) > 1000:
            assert max(read) < 0.7 * len(passages_nd)
