"""Data sets where a fifth of the training queries has another one's positive, and what mends that.

A pair whose positive the teacher ranks far down is left out, or counts little. The same on the sets
as they are shows what wrong positives cost, and what leaving out costs where none is wrong.
"""

import dataclasses

from benchmarks.lab.grid import Grid
from benchmarks.lab.grids.beyond import GUIDE, PERC_POS, RULES, WEIGHTS

SHUFFLED = 0.2
RANK = "mining.positives.max_rank"
WEIGH = PERC_POS | WEIGHTS | {"mining.positives.doubtful": "weigh"}

GRID: Grid = dataclasses.replace(
    RULES,
    sets={
        f"{name}{ending}": dataclasses.replace(RULES.sets[name], shuffled=share)
        for name in ("squad", "medquad")
        for ending, share in (("", 0.0), ("_wrong", SHUFFLED))
    },
    axes={
        "teacher": {"L6": RULES.axes["teacher"]["L6"]},
        "positives": {
            "all": PERC_POS,
            "drop_10": PERC_POS | {RANK: 10},
            "drop_50": PERC_POS | {RANK: 50},
            "weigh_10": WEIGH | {RANK: 10},
            "weigh_50": WEIGH | {RANK: 50},
            "mask_guide": PERC_POS | GUIDE,
            "mask_guide_drop_50": PERC_POS | GUIDE | {RANK: 50},
        },
    },
    baseline=("positives", "all"),
    second="",
    without=(),
)
