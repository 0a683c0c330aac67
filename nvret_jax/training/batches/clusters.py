"""An order of rows in which a batch has similar queries: its in-batch negatives are harder.

Passages of rows drawn at random have little in common with a query, so most of a batch teaches it
nothing. Here a batch consists of clusters: as many rows as `size` says that are close by the
vectors of a teacher (batch mining by the teacher's clusters, arXiv 2505.11293). Choices:

- A row's vector is its query's plus the mean of its positives', each of unit length. A query is
  contrasted with the positives of other rows, and a product of two such sums holds the scores of
  both queries for the other's positive; vectors of queries alone, or of passages alone, hold
  neither.
- Clusters have equal size, so they fill batches without a rest, and every row is in one of them.
  All rows are halved, and the halves again, down to the clusters. Rows are halved by their
  coordinate along one direction: the difference between the means of two halves of a sample, which
  is improved a few times (2-means with equal parts), starting from two rows drawn at random.
- Every epoch halves anew, from other rows, so rows meet others. The order follows from the vectors
  and (seed, epoch, batch size) alone.
- Vectors are whole numbers of 8 bits, and directions have so few bits that float32 sums are exact,
  in any order of summation. So all processes, and a run that is resumed elsewhere, have the same
  order.

Memory: D bytes per row on every process, and 8 bytes per row and epoch. Halving n rows costs n·D
products per level, log2(n / size) levels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nvret_jax.mining.negatives import Negatives

_WORD = 3  # separates the seed of these orders from other draws with (seed, number)
_BLOCK = 32_768  # rows of vectors that are read, or multiplied, at a time
_SAMPLE = 1024  # rows that choose a direction
_ROUNDS = 3  # times that it is improved
_MOST = 127  # largest entry of a vector
_TYPICAL = 32  # size of a usual entry: 1 / sqrt(D) of a unit vector
_BATCHES = 64  # of which likeness is a mean
_EXACT = 2**24  # whole numbers below it, and their sums, are exact in float32


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """The vectors of the rows of a table of negatives, and the size of clusters.

    Attributes:
        vectors_rd: int8 [R, D].
        size: rows of a cluster; it divides the batch size, or is a multiple of it.
        made: orders so far: one takes longer than a step, and steps of many epochs are sampled
            before the first.
    """

    vectors_rd: np.ndarray
    size: int
    made: dict[tuple[int, int, int], np.ndarray] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    @classmethod
    def of(cls, negatives: Negatives, queries_qd: Any, passages_nd: Any, size: int) -> Clusters:
        """From the vectors of a data set by one encoder.

        Args:
            negatives: the table.
            queries_qd, passages_nd: vectors of all queries and passages, of any float type, read by
                slices of rows: arrays, or stores of embeddings.
            size: rows of a cluster.
        """
        positives, place = np.unique(negatives.positive_rows.values, return_inverse=True)
        passages_pd = _units(passages_nd, positives)
        places = negatives.positive_rows.like(place.ravel())
        own, of_query = np.unique(negatives.query_rows, return_inverse=True)
        queries_ud = _units(queries_qd, own)[of_query.ravel()]
        vectors_rd = np.empty((len(negatives), passages_pd.shape[1]), np.int8)
        for rows in _blocks(len(negatives)):
            mean_rd = np.zeros((len(rows), vectors_rd.shape[1]), np.float32)
            part = places.take(rows)
            for start in range(int(part.counts.max(initial=0))):
                there = np.flatnonzero(part.counts > start)
                mean_rd[there] += passages_pd[part.values[part.offsets[there] + start]]
            mean_rd /= np.maximum(part.counts, 1)[:, None].astype(np.float32)
            vectors_rd[rows] = _whole(queries_ud[rows] + mean_rd)
        return cls(vectors_rd, size)

    def order(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
        """All row numbers in the order of an epoch, int64 [R].

        The epochs of a set follow each other without a rest, so a batch may hold the end of one
        and the beginning of the next. Clusters begin where batches begin.
        """
        key = seed, epoch, batch_size
        if key not in self.made:
            self.made[key] = self._order(*key)
        return self.made[key]

    def _order(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
        count = len(self.vectors_rd)
        draws = np.random.PCG64([seed, epoch, _WORD])
        begun = min(count, -epoch * count % min(self.size, batch_size))
        clusters, rest = divmod(count - begun, self.size)
        sizes = [size for size in (begun, *[self.size] * clusters, rest) if size]
        rows = self._halved(sizes, draws)
        keys = draws.random_raw(count)
        # Rows of a cluster are shuffled, and so are the whole clusters; a part of one is shorter
        # and keeps its place at either end.
        of_cluster = np.repeat(np.arange(len(sizes)), sizes)
        rows = rows[np.lexsort((keys, of_cluster))]
        shuffled = np.argsort(draws.random_raw(clusters), kind="stable")
        end = begun + clusters * self.size
        whole = rows[begun:end].reshape(clusters, self.size)[shuffled]
        return np.concatenate([rows[:begun], whole.ravel(), rows[end:]])

    def likeness(self, order: np.ndarray, batch_size: int) -> float:
        """The mean cosine of two rows of a batch, over some batches of an order."""
        return float(np.mean(list(self._cosines(order, batch_size))))

    def _cosines(self, order: np.ndarray, batch_size: int) -> Iterator[float]:
        batches = max(1, len(order) // batch_size)
        for number in np.unique(np.linspace(0, batches - 1, _BATCHES).astype(int)).tolist():
            rows = order[number * batch_size : (number + 1) * batch_size]
            unit_bd = self.vectors_rd[rows].astype(np.float64)
            unit_bd /= np.maximum(np.linalg.norm(unit_bd, axis=1, keepdims=True), 1e-12)
            total, pairs = float((unit_bd.sum(axis=0) ** 2).sum()), len(rows) * (len(rows) - 1)
            yield (total - len(rows)) / max(1, pairs)

    def _halved(self, sizes: Sequence[int], draws: np.random.PCG64) -> np.ndarray:
        """Row numbers such that consecutive parts of these sizes have similar rows."""
        rows = np.arange(len(self.vectors_rd))
        ends = np.cumsum([0, *sizes])
        waiting = [(0, len(sizes))]
        while waiting:
            first, stop = waiting.pop()
            if stop - first < 2:
                continue
            middle = (first + stop) // 2
            own = rows[ends[first] : ends[stop]]
            along_n = self._along(own, draws)
            rows[ends[first] : ends[stop]] = own[np.argsort(along_n, kind="stable")]
            waiting += [(middle, stop), (first, middle)]
        return rows

    def _along(self, rows: np.ndarray, draws: np.random.PCG64) -> np.ndarray:
        """The coordinates of rows along a direction that separates them, float32 [n]."""
        poles = draws.random_raw(2) % np.uint64(len(rows))
        stride = -(-len(rows) // _SAMPLE)
        sample_sd = self.vectors_rd[rows[int(poles[0]) % stride :: stride]].astype(np.float32)
        one, other = self.vectors_rd[rows[poles.astype(np.int64)]].astype(np.int64)
        direction_d = self._direction(one - other)
        half = len(sample_sd) // 2
        for _ in range(_ROUNDS):
            order = np.argsort(sample_sd @ direction_d, kind="stable")
            low_d = sample_sd[order[:half]].sum(axis=0, dtype=np.int64)
            high_d = sample_sd[order[half:]].sum(axis=0, dtype=np.int64)
            direction_d = self._direction(high_d * half - low_d * (len(sample_sd) - half))
        return np.concatenate(
            [
                self.vectors_rd[rows[part]].astype(np.float32) @ direction_d
                for part in _blocks(len(rows))
            ]
        )

    def _direction(self, wanted_d: np.ndarray) -> np.ndarray:
        """A direction of whole numbers whose products with rows are exact, float32 [D]."""
        most = max(1, min(_MOST, (_EXACT - 1) // (_MOST * len(wanted_d))))
        largest = max(1, int(np.abs(wanted_d).max(initial=0)))
        return np.rint(wanted_d * (most / largest)).astype(np.float32)


def _blocks(count: int) -> Iterator[np.ndarray]:
    """Numbers below `count`, in blocks."""
    for start in range(0, count, _BLOCK):
        yield np.arange(start, min(start + _BLOCK, count))


def _units(vectors_nd: Any, rows: np.ndarray) -> np.ndarray:
    """Some rows, ascending, at unit length times `_TYPICAL` · sqrt(D), as int8 [len(rows), D]."""
    out = np.zeros((len(rows), vectors_nd.shape[1]), np.int8)
    for start in range(0, len(vectors_nd), _BLOCK):
        first, last = np.searchsorted(rows, [start, start + _BLOCK])
        if first < last:
            block = np.asarray(vectors_nd[start : start + _BLOCK])
            out[first:last] = _whole(block[rows[first:last] - start])
    return out


def _whole(vectors_nd: np.ndarray) -> np.ndarray:
    """Vectors at one length, as whole numbers; large entries are cut off, int8 [N, D]."""
    vectors_nd = vectors_nd.astype(np.float64)
    # Neither the largest entry nor a sum of squares of whole numbers depends on an order of
    # summation.
    largest = np.abs(vectors_nd).max(axis=1, keepdims=True, initial=0)
    scaled_nd = np.rint(vectors_nd * (2.0**15 / np.where(largest > 0, largest, 1)))
    norm = np.sqrt((scaled_nd**2).sum(axis=1, keepdims=True))
    scaled_nd *= _TYPICAL * np.sqrt(vectors_nd.shape[1]) / np.maximum(norm, 1)
    return np.clip(np.rint(scaled_nd), -_MOST, _MOST).astype(np.int8)
