"""Table 2: one teacher or three, by TopK-PercPos 95 % with the best 4; and sampled survivors.

Ensembles are those of the paper: all negatives of a query from one teacher drawn at random (cross),
or the best of each (intra), repeated passages kept or not.
"""

import dataclasses

from benchmarks.lab.grid import Grid
from benchmarks.lab.grids.rules import GRID as RULES

_PERC_POS = RULES.axes["rule"]["perc_pos"]
_THREE = {"mining.teachers": ("teacher", "l3", "bm25")}

GRID: Grid = dataclasses.replace(
    RULES,
    axes={
        "negatives": {
            "single": RULES.axes["teacher"]["L6"] | _PERC_POS,
            "cross": _PERC_POS | _THREE | {"mining.ensemble": "cross"},
            "intra": _PERC_POS | _THREE | {"mining.ensemble": "intra"},
            "intra_dedup": _PERC_POS | _THREE | {"mining.ensemble": "intra_dedup"},
            "sampled_10": _PERC_POS | {"mining.sampling": "softmax"},
            "top1_sampled_10": _PERC_POS | {"mining.sampling": "top1_softmax"},
        }
    },
    baseline=("negatives", "single"),
    second="",
    without=(),
)
