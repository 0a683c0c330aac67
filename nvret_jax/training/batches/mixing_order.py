"""The mixing order: units of a stage are assigned to sources, in an order that needs no state.

Choices:

- The number of units of each source follows from the shares, by largest remainder, so the counts
  are exact, not random.
- The order consists of rounds of about `ROUND` units. A round has every source in proportion (its
  units up to the round's end are its part of the stage, rounded down) and is shuffled separately.
  So the mix is even over the stage, a source finishes one epoch before it begins the next, and the
  source and unit at position i follow from i and the seed alone. A single source keeps its own
  order.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

ROUND = 1024


def largest_remainder(total: int, parts: Sequence[Fraction]) -> list[int]:
    """Whole numbers in proportion to `parts` that sum to `total`; ties go to the first."""
    whole = sum(parts)
    quotas = [total * part / whole for part in parts]
    counts = [math.floor(quota) for quota in quotas]
    by_rest = sorted(range(len(parts)), key=lambda i: counts[i] - quotas[i])
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return counts


@dataclasses.dataclass(frozen=True)
class MixingOrder:
    """The order of a stage's units: position i -> (source, number of its unit).

    Attributes:
        counts: units of each source.
        seed: of the order.
    """

    counts: tuple[int, ...]
    seed: int

    def stretch(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and their units at positions first..stop, int64 [stop - first] each."""
        parts = list(self._parts(first, stop))
        sources, units = (np.concatenate(side) for side in zip(*parts, strict=True))
        return sources, units

    def _parts(self, first: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        index = self._round_of(first)
        while first < stop:
            begin, sources, units = _round(self.counts, self.seed, self._rounds, index)
            cut = slice(first - begin, stop - begin)
            yield sources[cut], units[cut]
            first, index = begin + len(sources), index + 1

    @property
    def _rounds(self) -> int:
        return -(-sum(self.counts) // ROUND)

    def _round_of(self, place: int) -> int:
        # Rounding down puts a round's beginning at or slightly before its even part of the whole.
        index = place * self._rounds // sum(self.counts)
        while sum(_dealt(self.counts, self._rounds, index + 1)) <= place:
            index += 1
        return index


def _dealt(counts: tuple[int, ...], rounds: int, index: int) -> list[int]:
    """Units of each source in the rounds before number `index`."""
    return [count * index // rounds for count in counts]


@functools.lru_cache(maxsize=16)
def _round(
    counts: tuple[int, ...], seed: int, rounds: int, index: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """Where a round begins, and its sources and their units in shuffled order."""
    before, after = _dealt(counts, rounds, index), _dealt(counts, rounds, index + 1)
    held = [stop - start for start, stop in zip(before, after, strict=True)]
    ends = np.cumsum(held)
    size = int(ends[-1])
    # The raw stream of a bit generator is the same in every version of NumPy; Grain's index shuffle
    # is, too, but takes a thousand times as long for a range this short.
    order = np.argsort(np.random.PCG64([seed, index]).random_raw(size), kind="stable")
    sources = np.searchsorted(ends, order, side="right")
    units = np.empty(size, np.int64)
    for source, start in enumerate(before):
        mine = sources == source
        units[mine] = start + np.arange(np.count_nonzero(mine))
    sources.flags.writeable = units.flags.writeable = False
    return sum(before), sources, units
