"""The jitted steps of an exact search: score a tile, fold it into the lists, merge the lists.

Shared by the index that holds its passages (`exact`) and the one that streams them (`stream`), and
compiled for absent devices by `nvret_jax.plan`. The platform is always that of the mesh's devices,
never the backend of this process.

Choices, and why:

* **Order.** (score descending, row ascending), on any mesh and any tile size. `lax.top_k` puts the
  lower position first among equals, so it suffices that positions ascend with rows everywhere: the
  running list comes before the new tile, and groups are restored to row order before the second
  top-k. The last merge sorts by (score, row), so shards may own rows in any pattern.
* **Group maxima.** `lax.top_k` over a whole score row costs as much as the matmul. An element of
  the top-k is in one of the k groups that are first by (maximum descending, group ascending): every
  group before its own holds a better element. So we take maxima of groups of contiguous passages
  (one pass, `grouped`), the top-k of those, and then read only k groups.
* **One top-k for the running list and the members** of those groups: separate top-k calls for the
  list and the tile would sort twice.
* **Ceiling and exclusions** turn scores into -inf before the maxima, so a query is never starved:
  it gets the k best of the allowed passages.
* **Precision.** float32 passages are multiplied at `Precision.HIGHEST`, so CPU, GPU and TPU agree
  to float32 rounding. bfloat16 passages are multiplied as bfloat16 with float32 accumulation: on
  accelerators always, on a CPU if it has units for that and the queries lose no precision
  (`query_dtype`); elsewhere a tile is widened as it is scored. Scores are always float32: `top_k`
  on narrower types is many times slower on a CPU.
* **Row numbers** are int32. A tile wholly past the last passage may begin past 2^31; its row
  numbers wrap around, but the differences from which masks are made stay correct.
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
from nvret_jax import platforms
from nvret_jax.search.index.grouped import group_size, multiply

SPLIT = 1 << 18  # values from which a top-k is cut into pieces on a CPU
SORTED = 2048  # values up to which a GPU sorts a row as a whole
PIECES = 16  # pieces a top-k is cut into on a CPU; blocks of queries are multiples of it
ROWS = mesh_lib.RULES["rows"]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)


@functools.lru_cache(maxsize=64)
def fold(mesh: Mesh, k: int, per_shard: int, limit: int | None):
    """The jitted step for one tile: (best | None, scratch, tile, first row, queries, masks) ->
    (best, scratch).

    `best` is (scores, rows), each [shards, Q, k] split over the shards; `scratch` is from the
    function of that name. Both are donated, so continue with the returned ones. The tile,
    [shards * tile, D], is split by rows; shard s owns the rows from `first row + s * per_shard`.
    `masks` may hold `ceiling_q` [Q] and `pairs_2m` (query, row) [2, M]. `limit` is the number of
    passages if rows past the end exist and must be masked, else None.
    """
    platform = platforms.of(mesh)

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

    On a CPU every step would otherwise get fresh pages for them from the kernel, and touching those
    for the first time takes nearly as long as the product. Accelerators keep their memory, so there
    it is None.
    """
    if platforms.of(mesh) != "cpu":
        return None
    shape = (mesh_lib.shards(mesh, "rows"), queries, tile)
    where = NamedSharding(mesh, P(ROWS))
    return jax.make_array_from_callback(
        shape, where, lambda _: np.zeros((1, queries, tile), np.float32)
    )


def _fold_tile(best, tile_nd, first_row, queries_qd, masks, *, k, per_shard, limit, platform):
    """On one device: scores its tile and folds it into its running list of the k best.

    Returns the list, and the scores for the scratch memory.
    """
    n = len(tile_nd)
    offset = jax.lax.axis_index(ROWS) * per_shard + first_row  # row number of the tile's first row
    ceiling_q, columns = masks.get("ceiling_q"), None if limit is None else limit - offset
    with jax.named_scope("scores"):
        scores = multiply(queries_qd, tile_nd, group_size(n, k, platform), platform)
    excluded = None
    if "pairs_2m" in masks:
        query_m, row_m = masks["pairs_2m"]
        column_m = row_m - offset
        # For other tiles: a column past the end is dropped, whereas a negative one would wrap
        # around.
        excluded = query_m, jnp.where((column_m < 0) | (column_m > n), n, column_m)
    with jax.named_scope("top_k"):
        maxima_qg, scores = scores.maxima(excluded, ceiling_q, columns)
        values, columns_of = _chosen(scores, maxima_qg, k, ceiling_q, columns)
        if best is None:
            values, position = top_k(_at_least(values, k), k, platform)
            rows = columns_of(position) + offset
        else:
            # The running list comes first: its rows are lower, so they win ties.
            values, position = top_k(jnp.concatenate([best[0][0], values], axis=1), k, platform)
            known = jnp.take_along_axis(best[1][0], jnp.minimum(position, k - 1), axis=1)
            found = columns_of(jnp.maximum(position - k, 0)) + offset
            rows = jnp.where(position < k, known, found)
        rows = jnp.where(values > -jnp.inf, rows, -1)
    return (values[None], rows[None]), scores.whole()[None]


def _chosen(scores, maxima_qg, k, ceiling_q, columns):
    """Scores [Q, C] that hold the k best of a tile, columns ascending, and how to find the columns.

    The second is a function: positions [Q, k] among the first -> columns of the tile [Q, k].
    """
    if scores.group == 1:
        return maxima_qg, lambda position_qk: position_qk
    maxima_qk, groups_qk = top_k(maxima_qg, k, scores.platform)
    groups_qk = jnp.sort(groups_qk, axis=1)
    members_qkm = scores.members(groups_qk, ceiling_q, columns)
    # k maxima are at least the smallest of them, so no lower score can be among the k best. Masking
    # those first saves a heap-based top-k most of its insertions. (A minimum, not the last column:
    # XLA merges a slice of a top-k with the top-k's own slice of a sort, which leaves a full sort.)
    least_q = jnp.min(maxima_qk, axis=1)
    members_qkm = jnp.where(members_qkm >= least_q[:, None, None], members_qkm, -jnp.inf)

    def columns_of(position_qk):
        chosen_qk = jnp.take_along_axis(groups_qk, position_qk // scores.group, axis=1)
        return chosen_qk * scores.group + position_qk % scores.group

    return members_qkm.reshape(len(members_qkm), -1), columns_of


def _at_least(values_qn, k):
    """`values` [Q, n], with -inf added where n is less than k."""
    short = max(0, k - values_qn.shape[1])
    return jnp.pad(values_qn, ((0, 0), (0, short)), constant_values=-jnp.inf)


def top_k(values_qn, k, platform):
    """`lax.top_k` over the last axis, lower position first among equals.

    A CPU runs one top-k on one thread, but separate ones in parallel (as soon as a program has some
    dozens of steps): there the rows of a large one are split into pieces. A GPU sorts whole rows,
    and long ones are sorted many times slower than short ones: there groups are compared first.
    """
    if platform == "gpu":
        return _top_k_by_groups(values_qn, k)
    pieces = math.gcd(values_qn.shape[0], PIECES)
    if pieces == 1 or values_qn.size < SPLIT or platform != "cpu":
        return jax.lax.top_k(values_qn, k)
    parts = [jax.lax.top_k(part, k) for part in jnp.split(values_qn, pieces)]
    return tuple(jnp.concatenate(part) for part in zip(*parts, strict=True))


def _top_k_by_groups(values_qn, k):
    """`lax.top_k` by two of short rows: the maxima of groups, then the members of the k best."""
    queries, n = values_qn.shape
    group = 1 << round(math.log2(max(1.0, n / k)) / 2)
    if n <= SORTED or group < 4:
        return jax.lax.top_k(values_qn, k)
    groups_qgm = jnp.pad(values_qn, ((0, 0), (0, -n % group)), constant_values=-jnp.inf)
    groups_qgm = groups_qgm.reshape(queries, -1, group)
    chosen_qk = jnp.sort(_top_k_by_groups(jnp.max(groups_qgm, axis=2), k)[1], axis=1)
    members_qkm = jnp.take_along_axis(groups_qgm, chosen_qk[:, :, None], axis=1)
    values_qk, position_qk = jax.lax.top_k(members_qkm.reshape(queries, -1), k)
    of_qk = jnp.take_along_axis(chosen_qk, position_qk // group, axis=1)
    return values_qk, of_qk * group + position_qk % group


@functools.lru_cache(maxsize=8)
def merge(mesh: Mesh):
    """The jitted last step: running lists [shards, Q, k] -> the result [Q, k], replicated.

    Each device merges the lists of its share of the queries and sends the result to the others: it
    receives 2 / shards of the bytes of all lists, and sorts 1 / shards of them.
    """
    shards = mesh_lib.shards(mesh, "rows")

    def local(values, rows):
        values, rows = values[0], rows[0]
        queries, k = values.shape
        if shards > 1:
            values, rows = (_by_query(lists_qk, shards) for lists_qk in (values, rows))
            worst_first, rows = jax.lax.sort((-values, rows), dimension=1, num_keys=2)
            values, rows = -worst_first[:, :k], rows[:, :k]
        whole = functools.partial(
            jax.lax.all_gather, axis_name=ROWS, axis=0, tiled=True, to="invarying"
        )
        return whole(values)[:queries], whole(rows)[:queries]

    @jax.jit
    def merge_lists(values, rows):
        return jax.shard_map(local, mesh=mesh, in_specs=(P(ROWS), P(ROWS)), out_specs=(P(), P()))(
            values, rows
        )

    return merge_lists


def _by_query(lists_qk, shards):
    """On one device: from its list of all queries to all lists of its queries, [Q / S, S k]."""
    lists_qk = jnp.pad(lists_qk, ((0, -len(lists_qk) % shards), (0, 0)))
    return jax.lax.all_to_all(lists_qk, ROWS, split_axis=0, concat_axis=1, tiled=True)


# --- what the platform decides --------------------------------------------------------------------


def stored_dtype(dtype) -> np.dtype:
    """The dtype on a device of passages stored in `dtype`: bfloat16 is kept, others are float32."""
    return BFLOAT16 if np.dtype(dtype) == BFLOAT16 else FLOAT32


def query_dtype(stored: np.dtype, platform: str, queries_qd: np.ndarray) -> np.dtype:
    """The dtype of the queries in a product with passages held as `stored`; the tile follows them.

    A CPU multiplies in bfloat16 only if that is fast and exact: it has the instructions, and every
    query already is a bfloat16 number. (Products are then exact in float32; with avx512_bf16,
    scores do not depend on the shapes of tile and block, unlike those of float32.)
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
