"""Gather and ring on 1, 2 and 8 devices and on 2 processes of 2: one loss, one gradient."""

import socket
import subprocess
import sys
from pathlib import Path

import loss_worker
import numpy as np
import pytest
import virtual_devices

WORKER = Path(loss_worker.__file__)
TEMPORARY_MIB = 20
# Relative to the largest entry. The temperature's gradient is one sum of terms of both signs that
# cancel: float32 gives it less, on two meshes with the same method as well.
TOLERANCE = {"loss": 1e-6, "q": 1e-6, "p": 1e-6, "scale": 4e-6}


def start(devices: int, *arguments) -> subprocess.Popen:
    environment = virtual_devices.environment(devices)
    return subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]


def answers(folder: Path, cases: str, way: str) -> dict[str, dict[str, np.ndarray]]:
    """By '<file> <devices>': what the worker found, on devices or as two processes of two."""
    if way == "devices":
        running = [start(8, folder / "devices.npz", cases, "1,2,8")]
    else:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        running = [start(2, folder / f"process{i}.npz", cases, 4, port, i, 2) for i in range(2)]
    for process in running:
        finish(process)
    found: dict[str, dict[str, np.ndarray]] = {}
    for path in folder.glob("*.npz"):
        for name, value in np.load(path).items():
            devices, rest = name.split("/", 1)
            found.setdefault(f"{path.stem} {devices}", {})[rest] = value
    return found


class Answers:
    """`answers` of one kind of cases, found when first asked for."""

    def __init__(self, tmp_path_factory, cases: str) -> None:
        self.folder = lambda: tmp_path_factory.mktemp(cases)
        self.cases, self.found = cases, {}

    def __getitem__(self, way: str) -> dict[str, np.ndarray]:
        if way not in self.found:
            kind = "devices" if way.startswith("devices") else "processes"
            self.found |= answers(self.folder(), self.cases, kind)
        return self.found[way]


# Two processes compile everything again, which takes most of the time.
WAYS = [
    "devices 1",
    "devices 2",
    "devices 8",
    pytest.param("process0 4", marks=pytest.mark.slow),
    pytest.param("process1 4", marks=pytest.mark.slow),
]


def assert_close(value, expected, tolerance):
    error = np.abs(value - expected).max() / np.abs(expected).max()
    assert error <= tolerance


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    return Answers(tmp_path_factory, "losses")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["gather", "ring"])
def test_loss_and_gradient_do_not_depend_on_mesh_and_method(losses, method, way):
    for case in loss_worker.LOSSES:
        for part, tolerance in TOLERANCE.items():
            expected = losses["devices 1"][f"{case}/gather/{part}"]
            assert np.any(expected != 0)
            assert_close(losses[way][f"{case}/{method}/{part}"], expected, tolerance)


@pytest.mark.slow
def test_the_ring_needs_a_sixth_of_the_memory(tmp_path):
    """4,096 queries of 5 passages, width 256, on 8 devices."""
    finish(start(8, tmp_path / "memory.npz", "memory", 8))
    found = {name: int(size) / 2**20 for name, size in np.load(tmp_path / "memory.npz").items()}
    assert found["8/ring"] <= TEMPORARY_MIB
    assert found["8/ring"] < found["8/gather"] / 4
