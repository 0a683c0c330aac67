"""Whose scores distillation fits: one teacher's, several averaged, a cross-encoder's.

All mine with MiniLM-L6 but `cross_mined`, whose candidates a cross-encoder rescores. Needs
NVRET_CROSS, a folder of cross-encoders by the name of the set, made by

    python -m benchmarks.lab.cross_encoder banking77 --out=$NVRET_CROSS
    python -m benchmarks.lab.cross_encoder medquad --steps=80 --out=$NVRET_CROSS
"""

import dataclasses

from benchmarks.lab.grid import SET_NAME, Grid, Values
from benchmarks.lab.grids.beyond import FITTED, KL, PERC_POS, RULES

SETS = ("banking77", "medquad", "squad")


def fitted(*teachers: str) -> Values:
    """The candidates of L6 with the calibrated mean of these teachers' scores."""
    return FITTED | KL | {"mining.targets": teachers}


def pair_length(name: str) -> Values:
    """As many tokens of a pair as the set's teachers read of its two texts."""
    values = RULES.sets[name].values
    return {"rescorer.length": values["teacher.query_length"] + values["teacher.passage_length"]}


_CROSS = {"rescorer.model": f"$NVRET_CROSS/{SET_NAME}"}
_APART = _CROSS | {"rescorer.order": "unchanged"}  # mining does not read it

GRID: Grid = dataclasses.replace(
    RULES,
    sets={
        name: dataclasses.replace(
            RULES.sets[name], values=RULES.sets[name].values | pair_length(name)
        )
        for name in SETS
    },
    axes={
        "targets": {
            "contrast": PERC_POS,
            "L6": FITTED | KL,
            "L6_calibrated": fitted("teacher"),
            "L6_L3": fitted("teacher", "l3"),
            "L6_BM25": fitted("teacher", "bm25"),
            "L6_L3_BM25": fitted("teacher", "l3", "bm25"),
            "cross": fitted("rescorer") | _APART,
            "L6_cross": fitted("teacher", "rescorer") | _APART,
            "cross_mined": PERC_POS | _CROSS | {"rescorer.order": "rescored", "rescorer.depth": 32},
        }
    },
    baseline=("targets", "contrast"),
    second="L6",
    without=[{"set": "squad", "targets": name} for name in ("cross", "L6_cross", "cross_mined")],
)
