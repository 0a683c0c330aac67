"""The interface of everything that ranks a corpus for the queries of a run.

A teacher is anything that answers two questions about numbered queries and numbered passages: which
passages rank first, and what score a given passage has. Vectors answer with a matrix product, BM25
with term statistics, a run file with stored scores. Mining knows only this interface, so a new kind
of teacher is one class.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError

# (queries_qd, k) -> scores_qk float32, rows_qk int32 (-1 past the end)
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class Ranker(Protocol):
    """A teacher applied to Q queries and N passages.

    Attributes:
        queries: Q; queries are numbered 0..Q-1.
        passages: N; passages are numbered by corpus row, 0..N-1.
        deep: whether `rank` can reach every passage. False for a run file, which has scores only
            for the passages it lists.
    """

    queries: int
    passages: int
    deep: bool

    def rank(
        self,
        numbers: np.ndarray,
        k: int,
        *,
        ceiling_q: np.ndarray | None = None,
        exclude: Sequence[Sequence[int]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of some queries, in (score descending, row ascending) order.

        Args:
            numbers: int [S], which queries.
            k: at most N.
            ceiling_q: [S]; only passages scoring strictly below it are returned.
            exclude: per query of `numbers` the rows that are never returned.

        Returns:
            scores [S, k] float32 and rows [S, k] int32; where fewer than k are left, score -inf
            and row -1 at the end.

        Raises:
            InputError: invalid k, ceilings or rows.
        """
        ...

    def score(self, numbers: np.ndarray, pairs: Ragged) -> np.ndarray:
        """The scores of given passages, on the scale of `rank`.

        Args:
            numbers: int [S], which queries.
            pairs: int32 rows, one list per query of `numbers`.

        Returns:
            float32 [len(pairs.values)]; finite.
        """
        ...


class DenseRanker:
    """Vectors and a search index over them.

    Attributes:
        queries, passages, deep: see `Ranker`.
        passages_nd: the vectors searched.
    """

    deep = True

    def __init__(
        self,
        queries_qd: np.ndarray,
        passages_nd,
        make_index: Callable,
        resume: os.PathLike | str | None = None,
    ):
        """
        Args:
            queries_qd: float [Q, D].
            passages_nd: float [N, D], an array or a store that slices by rows.
            make_index: called once with the passages, when the first search needs it.
            resume: a folder in which streamed searches save their progress, and from which they
                continue.
        """
        self.queries, self.passages = len(queries_qd), passages_nd.shape[0]
        self._queries_qd, self.passages_nd = queries_qd, passages_nd
        self._make_index, self._index, self._resume = make_index, None, resume

    @property
    def index(self):
        """The search index, made on first use."""
        if self._index is None:
            self._index = self._make_index(self.passages_nd)
        return self._index

    @property
    def streams(self) -> bool:
        """Whether a search reads the whole corpus, so that few large ones are best."""
        return getattr(self.index, "streams", False)

    def rank(self, numbers, k, **how):
        """See `Ranker.rank`; further arguments are passed to the index's `search`."""
        if self._resume is not None and self.streams:
            how["resume"] = self._resume
        return self.index.search(self._queries_qd[numbers], k, **how)

    def score(self, numbers, pairs):
        """See `Ranker.score`."""
        return score_pairs(self._queries_qd[numbers], self.passages_nd, pairs)


class ListRanker:
    """A teacher that ranks only its stored lists but can score any pair: a rescored list.

    Attributes:
        queries, passages, deep: see `Ranker`.
    """

    deep = False

    def __init__(
        self,
        query_rows: np.ndarray,
        passages: int,
        score_pairs: Callable[[np.ndarray], np.ndarray],
    ):
        """
        Args:
            query_rows: int [Q], rows of the data set.
            passages: N.
            score_pairs: int64 [M, 2] (row of the query, row of the passage) -> float32 [M].
        """
        self.queries, self.passages = len(query_rows), passages
        self._query_rows, self._score_pairs = query_rows, score_pairs

    def rank(self, numbers, k, **how):
        """See `Ranker.rank`: returns nothing beyond the lists that mining already has."""
        shape = (len(numbers), k)
        return np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32)

    def score(self, numbers, pairs):
        """See `Ranker.score`."""
        if not len(pairs.values):
            return np.zeros(0, np.float32)
        queries = self._query_rows[numbers][pairs.row_of]
        return self._score_pairs(np.stack([queries, pairs.values], axis=1).astype(np.int64))


def score_pairs(queries_qd: np.ndarray, passages_nd, pairs: Ragged) -> np.ndarray:
    """Inner products of each query with its own list of passages, float32 [len(pairs.values)]."""
    wanted, position = np.unique(pairs.values, return_inverse=True)
    vectors = gather_rows(passages_nd, wanted)
    out = np.empty(len(pairs.values), np.float32)
    row_of = pairs.row_of
    for start in range(0, len(out), 65536):  # bounds the memory of the copies for the products
        block = slice(start, start + 65536)
        out[block] = np.einsum(
            "md,md->m", queries_qd[row_of[block]], vectors[position[block]], dtype=np.float64
        )
    if not np.isfinite(out).all():
        bad = int(np.argmin(np.isfinite(out)))
        raise InputError(f"the score of passage row {pairs.values[bad]} is {out[bad]}")
    return out


def gather_rows(matrix, rows: np.ndarray) -> np.ndarray:
    """Rows of an array or of a store; `rows` must be ascending. Reads contiguous stretches."""
    if isinstance(matrix, np.ndarray):
        return matrix[rows]
    out = np.empty((len(rows), matrix.shape[1]), np.float32)
    step = 16384
    start = 0
    while start < len(rows):
        stop = int(np.searchsorted(rows, rows[start] + step))
        block = np.asarray(matrix[int(rows[start]) : int(rows[stop - 1]) + 1])
        out[start:stop] = block[rows[start:stop] - rows[start]]
        start = stop
    return out
