"""Figure 1: the value of each rule."""

import dataclasses

from benchmarks.lab.grid import Grid, Values
from benchmarks.lab.grids.rules import GRID as RULES

VALUES: dict[str, Values] = {"naive": {"mining.rule": "naive"}} | {
    f"{rule} {value:g}": {"mining.rule": rule, f"mining.{key}": value}
    for rule, key, values in (
        ("perc_pos", "percent", (0.7, 0.8, 0.9, 0.95, 0.98, 1.05)),
        ("margin_pos", "margin", (0.0, 0.05, 0.1, 0.2, 0.3)),
        ("shifted", "shift", (5, 10, 20, 50)),
        ("abs", "threshold", (0.4, 0.5, 0.6, 0.7, 0.8)),
    )
    for value in values
}

GRID: Grid = dataclasses.replace(
    RULES,
    axes={"teacher": {"L6": RULES.axes["teacher"]["L6"]}, "value": VALUES},
    baseline=("value", "naive"),
    second="perc_pos 0.95",
    without=(),
)
