"""The same rows, in the same order, on 1, 2 and 8 devices and on 2 processes of 2 devices."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import mesh_worker
import numpy as np
import pytest
import virtual_devices
from search_reference import assert_same, brute_force

WORKER = Path(mesh_worker.__file__)


def _start(devices: int, *arguments) -> subprocess.Popen:
    environment = virtual_devices.environment(devices)
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


def _port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Per way of running: the npz of mesh_worker."""
    folder = tmp_path_factory.mktemp("mesh")
    port = _port()
    running = [
        _start(8, folder / "devices.npz", "1,2,8"),
        _start(2, folder / "process0.npz", "4", port, 0, 2),
        _start(2, folder / "process1.npz", "4", port, 1, 2),
    ]
    for process in running:
        _finish(process)
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


@pytest.mark.parametrize("index", ["", "stream/"])
@pytest.mark.parametrize(
    ("run", "devices"),
    [("devices", 1), ("devices", 2), ("devices", 8), ("process0", 4), ("process1", 4)],
)
def test_same_answer_on_every_mesh(answers, run, devices, index):
    for name, queries_qd, passages_nd, arguments in mesh_worker.cases():
        found = answers[run]
        got = found[f"{devices}/{index}{name}/scores"], found[f"{devices}/{index}{name}/rows"]
        if name == "copies":
            alone = answers["devices"]
            np.testing.assert_array_equal(got[1], alone[f"1/{name}/rows"])
            np.testing.assert_allclose(got[0], alone[f"1/{name}/scores"], atol=1e-5)
            continue
        masks = {key: arguments.get(key) for key in ("ceiling_q", "exclude")}
        assert_same(got, brute_force(queries_qd, passages_nd, arguments["k"], **masks))


@pytest.mark.parametrize("index", ["", "stream/"])
def test_a_process_reads_only_its_own_rows(answers, index):
    for name, _, passages_nd, _ in mesh_worker.cases():
        read = [int(answers[run][f"4/{index}{name}/read"]) for run in ("process0", "process1")]
        assert sum(read) == len(passages_nd)
        if len(passages_nd) > 1000:
            assert max(read) < 0.7 * len(passages_nd)


def _modified(path: Path) -> float:
    """When a file was written; 0 where the running search has removed it since it was listed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _kill_when_saved(running: list[subprocess.Popen], folder: Path, older: float = 0.0) -> None:
    """Kills all processes at once as soon as lists newer than `older` are saved."""
    until = time.monotonic() + 120
    while not any(_modified(p) > older for p in folder.glob("*-0-40.npz")):
        assert time.monotonic() < until, "nothing was saved"
        for process in running:
            assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)
    for process in running:
        process.kill()
    for process in running:
        process.communicate()


def test_a_killed_search_goes_on_with_other_processes(tmp_path):
    """kill -9 of one process of two devices, then of two processes of two, then one of one."""
    saved = tmp_path / "saved"
    alone = _start(2, tmp_path / "none.npz", f"resume={saved},0.05")
    _kill_when_saved([alone], saved)
    (file,) = saved.glob("*-0-40.npz")
    first = int(np.load(file)["rows"])
    assert 0 < first < 6000

    port, older = _port(), file.stat().st_mtime
    pair = [
        _start(2, tmp_path / f"none{i}.npz", f"resume={saved},0.05", port, i, 2) for i in (0, 1)
    ]
    _kill_when_saved(pair, saved, older)
    second = int(np.load(file)["rows"])
    assert first < second < 6000

    _finish(_start(1, tmp_path / "last.npz", f"resume={saved},0"))
    assert not list(tmp_path.glob("none*.npz"))
    last = np.load(tmp_path / "last.npz")
    queries_qd, passages_nd, arguments = mesh_worker.resumable()
    assert_same((last["scores"], last["rows"]), brute_force(queries_qd, passages_nd, **arguments))
    assert int(last["first"]) == second
    assert int(last["read"]) == 6000 - second
