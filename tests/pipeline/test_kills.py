"""Signals and kills at any moment, on one process and on two: the rerun's artefacts are the same.

The rounds wait for lines of output, not for shares of a run's time.
"""

import signal

import kills
import pytest
import tiny_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    tiny_project.make(folder)
    for processes in (1, 2):
        kills.finished(folder, folder / f"undisturbed-{processes}", processes)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("one", kills.rounds(9, seed=3), ids=lambda one: f"{one.sent}-{one.event}")
def test_a_stop_costs_no_artefact(project, tmp_path, one):
    outcome = kills.stop(project, tmp_path / "run", one)
    # The run may have ended before the signal came.
    number = kills.SIGNALS[one.sent]
    hit, *others = outcome.statuses
    if number == signal.SIGKILL:
        assert hit in (-9, 0)
        assert set(others) <= {1, 0}
    else:
        assert hit in (128 + number, 0)
        assert set(others) <= {128 + number, 0}
    assert outcome.seconds < 60
    for lines in outcome.errors:
        assert len(lines) <= 1, lines
    kills.finished(project, tmp_path / "run", one.processes)
    assert kills.differences(tmp_path / "run", project / f"undisturbed-{one.processes}") == []
