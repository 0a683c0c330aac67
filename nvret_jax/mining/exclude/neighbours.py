"""Near copies by vectors: every passage whose cosine to a given one reaches a threshold.

Choices:

- Exact: from each passage's own vector a search of k, then 2k, 4k, …, until the last score found is
  below the threshold. Most passages have few near copies and end at the first k; memory is bounded
  whatever k is.
- A cosine is the float32 score of the search. One that is below the threshold by 1e-6 still counts,
  so that a threshold of 1 finds equal vectors.
- A search over vectors that are not of unit length does not score cosines. This is detected: a
  passage must find itself with a score of one, and nothing above it.
"""

from __future__ import annotations

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.search.rankers.ranker import Search, gather_rows

_FIRST_K = 16
_SCORES = 1 << 22  # scores requested at a time
_ROUNDING = 1e-6
_NOT_UNIT = 0.02  # more than the error of bfloat16


class UnitRows:
    """Passage vectors scaled to unit length as they are read; zero vectors stay zero.

    Attributes:
        shape: (N, D).
        dtype: float32.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, passages_nd):
        self.shape = tuple(passages_nd.shape)
        self._passages_nd = passages_nd

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return _unit(np.asarray(self._passages_nd[rows], np.float32))[0]


def _unit(vectors_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unit length, float32, and their original lengths, float64."""
    wide = vectors_nd.astype(np.float64)
    norms_n = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    return (wide / np.where(norms_n > 0, norms_n, 1)[:, None]).astype(np.float32), norms_n


def neighbours(rows: np.ndarray, passages_nd, search: Search, threshold: float) -> Ragged:
    """The rows whose cosine to each of some passages is at least the threshold.

    Args:
        rows: int [P], ascending and unique; their vectors are held at once.
        passages_nd: float [N, D], an array or a store that slices by rows.
        search: (vectors_qd, k) -> scores_qk, rows_qk over the unit vectors of all passages.
        threshold: above 0, at most 1.

    Returns:
        int32 rows, ascending, including the passage itself; none for a zero vector.

    Raises:
        InputError: a vector is not finite, or `search` ranks vectors that are not of unit length.
    """
    vectors_pd, norms_p = _unit(np.asarray(gather_rows(passages_nd, rows)))
    if not np.isfinite(norms_p).all():
        bad = rows[np.argmin(np.isfinite(norms_p))]
        raise InputError(f"exclusions: the vector of passage row {bad} is not finite")
    count, cut = len(passages_nd), threshold - _ROUNDING
    pending, k = np.flatnonzero(norms_p > 0), min(_FIRST_K, len(passages_nd))
    owners, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    while len(pending):
        deeper = []
        step = max(1, _SCORES // k)
        for start in range(0, len(pending), step):
            numbers = pending[start : start + step]
            scores_pk, rows_pk = search(vectors_pd[numbers], k)
            near_pk = (rows_pk >= 0) & (scores_pk >= cut)
            # The whole list is near, so later passages may be near, too.
            more = near_pk[:, -1] & (k < count)
            deeper.append(numbers[more])
            near_pk &= ~more[:, None]
            _check_cosines(rows[numbers[~more]], scores_pk[~more], rows_pk[~more])
            owners.append(numbers[np.nonzero(near_pk)[0]])
            found.append(rows_pk[near_pk].astype(np.int32))
        pending, k = np.concatenate(deeper), min(2 * k, count)
    owners, found = np.concatenate(owners), np.concatenate(found)
    order = np.lexsort((found, owners))
    counts = np.bincount(owners, minlength=len(rows))
    return Ragged(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), found[order])


def _check_cosines(own_rows: np.ndarray, scores_pk: np.ndarray, rows_pk: np.ndarray) -> None:
    """InputError unless each passage found itself, at a cosine of one, and nothing above it."""
    if not len(own_rows):
        return
    # A passage that is not found scores at most as much as the last of its list.
    own_pk = np.where(rows_pk == own_rows[:, None], scores_pk, scores_pk[:, -1:])
    own_p, best_p = own_pk.max(axis=1), scores_pk[:, 0]
    good = (np.abs(own_p - 1) <= _NOT_UNIT) & (best_p <= 1 + _NOT_UNIT)
    if not good.all():
        at = int(np.argmin(good))
        raise InputError(
            f"exclusions: from its own vector passage row {own_rows[at]} scores {own_p[at]:.4g} "
            f"and the best passage {best_p[at]:.4g}, where a cosine is 1; normalize the teacher's "
            "embeddings, or search over neighbours.UnitRows of them"
        )
