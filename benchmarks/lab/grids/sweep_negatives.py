"""What each value of each rule mines, without training: the other axis of Figure 1."""

import dataclasses

from benchmarks.lab.grid import Grid
from benchmarks.lab.grids.sweep import GRID as SWEEP

GRID: Grid = dataclasses.replace(SWEEP, seeds=(0,), until="mine")
