"""Exact top-k search over passages that stay on the devices of a mesh.

The passages are split by rows over every axis of the mesh: shard s owns one contiguous run of
rows, cut into tiles. Per block of queries the host walks over the tiles; each step is one jitted
`shard_map` call in which every device scores its own tile and folds it into its own running list
of the k best (`steps`). A last step gathers the lists and merges them. Apart from the passages, a
device holds only queries, lists and the scores of one tile (`memory`). Passages that do not fit are
searched by `stream`, with the same steps.

The host loops over tiles, and each tile is a separate array: a scan over one array would first copy
every tile out of it, which costs about as much as writing the scores.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.processes import progress as progress_lib
from nvret_jax.search.index import checks, memory, steps, tiles

UNLIMITED = 1 << 62  # bytes


def search(
    queries_qd: np.ndarray,
    passages_nd,
    k: int,
    *,
    ceiling_q: np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    mesh: Mesh | None = None,
    tile: int | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages of largest inner product per query, in (score desc, row asc) order.

    With several processes all of them call this with the same arguments and all get the whole
    result; each reads only the passages of its own devices.

    Args:
        queries_qd: [Q, D], any float type.
        passages_nd: [N, D], float; a numpy array, a memmap, or anything with `shape` and
            `[start:stop]`, such as `EmbeddingStore`.
        k: how many to return per query, 1 to N.
        ceiling_q: [Q]; only passages scoring strictly below it are returned.
        exclude: per query the row numbers that are never returned.
        mesh: default: all devices.
        tile: rows per device and step; default: from the shapes.
        progress: show a bar over blocks of queries.

    Returns:
        scores [Q, k] float32 and rows [Q, k] int32; where fewer than k passages are left,
        score -inf and row -1 at the end.

    Raises:
        InputError: k, widths, ceilings or row numbers that cannot be; NaN or infinity in a vector.
    """
    checks.check_all(queries_qd, passages_nd, k)
    index = ExactIndex(passages_nd, mesh=mesh, tile=tile)
    return index.search(queries_qd, k, ceiling_q=ceiling_q, exclude=exclude, progress=progress)


class ExactIndex:
    """Passages on the devices, prepared for many searches.

    Attributes:
        shape: (N, D).
        mesh: the mesh the passages are split over.
        tile: rows per device and step.
        streams: False.
        plan: memory of the last search; None before the first.
    """

    streams = False

    def __init__(
        self,
        passages_nd,
        *,
        mesh: Mesh | None = None,
        tile: int | None = None,
        memory_bytes: int | None = None,
    ):
        """Reads the passages and puts each shard on its device.

        Args:
            passages_nd, mesh, tile: see `search`.
            memory_bytes: what a device may hold, passages included; default: a share of the free
                memory, and on a CPU what the largest useful sizes take.

        Raises:
            InputError: passages that cannot be searched or do not fit.
        """
        self.shape = checks.check_passages(passages_nd)
        self.mesh = mesh_lib.given(mesh)
        self._passages_dtype = np.dtype(passages_nd.dtype)
        self._dtype = steps.stored_dtype(passages_nd.dtype)
        self._platform = platforms.of(self.mesh)
        if memory_bytes is None and self._platform != "cpu":
            memory_bytes = memory.budget_bytes(self.mesh, None)
        self._budget = memory_bytes or UNLIMITED
        self.plan, self._scratch = None, None
        n = self.shape[0]
        shards = mesh_lib.shards(self.mesh, "rows")
        self.tile = tile = self._plan(steps.PIECES, 1, None, tile).tile
        self._per_shard = -(-math.ceil(n / shards) // tile) * tile
        self._padded = self._per_shard * shards != n
        self._tiles_nd = [
            tiles.put_tile(passages_nd, self.mesh, tile, self._dtype, first_row, self._per_shard)
            for first_row in range(0, self._per_shard, tile)
        ]

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
        resume: os.PathLike | str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like the function `search`, over these passages.

        `resume` exists for the interface of streamed indexes: nothing is saved here, because a
        block of queries takes seconds. Callers that search many blocks save them one by one.
        """
        queries_qd = checks.check_queries(queries_qd, self.shape)
        k = checks.check_k(k, self.shape[0])
        count = len(queries_qd)
        ceiling_q = checks.check_ceiling(ceiling_q, count)
        pairs = checks.check_exclude(exclude, count, self.shape[0])
        scores_qk = np.empty((count, k), np.float32)
        rows_qk = np.empty((count, k), np.int32)
        dtype = steps.query_dtype(self._dtype, self._platform, queries_qd)
        self.plan = self._plan(count, k, dtype, self.tile)
        block = self.plan.query_block
        starts = range(0, count, block)
        if progress:
            starts = progress_lib.bar(starts, desc="search", unit="block")
        pending = None
        for start in starts:
            stop = min(start + block, count)
            answer = self._search_block(
                pad_rows(queries_qd[start:stop], block).astype(dtype),
                k,
                None if ceiling_q is None else pad_rows(ceiling_q[start:stop], block),
                None if pairs is None else pairs_of(pairs, start, stop),
            )
            # Fetched one block late: the devices work while the host copies, and at most two blocks
            # are in flight.
            if pending is not None:
                _fetch(*pending, scores_qk, rows_qk)
            pending = (start, stop, answer)
        if pending is not None:
            _fetch(*pending, scores_qk, rows_qk)
        return scores_qk, rows_qk

    def search_on_device(self, queries_qd: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
        """One block of queries, without checks or copies: what benchmarks compare with a matmul.

        Args:
            queries_qd: [Q, D] on the devices.
            k: 1 to N.

        Returns:
            scores [Q, k] float32 and rows [Q, k] int32, replicated over the mesh.
        """
        dtype = steps.query_dtype(self._dtype, self._platform, queries_qd)
        return self._search_block(queries_qd.astype(dtype), k, None, None)

    def _plan(self, queries: int, k: int, multiply, tile: int | None) -> memory.Plan:
        """The memory plan of a search of this size; InputError if the budget does not allow it."""
        return memory.estimate(
            self.shape,
            self._passages_dtype,
            queries,
            k,
            mesh_lib.shards(self.mesh, "rows"),
            self._budget,
            platform=self._platform,
            multiply=multiply,
            streams=False,
            tile=tile,
        )

    def _search_block(self, queries_qd, k, ceiling_q, pairs):
        """Searches one block of queries over all tiles; the results stay on the devices."""
        with jax.set_mesh(self.mesh):
            whole = mesh_lib.sharding(self.mesh)
            queries_qd = jax.device_put(queries_qd, whole)
            masks = {}
            if ceiling_q is not None:
                masks["ceiling_q"] = jax.device_put(ceiling_q, whole)
            if pairs is not None:
                masks["pairs_2m"] = jax.device_put(pairs, whole)
            step = functools.partial(
                steps.fold(self.mesh, k, self._per_shard, self.shape[0] if self._padded else None),
                queries_qd=queries_qd,
                masks=masks,
            )
            best, scratch = None, self._take_scratch(len(queries_qd))
            for number, tile_nd in enumerate(self._tiles_nd):
                best, scratch = step(best, scratch, tile_nd, np.int32(number * self.tile))
            self._scratch = scratch
            return steps.merge(self.mesh)(*best)

    def _take_scratch(self, block: int) -> jax.Array | None:
        """Memory for the scores of a block: the last block's, if it had the same size.

        It is removed from the cache: a step that fails may have consumed it.
        """
        kept, self._scratch = self._scratch, None
        if kept is None or kept.shape[1] != block:
            kept = steps.scratch(self.mesh, block, self.tile)
        return kept


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """`array` with zero rows added up to `rows`; padding queries are never read back."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))


def pairs_of(pairs_2m: np.ndarray, start: int, stop: int) -> np.ndarray | None:
    """Pairs of queries start..stop, renumbered; padded to a power of two to compile few shapes."""
    a, b = np.searchsorted(pairs_2m[0], [start, stop])
    if a == b:
        return None
    padded = np.full((2, 1 << (int(b - a) - 1).bit_length()), -1, np.int32)
    padded[:, : b - a] = pairs_2m[:, a:b]
    padded[0, : b - a] -= start
    padded[0, b - a :] = 0  # row -1 is dropped, so the query does not matter
    return padded


def _fetch(start: int, stop: int, answer, scores_qk: np.ndarray, rows_qk: np.ndarray) -> None:
    """Copies one block's results to the host, without the padding queries."""
    scores_qk[start:stop] = np.asarray(answer[0])[: stop - start]
    rows_qk[start:stop] = np.asarray(answer[1])[: stop - start]
