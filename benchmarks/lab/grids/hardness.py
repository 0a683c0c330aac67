"""Harder negatives that count more, in each of three recipes.

They are TopK-PercPos, the same with the mask by the teacher, and the recommended one. Where
labels are incomplete, the hardest negatives are the false ones.
"""

import dataclasses

from benchmarks.lab.grid import Grid, Values
from benchmarks.lab.grids import beyond

_METHODS = beyond.GRID.axes["method"]


def harder(name: str, hardness: float) -> Values:
    """A recipe with this hardness."""
    return dict(_METHODS[name]) | {"train.loss.hardness": hardness}


GRID: Grid = dataclasses.replace(
    beyond.GRID,
    axes={
        "teacher": beyond.GRID.axes["teacher"],
        "method": {
            "perc_pos": _METHODS["perc_pos"],
            "perc_pos_25": harder("perc_pos", 0.25),
            "perc_pos_50": harder("perc_pos", 0.5),
            "perc_pos_100": harder("perc_pos", 1.0),
            "mask_guide": _METHODS["mask_guide"],
            "mask_guide_25": harder("mask_guide", 0.25),
            "recipe": _METHODS["budget_20_8_guide"],
            "recipe_25": harder("budget_20_8_guide", 0.25),
        },
    },
    second="recipe",
)
