"""Checks of a search's arguments before anything is computed; shared by every backend.

Each check returns its argument in the form the backends use, or raises an `InputError` that names
the row, query or number at fault.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from nvret_jax.data import arguments
from nvret_jax.errors import InputError
from nvret_jax.options import INT32, check_arguments, whole

_K = {"k": whole(1)}


def check_all(queries_qd, passages_nd, k: int) -> None:
    """Finds cheap mistakes before the passages are read and moved."""
    shape = check_passages(passages_nd)
    check_queries(queries_qd, shape)
    check_k(k, shape[0])


def check_passages(passages_nd, at: str = "search: passages") -> tuple[int, int]:
    """(N, D) of the passages; InputError unless they are a non-empty matrix of floats."""
    shape = tuple(getattr(passages_nd, "shape", ()))
    if len(shape) != 2:
        raise InputError(f"{at} have shape {shape}; expected [passages, width]")
    if shape[0] == 0 or shape[1] == 0:
        raise InputError(f"{at} have shape {shape}; there is nothing to search")
    if shape[0] > INT32:
        raise InputError(f"{at}: {shape[0]} rows; row numbers are int32, at most 2^31 - 1")
    if not _is_float(passages_nd.dtype):
        raise InputError(f"{at} are {passages_nd.dtype}; expected a float type")
    return shape


def check_queries(
    queries_qd, shape: tuple[int, int] | None, at: str = "search: queries"
) -> np.ndarray:
    """Queries as a finite float32 matrix as wide as the passages, else InputError."""
    queries_qd = np.asarray(arguments.vectors(queries_qd, at))
    if queries_qd.ndim != 2:
        raise InputError(f"{at} have shape {queries_qd.shape}; expected [queries, width]")
    if not _is_float(queries_qd.dtype):
        raise InputError(f"{at} are {queries_qd.dtype}; expected a float type")
    if shape is not None and queries_qd.shape[1] != shape[1]:
        raise InputError(
            f"{at} are {queries_qd.shape[1]} wide and passages {shape[1]}; "
            "encode both with the same model"
        )
    queries_qd = queries_qd.astype(np.float32, copy=False)
    check_finite(queries_qd, at, 0)
    return queries_qd


def check_k(k: int, n: int) -> int:
    """k as an int in 1..n, else InputError."""
    check_arguments("search", {"k": k}, _K)
    if k > n:
        raise InputError(f"search: k={k} is more than the corpus has passages ({n}); lower k")
    return int(k)


def check_finite(block_nd: np.ndarray, name: str, first_row: int) -> None:
    """InputError naming the first row with NaN, infinity, or values whose products overflow.

    One maximum and one minimum, which propagate NaN: far cheaper than a mask of the block. For
    bfloat16, one maximum of the bits without the sign, which order like magnitudes, with infinity
    and NaN above all numbers.
    """
    if not block_nd.size:
        return
    largest = math.sqrt(np.finfo(np.float32).max / block_nd.shape[1])
    if block_nd.dtype == ml_dtypes.bfloat16 and block_nd.flags.c_contiguous:
        limit = int(np.float32(largest).view(np.uint32)) >> 16  # truncated: never above `largest`
        if int((block_nd.view(np.uint16) & 0x7FFF).max()) <= limit:
            return
    block_nd = block_nd.astype(np.float32, copy=False)
    if block_nd.max() <= largest and block_nd.min() >= -largest:
        return
    bad = ~(np.abs(block_nd) <= largest)
    row, column = np.argwhere(bad)[0]
    raise InputError(
        f"{name} row {first_row + row} has {block_nd[row, column]:.7g} in column {column}; "
        f"expected finite values up to {largest:.2g}"
    )


def check_ceiling(ceiling_q, count: int) -> np.ndarray | None:
    """Ceilings as float32, rounded up so that `score < ceiling` is the same as in full precision.

    A float32 score is strictly below a number exactly if it is strictly below the smallest float32
    that is not less than that number. Subnormal numbers are zero to XLA, so a positive ceiling is
    at least the smallest normal number.
    """
    if ceiling_q is None:
        return None
    given = np.asarray(arguments.host(ceiling_q))
    if given.dtype.kind not in "fiu" and not _is_float(given.dtype):
        raise InputError(f"search: ceiling_q is {given.dtype}; expected numbers, one per query")
    ceiling_q = given.astype(np.float64)
    if ceiling_q.shape != (count,):
        raise InputError(
            f"search: ceiling_q has shape {ceiling_q.shape}; expected one per query, ({count},)"
        )
    if np.isnan(ceiling_q).any():
        raise InputError(f"search: ceiling_q is NaN for query {np.argmax(np.isnan(ceiling_q))}")
    with np.errstate(over="ignore"):
        rounded = ceiling_q.astype(np.float32)
    up = np.nextafter(rounded, np.float32(np.inf))
    rounded = np.where(rounded < ceiling_q, up, rounded)
    return np.where(rounded > 0, np.maximum(rounded, np.finfo(np.float32).tiny), rounded)


def check_exclude(exclude, count: int, n: int) -> np.ndarray | None:
    """Ragged row numbers as pairs [2, M] int32 (query, row), sorted by query; None where empty."""
    if exclude is None:
        return None
    rows = arguments.rows(exclude, count, n, "search: exclude")
    if not len(rows.values):
        return None
    return np.stack([rows.row_of, rows.values]).astype(np.int32)


def _is_float(dtype) -> bool:
    dtype = np.dtype(dtype)
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16
