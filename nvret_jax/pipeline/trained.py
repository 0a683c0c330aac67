"""The student: the artefact of its training, and the opened trained model."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.models.encoder import Encoder
from nvret_jax.options import blocks
from nvret_jax.pipeline import mine, start
from nvret_jax.pipeline import parts as parts_lib
from nvret_jax.pipeline.inputs import need
from nvret_jax.pipeline.state import Run, once
from nvret_jax.training.checkpoint import finished
from nvret_jax.training.initial import load_trained
from nvret_jax.training.metric_writer import read_metrics
from nvret_jax.training.options import Result
from nvret_jax.training.outcome import Outcome, outcome
from nvret_jax.training.sums import DamagedCheckpoint


@once
def artifact(run: Run) -> Artifact:
    """The student during and after training."""
    mined = {
        name: parts_lib.Mined(mine.artifact(set_run), set_run.student.all_parts(), set_run.about)
        for name, set_run in run.sets.items()
    }
    found = parts_lib.training_parts(run.config, run.training_stages, mined, run.about)
    return run.workdir.checkpoints(*found)


def parts(run: Run) -> dict[str, Any]:
    """What the student depends on, trained or not."""
    if not run.trains:
        return run.student.all_parts()
    last = list(run.training_stages.values())[-1]
    made = parts_lib.result_parts(run.config, result(run), last)
    return {"checkpoints": artifact(run), **made}


@once
def result(run: Run) -> Result:
    """Which weights are the trained student, as it takes effect."""
    is_scored = bool(run.dev_split) and run.student.spec.late is None
    last = list(run.training_stages.values())[-1]
    return blocks.read(Result, run.config.result).settled(is_scored and last.keep_best)


def dev_outcome(run: Run) -> Outcome | None:
    """Whether the finished training helped on dev; None where nothing says so."""
    if result(run).merges:  # what is made of several checkpoints has no score
        return None
    done = finished(artifact(run).path / list(run.training_stages)[-1])
    return outcome(read_metrics(run.workdir.metrics), done, result(run).pick)


@once
def student(run: Run) -> Encoder:
    """The trained student.

    Raises:
        InputError: it is missing or out of date; `Damaged` if a checkpoint is damaged.
    """
    made = need(artifact(run))
    how = dataclasses.asdict(result(run)) | {"first": functools.partial(start.student, run)}
    try:
        return load_trained(run.student.encoder, made.path, **how)
    except DamagedCheckpoint as error:
        if made.path.resolve() not in error.folder.resolve().parents:
            raise
        stage = error.folder.name
        made.note_damage({f"{stage}/{name}": why for name, why in error.lost.items()})
        need(made)  # which says so
        raise
