"""The loop keeps the devices busy: what it does between two dispatches runs on the host alone."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tiny_project
import virtual_devices

WORKER = pathlib.Path(__file__).parent / "loop_worker.py"


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """What a loop on 8 devices did."""
    folder = tmp_path_factory.mktemp("loop")
    tiny_project.make_model(folder / "model")
    paths = [str(WORKER.parents[2]), str(WORKER.parent), os.environ.get("PYTHONPATH", "")]
    environment = virtual_devices.environment(8, PYTHONPATH=os.pathsep.join(paths))
    command = [sys.executable, str(WORKER), str(folder / "model"), str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_step_is_dispatched_before_the_step_before_it_is_done(watched):
    assert watched["devices"] == 8
    events = list(dict.fromkeys(map(tuple, watched["events"])))  # a step has several metrics
    steps = [step for what, step in events if what == "dispatched"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 3
    # Fetching a number of a step waits for that step: by then the next one is on its way.
    expected = [("dispatched", 1)]
    for step in steps[1:]:
        expected += [("dispatched", step), ("fetched", step - 1)]
    assert events == [*expected, ("fetched", steps[-1])]


@pytest.mark.slow
def test_nothing_runs_on_the_mesh_between_two_dispatches(watched):
    """A program that the loop ran eagerly would have been compiled once, at its first step."""
    (step,) = watched["compiled between the first and the last dispatch"]
    assert "step_fn" in step
