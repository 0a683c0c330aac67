"""Rounds: mine, train, and mine again with the trained student.

Round r > 1 uses the student of round r-1 as its teacher and trains it further (ANCE's idea, Xiong
et al. 2021, once per round instead of all the time). Every round but the last is in a separate
folder, `rounds/<r>`, and ends with an export, which the next one loads: an ordinary model, so a
round depends only on files and resumes like any run.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict, config_dict

from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.pipeline.state import Run

_IN_A_ROUND = ("embed", "search", "mine", "train")
_OWN = ("pooling", "prompt_in_pooling", "bidirectional")  # which an export already contains


def stages_of_round(stages: Sequence[str]) -> list[str]:
    """The stages of every round but the last, if requested."""
    found = [name for name in stages if name in _IN_A_ROUND]
    return [*found, "export"] if "train" in found else found


def run_of(config: ConfigDict, workdir: Workdir, number: int) -> Run | None:
    """Round `number`, from 1, of a run; None while the previous round has no student yet."""
    last = number == config.rounds
    if number == 1 and last:
        return Run(config, workdir)
    own = config.copy_and_resolve_references()
    if number > 1:
        before = workdir.path / f"rounds/{number - 1}/export"
        if not (before / "modules.json").exists():
            return None
        own.student.update(_next(own.student, str(before)))
        own.teacher.update({key: own.student[key] for key in own.teacher})
        own.mining.teachers = ("teacher",)
        for block in own.sets.values():
            block.teachers = ()
            for kind in ("query", "passage"):
                block[f"teacher_{kind}_prompt"] = block[f"{kind}_prompt"]
    if last:
        return Run(own, workdir, started=config.student)
    own.name = f"{config.name}: round {number}"
    own.stages = tuple(stages_of_round(config.stages))
    return Run(own, workdir.below(f"rounds/{number}", own))


def _next(student: ConfigDict, folder: str) -> ConfigDict:
    """The block of the student that continues from `folder`."""
    block = student.copy_and_resolve_references()
    block.model, block.adapter, block.projection = folder, "", 0
    for key in _OWN:
        block[key] = config_dict.placeholder(bool if key == "bidirectional" else str)
    return block
