"""One teacher, or one after the other: two stages of half the steps against one of all.

Each stage has a learning rate that rises and falls, so two stages of the same teacher show what
that alone changes. In the last level the candidates of the second half are mined anew by the
student that the first half trained.
"""

import dataclasses

from benchmarks.lab.grid import Grid, Values
from benchmarks.lab.grids.rules import GRID as RULES

_STEPS = 120
_PERC_POS = RULES.axes["rule"]["perc_pos"] | {"mining.teachers": ("teacher",)}


def _first(*teachers: str) -> Values:
    """Half of the steps with negatives of these teachers, then half with those of L6."""
    return _PERC_POS | {
        "sets.first.teachers": teachers,
        "train_stages.first.sets": ("first",),
        "train_stages.first.steps": _STEPS // 2,
        "train_stages.second.sets": ("train",),
        "train_stages.second.steps": _STEPS // 2,
    }


GRID: Grid = dataclasses.replace(
    RULES,
    axes={
        "stages": {
            "L6": _PERC_POS,
            "L6_L6": _first("teacher"),
            "BM25_L6": _first("bm25"),
            "L3_L6": _first("l3"),
            "L6_student": _PERC_POS | {"rounds": 2, "train.steps": _STEPS // 2},
        }
    },
    values=dict(RULES.values) | {"train.steps": _STEPS},
    baseline=("stages", "L6"),
    second="",
    without=(),
)
