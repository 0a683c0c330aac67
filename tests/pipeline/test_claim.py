"""One run at a time in a workdir, whatever the file system; a dead run blocks none."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import command
import pytest
import tiny_project

from nvret_jax.artifacts import claim as claim_lib
from nvret_jax.artifacts.claim import RECORD, Claim
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.errors import InputError

HOLD = """
import sys, time
from nvret_jax.artifacts.claim import Claim
held = Claim(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["flock", "record alone"])
def system(request, monkeypatch):
    """With a lock of the system, and as on a file system that has none."""
    if request.param == "record alone":
        monkeypatch.setattr(claim_lib, "fcntl", None)
    monkeypatch.setattr(claim_lib, "TOUCH_EVERY", 0.1)
    monkeypatch.setattr(claim_lib, "_SETTLE", 0.3)
    monkeypatch.setattr(claim_lib, "_POLL", 0.02)
    monkeypatch.setattr(claim_lib, "DEAD_AFTER", 1.0)
    return request.param


def hold(folder) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=tiny_project.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def as_from(folder, **changes) -> None:
    """The record as another host would have left it."""
    path = folder / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_second_is_refused_with_pid_host_and_time(tmp_path, system):
    held = Claim(str(tmp_path))
    with pytest.raises(InputError, match=f"in use by pid {os.getpid()} on host .+ since 20"):
        Claim(str(tmp_path))
    assert claim_lib.holder(tmp_path).startswith(f"pid {os.getpid()} on host")
    held.release()
    assert os.listdir(tmp_path) == []
    assert claim_lib.holder(tmp_path) == ""
    Claim(str(tmp_path)).release()


def test_a_killed_process_blocks_no_later_run(tmp_path, monkeypatch):
    process = hold(tmp_path)
    with pytest.raises(InputError, match=f"in use by pid {process.pid} on"):
        Claim(str(tmp_path))
    process.kill()
    process.wait()
    begun = time.monotonic()
    Claim(str(tmp_path)).release()
    process = hold(tmp_path)
    process.kill()
    process.wait()
    monkeypatch.setattr(claim_lib, "fcntl", None)
    Claim(str(tmp_path)).release()
    assert time.monotonic() - begun < 30  # without the minute of watching, twice
    assert os.listdir(tmp_path) == []


def test_a_run_of_another_host_counts_while_it_is_touched(tmp_path, system, monkeypatch, capsys):
    monkeypatch.setattr(claim_lib, "DEAD_AFTER", 5.0)
    process = hold(tmp_path)  # touches every five seconds
    as_from(tmp_path, host="far", boot="other", device=0)
    monkeypatch.setattr(claim_lib, "fcntl", None)  # its lock does not reach this host
    monkeypatch.setattr(claim_lib, "DEAD_AFTER", 30.0)
    with pytest.raises(InputError, match=r"in use by pid .* on host far since"):
        Claim(str(tmp_path))
    assert "watching up to 30 s for signs of a live run" in capsys.readouterr().out
    assert "on host far" in claim_lib.holder(tmp_path)
    process.kill()
    process.wait()
    monkeypatch.setattr(claim_lib, "DEAD_AFTER", 1.0)
    Claim(str(tmp_path)).release()  # a requeued job goes on by itself
    assert os.listdir(tmp_path) == []


def test_a_record_of_long_ago_is_not_waited_for(tmp_path, system, monkeypatch):
    (tmp_path / RECORD).write_text('{"id": "x", "pid": 1, "host": "far", "boot": "other"}')
    os.utime(tmp_path / RECORD, (1e9, 1e9))
    monkeypatch.setattr(claim_lib, "DEAD_AFTER", 1000.0)
    Claim(str(tmp_path)).release()
    assert os.listdir(tmp_path) == []


def test_a_record_that_says_nothing_ends_with_its_touches(tmp_path, system):
    (tmp_path / RECORD).write_text("")
    Claim(str(tmp_path)).release()
    assert os.listdir(tmp_path) == []


def test_a_run_that_lost_its_claim_stops_at_its_next_write(tmp_path, system):
    place = Workdir.open(tmp_path / "w", {"name": "x"}, write=False)
    with place.claimed() as workdir:
        workdir.artifact("a", {}).write_file(lambda path: path.write_text(""))
        as_from(tmp_path / "w", id="another", pid=7, host="far")
        with pytest.raises(InputError, match="taken over by pid 7 on host far since"):
            workdir.artifact("b", {}).write_file(lambda path: path.write_text(""))
        with pytest.raises(InputError, match="taken over"):
            workdir.below("sets/s", _Config()).artifact("c", {}).begin()
    assert (tmp_path / "w" / RECORD).exists()  # it is the other one's
    assert not (tmp_path / "w" / "b").exists()


class _Config:
    def to_dict(self):
        return {}


def test_a_workdir_in_use_is_refused_in_one_line(pristine, tmp_path):
    workdir = tmp_path / "w"
    argv = [command.CONFIG, f"--workdir={workdir}", *command.flags_of(pristine)]
    workdir.mkdir()
    process = hold(workdir)
    try:
        error = command.inside(*argv, "--stages=embed").error
        assert f"{workdir} is in use by pid {process.pid} on host" in error
        assert os.listdir(workdir) == [RECORD]
        plan = command.inside(*argv, "--dry_run")
        assert plan.status == 0
        assert f"{workdir} is in use by pid {process.pid} on host" in plan.stdout
    finally:
        process.kill()
        process.wait()
    assert command.inside(*argv, "--stages=embed").status == 0
    assert not (workdir / RECORD).exists()


def starts(project, workdir, *more: str, count: int = 2) -> list[tuple[int, str]]:
    """(status, output) of commands started at the same moment."""
    running = [tiny_project.start(project, workdir, *more) for _ in range(count)]
    return [(p.communicate(timeout=600)[0], p.returncode)[::-1] for p in running]


def assert_one_wins(results, workdir) -> None:
    """One run ended well and all others were refused in one line."""
    assert sorted(status for status, _ in results) == [0, *[2] * (len(results) - 1)], results
    for _, output in (r for r in results if r[0]):
        (line,) = [x for x in output.splitlines() if x.startswith("error:")]
        assert re.search(rf"{workdir} is in use by pid \d+ on host \S+ since 20", line), line
        assert "Traceback" not in output


def test_two_starts_at_the_same_moment(pristine, tmp_path):
    more = ("--stages=embed,search", "--config.distributed.mode=off")
    for attempt in range(3):  # on a busy machine one may be done before the other begins
        workdir = tmp_path / str(attempt)
        results = starts(pristine, workdir, *more)
        if any(status for status, _ in results):
            break
        assert sum("making" in output for _, output in results) == 1, results
    assert_one_wins(results, workdir)
    command.assert_only_whole_artefacts(workdir)
    later = command.inside(
        command.CONFIG, f"--workdir={workdir}", *tiny_project.overrides(pristine), *more
    )
    assert later.status == 0
    assert "making" not in later.stdout
