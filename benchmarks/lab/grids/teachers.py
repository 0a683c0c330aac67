"""Table 1: teachers by TopK-PercPos 95 % with the best 4; and random negatives."""

import dataclasses

from benchmarks.lab.grid import Grid
from benchmarks.lab.grids.rules import GRID as RULES

_PERC_POS = RULES.axes["rule"]["perc_pos"]

GRID: Grid = dataclasses.replace(
    RULES,
    axes={
        "teacher": {
            "BM25": RULES.axes["teacher"]["BM25"] | _PERC_POS,
            "random": RULES.axes["rule"]["random"],
            "L3": RULES.axes["teacher"]["L3"] | _PERC_POS,
            "L6": RULES.axes["teacher"]["L6"] | _PERC_POS,
        }
    },
    baseline=("teacher", "BM25"),
    second="random",
    without=(),
)
