"""Exact top-k search by a FAISS flat inner-product index, for hosts with only a CPU.

It has the signature and the results of `exact`. FAISS has neither a ceiling nor exclusions per
query, and does not define which of several equal scores it returns at the last place, so:

* FAISS only proposes candidates. They are scored again in float64, rounded to float32 and sorted by
  (score descending, row ascending); equal vectors thus get equal scores.
* A query is finished once its k best survivors are certainly above everything FAISS did not return:
  above the last score it returned, by more than the float32 rounding error. Otherwise the depth
  doubles, up to the whole corpus. So ties at the last place, strict ceilings and any number of
  exclusions are handled correctly.

With several processes each of them searches the whole corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np

from nvret_jax.processes import progress as progress_lib
from nvret_jax.search.index import checks

SPARE = 8  # fetched beyond what can be left out, so that ties at the last place rarely cost a round
CANDIDATES = 1 << 15  # candidates scored again at a time
ADD_ROWS = 65_536  # rows added at a time


def search(
    queries_qd: np.ndarray,
    passages_nd,
    k: int,
    *,
    ceiling_q: np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    mesh=None,
    tile: int | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """`exact.search` by FAISS: same arguments, results and errors. `mesh` and `tile` are ignored.

    Returns:
        scores [Q, k] float32 and rows [Q, k] int32; where fewer than k passages are left,
        score -inf and row -1 at the end.
    """
    checks.check_all(queries_qd, passages_nd, k)
    index = FaissIndex(passages_nd)
    return index.search(queries_qd, k, ceiling_q=ceiling_q, exclude=exclude, progress=progress)


class FaissIndex:
    """Passages in a FAISS index, prepared for many searches.

    Attributes:
        shape: (N, D).
        index: the `faiss.IndexFlatIP`.
    """

    def __init__(self, passages_nd):
        """Copies the passages into the index, block by block; see `exact.search`."""
        self.shape = checks.check_passages(passages_nd)
        n, width = self.shape
        self.index = faiss.IndexFlatIP(width)
        for a in range(0, n, ADD_ROWS):
            block_nd = np.asarray(passages_nd[a : min(a + ADD_ROWS, n)], np.float32)
            checks.check_finite(block_nd, "search: passages", a)
            self.index.add(np.ascontiguousarray(block_nd))
        # A view of the index's own vectors, so that there is only one copy in memory.
        self._passages_nd = faiss.rev_swig_ptr(self.index.get_xb(), n * width).reshape(n, width)
        self._longest = float(
            max(
                np.linalg.norm(self._passages_nd[a : a + ADD_ROWS], axis=1).max()
                for a in range(0, n, ADD_ROWS)
            )
        )

    def __len__(self) -> int:
        return self.shape[0]

    def search(
        self,
        queries_qd: np.ndarray,
        k: int,
        *,
        ceiling_q: np.ndarray | None = None,
        exclude: Sequence[Sequence[int]] | None = None,
        progress: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like the function `search`, over these passages."""
        n, width = self.shape
        queries_qd = np.ascontiguousarray(checks.check_queries(queries_qd, self.shape))
        k = checks.check_k(k, n)
        count = len(queries_qd)
        ceiling_q = checks.check_ceiling(ceiling_q, count)
        pairs_2m = checks.check_exclude(exclude, count, n)
        if ceiling_q is None:
            ceiling_q = np.full(count, np.inf, np.float32)
        excluded = np.zeros(count, np.int64)
        banned = np.empty(0, np.int64)
        if pairs_2m is not None:
            excluded = np.bincount(pairs_2m[0], minlength=count)
            banned = np.unique(pairs_2m[0].astype(np.int64) * n + pairs_2m[1])
        # A bound on the float32 error of a sum of `width` products, including its rounding.
        blur_q = (width + 2) * 2.0**-24 * self._longest * np.linalg.norm(queries_qd, axis=1)
        scores_qk = np.full((count, k), -np.inf, np.float32)
        rows_qk = np.full((count, k), -1, np.int32)
        # Queries that need the same depth are searched together.
        depth_q = np.minimum(n, _power_of_two(k + SPARE + excluded, at_least=k + SPARE))
        left = np.arange(count)
        bar = None
        if progress:
            bar = progress_lib.bar(total=count, desc="search", unit=" queries")
        while left.size:
            unfinished = []
            for depth in np.unique(depth_q[left]):
                same = left[depth_q[left] == depth]
                found = self.index.search(queries_qd[same], int(depth))
                step = max(1, CANDIDATES // int(depth))
                for a in range(0, len(same), step):
                    part = slice(a, a + step)
                    rows_q = same[part]
                    values, ids, done = self._decide(
                        queries_qd[rows_q],
                        found[0][part],
                        found[1][part],
                        k,
                        ceiling_q[rows_q],
                        blur_q[rows_q],
                        rows_q * n,
                        banned,
                    )
                    scores_qk[rows_q[done]] = values[done]
                    rows_qk[rows_q[done]] = ids[done]
                    unfinished.append(rows_q[~done])
                    if bar is not None:
                        bar.update(int(done.sum()))
            left = np.concatenate(unfinished)
            depth_q[left] = np.minimum(n, 2 * depth_q[left])
        if bar is not None:
            bar.close()
        return scores_qk, rows_qk

    def _decide(self, queries_qd, found_qc, rows_qc, k, ceiling_q, blur_q, first_key_q, banned):
        """The k best survivors among the candidates [Q, C] of FAISS, and which queries are done."""
        exact_qc = np.matmul(
            self._passages_nd[rows_qc].astype(np.float64), queries_qd.astype(np.float64)[:, :, None]
        )[:, :, 0].astype(np.float32)
        keep_qc = exact_qc < ceiling_q[:, None]
        if banned.size:
            keys_qc = first_key_q[:, None] + rows_qc
            at = np.minimum(np.searchsorted(banned, keys_qc), banned.size - 1)
            keep_qc &= banned[at] != keys_qc
        exact_qc = np.where(keep_qc, exact_qc, -np.inf)
        order = np.lexsort((rows_qc, -exact_qc), axis=1)[:, :k]
        values = np.take_along_axis(exact_qc, order, axis=1)
        ids = np.where(values > -np.inf, np.take_along_axis(rows_qc, order, axis=1), -1)
        everything = rows_qc.shape[1] == self.shape[0]
        done = everything | (values[:, -1] > found_qc[:, -1] + blur_q)
        return values, ids.astype(np.int32), done


def _power_of_two(numbers, at_least: int) -> np.ndarray:
    """The numbers rounded up to `at_least` times a power of two."""
    return at_least * 2 ** np.ceil(np.log2(np.maximum(1, numbers / at_least))).astype(np.int64)
