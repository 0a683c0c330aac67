"""The k best of score vectors on the host, for rankers that are not a matrix product.

For rankers that score a whole corpus for one query (BM25, the random baseline), this implements the
part of `Ranker.rank` that must be exact: order (score descending, row ascending), ceilings and
exclusions. Queries are processed one at a time: the memory needed is a few vectors of corpus length
per thread, however many queries there are.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Sequence

import numpy as np

from nvret_jax.errors import InputError
from nvret_jax.processes import progress as progress_lib
from nvret_jax.search.index import checks

# Threads over queries. numpy releases the GIL in its loops; more threads than this would wait for
# memory.
THREADS = 8

# query number -> its scores of the whole corpus, float32 [N], finite; the array may be overwritten
ScoresOf = Callable[[int], np.ndarray]


def check_numbers(numbers, queries: int) -> np.ndarray:
    """Query numbers as int64 [S]; InputError unless all are within 0..queries-1."""
    numbers = np.asarray(numbers)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise InputError(
            f"search: query numbers are {numbers.dtype} of shape {numbers.shape}; "
            "expected whole numbers, [queries]"
        )
    bad = (numbers < 0) | (numbers >= queries)
    if bad.any():
        raise InputError(
            f"search: query number {numbers[np.argmax(bad)]}; there are {queries} queries, from 0"
        )
    return numbers.astype(np.int64)


def rank_all(
    numbers: np.ndarray,
    k: int,
    scores_of: ScoresOf,
    *,
    queries: int,
    passages: int,
    ceiling_q=None,
    exclude: Sequence[Sequence[int]] | None = None,
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`Ranker.rank` for a ranker that scores the whole corpus, query by query.

    Args:
        numbers, k, ceiling_q, exclude: see `Ranker.rank`.
        scores_of: called once for each of `numbers`, from several threads.
        queries, passages: Q and N.
        progress: label of a bar; None: no bar.

    Returns:
        scores [S, k] float32 (-inf past the end), rows [S, k] int32 (-1 past the end).

    Raises:
        InputError: invalid numbers, k, ceilings or rows.
    """
    numbers = check_numbers(numbers, queries)
    k = checks.check_k(k, passages)
    count = len(numbers)
    ceiling_q = checks.check_ceiling(ceiling_q, count)
    pairs = checks.check_exclude(exclude, count, passages)
    scores_sk = np.full((count, k), -np.inf, np.float32)
    rows_sk = np.full((count, k), -1, np.int32)

    def one(at: int) -> None:
        scores_n = scores_of(int(numbers[at]))
        if ceiling_q is not None:
            scores_n[scores_n >= ceiling_q[at]] = -np.inf
        if pairs is not None:
            first, last = np.searchsorted(pairs[0], [at, at + 1])
            scores_n[pairs[1, first:last]] = -np.inf
        rows = best_rows(scores_n, k)
        found = scores_n[rows]
        there = found > -np.inf
        scores_sk[at, : len(rows)] = found
        rows_sk[at, : len(rows)] = np.where(there, rows, -1)

    over_queries(one, count, progress)
    return scores_sk, rows_sk


def best_rows(scores_n: np.ndarray, k: int) -> np.ndarray:
    """The k best rows of one score vector: score descending, then row ascending.

    The k-th best value splits the rows into those above it, which are all included, and those equal
    to it, of which the lowest rows fill the rest: exact among ties, and linear in N.
    """
    n = len(scores_n)
    if k >= n:
        return np.argsort(-scores_n, kind="stable")
    edge = np.partition(scores_n, n - k)[n - k]
    above = np.flatnonzero(scores_n > edge)
    equal = np.flatnonzero(scores_n == edge)[: k - len(above)]
    rows = np.concatenate([above, equal])  # each part ascends, and one part is above the other
    return rows[np.argsort(-scores_n[rows], kind="stable")]


def over_queries(work: Callable[[int], None], count: int, progress: str | None) -> None:
    """Calls `work` with 0..count-1, on a few threads; the first exception is raised here."""
    threads = max(1, min(THREADS, os.cpu_count() or 1, count))
    with (
        progress_lib.bar(
            total=count, desc=progress or "", unit=" queries", show=progress is not None
        ) as bar,
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        for _ in pool.map(work, range(count)):
            bar.update()
