"""Vectors in the dtype of the search, where that differs from the stored one (`search.dtype`).

Queries and passages are rounded once, before anything reads them: a passage has the same score
whether it is found by a search or scored alone, whatever the backend and the platform.
"""

from __future__ import annotations

import numpy as np

from nvret_jax.search.store import DTYPES


def passages(passages_nd, dtype: str):
    """Passages in another dtype, cast as they are read.

    Args:
        passages_nd: float [N, D], an array or a store that slices by rows.
        dtype: 'float32', 'bfloat16', or 'auto': the stored dtype.

    Returns:
        an object that slices by rows; the passages themselves if no cast is needed.
    """
    if dtype == "auto" or np.dtype(passages_nd.dtype) == DTYPES[dtype]:
        return passages_nd
    return _Cast(passages_nd, DTYPES[dtype])


def queries(queries_qd: np.ndarray, dtype: str) -> np.ndarray:
    """Queries as float32 [Q, D], rounded to bfloat16 where that is the dtype."""
    queries_qd = np.asarray(queries_qd, np.float32)
    if dtype != "bfloat16":
        return queries_qd
    return queries_qd.astype(DTYPES[dtype]).astype(np.float32)


class _Cast:
    """Rows of an array or a store, cast to another dtype."""

    def __init__(self, passages_nd, dtype: np.dtype):
        self._of = passages_nd
        self.shape, self.dtype = tuple(passages_nd.shape), dtype
        self.chunk_rows = getattr(passages_nd, "chunk_rows", 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.asarray(self._of[rows]).astype(self.dtype)
