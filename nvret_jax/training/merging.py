"""Merges several trees of weights: their weighted average, or SLERP.

SLERP follows the arc between two tensors instead of the chord, and so keeps their length. As in
mergekit, each tensor is treated as a separate flattened vector, and almost parallel ones are
averaged; a stack of layers counts as one tensor per layer, as in the model's own files. More than
two are merged sequentially, each with its share of the weight so far: three equal weights go
halfway from the first to the second, then a third of the way to the last.

All arithmetic is float32; the result has the first tree's types and shardings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nvret_jax.errors import InputError

METHODS = ("average", "slerp")
# Cosine from which two tensors are averaged: mergekit's own threshold.
PARALLEL = 0.9995


def equal(count: int) -> tuple[float, ...]:
    """Equal weights."""
    return (1.0 / count,) * count


def check_weights(weights: Sequence[float], count: int) -> tuple[float, ...]:
    """The weights, or equal ones if none are given.

    Raises:
        InputError: not one per model, a negative one, or a sum other than 1.
    """
    if not len(weights):
        return equal(count)
    if len(weights) != count:
        raise InputError(f"merge: {len(weights)} weights for {count} models; give one for each")
    if min(weights) < 0 or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise InputError(
            f"merge: the weights {tuple(weights)} sum to {sum(weights):g}; they must be at least 0 "
            "and sum to 1"
        )
    return tuple(float(w) for w in weights)


def merge(
    trees: Iterable[tuple[str, Any]], weights: Sequence[float], method: str = "average"
) -> Any:
    """Merges trees of arrays.

    Args:
        trees: (name for messages, tree), read one at a time: two are held at once.
        weights: one per tree; see `check_weights`.
        method: 'average' or 'slerp'.

    Raises:
        InputError: an unknown method, or a tree that differs from the first, naming the leaf.
    """
    if method not in METHODS:
        raise InputError(f"merge={method!r}: expected {' or '.join(METHODS)}")
    total, so_far, first, types = 0.0, None, None, None
    for (name, tree), weight in zip(trees, weights, strict=True):
        if so_far is None:
            first = (name, shapes(tree))
            types = jax.tree.map(lambda x: x.dtype, tree)
            so_far = _scaled(tree, weight if method == "average" else 1.0)
        else:
            check_same(first, (name, shapes(tree)))
            if method == "average":
                so_far = _added(so_far, tree, weight)
            else:
                share = weight / (total + weight) if total + weight else 0.0
                so_far = _arc(so_far, tree, jnp.float32(share))
        total += weight
    return jax.tree.map(lambda x, dtype: x.astype(dtype), so_far, types)


def check_same(first: tuple[str, dict], other: tuple[str, dict]) -> None:
    """Raises InputError unless two trees, by name, have the same leaves of the same shapes."""
    (first_name, wanted), (name, found) = first, other
    for path in sorted(set(wanted) | set(found)):
        if path not in found:
            raise InputError(f"{name} has no weight {path}, which {first_name} has")
        if path not in wanted:
            raise InputError(f"{name} has a weight {path}, which {first_name} does not have")
        if found[path] != wanted[path]:
            raise InputError(
                f"{name}: weight {path} has the shape {found[path]}, in {first_name} it is "
                f"{wanted[path]}"
            )


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf by its dotted path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


@jax.jit
def _scaled(tree: Any, weight: float) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32) * weight, tree)


@jax.jit
def _added(so_far: Any, tree: Any, weight: float) -> Any:
    return jax.tree.map(lambda a, x: a + x.astype(jnp.float32) * weight, so_far, tree)


@jax.jit
def _arc(so_far: Any, tree: Any, share: jax.Array) -> Any:
    def one(path: Sequence[Any], a: jax.Array, b: jax.Array) -> jax.Array:
        stacked = "layers" in _name(path).split(".")
        return slerp(a, b.astype(jnp.float32), share, stacked=stacked)

    return jax.tree_util.tree_map_with_path(one, so_far, tree)


def slerp(a: jax.Array, b: jax.Array, share: jax.Array, *, stacked: bool = False) -> jax.Array:
    """From `a` (share 0) to `b` (share 1) along the arc between them.

    Args:
        a, b: float32, of one shape.
        share: float32 scalar.
        stacked: each slice of the first axis is a separate tensor.
    """
    axes = tuple(range(1 if stacked and a.ndim else 0, a.ndim))

    def length(x: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True)), 1e-8)

    cosine = jnp.sum((a / length(a)) * (b / length(b)), axis=axes, keepdims=True)
    parallel = jnp.abs(cosine) > PARALLEL
    angle = jnp.arccos(jnp.where(parallel, 0.0, cosine))
    of_a = jnp.sin((1 - share) * angle) / jnp.sin(angle)
    of_b = jnp.sin(share * angle) / jnp.sin(angle)
    return jnp.where(parallel, (1 - share) * a + share * b, of_a * a + of_b * b)
