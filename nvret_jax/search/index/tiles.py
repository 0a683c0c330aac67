"""Rows of passages as arrays of one shape: read in slices, checked, padded, put on devices.

`passages_nd` may be a numpy array, a memmap, or anything with `shape`, `dtype` and `[start:stop]`,
such as `EmbeddingStore`; only slicing is required. With several processes, each reads only the rows
of its own devices.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.search.index import checks, memory


def put_tile(
    passages_nd, mesh: Mesh, tile: int, dtype: np.dtype, first_row: int, per_shard: int
) -> jax.Array:
    """One tile of every device: shard s gets `tile` rows from `first_row + s * per_shard`.

    Returns:
        [shards * tile, D] of `dtype`, split by rows; rows past the last passage are zeros.

    Raises:
        InputError: NaN or infinity in a row, and whatever the passages raise.
    """
    shards, width = mesh_lib.shards(mesh, "rows"), passages_nd.shape[1]

    def load(index: tuple[slice, ...]) -> np.ndarray:
        shard = (index[0].start or 0) // tile
        return read_rows(passages_nd, first_row + shard * per_shard, tile, dtype)

    where = mesh_lib.sharding(mesh, "rows", None)
    return jax.make_array_from_callback((shards * tile, width), where, load)


def read_rows(passages_nd, start: int, count: int, dtype: np.dtype) -> np.ndarray:
    """Rows start to start + count as [count, D] of `dtype`; zeros past the last passage."""
    n, width = passages_nd.shape
    stop = max(start, min(start + count, n))
    out = np.empty((count, width), dtype)
    for a, b in _slices(start, stop, getattr(passages_nd, "chunk_rows", 1)):
        block = np.asarray(passages_nd[a:b])
        checks.check_finite(block, "search: passages", a)
        out[a - start : b - start] = block
    out[stop - start :] = 0
    return out


def _slices(start: int, stop: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Slices of at most `READ_ROWS` rows that end where chunks do, so that none is read twice."""
    step = max(chunk, memory.READ_ROWS // chunk * chunk)
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        yield start, end
        start = end
