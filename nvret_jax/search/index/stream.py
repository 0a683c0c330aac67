"""Exact top-k search over passages that do not fit in memory, streamed from disk tile by tile.

A chunk is one tile on every device: a contiguous range of corpus rows. The outer loop is over
chunks in corpus order, the inner one over blocks of queries. A thread reads the next chunk, checks
it and transfers it to the devices while the current one is scored. The running lists of all queries
of a pass stay on the devices. So each passage is read once, or once per pass where the lists of all
queries would take too much of the budget (`memory`). The steps are those of `exact`, and so are the
results.

Resume: rows before the next chunk are done on every device, so the merged lists and one number are
the complete state (`resume`). They are saved `SAVES` times per pass. The sizes of tile and block
are saved with them and used again on the same number of devices, whatever memory is then free:
float32 products may differ in the last bit between shapes, and an interrupted search must end with
the same bits as an undisturbed one.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.mesh import say
from nvret_jax.processes import progress as progress_lib
from nvret_jax.search.index import checks, memory, steps, tiles
from nvret_jax.search.index import resume as resume_lib
from nvret_jax.search.index.exact import pad_rows, pairs_of

SAVES = 32  # saves per pass, so a kill costs at most that share of it


class StreamIndex:
    """Passages on disk, searched without ever holding more of them than the budget allows.

    Attributes:
        shape: (N, D).
        mesh: the mesh a chunk of passages is split over.
        budget: bytes a device may hold.
        streams: True; every search reads all passages, so put all queries into one.
        plan: memory of the last search; None before the first.
    """

    streams = True

    def __init__(
        self,
        passages_nd,
        *,
        mesh: Mesh | None = None,
        tile: int | None = None,
        memory_bytes: int | None = None,
    ):
        """Does not read anything yet.

        Args:
            passages_nd: float [N, D]; anything with `shape`, `dtype` and `[start:stop]`.
            mesh: default: all devices.
            tile: rows per device and step; default: from the budget.
            memory_bytes: what the search may hold on a device; default: a share of the free memory.

        Raises:
            InputError: passages that cannot be searched.
        """
        self.shape = checks.check_passages(passages_nd)
        self.mesh = mesh_lib.given(mesh)
        self.budget = memory.budget_bytes(self.mesh, memory_bytes)
        self.plan = None
        self._passages_nd, self._tile = passages_nd, tile
        self._dtype = steps.stored_dtype(passages_nd.dtype)
        self._platform = platforms.of(self.mesh)
        self._shards = mesh_lib.shards(self.mesh, "rows")

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
        """Like `exact.search`, over these passages.

        Args:
            queries_qd, k, ceiling_q, exclude: see there.
            progress: show a bar over chunks of passages.
            resume: a folder in which the search saves its progress and from which it continues, on
                this or another number of devices and processes. All processes must see it. It is
                for these passages only, and the caller removes it.

        Raises:
            InputError: as in `exact.search`; a budget too small for one tile; a chunk of passages
                that is missing or damaged; a folder that cannot be written.
        """
        queries_qd = checks.check_queries(queries_qd, self.shape)
        k = checks.check_k(k, self.shape[0])
        count = len(queries_qd)
        ceiling_q = checks.check_ceiling(ceiling_q, count)
        pairs_2m = checks.check_exclude(exclude, count, self.shape[0])
        multiply = steps.query_dtype(self._dtype, self._platform, queries_qd)
        saved = None
        if resume is not None:
            dtype = self._passages_nd.dtype
            asked = (self.shape, dtype, k, queries_qd, multiply, ceiling_q, pairs_2m)
            saved = resume_lib.Saved(resume, resume_lib.question(*asked))
        self.plan, before = self._choose(count, k, multiply, saved), self.plan
        if self.plan != before:
            say(self.plan.describe())
        scores_qk, rows_qk = np.empty((count, k), np.float32), np.empty((count, k), np.int32)
        for start in range(0, count, self.plan.pass_queries):
            stop = min(start + self.plan.pass_queries, count)
            cut = slice(start, stop)
            one = _Pass(
                self,
                k,
                queries_qd[cut].astype(multiply, copy=False),
                None if ceiling_q is None else ceiling_q[cut],
                pairs_2m,
                start,
                saved,
            )
            scores_qk[cut], rows_qk[cut] = one.run(progress)
        return scores_qk, rows_qk

    def _choose(
        self, queries: int, k: int, multiply, saved: resume_lib.Saved | None
    ) -> memory.Plan:
        """The plan of a search: that of its first run, if there was one and it still fits."""
        plan = functools.partial(
            memory.estimate,
            self.shape,
            self._passages_nd.dtype,
            queries,
            k,
            self._shards,
            self.budget,
            platform=self._platform,
            multiply=multiply,
            streams=True,
            chunk_rows=getattr(self._passages_nd, "chunk_rows", 1),
        )
        names = ("tile", "query_block", "pass_queries")
        sizes = saved.sizes() if saved else {}
        if sizes.get("shards") == self._shards and self._tile in (None, sizes.get("tile")):
            try:
                return plan(**{name: sizes[name] for name in names})
            except (InputError, KeyError):
                say("search: the sizes of the interrupted run no longer fit; using others")
        chosen = plan(tile=self._tile)
        if saved:
            saved.store_sizes(
                shards=self._shards, **{name: getattr(chosen, name) for name in names}
            )
        return chosen


class _Pass:
    """One pass over the passages, for some of the queries."""

    def __init__(self, index: StreamIndex, k, queries_qd, ceiling_q, pairs_2m, start, saved):
        """`pairs_2m` is for all queries of the search; the pass begins at query `start` of them."""
        self.index, self.plan, self.mesh, self.k = index, index.plan, index.mesh, k
        self.saved, self.start, self.count = saved, start, len(queries_qd)
        self._lists_at = NamedSharding(self.mesh, P(steps.ROWS))
        whole = mesh_lib.sharding(self.mesh)
        self.blocks, self.masks = [], []
        for a in range(0, self.count, self.plan.query_block):
            b = min(a + self.plan.query_block, self.count)
            block = self.plan.query_block
            masks = {}
            if ceiling_q is not None:
                masks["ceiling_q"] = jax.device_put(pad_rows(ceiling_q[a:b], block), whole)
            pairs = None if pairs_2m is None else pairs_of(pairs_2m, start + a, start + b)
            if pairs is not None:
                masks["pairs_2m"] = jax.device_put(pairs, whole)
            self.blocks.append(jax.device_put(pad_rows(queries_qd[a:b], block), whole))
            self.masks.append(masks)
        self._scratch = steps.scratch(self.mesh, self.plan.query_block, self.plan.tile)

    def run(self, progress: bool) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows [queries of this pass, k]."""
        n, tile = self.index.shape[0], self.plan.tile
        chunk = tile * self.index._shards
        done = 0
        kept = None
        if self.saved:
            kept = self.saved.lists(self.start, self.start + self.count, self.k)
            if kept is not None:
                done = min(kept[0], n)
                say(f"search: rows 0 to {done - 1:,} of {n:,} were searched before; continuing")
        if done == n:
            return kept[1], kept[2]
        best = self._begin(kept)
        often = math.ceil(math.ceil(n / chunk) / SAVES)
        firsts = range(done, n, chunk)
        bar = _bar(len(firsts)) if progress and mesh_lib.is_main() else None
        with jax.set_mesh(self.mesh), ThreadPoolExecutor(1, "read-ahead") as reader:
            ahead = reader.submit(self._read, done)
            for number, first in enumerate(firsts):
                # One tile is in use and one is being read: the previous one is freed before the
                # next is begun.
                tile_nd, stop = ahead.result(), min(first + chunk, n)
                ahead = reader.submit(self._read, stop) if stop < n else None
                self._fold(best, tile_nd, first)
                del tile_nd
                if self.saved and (stop == n or (number + 1) % often == 0):
                    answer = self._merge(best)
                    self.saved.store_lists(self.start, self.start + self.count, stop, *answer)
                if bar is not None:
                    bar.update()
        return answer if self.saved else self._merge(best)

    def _begin(self, kept) -> list[tuple[jax.Array, jax.Array]]:
        """Running lists [shards, block, k] per block: empty, or the saved lists on the first shard.

        Every saved row is lower than the following ones, so ties are resolved correctly.
        """
        shape = (self.index._shards, self.plan.query_block, self.k)
        out = []
        for a in range(0, self.count, shape[1]):
            pair = []
            for number, fill in ((1, np.float32(-np.inf)), (2, np.int32(-1))):

                def load(index, a=a, number=number, fill=fill):
                    part = np.full((1, *shape[1:]), fill)
                    if kept is not None and (index[0].start or 0) == 0:
                        rows = kept[number][a : a + shape[1]]
                        part[0, : len(rows)] = rows
                    return part

                pair.append(jax.make_array_from_callback(shape, self._lists_at, load))
            out.append(tuple(pair))
        return out

    def _read(self, first: int) -> jax.Array:
        """The chunk that begins at a row, on the devices; runs in a thread."""
        index, tile = self.index, self.plan.tile
        put = tiles.put_tile(index._passages_nd, self.mesh, tile, index._dtype, first, tile)
        return jax.block_until_ready(put)

    def _fold(self, best: list, tile_nd: jax.Array, first: int) -> None:
        """Folds one chunk into the lists of every block, in place; returns when it is done.

        Only the last chunk can have rows past the end, so only that chunk is masked.
        """
        n, tile = self.index.shape[0], self.plan.tile
        limit = n if first + tile * self.index._shards > n else None
        step = steps.fold(self.mesh, self.k, tile, limit)
        for b, queries_qd in enumerate(self.blocks):
            best[b], self._scratch = step(
                best[b], self._scratch, tile_nd, np.int32(first), queries_qd, self.masks[b]
            )
            if b + 1 >= memory.BLOCKS_IN_FLIGHT:  # else memory would be allocated for all at once
                jax.block_until_ready(best[b + 1 - memory.BLOCKS_IN_FLIGHT])
        jax.block_until_ready(best)

    def _merge(self, best: list) -> tuple[np.ndarray, np.ndarray]:
        """The lists of all shards as one, on the host, without padding queries."""
        merge = steps.merge(self.mesh)
        merged = [tuple(map(np.asarray, merge(*lists))) for lists in best]
        scores_qk, rows_qk = (np.concatenate(parts) for parts in zip(*merged, strict=True))
        return scores_qk[: self.count], rows_qk[: self.count]


def _bar(chunks: int):
    return progress_lib.bar(total=chunks, desc="search", unit="chunk")
