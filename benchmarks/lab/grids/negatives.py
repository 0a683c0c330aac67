"""What each rule mines from each teacher, without training: Figure 3 and Table 6.

False negatives are hidden positives among the mined, which a judge need not find. The overlap is of
the four negatives per query of two teachers.
"""

import dataclasses

from benchmarks.lab.grid import Grid
from benchmarks.lab.grids.rules import GRID as RULES

# Random negatives are a teacher here.
_RULES = {name: values for name, values in RULES.axes["rule"].items() if name != "random"}

GRID: Grid = dataclasses.replace(
    RULES,
    axes={
        "teacher": {
            **RULES.axes["teacher"],
            "random": {"mining.teachers": ("random",)},
        },
        "rule": _RULES,
    },
    without=(
        *RULES.without,
        *({"teacher": "random", "rule": rule} for rule in _RULES if rule != "naive"),
    ),
    seeds=(0,),
    until="mine",
)
