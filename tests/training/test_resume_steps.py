"""A two-stage run that is killed or asked to end, again and again, ends like an undisturbed one."""

import json
import random
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import stage_worker
import virtual_devices

from nvret_jax.training import rates

pytestmark = pytest.mark.usefixtures("programs")
TOTAL = 2 * stage_worker.STEPS


def start(devices=1, **options):
    environment = virtual_devices.environment(devices)
    return subprocess.Popen(
        [sys.executable, stage_worker.__file__, json.dumps(options, default=str)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output[-3000:]
    return output


def lines(root):
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(text) for text in (root / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        for name in rates.NAMES:
            line.pop(name, None)
    return found


def kept(root):
    return {
        stage: sorted(int(p.name) for p in (root / "checkpoints" / stage).iterdir() if p.is_dir())
        for stage in ("warm", "fine")
    }


def hit(undisturbed, root, name, step, delay):
    """Goes on until a signal comes, some time after a step began."""
    process = start(model=undisturbed.model, root=root, signal=name, at=step, delay=delay)
    output = finish(process, {"KILL": -9, "TERM": 143}[name])
    if name == "TERM" and not delay:
        (line,) = [x for x in output.splitlines() if "SIGTERM" in x]
        number, at = divmod(step, stage_worker.STEPS)
        assert f"after step {at + 1} of 12 of stage '{('warm', 'fine')[number]}'" in line


def assert_ends_the_same(undisturbed, root):
    finish(start(model=undisturbed.model, root=root, out=root / "weights.npz"))
    assert lines(root) == lines(undisturbed.root)
    assert kept(root) == kept(undisturbed.root)
    found = np.load(root / "weights.npz")
    assert set(found) == set(undisturbed.weights)
    for name, value in undisturbed.weights.items():
        np.testing.assert_array_equal(found[name], value, name)


@pytest.fixture(scope="module")
def cut(undisturbed, tmp_path_factory):
    """A run that was killed in its first stage and asked to end in its second."""
    root, draw = tmp_path_factory.mktemp("cut"), random.Random()
    step, delay = draw.randrange(1, stage_worker.STEPS), draw.uniform(0, 0.02)
    print(f"killed {delay:.3f} s after the beginning of step {step}")
    hit(undisturbed, root, "KILL", step, delay)
    hit(undisturbed, root, "TERM", draw.randrange(13, 16), 0.0)
    return root


@pytest.mark.slow
def test_a_run_killed_in_both_stages_ends_like_an_undisturbed_one(undisturbed, cut, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(cut, root)
    assert_ends_the_same(undisturbed, root)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["KILL", "TERM"])
def test_ten_hits_at_random_steps(undisturbed, tmp_path, name):
    draw = random.Random()
    steps = sorted(draw.sample(range(TOTAL - 1), 10))
    for step, following in zip(steps, [*steps[1:], TOTAL], strict=True):
        # A signal that comes late is heard some steps later: not beyond the next one's step.
        delay = draw.uniform(0, 0.02) if name == "KILL" or following > step + 4 else 0.0
        print(f"SIG{name} {delay:.3f} s after the beginning of step {step}")
        hit(undisturbed, tmp_path, name, step, delay)
    assert_ends_the_same(undisturbed, tmp_path)


def assert_close_curve(undisturbed, root):
    ours, theirs = lines(root), lines(undisturbed.root)
    assert [(x["stage"], x["step"]) for x in ours] == [(x["stage"], x["step"]) for x in theirs]
    for name, tolerance in ("loss", {"rtol": 1e-5}), ("dev_ndcg_cut_10", {"atol": 5e-5}):
        values = [[x[name] for x in of if name in x] for of in (ours, theirs)]
        assert len(values[0]) > 5
        np.testing.assert_allclose(*values, **tolerance)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(undisturbed, cut, tmp_path):
    """And a run goes from one process to two and back with the same losses."""
    root = tmp_path / "processes"
    shutil.copytree(cut, root)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = {"model": undisturbed.model, "root": root, "coordinator": f"localhost:{port}"}
    processes = [start(process=0, **both), start(process=1, signal="TERM", at=17, **both)]
    told = [finish(process, 143).splitlines()[-1] for process in processes]
    assert told[0] == told[1]
    step = int(told[0].split("after step ")[1].split()[0])
    assert 6 <= step <= 8  # of the stage: seen one step late
    assert step in kept(root)["fine"]
    finish(start(model=undisturbed.model, root=root))
    assert_close_curve(undisturbed, root)
    assert kept(root) == kept(undisturbed.root)


@pytest.mark.slow
def test_a_run_resumed_on_another_mesh_has_the_same_losses(undisturbed, cut, tmp_path):
    root = tmp_path / "two"
    shutil.copytree(cut, root)
    finish(start(2, model=undisturbed.model, root=root))
    assert_close_curve(undisturbed, root)
