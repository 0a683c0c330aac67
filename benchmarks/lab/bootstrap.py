"""The interval of a paired difference over queries and seeds.

Two runs of one seed see the same queries: their difference is paired by query and by seed. Which
queries and which seeds there are is chance, so both are resampled, each with replacement: a
resample of the difference is the mean over its seeds of the mean over its queries. Several data
sets are resampled each by itself and count the same.

A few seeds resampled make an interval somewhat too narrow (by a factor of √(S / (S − 1)) for their
part of the variance); it is what can be had of them, and still wider than that of queries alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

_MOST = 10_000_000  # draws in memory at a time


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % interval.

    Attributes:
        mean, low, high: of it.
        seeds: how many are behind it; at least, over the data sets.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} … {self.high:+.4f})"


def paired(deltas: Sequence[np.ndarray], *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """The difference of two ways, with its interval.

    Args:
        deltas: for each data set float [S, Q], other minus one, by seed and query.
        resamples: how many means are drawn.
        seed: of numpy's default generator.
    """
    total_r = np.zeros(resamples)
    for place, delta_sq in enumerate(deltas):
        seeds, queries = delta_sq.shape
        seeds_rs = _weights(resamples, seeds, (seed, place, 0))
        pieces = -(-resamples * queries // _MOST)
        by_seed_rs = np.concatenate(
            [
                _weights(-(-resamples // pieces), queries, (seed, place, 1 + piece)) @ delta_sq.T
                for piece in range(pieces)
            ]
        )[:resamples]
        total_r += (seeds_rs * by_seed_rs).sum(axis=1) / len(deltas)
    low, high = np.percentile(total_r, [2.5, 97.5])
    mean = float(np.mean([delta_sq.mean() for delta_sq in deltas]))
    return Difference(mean, float(low), float(high), min(len(d) for d in deltas))


@functools.lru_cache(maxsize=8)
def _weights(resamples: int, size: int, stream: tuple[int, ...]) -> np.ndarray:
    """How often each of `size` things is drawn, as a share, float32 [R, size].

    The comparisons of a table have the same numbers of seeds and queries, so they share these:
    drawing takes a hundred times as long as applying them.
    """
    rng = np.random.default_rng(stream)
    counts = rng.multinomial(size, np.full(size, 1 / size), size=resamples)
    return counts.astype(np.float32) / np.float32(size)
