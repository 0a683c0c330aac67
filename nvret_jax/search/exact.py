"""Exact top-k search on the devices of a mesh: matmul, group maxima, top-k, merge.

The passages are split by rows over every axis of the mesh: shard s owns one contiguous run of
rows, cut into tiles. Per block of queries the host walks over the tiles; each step is one jitted
`shard_map` call in which every device scores its own tile and folds it into its own running list
of the k best. A last step gathers the lists and takes the top-k of those. Nothing but queries,
lists and one score tile per device is ever held beside the passages.

Choices, and why:

* **Order.** (score descending, row ascending), on any mesh and any tile size. `lax.top_k` puts the
  lower position first among equals, so it is enough that positions ascend with rows everywhere:
  the running list stands before the new tile, groups are put back in row order before the second
  top-k, and shards are gathered in row order.
* **Group maxima.** `lax.top_k` over a whole score row costs as much as the matmul. An element of
  the top-k lies in one of the k groups that come first by (maximum descending, group ascending):
  every group before its own holds an element that is better. So we take maxima of groups of
  contiguous passages (one pass), the top-k of those, and then look only into k groups.
* **Ceiling and exclusions** turn scores into -inf before the maxima, so a query is never starved:
  it gets the k best of what it may have.
* **A host loop over tiles, each tile an array of its own.** A scan over one array would first copy
  every tile out of it, which costs about as much as writing the scores.
* **Precision.** float32 passages are multiplied at `Precision.HIGHEST`, so CPU, GPU and TPU agree
  to float32 rounding; bfloat16 passages are multiplied as bfloat16 with float32 accumulation on
  accelerators, and widened to float32 on a CPU, where narrow types are slower. Scores are float32
  always: narrow `top_k` is many times slower on a CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.search import checks

TILE_ROWS = 131_072  # rows of a tile on one device
SCORES = 1 << 26  # scores held at a time on one device: 256 MiB of float32
MASKED = 1 << 19  # scores masked at a time on a CPU: 2 MiB
SPLIT = 1 << 18  # values from which a top-k is cut into pieces on a CPU
PIECES = 16  # pieces a top-k is cut into on a CPU
READ_ROWS = 65_536  # rows read from the passages at a time
ROWS = mesh_lib.RULES["rows"]


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
    answer; each reads only the passages of its own devices.

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
    checks.check_arguments(queries_qd, passages_nd, k)
    index = ExactIndex(passages_nd, mesh=mesh, tile=tile)
    return index.search(queries_qd, k, ceiling_q=ceiling_q, exclude=exclude, progress=progress)


class ExactIndex:
    """Passages on the devices, ready to be searched many times.

    Attributes:
        shape: (N, D).
        mesh: the mesh the passages are split over.
        tile: rows per device and step.
    """

    def __init__(self, passages_nd, *, mesh: Mesh | None = None, tile: int | None = None):
        """Reads the passages and puts each shard on its device; see `search` for arguments."""
        self.shape = checks.check_passages(passages_nd)
        self.mesh = mesh_lib.make_mesh() if mesh is None else mesh
        n, width = self.shape
        shards = mesh_lib.shards(self.mesh, "rows")
        per_shard = math.ceil(n / shards)
        if tile is None:
            # Evenly cut, so that little is padding, and at a multiple that groups can divide.
            tile = math.ceil(per_shard / math.ceil(per_shard / TILE_ROWS))
            tile = _round_up(tile, 64 if tile >= 4096 else 8)
        if tile < 1:
            raise InputError(f"search: tile={tile}; give at least 1 row")
        self.tile = tile
        self._per_shard = _round_up(per_shard, tile)
        self._padded = self._per_shard * shards != n
        device = next(iter(self.mesh.devices.flat))
        narrow = np.dtype(passages_nd.dtype) == ml_dtypes.bfloat16 and device.platform != "cpu"
        self._dtype = np.dtype(ml_dtypes.bfloat16) if narrow else np.dtype(np.float32)
        where = mesh_lib.sharding(self.mesh, "rows", None)

        def load(step: int, index: tuple[slice, ...]) -> np.ndarray:
            """Tile `step` of the shard that `index` points at; rows past the end are zeros."""
            shard = (index[0].start or 0) // tile
            start = shard * self._per_shard + step * tile
            out = np.zeros((tile, width), self._dtype)
            for a in range(start, min(start + tile, n), READ_ROWS):
                b = min(a + READ_ROWS, start + tile, n)
                block = np.asarray(passages_nd[a:b], self._dtype)
                checks.check_finite(block, "passages", a)
                out[a - start : b - start] = block
            return out

        self._tiles_nd = [
            jax.make_array_from_callback(
                (shards * tile, width), where, functools.partial(load, step)
            )
            for step in range(self._per_shard // tile)
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
    ) -> tuple[np.ndarray, np.ndarray]:
        """As the function `search`, over the passages held here."""
        queries_qd = checks.check_queries(queries_qd, self.shape)
        k = checks.check_k(k, self.shape[0])
        count = len(queries_qd)
        ceiling_q = checks.check_ceiling(ceiling_q, count)
        pairs = checks.check_exclude(exclude, count, self.shape[0])
        scores_qk = np.empty((count, k), np.float32)
        ids_qk = np.empty((count, k), np.int32)
        block = self._query_block(count)
        starts = range(0, count, block)
        if progress:
            from tqdm import tqdm

            starts = tqdm(starts, desc="search", unit="block")
        pending = None
        for start in starts:
            stop = min(start + block, count)
            answer = self._search_block(
                _pad_rows(queries_qd[start:stop], block),
                k,
                None if ceiling_q is None else _pad_rows(ceiling_q[start:stop], block),
                None if pairs is None else _pairs_of(pairs, start, stop),
            )
            # Fetched one block late: the devices work while the host copies, and never more than
            # two blocks are in flight.
            if pending is not None:
                _fetch(*pending, scores_qk, ids_qk)
            pending = (start, stop, answer)
        if pending is not None:
            _fetch(*pending, scores_qk, ids_qk)
        return scores_qk, ids_qk

    def search_on_device(self, queries_qd: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
        """One block of queries, no checks and no copies: what benchmarks time against a matmul.

        Args:
            queries_qd: [Q, D] on the devices.
            k: 1 to N.

        Returns:
            scores [Q, k] float32 and rows [Q, k] int32, replicated over the mesh.
        """
        return self._search_block(queries_qd, k, None, None)

    def _query_block(self, count: int) -> int:
        """Queries per block: as many as `SCORES` allows, evenly spread over the blocks."""
        most = max(PIECES, SCORES // self.tile // PIECES * PIECES)
        blocks = max(1, math.ceil(count / most))
        return _round_up(max(1, math.ceil(count / blocks)), PIECES)

    def _search_block(self, queries_qd, k, ceiling_q, pairs):
        """Walks one block of queries over all tiles; answers on the devices."""
        with jax.set_mesh(self.mesh):
            whole = mesh_lib.sharding(self.mesh)
            queries_qd = jax.device_put(queries_qd.astype(self._dtype), whole)
            masks = {}
            if ceiling_q is not None:
                masks["ceiling_q"] = jax.device_put(ceiling_q, whole)
            if pairs is not None:
                masks["pairs_2m"] = jax.device_put(pairs, whole)
            step = functools.partial(
                _step(self.mesh, k, self._per_shard, self.shape[0] if self._padded else None),
                queries_qd=queries_qd,
                masks=masks,
            )
            best = None
            for number, tile_nd in enumerate(self._tiles_nd):
                best = step(best, tile_nd, np.int32(number * self.tile))
            return _merge(self.mesh)(*best)


# --- the jitted steps ----------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _step(mesh: Mesh, k: int, per_shard: int, limit: int | None):
    """The jitted step for one tile: (best | None, tile, first row in shard) -> best.

    `best` is (scores, rows), each [shards, Q, k] split over the shards. `limit` is the number of
    passages where rows past the end exist and must be masked, else None.
    """

    @functools.partial(jax.jit, donate_argnums=(0,))
    def step(best, tile_nd, first_row, queries_qd, masks):
        local = functools.partial(_fold_tile, k=k, per_shard=per_shard, limit=limit)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(P(ROWS), P(ROWS, None), P(), P(), P()),
            out_specs=P(ROWS),
        )(best, tile_nd, first_row, queries_qd, masks)

    return step


def _fold_tile(best, tile_nd, first_row, queries_qd, masks, *, k, per_shard, limit):
    """On one device: scores its tile and folds it into its running list of the k best."""
    offset = jax.lax.axis_index(ROWS) * per_shard + first_row  # row number of the tile's first row
    with jax.named_scope("scores"):
        scores_qn = jax.lax.dot_general(
            queries_qd,
            tile_nd,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if tile_nd.dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )
    if "pairs_2m" in masks:
        query_m, row_m = masks["pairs_2m"]
        column_m = row_m - offset
        # Negative positions would wrap round; one past the end is dropped, which is what we want.
        column_m = jnp.where(column_m < 0, tile_nd.shape[0], column_m)
        scores_qn = scores_qn.at[query_m, column_m].set(-jnp.inf, mode="drop")

    with jax.named_scope("top_k"):
        ceiling_q = masks.get("ceiling_q")
        values, rows = _top_k_of_tile(
            scores_qn, k, ceiling_q, None if limit is None else limit - offset
        )
        rows = jnp.where(values > -jnp.inf, rows + offset, -1)
        if best is not None:
            # The running list stands first: its rows are lower, so they win ties.
            values = jnp.concatenate([best[0][0], values], axis=1)
            rows = jnp.concatenate([best[1][0], rows], axis=1)
            values, position = top_k(values, k)
            rows = jnp.take_along_axis(rows, position, axis=1)
    return values[None], rows[None]


def _top_k_of_tile(scores_qn, k, ceiling_q, columns):
    """The k best of one tile in (score desc, column asc) order: values and columns, [Q, k].

    `ceiling_q` and `columns`, the number of columns that hold passages, are None where no mask is
    needed.
    """
    queries, n = scores_qn.shape
    group = group_size(n, k)
    if group == 1:
        scores_qn = _masked(scores_qn, jnp.arange(n, dtype=jnp.int32), ceiling_q, columns)
        if n < k:
            scores_qn = jnp.pad(scores_qn, ((0, 0), (0, k - n)), constant_values=-jnp.inf)
        return top_k(scores_qn, k)
    scores_qgm = scores_qn.reshape(queries, n // group, group)
    maxima_qk, groups_qk = top_k(_group_maxima(scores_qgm, ceiling_q, columns), k)
    groups_qk = jnp.sort(groups_qk, axis=1)
    members_qkm = jnp.take_along_axis(scores_qgm, groups_qk[:, :, None], axis=1)
    column_qkm = groups_qk[:, :, None] * group + jnp.arange(group, dtype=jnp.int32)
    members_qkm = _masked(members_qkm, column_qkm, ceiling_q, columns)
    # k maxima reach the least of them, so nothing below it can be among the k best. Said in
    # advance it spares a heap-based top-k most of its insertions. (A minimum, not the last column:
    # XLA joins a slice of a top-k with the top-k's own slice of a sort, which leaves a whole sort.)
    least_q = jnp.min(maxima_qk, axis=1)
    members_qkm = jnp.where(members_qkm >= least_q[:, None, None], members_qkm, -jnp.inf)
    values_qk, position_qk = top_k(members_qkm.reshape(queries, k * group), k)
    chosen_qk = jnp.take_along_axis(groups_qk, position_qk // group, axis=1)
    return values_qk, chosen_qk * group + position_qk % group


def _group_maxima(scores_qgm, ceiling_q, columns):
    """The best score a query may have in each group, [Q, groups].

    XLA's CPU backend does not fuse a mask into this maximum: it would write a second array of all
    scores, which takes longer than everything else here. In pieces of a few rows, one after the
    other, that array stays in the cache. Accelerators fuse it, and take all rows at once.
    """
    if ceiling_q is None and columns is None:
        return jnp.max(scores_qgm, axis=-1)
    queries, groups, group = scores_qgm.shape
    column_gm = jnp.arange(groups * group, dtype=jnp.int32).reshape(groups, group)

    def maxima(piece):
        return jnp.max(_masked(piece[0], column_gm, piece[1], columns), axis=-1)

    rows = math.gcd(queries, max(1, MASKED // (groups * group)))
    if jax.default_backend() != "cpu" or rows == queries:
        return maxima((scores_qgm, ceiling_q))
    pieces = jax.tree.map(
        lambda x: x.reshape(queries // rows, rows, *x.shape[1:]), (scores_qgm, ceiling_q)
    )
    return jax.lax.map(maxima, pieces).reshape(queries, groups)


def _masked(scores, column, ceiling_q, columns):
    """`scores` [Q, ...] with what may not be returned at -inf; `column` broadcasts against them."""
    if ceiling_q is not None:
        ceiling = ceiling_q.reshape((-1,) + (1,) * (scores.ndim - 1))
        scores = jnp.where(scores < ceiling, scores, -jnp.inf)
    if columns is not None:
        scores = jnp.where(column < columns, scores, -jnp.inf)
    return scores


def top_k(values_qn, k):
    """`lax.top_k` over the last axis, lower position first among equals.

    A CPU runs one top-k on one thread, but runs separate ones side by side (as soon as a program
    has some dozens of steps): there the rows of a large one are cut into pieces.
    """
    pieces = math.gcd(values_qn.shape[0], PIECES)
    if pieces == 1 or values_qn.size < SPLIT or jax.default_backend() != "cpu":
        return jax.lax.top_k(values_qn, k)
    parts = [jax.lax.top_k(part, k) for part in jnp.split(values_qn, pieces)]
    return tuple(jnp.concatenate(part) for part in zip(*parts, strict=True))


def group_size(n: int, k: int) -> int:
    """Passages per group for a tile of n: a power of two near sqrt(n / k), or 1 for no groups.

    That size makes the two top-k calls, over n / group maxima and over k * group members, equally
    wide. Groups must divide the tile and there must be more of them than k.
    """
    group = 1 << max(0, round(math.log2(max(1.0, n / k)) / 2))
    while group > 1 and (n % group or n // group <= k):
        group //= 2
    return group


@functools.lru_cache(maxsize=8)
def _merge(mesh: Mesh):
    """The jitted last step: running lists [shards, Q, k] -> the answer [Q, k], replicated."""

    def local(values, rows):
        k = values.shape[-1]
        values = jax.lax.all_gather(values[0], ROWS, axis=1, tiled=True, to="invarying")
        rows = jax.lax.all_gather(rows[0], ROWS, axis=1, tiled=True, to="invarying")
        values, position = jax.lax.top_k(values, k)
        return values, jnp.take_along_axis(rows, position, axis=1)

    @jax.jit
    def merge(values, rows):
        return jax.shard_map(local, mesh=mesh, in_specs=(P(ROWS), P(ROWS)), out_specs=(P(), P()))(
            values, rows
        )

    return merge


# --- small helpers --------------------------------------------------------------------------------


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """`array` with zero rows added up to `rows`; padding queries are never read back."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))


def _pairs_of(pairs_2m: np.ndarray, start: int, stop: int) -> np.ndarray | None:
    """Pairs of queries start..stop, renumbered; padded to a power of two: few shapes compile."""
    a, b = np.searchsorted(pairs_2m[0], [start, stop])
    if a == b:
        return None
    padded = np.full((2, 1 << (int(b - a) - 1).bit_length()), -1, np.int32)
    padded[:, : b - a] = pairs_2m[:, a:b]
    padded[0, : b - a] -= start
    padded[0, b - a :] = 0  # row -1 is dropped, so any query will do
    return padded


def _fetch(start: int, stop: int, answer, scores_qk: np.ndarray, ids_qk: np.ndarray) -> None:
    """Copies one block's answer to the host, without the padding queries."""
    scores_qk[start:stop] = np.asarray(answer[0])[: stop - start]
    ids_qk[start:stop] = np.asarray(answer[1])[: stop - start]
