"""Damage to a workdir, a disk that is full, training that diverges: one line, and then mended."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil

import command
import optax
import pyarrow.parquet
import pytest
import tiny_project
from breakage import cut, remove, write

from nvret_jax.artifacts import artifact
from nvret_jax.artifacts import workdir as workdir_lib
from nvret_jax.search import candidates
from nvret_jax.search.store import EmbeddingStore
from nvret_jax.training import loop

STAGES = "--config.stages=('embed','search','mine','train','report')"


@pytest.fixture(scope="module")
def finished(pristine):
    """A workdir up to the negatives."""
    workdir = pristine / "finished"
    result = command.inside(*in_workdir(pristine, workdir, "--stages=embed,search,mine"))
    assert result.status == 0, result.stderr[-3000:]
    return workdir


def in_workdir(project, workdir, *more) -> list[str]:
    return [command.CONFIG, f"--workdir={workdir}", *command.flags_of(project), STAGES, *more]


@pytest.fixture
def used(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "used")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.name=other", ("name is 'tiny' there but 'other' here",)),
        ("--config.data.test=pydocs:", ("data.test is 'beir:", "'pydocs:' here")),
    ],
)
def test_a_workdir_of_another_config(pristine, used, flag, words):
    before = (used / "config.json").read_bytes()
    error = command.inside(*in_workdir(pristine, used, flag)).error
    assert f"{used} belongs to another experiment" in error
    assert all(word in error for word in words)
    assert (used / "config.json").read_bytes() == before


CHUNK = "embeddings/teacher/data/passages/c/1/0"
DAMAGE = {
    "chunk cut short": (cut(CHUNK, 100), "damaged: c/1/0 has 100 bytes", "search", "embed"),
    "chunk gone": (remove(CHUNK), "damaged: c/1/0 is missing", "search", "embed"),
    "candidates cut short": (
        cut("candidates/teacher.parquet", 500),
        "damaged: teacher.parquet has 500 bytes",
        "mine",
        "search",
    ),
    "candidates without a record": (
        write("fingerprints/candidates/teacher.parquet.json", '{"parts": '),
        "damaged: its record does not match its checksum",
        "mine",
        "search",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_by_who_needs_it_and_mended_by_who_made_it(pristine, used, name):
    damage, words, needs, makes = DAMAGE[name]
    whole = {p: p.read_bytes() for p in (used / "embeddings").rglob("*") if p.is_file()}
    damage(used)
    # The stage that would read it has work of its own to do.
    shutil.rmtree(used / {"search": "candidates", "mine": "negatives"}[needs])
    refused = command.inside(*in_workdir(pristine, used, f"--stages={needs}"))
    assert "is needed but out of date" in refused.error
    assert words in refused.error
    assert f"--stages={makes} first" in refused.error

    mended = command.inside(*in_workdir(pristine, used, f"--stages={makes},{needs}"))
    assert mended.status == 0, mended.stderr[-2000:]
    assert words in mended.stdout
    assert {p: p.read_bytes() for p in whole} == whole
    command.assert_only_whole_artefacts(used)
    again = command.inside(*in_workdir(pristine, used, f"--stages={makes},{needs}"))
    assert "making" not in again.stdout


def test_bytes_changed_inside_a_chunk_are_named(pristine, used):
    chunk = used / CHUNK
    data = bytearray(chunk.read_bytes())
    data[40] ^= 255
    chunk.write_bytes(data)
    (used / "candidates" / "teacher.parquet").unlink()
    whole = {p: p.read_bytes() for p in (used / "embeddings").rglob("*") if p.is_file()}
    error = command.inside(*in_workdir(pristine, used, "--stages=search")).error
    assert "damaged: c/1/0 does not match its checksum; run --stages=embed first" in error.replace(
        "(", ""
    ).replace(")", "")
    mended = command.inside(*in_workdir(pristine, used, "--stages=embed,search"))
    assert mended.status == 0, mended.stderr[-2000:]
    assert "embed     making embeddings/teacher/data/passages (damaged: c/1/0" in mended.stdout
    changed = {p for p, data in whole.items() if p.read_bytes() != data}
    assert changed == {chunk}  # nothing else was embedded again


def test_a_trained_workdir_that_lost_something(pristine, used):
    argv = in_workdir(pristine, used, "--stages=train,report", "--config.data.dev_split=")
    assert command.inside(*argv).status == 0
    # The last line of the metrics was being written when the machine went down.
    whole = tiny_project.page(used)
    (used / "report.html").unlink()
    with (used / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert command.inside(*argv).status == 0
    assert tiny_project.page(used) == whole
    # The checkpoints were deleted to make room.
    shutil.rmtree(used / "checkpoints")
    (used / "checkpoints").mkdir()
    (used / "report.html").unlink()
    refused = command.inside(*argv, "--stages=report")
    assert "checkpoints is needed but out of date (damaged: " in refused.error
    assert "--stages=train first" in refused.error
    mended = command.inside(*argv)
    assert mended.status == 0, mended.stderr[-2000:]
    assert "making checkpoints (damaged: " in mended.stdout
    command.assert_only_whole_artefacts(used)


def test_training_that_diverges_says_at_which_step(pristine, finished, used, monkeypatch):
    # A rate that the checks of a config would refuse.
    monkeypatch.setattr(loop, "make_optimizer", lambda config, steps, rate: optax.adam(1e30))
    # One test, so that the step is compiled once.
    for seen, log, score, save in (
        (r"(loss|grad_norm) is (nan|inf) at step 2", 1, 0, 0),
        ("the weights are no longer finite after step 1", 0, 1, 0),
        ("the weights are no longer finite after step 2", 0, 0, 2),
    ):
        every = {"log_every": log, "eval_every": score, "checkpoint_every": save}
        flags = [f"--config.train.{key}={value}" for key, value in every.items()]
        argv = in_workdir(
            pristine, used, *flags, "--config.train.steps=4", "--config.train.learning_rate=1"
        )
        error = command.inside(*argv).error
        assert re.search(f"training: {seen}; lower train.learning_rate", error), error
        command.assert_only_whole_artefacts(used, finished)


@pytest.mark.parametrize("place", ["table", "embeddings", "record", "config.json"])
def test_a_full_disk(pristine, tmp_path, monkeypatch, place):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/there/x")

    def refuse(*args, **kwargs):
        raise full

    target = {
        "table": (pyarrow.parquet, "write_table"),
        "embeddings": (EmbeddingStore, "write_chunk"),  # in a thread
        "record": (artifact.Artifact, "_prepared"),
        "config.json": (workdir_lib, "write_atomic"),
    }[place]
    argv = [command.CONFIG, f"--workdir={tmp_path / 'w'}", *command.flags_of(pristine)]
    argv.append("--stages=embed,search")
    if place == "record":
        assert command.inside(*argv).status == 0
        argv.append("--config.search.depth=7")
    with monkeypatch.context() as patch:
        patch.setattr(*target, refuse)
        error = command.inside(*argv).error
    assert "No space left on device" in error
    command.assert_only_whole_artefacts(tmp_path / "w")
    again = command.inside(*argv)
    assert again.status == 0, again.stderr[-2000:]
    assert not [p for p in (tmp_path / "w").rglob("*.partial")]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2_000, 5_000, 20_000])
def test_a_disk_that_takes_no_more_bytes(pristine, tmp_path, size):
    """The system itself refuses: files end at `size` bytes, in our code and in the libraries'."""
    result = command.alone(*in_workdir(pristine, tmp_path / "w"), file_size=size)
    assert "File too large" in result.error
    command.assert_only_whole_artefacts(tmp_path / "w")


def test_training_and_test_data_of_one_name_keep_their_vectors_apart(pristine, tmp_path):
    other = shutil.copytree(pristine / "data", tmp_path / "elsewhere" / "data")
    corpus = other / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace('"text": "', '"text": "wing '))
    argv = in_workdir(pristine, tmp_path / "w", f"--config.data.test=beir:{other}")
    argv[argv.index(STAGES)] = "--config.stages=('embed','search','evaluate')"
    for making in (True, False):
        result = command.inside(*argv)
        assert result.status == 0, result.stderr[-2000:]
        assert ("making" in result.stdout) == making
    role = tmp_path / "w" / "embeddings" / "teacher"
    assert sorted(p.name for p in role.iterdir()) == ["data", "data.test"]


class Killed(BaseException):
    """What no code below catches."""


@pytest.mark.parametrize("partial", ["block", "chunk", "ids.txt", "zarr.json"])
def test_damage_in_what_a_killed_run_left(pristine, tmp_path, monkeypatch, partial):
    """It is detected and rebuilt, and the rest of it is kept."""
    search = partial == "block"
    argv = in_workdir(
        pristine, tmp_path / "w", "--stages=embed,search", "--config.search.query_block=6"
    )
    target = (candidates, "find") if search else (EmbeddingStore, "write_chunk")
    real, calls = getattr(*target), []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) > 2:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*target, killed)
        with pytest.raises(Killed):
            command.inside(*argv)
    left = tmp_path / "w" / ("candidates" if search else "embeddings/teacher/data")
    file = {"block": "block-000001.parquet", "chunk": "c/*/0"}.get(partial, partial)
    path, *_ = left.glob(f"*.partial/{file}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = command.inside(*argv)
    assert result.status == 0, result.stderr[-2000:]
    if partial in ("block", "chunk"):
        assert "rebuilding" in result.stdout
    whole = command.inside(*in_workdir(pristine, tmp_path / "x", *argv[-2:]))
    assert whole.status == 0
    for name in ("candidates/teacher.parquet", "embeddings/teacher/data/passages/zarr.json"):
        assert (tmp_path / "w" / name).read_bytes() == (tmp_path / "x" / name).read_bytes()


EVERYTHING = (
    "--config.stages=('embed','search','audit','mine','train','evaluate','export','report')"
)
# Clocks, and what they are hashed into.
SILENT = ("tensorboard", "checkpoints", "fingerprints", "history.jsonl")


@pytest.mark.parametrize(
    "seed",
    [
        *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2)),
        *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 8)),
    ],
)
def test_random_damage_is_never_used(pristine, tmp_path_factory, tmp_path, seed):
    """Five at a time: noticed and mended, or without any effect."""

    def run(workdir):
        flags = ("--config.train.checkpoint_every=1", "--config.audit.resamples=20")
        argv = in_workdir(pristine, workdir, *flags)
        argv[argv.index(STAGES)] = EVERYTHING
        return command.inside(*argv)

    whole = tmp_path_factory.getbasetemp() / "everything"
    if not whole.exists():
        assert run(whole).status == 0
    draw = random.Random(seed)
    used = shutil.copytree(whole, tmp_path / "w")
    files = sorted(p for p in used.rglob("*") if p.is_file())
    hit = {path: path.read_bytes() for path in draw.sample(files, 5)}
    for path, content in hit.items():
        kind = draw.choice(["flip", "zeros", "cut", "gone"]) if content else "gone"
        data, at = bytearray(content), draw.randrange(max(1, len(content)))
        if kind == "flip":
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "zeros":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        path.unlink()
        if kind != "gone":
            path.write_bytes(data[:at] if kind == "cut" else data)
        print(kind, path)
    result = run(used)
    assert result.status == 0, result.stderr[-3000:]
    for path in (p for p in whole.rglob("*") if p.is_file()):
        name = path.relative_to(whole)
        if name.parts[0] in SILENT or re.search(r"/c/\d+/0$", str(name)):
            continue
        if name.parts[0] == "embeddings" and name.parts[1].startswith("student"):
            continue  # read only where evaluation/, which is compared, is not whole
        if name.name == "metrics.jsonl":  # speeds are of the clock
            assert tiny_project.metrics(used) == tiny_project.metrics(whole), result.stdout
        elif name.name == "report.html":
            assert tiny_project.page(used) == tiny_project.page(whole), result.stdout
        elif name.name != "config.json.sum":
            assert (used / name).read_bytes() == path.read_bytes(), (name, result.stdout)
