"""log Σ exp over all negatives of the global batch, in two equivalent ways.

`gathered`: every device gathers all columns and holds its rows of the score matrix. Simple, and the
reference; for B queries and N passages on R devices it takes B/R × N scores and all N vectors, and
as much again for the gradient.

`ring`: the columns circulate among the devices. Each device holds one block of them at a time,
processes it in tiles, and keeps a running maximum and sum per anchor; a matrix of scores never
exists. The gradient takes another round: scores are recomputed tile by tile, and the gradient of a
block travels with the block until it is back at its device. Between the two passes only the input
and two numbers per anchor are kept. It costs one more product of anchors and columns than
`gathered`. On a single device only the tiles save memory.

Sums over columns, which the reverse direction (passage to query) would need, are not computed: that
direction is a separate term with passages as anchors, in a separate round.

The custom gradient is outside `shard_map`, so that each of the two passes is a plain program on
every device, and the temperature's gradient is an explicit psum.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.training.loss.terms import NO_NEGATIVES, Contrast, Features, Term


def tile_side(pairs: int, anchors: jax.Array, columns: jax.Array, platform: str) -> int:
    """Texts along each side of a tile.

    Args:
        pairs: budget of token pairs; 0: as the platform can take.
        anchors, columns: [A, D] and [C, D], or [A, T, D] and [C, S, D].
        platform: of the devices: 'cpu', 'gpu' or 'tpu'.
    """
    if pairs == 0:
        pairs = platforms.limits(platform).tile_pairs
    tokens = anchors.shape[1] * columns.shape[1] if anchors.ndim == 3 else 1
    return max(1, math.isqrt(max(1, pairs // tokens)))


def gathered(
    term: Term,
    anchors: jax.Array,
    columns: jax.Array,
    left: Features,
    right: Features,
    scale: jax.Array,
    *,
    tile: int,
) -> Contrast:
    """The reference: all columns on every device.

    Args:
        term: what is contrasted.
        anchors: [A, (T,) D], split over the batch axis.
        columns: [C, (S,) D], split over the batch axis.
        left, right: what the masks need of both; see terms.py.
        scale: 1 / temperature, a scalar.
        tile: columns at a time, if a score takes more than one number per pair.
    """

    def whole(x: jax.Array) -> jax.Array:
        return jax.reshard(x, P(*([None] * x.ndim)))

    columns, right = whole(columns), jax.tree.map(whole, right)
    if term.scores == "inner":
        scores_ac = term.score(anchors, columns, left, right)
    else:
        count = columns.shape[0]
        size = next(s for s in range(min(tile, count), 0, -1) if count % s == 0)
        parts = jax.tree.map(
            lambda x: x.reshape(count // size, size, *x.shape[1:]), (columns, right["tokens"])
        )
        score = jax.checkpoint(lambda part: term.score(anchors, part[0], left, {"tokens": part[1]}))
        scores_ac = jnp.swapaxes(jax.lax.map(score, parts), 0, 1).reshape(-1, count)
    masks = term.masks(scores_ac, left, right)
    lse_a = jax.nn.logsumexp(jnp.where(masks.allowed_ac, scores_ac * scale, NO_NEGATIVES), axis=1)
    return Contrast(lse_a, *_statistics(scores_ac, masks))


def _statistics(scores_ac: jax.Array, masks: Any) -> tuple[jax.Array, ...]:
    best_a = jnp.max(jnp.where(masks.allowed_ac, scores_ac, -jnp.inf), axis=1)
    counts = [jnp.sum(mask_ac, axis=1, dtype=jnp.int32) for mask_ac in masks]
    return (jax.lax.stop_gradient(best_a), *counts)


def ring(
    term: Term,
    anchors: jax.Array,
    columns: jax.Array,
    left: Features,
    right: Features,
    scale: jax.Array,
    *,
    mesh: Mesh,
    tile: int,
) -> Contrast:
    """The same as `gathered`, blockwise.

    Args:
        term, anchors, columns, left, right, scale: see `gathered`.
        mesh: the columns circulate along its batch axis.
        tile: texts along each side of a tile.
    """
    split = mesh_lib.spec("batch")
    anchors, columns, left, right = jax.tree.map(
        lambda x: jax.reshard(x, P(*split, *([None] * (x.ndim - 1)))),
        (anchors, columns, left, right),
    )
    return _ring(_Ring(term, mesh, tile), anchors, columns, left, right, jax.reshard(scale, P()))


@dataclasses.dataclass(frozen=True)
class _Ring:
    """The two passes, and their static parameters."""

    term: Term
    mesh: Mesh
    tile: int

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes along which the columns circulate."""
        return mesh_lib.RULES["batch"]

    @property
    def parts(self) -> int:
        return mesh_lib.shards(self.mesh, "batch")

    # -- the passes, as every device runs them ----------------------------------------------------

    def forward(self, anchors, columns, left, right, scale):
        """The term's sums, and the maximum and sum that the gradient needs."""
        count = anchors.shape[0]
        (anchors, left), rows = self._padded((anchors, left))
        block, cols = self._padded((columns, right))
        wide = jnp.promote_types(anchors.dtype, jnp.float32)
        zero = jnp.zeros(anchors.shape[0], wide)
        start = self._vary(
            (
                zero + NO_NEGATIVES,
                zero,
                zero - jnp.inf,
                *[jnp.zeros(anchors.shape[0], jnp.int32)] * 3,
            )
        )
        scale = self._vary(scale)

        def fold(i, j, block, sums):
            columns, right = self._at(block, j, cols)
            mine, theirs = self._at((anchors, left), i, rows)
            scores_ac = self.term.score(mine, columns, theirs, right).astype(wide)
            masks = self.term.masks(scores_ac, theirs, right)
            top, total, best, *counts = self._at(sums, i, rows)
            logits_ac = jnp.where(masks.allowed_ac, scores_ac * scale, NO_NEGATIVES)
            higher = jnp.maximum(top, jnp.max(logits_ac, axis=1))
            terms_ac = jnp.where(masks.allowed_ac, jnp.exp(logits_ac - higher[:, None]), 0.0)
            total = total * jnp.exp(top - higher) + jnp.sum(terms_ac, axis=1)
            found, *more = _statistics(scores_ac, masks)
            counts = [old + new for old, new in zip(counts, more, strict=True)]
            return self._put(sums, (higher, total, jnp.maximum(best, found), *counts), i, rows)

        def step(_, carry):
            block, sums = carry
            onward = self._rotate(block)  # in transit while this block is processed
            sums = self._tiles(rows, cols, lambda i, j, sums: fold(i, j, block, sums), sums)
            return onward, sums

        _, (top, total, *statistics) = jax.lax.fori_loop(0, self.parts, step, (block, start))
        lse = jnp.where(total > 0, top + jnp.log(jnp.where(total > 0, total, 1.0)), NO_NEGATIVES)
        lse, top, total, *statistics = (x[:count] for x in (lse, top, total, *statistics))
        return Contrast(lse, *statistics), (top, total)

    def backward(self, anchors, columns, left, right, scale, sums, weight):
        """Gradients of anchors, columns and scale, given those of the anchors' log sums."""
        count, width = anchors.shape[0], columns.shape[0]
        top, total = sums
        # Not exp(logit - lse): at a low temperature lse is so large that its rounding error would
        # matter.
        weight = weight / jnp.where(total > 0, total, 1.0)
        (anchors, left, top, weight), rows = self._padded((anchors, left, top, weight))
        block, cols = self._padded((columns, right))
        wide = top.dtype
        start = self._vary((jnp.zeros(anchors.shape, wide), jnp.zeros((), wide)))
        block_gradient = self._vary(jnp.zeros(block[0].shape, wide))
        scale = self._vary(scale)

        def fold(i, j, block, gradients):
            columns, right = self._at(block, j, cols)
            mine, theirs, top_a, weight_a = self._at((anchors, left, top, weight), i, rows)
            scores_ac, pull = jax.vjp(
                lambda a, c: self.term.score(a, c, theirs, right).astype(wide), mine, columns
            )
            allowed_ac = self.term.masks(scores_ac, theirs, right).allowed_ac
            share_ac = jnp.exp(
                jnp.where(allowed_ac, scores_ac * scale, NO_NEGATIVES) - top_a[:, None]
            )
            share_ac = jnp.where(allowed_ac, share_ac * weight_a[:, None], 0.0)
            of_anchors, of_columns = pull(share_ac * scale)
            to_anchors, to_columns, to_scale = gradients
            of_anchors += self._at(to_anchors, i, rows)
            of_columns += self._at(to_columns, j, cols)
            to_anchors = self._put(to_anchors, of_anchors, i, rows)
            to_columns = self._put(to_columns, of_columns, j, cols)
            return to_anchors, to_columns, to_scale + jnp.sum(share_ac * scores_ac)

        def step(_, carry):
            block, to_columns, to_anchors, to_scale = carry
            onward = self._rotate(block)
            to_anchors, to_columns, to_scale = self._tiles(
                rows,
                cols,
                lambda i, j, gradients: fold(i, j, block, gradients),
                (to_anchors, to_columns, to_scale),
            )
            return onward, self._rotate(to_columns), to_anchors, to_scale

        _, to_columns, to_anchors, to_scale = jax.lax.fori_loop(
            0, self.parts, step, (block, block_gradient, *start)
        )
        return (
            to_anchors[:count].astype(anchors.dtype),
            to_columns[:width].astype(columns.dtype),
            jax.lax.psum(to_scale, self.axes).astype(scale.dtype),
        )

    # -- their parts -------------------------------------------------------------------------------

    def _padded(self, tree: Any) -> tuple[Any, int]:
        """Zeros (not real: masked) up to a whole number of equal tiles, and that number."""
        count = jax.tree.leaves(tree)[0].shape[0]
        tiles = -(-count // self.tile)
        extra = -count % tiles
        if extra:
            tree = jax.tree.map(lambda x: jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)), tree)
        return tree, tiles

    def _tiles(self, rows: int, cols: int, fold: Any, state: Any) -> Any:
        """`fold` at every tile of a block in turn."""
        return jax.lax.fori_loop(
            0, rows * cols, lambda n, state: fold(n // cols, n % cols, state), state
        )

    def _at(self, tree: Any, i: jax.Array, tiles: int) -> Any:
        """Tile i of `tiles` of every array."""

        def cut(x):
            size = x.shape[0] // tiles
            return jax.lax.dynamic_slice_in_dim(x, i * size, size)

        return jax.tree.map(cut, tree)

    def _put(self, tree: Any, parts: Any, i: jax.Array, tiles: int) -> Any:
        """Every array with tile i replaced."""

        def paste(x, part):
            size = x.shape[0] // tiles
            return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), i * size, 0)

        return jax.tree.map(paste, tree, parts)

    def _rotate(self, tree: Any) -> Any:
        if self.parts == 1:
            return tree
        ahead = [(i, (i + 1) % self.parts) for i in range(self.parts)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, ahead), tree)

    def _vary(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.pcast(x, self.axes, to="varying"), tree)

    def shard_map(self, passes: Any, ins: tuple, outs: Any) -> Any:
        return jax.shard_map(passes, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(how, anchors, columns, left, right, scale):
    return _ring_forward(how, anchors, columns, left, right, scale)[0]


def _ring_forward(how, *inputs):
    split = mesh_lib.spec("batch")
    run = how.shard_map(how.forward, (split, split, split, split, P()), split)
    with jax.named_scope(f"ring_{how.term.name}"):
        out, sums = run(*inputs)
    return out, (*inputs, sums)


def _ring_backward(how, kept, gradient):
    split = mesh_lib.spec("batch")
    run = how.shard_map(
        how.backward, (split, split, split, split, P(), split, split), (split, split, P())
    )
    with jax.named_scope(f"ring_{how.term.name}_gradient"):
        to_anchors, to_columns, to_scale = run(*kept, gradient.lse_a)
    return to_anchors, to_columns, None, None, to_scale


_ring.defvjp(_ring_forward, _ring_backward)
