"""The scores of one tile, in groups of contiguous passages: written, masked, maxima, members.

An element of the top-k is in one of the k groups with the best maxima, so a search computes the
maxima of all groups, in one pass over the scores, and reads only k groups (`steps`). The memory
layout of the scores decides the cost of that pass:

* A TPU writes them as [groups, Q, group]. It then computes the maxima as it multiplies, and the
  members of a group are one row. By default XLA puts queries last, and copies all scores before it
  reads groups, which takes as long as the product.
* Elsewhere they are [Q, groups, group], the layout of the product.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

MASKED = 1 << 19  # scores masked at a time on a CPU: 2 MiB
LANES = 128  # width of a TPU's vector registers: shorter groups would be padded to it


def group_size(n: int, k: int, platform: str) -> int:
    """Passages per group for a tile of n: a power of two near sqrt(n / k), or 1 for no groups.

    That size makes the two top-k calls, over n / group maxima and over k * group members, equally
    wide. The group size must divide the tile and there must be more than k groups. On a TPU a group
    is at least as wide as a vector register, because a narrower last axis is padded to that in
    memory.
    """
    group = 1 << max(0, round(math.log2(max(1.0, n / k)) / 2))
    if platform == "tpu" and group > 1:
        group = max(group, LANES)
    while group > 1 and (n % group or n // group <= k):
        group //= 2
    return group


def multiply(queries_qd: jax.Array, tile_nd: jax.Array, group: int, platform: str) -> Scores:
    """Inner products of Q queries and n passages in float32, in groups of `group` passages."""
    tile_nd = tile_nd.astype(queries_qd.dtype)
    (n, width), queries = tile_nd.shape, len(queries_qd)
    group_major = platform == "tpu" and group > 1
    if group_major:
        tile_nd = tile_nd.reshape(n // group, group, width)
    scores = jax.lax.dot_general(
        queries_qd,
        tile_nd,
        (((1,), (tile_nd.ndim - 1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if queries_qd.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    if group_major:
        scores = with_layout_constraint(scores.transpose(1, 0, 2), Layout((0, 1, 2)))
    else:
        scores = scores.reshape(queries, n // group, group)
    return Scores(scores, group_major, platform)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a tile inside a jitted function.

    `ceiling_q` [Q] and `columns`, the number of columns that hold passages, are masks wherever they
    appear: scores at or above the ceiling, and columns from that number on, count as -inf; None
    masks nothing.

    Attributes:
        array: float32, [groups, Q, group] where `group_major`, else [Q, groups, group].
        group_major: selects the layout.
        platform: 'cpu', 'gpu' or 'tpu'.
    """

    array: jax.Array
    group_major: bool
    platform: str

    @property
    def group(self) -> int:
        """Passages per group."""
        return self.array.shape[2]

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, groups)."""
        first, second, _ = self.array.shape
        return (second, first) if self.group_major else (first, second)

    def whole(self) -> jax.Array:
        """All scores, [Q, n]; for a caller that keeps their memory."""
        scores_qgm = self.array.transpose(1, 0, 2) if self.group_major else self.array
        return scores_qgm.reshape(self.shape[0], -1)

    def maxima(self, excluded, ceiling_q, columns) -> tuple[jax.Array, Scores]:
        """The best allowed score of each query in each group, [Q, groups], and the updated scores.

        Args:
            excluded: None, or positions (query, column), each int [M], whose scores become -inf;
                a column of n or more is outside this tile.
            ceiling_q, columns: see above; masked in the maxima only.
        """
        if excluded is None:
            return _one_zero(self._maxima(ceiling_q, columns)), self
        query_m, column_m = excluded
        group_m = column_m // self.group
        without = self._without(query_m, group_m, column_m % self.group)
        if not self.group_major:
            return _one_zero(without._maxima(ceiling_q, columns)), without
        # Maxima of the changed scores would read all of them again, so only the few groups that
        # hold an excluded passage are recomputed.
        members_mm = without._rows(query_m, group_m)
        column_mm = group_m[:, None] * self.group + jnp.arange(self.group, dtype=jnp.int32)
        ceiling_m = None if ceiling_q is None else ceiling_q[query_m]
        again_m = jnp.max(_masked(members_mm, column_mm, ceiling_m, columns), axis=1)
        maxima_qg = self._maxima(ceiling_q, columns)
        return _one_zero(maxima_qg.at[query_m, group_m].set(again_m, mode="drop")), without

    def members(self, groups_qk: jax.Array, ceiling_q, columns) -> jax.Array:
        """Scores of some groups' members, masked, [Q, k, group]."""
        if self.group_major:
            queries_qk = jnp.broadcast_to(jnp.arange(self.shape[0])[:, None], groups_qk.shape)
            members_qkm = self._rows(queries_qk, groups_qk)
        else:
            members_qkm = jnp.take_along_axis(self.array, groups_qk[:, :, None], axis=1)
        column_qkm = groups_qk[:, :, None] * self.group + jnp.arange(self.group, dtype=jnp.int32)
        return _one_zero(_masked(members_qkm, column_qkm, ceiling_q, columns))

    def _maxima(self, ceiling_q, columns):
        """Maxima of the scores, masked.

        XLA's CPU backend does not fuse a mask into this maximum: it would write a second array of
        all scores, which takes longer than all other operations here. In sequential pieces of a few
        rows, that array stays in the cache. Accelerators fuse it, and process all rows at once.
        """
        if ceiling_q is None and columns is None:
            maxima = jnp.max(self.array, axis=2)
            return maxima.T if self.group_major else maxima
        queries, groups = self.shape
        column_gm = jnp.arange(groups * self.group, dtype=jnp.int32).reshape(groups, self.group)
        if self.group_major:
            scores_gqm = self.array
            if ceiling_q is not None:
                scores_gqm = jnp.where(scores_gqm < ceiling_q[:, None], scores_gqm, -jnp.inf)
            scores_gqm = _masked(scores_gqm, column_gm[:, None], None, columns)
            return jnp.max(scores_gqm, axis=2).T

        def maxima(piece):
            return jnp.max(_masked(piece[0], column_gm, piece[1], columns), axis=-1)

        most = max(1, MASKED // (groups * self.group))
        rows = math.gcd(queries, 1 << most.bit_length() - 1)  # a power of two: blocks divide by 16
        if self.platform != "cpu" or rows == queries:
            return maxima((self.array, ceiling_q))
        pieces = jax.tree.map(
            lambda x: x.reshape(queries // rows, rows, *x.shape[1:]), (self.array, ceiling_q)
        )
        return jax.lax.map(maxima, pieces).reshape(queries, groups)

    def _without(self, query_m, group_m, member_m) -> Scores:
        """The scores with -inf at some positions; groups past the last one are dropped."""
        if not self.group_major:
            where = self.array.at[query_m, group_m, member_m]
            return dataclasses.replace(self, array=where.set(-jnp.inf, mode="drop"))
        queries, groups = self.shape
        flat = self.array.reshape(groups * queries, self.group)
        flat = flat.at[group_m * queries + query_m, member_m].set(-jnp.inf, mode="drop")
        return dataclasses.replace(self, array=flat.reshape(self.array.shape))

    def _rows(self, query, group) -> jax.Array:
        """Members of pairs of a query and a group, [..., group], where groups are first."""
        queries, groups = self.shape
        flat = self.array.reshape(groups * queries, self.group)
        return flat.at[group * queries + query].get(mode="fill", fill_value=-jnp.inf)


def _one_zero(scores):
    """Replaces -0 (from products that underflow) by 0: XLA's top-k ranks -0 below 0."""
    return jnp.where(scores == 0, 0.0, scores)


def _masked(scores, column, ceiling_q, columns):
    """`scores` [Q, ...] with -inf for passages that are ruled out; `column` broadcasts to them."""
    if ceiling_q is not None:
        ceiling = ceiling_q.reshape((-1,) + (1,) * (scores.ndim - 1))
        scores = jnp.where(scores < ceiling, scores, -jnp.inf)
    if columns is not None:
        scores = jnp.where(column < columns, scores, -jnp.inf)
    return scores
