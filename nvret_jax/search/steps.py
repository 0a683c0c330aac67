"""The jitted steps of an exact search: score a tile, fold it into the lists, merge the lists.

Shared by the index that holds its passages (`exact`) and the one that streams them (`stream`), and
compiled for devices nobody owns by `nvret_jax.plan`. What depends on the platform is taken from the
mesh's devices, never from the backend of this process.

Choices, and why:

* **Order.** (score descending, row ascending), on any mesh and any tile size. `lax.top_k` puts the
  lower position first among equals, so it is enough that positions ascend with rows everywhere:
  the running list stands before the new tile, and groups are put back in row order before the
  second top-k. The last merge sorts by (score, row), so shards may own rows in any pattern.
* **Group maxima.** `lax.top_k` over a whole score row costs as much as the matmul. An element of
  the top-k lies in one of the k groups that come first by (maximum descending, group ascending):
  every group before its own holds an element that is better. So we take maxima of groups of
  contiguous passages (one pass), the top-k of those, and then look only into k groups.
* **Ceiling and exclusions** turn scores into -inf before the maxima, so a query is never starved:
  it gets the k best of what it may have.
* **Precision.** float32 passages are multiplied at `Precision.HIGHEST`, so CPU, GPU and TPU agree
  to float32 rounding. bfloat16 passages are multiplied as bfloat16 with float32 accumulation: on
  accelerators always, on a CPU where it has units for that and the queries lose nothing by it
  (`query_dtype`); elsewhere a tile is widened as it is scored. Scores are float32 always: narrow
  `top_k` is many times slower on a CPU.
* **Row numbers** are int32. A tile that lies wholly behind the last passage may begin past 2^31;
  its row numbers wrap round, but the differences to them that masks are made from stay right.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib

MASKED = 1 << 19  # scores masked at a time on a CPU: 2 MiB
SPLIT = 1 << 18  # values from which a top-k is cut into pieces on a CPU
PIECES = 16  # pieces a top-k is cut into on a CPU; blocks of queries are multiples of it
LANES = 128  # width of a TPU's vector registers: shorter groups would be padded to it
ROWS = mesh_lib.RULES["rows"]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)


@functools.lru_cache(maxsize=64)
def fold(mesh: Mesh, k: int, per_shard: int, limit: int | None):
    """The jitted step for one tile: (best | None, scratch, tile, first row, queries, masks) ->
    (best, scratch).

    `best` is (scores, rows), each [shards, Q, k] split over the shards; `scratch` is what the
    function of that name gave. Both are donated, so go on with what comes back. The tile is
    [shards * tile, D] split by rows; shard s owns the rows from `first row + s * per_shard`.
    `masks` may hold `ceiling_q` [Q] and `pairs_2m` (query, row) [2, M]. `limit` is the number of
    passages where rows past the end exist and must be masked, else None.
    """
    platform = platform_of(mesh)

    # Scratch is only written: without keep_unused jit would drop the argument, and its memory.
    @functools.partial(jax.jit, donate_argnums=(0, 1), keep_unused=True)
    def step(best, scratch, tile_nd, first_row, queries_qd, masks):
        local = functools.partial(
            _fold_tile, k=k, per_shard=per_shard, limit=limit, platform=platform
        )
        best, scores = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(P(ROWS), P(ROWS, None), P(), P(), P()),
            out_specs=P(ROWS),
        )(best, tile_nd, first_row, queries_qd, masks)
        return best, None if scratch is None else scores

    return step


def scratch(mesh: Mesh, queries: int, tile: int) -> jax.Array | None:
    """Memory for the scores of one step, [shards, Q, tile] float32, handed from step to step.

    On a CPU every step would otherwise get fresh pages for them from the kernel, and touching
    those for the first time takes nearly as long as the product. Accelerators keep their memory:
    None.
    """
    if platform_of(mesh) != "cpu":
        return None
    shape = (mesh_lib.shards(mesh, "rows"), queries, tile)
    where = NamedSharding(mesh, P(ROWS))
    return jax.make_array_from_callback(
        shape, where, lambda _: np.zeros((1, queries, tile), np.float32)
    )


def _fold_tile(best, tile_nd, first_row, queries_qd, masks, *, k, per_shard, limit, platform):
    """On one device: scores its tile and folds it into its running list of the k best.

    Back come the list and the scores themselves, for whom they are to be written to.
    """
    offset = jax.lax.axis_index(ROWS) * per_shard + first_row  # row number of the tile's first row
    with jax.named_scope("scores"):
        # Made as [Q, groups, group], the form in which they are looked at next, a TPU takes the
        # maxima as it multiplies; from [Q, n] it would first copy all scores to another layout.
        group = group_size(len(tile_nd), k, platform) if platform == "tpu" else 1
        scores_qn = _scores(queries_qd, tile_nd, group)
    if "pairs_2m" in masks:
        query_m, row_m = masks["pairs_2m"]
        column_m = row_m - offset
        # Negative positions would wrap round; one past the end is dropped, which is what we want.
        column_m = jnp.where(column_m < 0, tile_nd.shape[0], column_m)
        scores_qn = scores_qn.at[query_m, column_m].set(-jnp.inf, mode="drop")

    with jax.named_scope("top_k"):
        ceiling_q = masks.get("ceiling_q")
        columns = None if limit is None else limit - offset
        values, rows = _top_k_of_tile(scores_qn, k, ceiling_q, columns, platform)
        rows = jnp.where(values > -jnp.inf, rows + offset, -1)
        if best is not None:
            # The running list stands first: its rows are lower, so they win ties.
            values = jnp.concatenate([best[0][0], values], axis=1)
            rows = jnp.concatenate([best[1][0], rows], axis=1)
            values, position = top_k(values, k, platform)
            rows = jnp.take_along_axis(rows, position, axis=1)
    return (values[None], rows[None]), scores_qn[None]


def _scores(queries_qd, tile_nd, group):
    """Inner products [Q, n] in float32, made in groups of that many passages where it is not 1."""
    tile_nd = tile_nd.astype(queries_qd.dtype)
    shape = tile_nd.shape
    if group > 1:
        tile_nd = tile_nd.reshape(shape[0] // group, group, shape[1])
    scores = jax.lax.dot_general(
        queries_qd,
        tile_nd,
        (((1,), (tile_nd.ndim - 1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if queries_qd.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    if shape[1] == 1:
        # Zero times a negative is -0, which XLA's top-k ranks below 0. Sums begin at 0: none there.
        scores = jnp.where(scores == 0, 0.0, scores)
    return scores.reshape(queries_qd.shape[0], shape[0])


def _top_k_of_tile(scores_qn, k, ceiling_q, columns, platform):
    """The k best of one tile in (score desc, column asc) order: values and columns, [Q, k].

    `ceiling_q` and `columns`, the number of columns that hold passages, are None where no mask is
    needed.
    """
    queries, n = scores_qn.shape
    group = group_size(n, k, platform)
    if group == 1:
        scores_qn = _masked(scores_qn, jnp.arange(n, dtype=jnp.int32), ceiling_q, columns)
        if n < k:
            scores_qn = jnp.pad(scores_qn, ((0, 0), (0, k - n)), constant_values=-jnp.inf)
        return top_k(scores_qn, k, platform)
    scores_qgm = scores_qn.reshape(queries, n // group, group)
    maxima_qk, groups_qk = top_k(
        _group_maxima(scores_qgm, ceiling_q, columns, platform), k, platform
    )
    groups_qk = jnp.sort(groups_qk, axis=1)
    members_qkm = jnp.take_along_axis(scores_qgm, groups_qk[:, :, None], axis=1)
    column_qkm = groups_qk[:, :, None] * group + jnp.arange(group, dtype=jnp.int32)
    members_qkm = _masked(members_qkm, column_qkm, ceiling_q, columns)
    # k maxima reach the least of them, so nothing below it can be among the k best. Said in
    # advance it spares a heap-based top-k most of its insertions. (A minimum, not the last column:
    # XLA joins a slice of a top-k with the top-k's own slice of a sort, which leaves a whole sort.)
    least_q = jnp.min(maxima_qk, axis=1)
    members_qkm = jnp.where(members_qkm >= least_q[:, None, None], members_qkm, -jnp.inf)
    values_qk, position_qk = top_k(members_qkm.reshape(queries, k * group), k, platform)
    chosen_qk = jnp.take_along_axis(groups_qk, position_qk // group, axis=1)
    return values_qk, chosen_qk * group + position_qk % group


def _group_maxima(scores_qgm, ceiling_q, columns, platform):
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

    most = max(1, MASKED // (groups * group))
    rows = math.gcd(queries, 1 << most.bit_length() - 1)  # a power of two: blocks divide by 16
    if platform != "cpu" or rows == queries:
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


def top_k(values_qn, k, platform):
    """`lax.top_k` over the last axis, lower position first among equals.

    A CPU runs one top-k on one thread, but runs separate ones side by side (as soon as a program
    has some dozens of steps): there the rows of a large one are cut into pieces.
    """
    pieces = math.gcd(values_qn.shape[0], PIECES)
    if pieces == 1 or values_qn.size < SPLIT or platform != "cpu":
        return jax.lax.top_k(values_qn, k)
    parts = [jax.lax.top_k(part, k) for part in jnp.split(values_qn, pieces)]
    return tuple(jnp.concatenate(part) for part in zip(*parts, strict=True))


def group_size(n: int, k: int, platform: str) -> int:
    """Passages per group for a tile of n: a power of two near sqrt(n / k), or 1 for no groups.

    That size makes the two top-k calls, over n / group maxima and over k * group members, equally
    wide. Groups must divide the tile and there must be more of them than k. On a TPU a group is at
    least as wide as a vector register, because a narrower last axis is padded to that in memory.
    """
    group = 1 << max(0, round(math.log2(max(1.0, n / k)) / 2))
    if platform == "tpu" and group > 1:
        group = max(group, LANES)
    while group > 1 and (n % group or n // group <= k):
        group //= 2
    return group


@functools.lru_cache(maxsize=8)
def merge(mesh: Mesh):
    """The jitted last step: running lists [shards, Q, k] -> the answer [Q, k], replicated."""
    shards = mesh_lib.shards(mesh, "rows")

    def local(values, rows):
        k = values.shape[-1]
        values = jax.lax.all_gather(values[0], ROWS, axis=1, tiled=True, to="invarying")
        rows = jax.lax.all_gather(rows[0], ROWS, axis=1, tiled=True, to="invarying")
        if shards > 1:
            worst_first, rows = jax.lax.sort((-values, rows), dimension=1, num_keys=2)
            values, rows = -worst_first[:, :k], rows[:, :k]
        return values, rows

    @jax.jit
    def merge_lists(values, rows):
        return jax.shard_map(local, mesh=mesh, in_specs=(P(ROWS), P(ROWS)), out_specs=(P(), P()))(
            values, rows
        )

    return merge_lists


# --- what the platform decides --------------------------------------------------------------------


def platform_of(mesh: Mesh) -> str:
    """'cpu', 'gpu' or 'tpu': what the mesh's devices are, whatever this process runs on."""
    return next(iter(mesh.devices.flat)).platform


def stored_dtype(dtype) -> np.dtype:
    """What passages of a dtype are held as on a device: bfloat16 as it is, the rest as float32."""
    return BFLOAT16 if np.dtype(dtype) == BFLOAT16 else FLOAT32


def query_dtype(stored: np.dtype, platform: str, queries_qd: np.ndarray) -> np.dtype:
    """What queries are multiplied as with passages held as `stored`; the tile follows them.

    A CPU multiplies bfloat16 as such only where that is quick and exact: it has the instructions,
    and every query is a bfloat16 number already. (Products are then exact in float32; with
    avx512_bf16 the scores do not depend on the shapes of tile and block either, as float32's do.)
    """
    if stored != BFLOAT16:
        return FLOAT32
    if platform != "cpu":
        return BFLOAT16
    queries_qd = np.asarray(queries_qd)
    if not cpu_multiplies_bfloat16():
        return FLOAT32
    if queries_qd.dtype == BFLOAT16:
        return BFLOAT16
    same = np.array_equal(queries_qd.astype(BFLOAT16).astype(FLOAT32), queries_qd)
    return BFLOAT16 if same else FLOAT32


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products; elsewhere they are emulated."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in words or "amx_bf16" in words
