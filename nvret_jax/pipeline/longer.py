"""Longer training: whether a finished training can be continued, and with what result.

More steps or epochs of the last stage, or further stages, continue from where training ended, if
the result is the same as with that length from the start. Two things prevent that:

* A learning rate that depends on the length of the stage (schedules 'linear' and 'cosine', and a
  warm-up given as a share): it would have differed from the first step on. A further stage has its
  own schedule and can always be added.
* Several data sets in one stage, which are distributed over its whole length.

If it cannot be continued, training is repeated, and the finished one is kept until the new one is
finished.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Mapping
from typing import Any

from etils import epath

from nvret_jax.artifacts.fingerprints import differing
from nvret_jax.pipeline.parts import stage_prefix
from nvret_jax.training.checkpoint import FINISHED, Finished, finished
from nvret_jax.training.options import BEST_KEYS


@dataclasses.dataclass(frozen=True)
class Longer:
    """How a finished training is continued, or why it is not.

    Attributes:
        grown: the stage that gets longer; '' where only stages are added.
        done: steps of the last stage that was trained.
        stage: its name.
        obstacle: why training starts over; '' if it continues.
    """

    grown: str
    done: int
    stage: str
    obstacle: str = ""

    def __str__(self) -> str:
        if self.obstacle:
            return (
                f"training starts over: {self.obstacle}; the finished one, of {self.done} steps, "
                f"is kept until then"
            )
        return f"continuing from step {self.done} of stage '{self.stage}'"


def plan(
    old: Mapping[str, Any], new: Mapping[str, Any], folder: epath.Path, *, needs_best: bool
) -> Longer | None:
    """How a finished training is used with new inputs; None if it cannot be used.

    Args:
        old, new: descriptions of the artefact; see `Artifact.described`.
        folder: of the finished one.
        needs_best: whether the best checkpoint of the last stage is the result.
    """
    before, after = old["parts"], new["parts"]
    stages, wanted = before.get("train.stages", []), after["train.stages"]
    if old.get("format") != new["format"] or not stages or wanted[: len(stages)] != stages:
        return None
    last = stages[-1]
    done = finished(folder / last)
    if done is None:
        return None
    changed = differing(before, after) - {"train.stages"}
    changed -= {key for key in changed if _of_new(key, before, stages, wanted)}
    at = stage_prefix(last)
    added = len(wanted) > len(stages)
    follows_best = added and after[f"{stage_prefix(wanted[len(stages)])}start"] == "best"
    if follows_best:
        best = {f"{at}{key}" for key in BEST_KEYS}
        same = all(old["config"].get(key) == after.get(key) for key in best)
        if not same or done.best is None:
            return None
        changed -= best
    length = {f"{at}steps", f"{at}epochs", f"{at}min_steps", f"{at}max_steps"}
    if changed - length:
        return None
    if not changed:
        return Longer("", done.steps, last)
    if not _longer(before, after, at, done):
        return None
    return Longer(last, done.steps, last, _obstacle(after, at, done, needs_best or follows_best))


def _of_new(key: str, before: Mapping[str, Any], stages: list[str], wanted: list[str]) -> bool:
    """Whether a part is irrelevant to the finished training: of a further stage, or its data."""
    if any(key.startswith(stage_prefix(name)) for name in wanted[len(stages) :]):
        return True
    if key.startswith("train_stages.") or key == "seed":
        return False
    of = key.partition(":")[0] if ":" in key else "train"
    return all(of not in before[f"{stage_prefix(name)}sets"] for name in stages)


def _longer(before: Mapping[str, Any], after: Mapping[str, Any], at: str, done: Finished) -> bool:
    if f"{at}steps" in after:
        return after[f"{at}steps"] >= done.steps
    bound = after.get(f"{at}max_steps", done.steps)
    if after.get(f"{at}min_steps", 0) < before.get(f"{at}min_steps", 0):
        return False
    return bound >= done.steps and after[f"{at}epochs"] >= before.get(f"{at}epochs", math.inf)


def _obstacle(after: Mapping[str, Any], at: str, done: Finished, needs_best: bool) -> str:
    schedule, warmup = after[f"{at}schedule"], after[f"{at}warmup"]
    if schedule != "constant":
        return (
            f"the learning rate of schedule '{schedule}' depends on the number of steps (schedule "
            "'constant', or a further stage, continues)"
        )
    if 0 < warmup < 1:
        return (
            f"a warm-up of {warmup:g} of the steps depends on their number (one in steps, or a "
            "further stage, continues)"
        )
    if len(after[f"{at}sets"]) > 1:
        return "several data sets are distributed over the whole stage (a further stage continues)"
    every = after.get(f"{at}eval_every", 0)
    if needs_best and done.best == done.steps and (every and done.steps % every):
        return "its best checkpoint is its last, which longer training would not have scored"
    return ""


def copy(folder: epath.Path, target: epath.Path, longer: Longer) -> None:
    """Puts the checkpoints to continue from into the folder of the new training; takes no space.

    Args:
        folder: of the finished training.
        target: an empty folder.
        longer: from `plan`.
    """

    def link(source: str, place: str) -> None:
        try:
            os.link(source, place)  # checkpoints are never changed in place
        except OSError:
            shutil.copy2(source, place)

    for child in epath.Path(folder).iterdir():
        if child.is_dir() and not child.name.endswith(".partial"):
            shutil.copytree(child, target / child.name, copy_function=link)
    if longer.grown:
        (target / longer.grown / FINISHED).unlink()
