"""Results of cells: one long CSV, and the differences between levels of a grid."""

from __future__ import annotations

import csv
import io
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.lab.bootstrap import Difference, paired
from benchmarks.lab.grid import SEED, SET

Result = dict[str, Any]  # of a cell, see `cell.read`
Block = dict[str, dict[str, Result]]  # level of the compared axis -> seed -> result
_SINGLE = (
    "ndcg_cut_10",
    "recall_100",
    "false_negative_share",
    "hardness",
    "slots",
    "seconds",
    "cpu_seconds",
)


def load(labels: Sequence[tuple[Mapping[str, str], pathlib.Path]]) -> list[Result]:
    """The results that are there, each under the label asked for.

    A run may be a cell of several labels: with random negatives, whichever teacher is named.
    """
    found = []
    for label, file in labels:
        if file.exists():
            found.append(json.loads(file.read_text()) | {"label": dict(label)})
    return found


def long_csv(results: Sequence[Result]) -> str:
    """A row for each cell and measure, and for each step with a dev score."""
    axes = list(results[0]["label"]) if results else []
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write([*axes, "key", "measure", "step", "value"])
    for result in results:
        cell = [*result["label"].values(), result["key"][:16]]
        for name in _SINGLE:
            if name in result:
                write([*cell, name, "", f"{result[name]:.6g}"])
        if "before" in result:
            write([*cell, "before_ndcg_cut_10", "", f"{result['before']['ndcg_cut_10']:.6g}"])
        for step, value in result.get("dev", ()):
            write([*cell, "dev_ndcg_cut_10", step, f"{value:.6g}"])
    return out.getvalue()


def blocks(results: Sequence[Result], axis: str) -> Iterator[tuple[dict[str, str], Block]]:
    """Cells that differ in one axis and the seed alone: (their other levels, the cells)."""
    found: dict[tuple, Block] = {}
    for result in results:
        label = result["label"]
        rest = tuple((k, v) for k, v in label.items() if k not in (axis, SEED))
        found.setdefault(rest, {}).setdefault(label[axis], {})[label[SEED]] = result
    for rest, block in sorted(found.items(), key=lambda item: [v for _, v in item[0]]):
        yield dict(rest), block


def deltas(one: Mapping[str, Result], other: Mapping[str, Result]) -> np.ndarray | None:
    """other - one of nDCG@10, float [S, Q], over the seeds that both have; None: no such seed."""
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    queries = sorted(one[seeds[0]]["per_query"])
    return np.array(
        [[other[s]["per_query"][q] - one[s]["per_query"][q] for q in queries] for s in seeds]
    )


def difference(one: Mapping[str, Result], other: Mapping[str, Result]) -> Difference | None:
    """other - one of one block, with its interval; None where no seed is in both."""
    delta_sq = deltas(one, other)
    return None if delta_sq is None else paired([delta_sq])


def over_sets(
    found: Sequence[tuple[dict[str, str], Block]], baseline: str, level: str
) -> dict[tuple, tuple[int, Difference]]:
    """level - baseline, a mean over data sets: other levels -> (how many data sets, difference)."""
    parts: dict[tuple, list[np.ndarray]] = {}
    for rest, block in found:
        if baseline in block and level in block:
            delta_sq = deltas(block[baseline], block[level])
            if delta_sq is not None:
                key = tuple((k, v) for k, v in rest.items() if k != SET)
                parts.setdefault(key, []).append(delta_sq)
    return {key: (len(part), paired(part)) for key, part in parts.items()}


def mean_of(cells: Mapping[str, Result], measure: str) -> float:
    """The mean of a measure over seeds; nan where a cell lacks it."""
    return float(np.mean([cell.get(measure, np.nan) for cell in cells.values()]))


def curve(cells: Mapping[str, Result]) -> list[tuple[int, float]]:
    """(step, mean dev nDCG@10 over seeds), at the steps that all seeds have."""
    points = [dict(map(tuple, cell["dev"])) for cell in cells.values()]
    steps = sorted(set.intersection(*map(set, points))) if points else []
    return [(step, float(np.mean([p[step] for p in points]))) for step in steps]


def steps_ratio(
    one: Mapping[str, Result], other: Mapping[str, Result], resamples: int = 2000
) -> tuple[float, float, float] | None:
    """Steps that `other` needs to reach one's best dev score, as a share of those that one needs.

    Both curves are means over the same seeds, which the interval resamples.

    Args:
        one, other: cells by seed.
        resamples: how many.

    Returns:
        ratio, low, high; inf: never. None: no seed in both, or `one` is best before training.
    """
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    steps = [step for step, _ in one[seeds[0]]["dev"]]
    curves = np.array([[[v for _, v in cells[s]["dev"]] for s in seeds] for cells in (one, other)])
    if curves.shape[2] != len(steps):
        return None

    def ratio(weights_s: np.ndarray) -> float:
        first, second = weights_s @ curves
        best = int(first.argmax())
        step = reached(list(zip(steps, second.tolist(), strict=True)), float(first[best]))
        if not steps[best]:
            return math.nan
        return math.inf if math.isnan(step) else step / steps[best]

    rng = np.random.default_rng(0)
    count = len(seeds)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    mean = ratio(np.full(count, 1 / count))
    found = np.array([ratio(weights_s) for weights_s in draws])
    found = np.sort(np.where(np.isnan(found), math.inf, found))
    if math.isnan(mean):
        return None
    return mean, float(found[int(0.025 * resamples)]), float(found[int(0.975 * resamples) - 1])


def reached(points: Sequence[tuple[int, float]], target: float) -> float:
    """The step at which a curve first has a value, between points by a line; nan: never."""
    for i, (step, value) in enumerate(points):
        if value >= target:
            if i == 0 or value == points[i - 1][1]:
                return float(step)
            before, low = points[i - 1]
            return before + (step - before) * (target - low) / (value - low)
    return float("nan")
