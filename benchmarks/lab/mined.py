"""Tables of a grid whose cells end with their negatives: false ones by rule, overlap of teachers.

Nothing is drawn in these cells but random negatives, so an interval is over queries alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.lab import results as results_lib
from benchmarks.lab.grid import SEED, SET, Grid
from benchmarks.lab.results import Result

_RESAMPLES = 2000


def tables(grid: Grid, found: Sequence[Result]) -> str:
    """False negatives and hardness of every cell, then the overlap of the first axis' levels."""
    out = [_shares(grid, [one for one in found if one["label"][SET] == name]) for name in grid.sets]
    out += _overlaps(next(iter(grid.axes)), found)
    return "\n\n".join(filter(None, out)) or "No cell has finished."


def _shares(grid: Grid, found: Sequence[Result]) -> str:
    if not found:
        return ""
    axes = list(grid.axes)
    head = [*axes, "queries", "negatives", "false negatives", "95 % interval", "relative score"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for one in found:
        share, low, high = share_of(one.get("false_negatives", {}))
        row = [one["label"][axis] for axis in axes]
        row += [str(one["rows"]), str(one["slots"])]
        known = math.isfinite(share)
        row += (
            [f"{100 * share:.1f} %", f"{100 * low:.1f} … {100 * high:.1f} %"] if known else ["", ""]
        )
        row.append(f"{one['hardness']:.3f}" if "hardness" in one else "")
        lines.append("| " + " | ".join(row) + " |")
    return f"**{found[0]['label'][SET]}**\n\n" + "\n".join(lines)


def share_of(counts: Mapping[str, Sequence[int]]) -> tuple[float, float, float]:
    """The share of false negatives, with its 95 % bootstrap interval over queries.

    Args:
        counts: query id -> [negatives, false ones].

    Returns:
        share, low, high; nan without negatives.
    """
    slots, false = np.array(list(counts.values()), np.float64).reshape(-1, 2).T
    if not slots.sum():
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(slots), np.full(len(slots), 1 / len(slots)), size=_RESAMPLES)
    low, high = np.percentile(weights @ false / np.maximum(weights @ slots, 1), [2.5, 97.5])
    return float(false.sum() / slots.sum()), float(low), float(high)


def _overlaps(axis: str, found: Sequence[Result]) -> list[str]:
    """A table for each data set: the overlap of each two levels of the axis, by the other axes."""
    out = []
    for name in dict.fromkeys(one["label"][SET] for one in found):
        lines: dict[str, dict[str, str]] = {}
        for rest, block in results_lib.blocks(found, axis):
            if rest[SET] != name:
                continue
            column = ", ".join(v for k, v in rest.items() if k not in (SET, SEED))
            for one, other in itertools.combinations(block, 2):
                pair = [next(iter(block[level].values()))["negatives"] for level in (one, other)]
                value, low, high = jaccard(*pair)
                shown = f"{value:.3f} ({low:.3f} … {high:.3f})"
                lines.setdefault(f"{one} – {other}", {})[column] = shown
        columns = list(dict.fromkeys(c for line in lines.values() for c in line))
        if columns:
            head = f"| {name}: overlap of | " + " | ".join(columns) + " |"
            rule = "|---" * (len(columns) + 1) + "|"
            body = [
                f"| {pair} | " + " | ".join(line.get(c, "") for c in columns) + " |"
                for pair, line in lines.items()
            ]
            out.append("\n".join([head, rule, *body]))
    return out


def jaccard(
    one: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]
) -> tuple[float, float, float]:
    """The mean over queries of |A ∩ B| / |A ∪ B| of their negatives, with its 95 % interval.

    Args:
        one, other: query id -> passage ids. Queries without negatives in both do not count.
    """
    values = []
    for query in sorted(set(one) | set(other)):
        a, b = set(one.get(query, ())), set(other.get(query, ()))
        if a | b:
            values.append(len(a & b) / len(a | b))
    if not values:
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(0)
    count = len(values)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) @ np.array(values)
    low, high = np.percentile(draws / count, [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)
