"""Two real processes, one of which fails: both end soon, each in one line."""

import re
import socket
import time

import pytest
import tiny_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    tiny_project.make(folder)
    return folder


def started(project, workdir, *own, common=(), homes=(None, None), only=None):
    """Two processes; `own`: flags of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        tiny_project.start(
            project,
            workdir,
            "--config.search.backend=device",
            f"--config.distributed.coordinator=localhost:{port}",
            "--config.distributed.num_processes=2",
            f"--config.distributed.process_id={number}",
            *common,
            *flags,
            **({} if homes[number] is None else {"home": str(homes[number])}),
        )
        for number, flags in enumerate(own)
        if only in (None, number)
    ]


def ends(processes):
    """(status, last line of output; '' if all was read) of each, within a minute of one another."""
    found, first = [], None
    for process in processes:
        output, _ = process.communicate(timeout=300)
        first = first or time.monotonic()
        assert "Traceback" not in output
        assert "[Gloo]" not in output
        found.append((process.returncode, ["", *output.splitlines()][-1]))
    assert time.monotonic() - first < 60
    return found


def test_other_values_on_one_process_are_named_by_key(project, tmp_path):
    mine, theirs = ends(started(project, tmp_path / "run", [], ["--config.seed=3"]))
    assert theirs[0] == mine[0] == 2
    assert theirs[1].startswith("error: values differ from those of process 0: seed=3 but 0 on")
    assert mine[1] == f"error: process 1 of 2: {theirs[1].removeprefix('error: ')}"
    assert not (tmp_path / "run" / "embeddings").exists()


@pytest.mark.parametrize("there", [0, 1])
def test_a_process_whose_partner_never_starts_ends_in_one_line(project, tmp_path, there):
    own = ["--config.distributed.join_seconds=3"]
    both = started(project, tmp_path / "run", own, own, only=there)
    ((status, line),) = ends(both)
    assert status == 1
    assert line.startswith("error: the processes did not find each other at localhost:")
    assert f"within 3 s: process {1 - there} of 2 did not join" in line


@pytest.mark.slow
def test_data_that_one_process_lacks_ends_both(project, tmp_path, monkeypatch):
    """'~' is another folder for process 1, as on another host."""
    homes = [tmp_path / "there", tmp_path / "elsewhere"]
    for home in homes:
        home.mkdir()
    (homes[0] / "data").symlink_to(project / "data")
    common = [f"--config.data.{k}=beir:~/data" for k in ("train", "test")]
    mine, theirs = ends(started(project, tmp_path / "run", [], [], common=common, homes=homes))
    assert mine[0] == theirs[0] == 2
    assert theirs[1].startswith("error: ")
    assert "elsewhere/data" in theirs[1]
    assert mine[1] == f"error: process 1 of 2: {theirs[1].removeprefix('error: ')}"


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_workdir_that_one_process_cannot_write_ends_both(project, tmp_path, failing):
    """'~' is a file for one of them, as on a host without the shared file system."""
    homes = [tmp_path / "there", tmp_path / "there"]
    homes[0].mkdir()
    homes[failing] = tmp_path / "file"
    homes[failing].write_text("")
    found = ends(started(project, "~/run", [], [], homes=homes))
    lines = [line for _, line in found]
    assert [status for status, _ in found] == [2, 2]
    # Process 0 lets the other know what is wrong, and either may be first to say so.
    said = [re.sub("^error: (process [01] of 2: )?", "", line) for line in lines]
    assert said[0] == said[1]
    assert f"{homes[failing]}/run" in said[0]


@pytest.mark.slow
def test_an_artefact_that_the_main_process_cannot_begin_ends_both(project, tmp_path):
    processes = started(project, tmp_path / "run", [], [])
    for line in processes[0].stdout:
        if line.startswith("embed     making"):
            (tmp_path / "run" / "negatives").write_text("")  # where a folder is to be made
            break
    mine, theirs = ends(processes)
    assert mine[0] == theirs[0] == 2
    assert "negatives" in mine[1]
    assert theirs[1] == f"error: process 0 of 2: {mine[1].removeprefix('error: ')}"


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other(project, tmp_path, killed):
    processes = started(project, tmp_path / "run", [], [])
    for line in processes[0].stdout:
        if line.startswith("train     making"):
            break
    processes[killed].kill()
    found = ends(processes)
    assert found[1 - killed][0] == 1
    assert found[1 - killed][1].startswith(f"error: process {killed} of 2 is gone")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_both(project, tmp_path):
    # Each step multiplies the weights by up to 10⁴.
    common = [f"--config.train.{k}" for k in ("learning_rate=100", "weight_decay=100")]
    (mine, theirs) = ends(started(project, tmp_path / "run", [], [], common=common))
    assert mine[0] == theirs[0] == 2
    for _, line in (mine, theirs):  # both find it, or one hears of it
        assert re.match(r"error: (process . of 2: )?training: .* (nan|inf|finite)", line)
