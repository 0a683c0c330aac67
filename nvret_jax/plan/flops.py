"""Floating point operations of a program; those a model needs are in `models/flops.py`.

They are counted from the traced program, product by product, with scans multiplied by their length;
recomputation under `jax.checkpoint` is included. Everything except matrix products is left out, as
in the count for a model. XLA's count includes all operations, but a loop's body once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations by what they are done in: `fast` at the matrix units' rate, `float32` at its own.

    `loops`: of unknown length, counted once; `kernels`: whose inside is not counted.
    """

    fast: float = 0.0
    float32: float = 0.0
    loops: int = 0
    kernels: int = 0

    @property
    def total(self) -> float:
        return self.fast + self.float32

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.fast + other.fast,
            self.float32 + other.float32,
            self.loops + other.loops,
            self.kernels + other.kernels,
        )

    def __mul__(self, times: float) -> Flops:
        return Flops(self.fast * times, self.float32 * times, self.loops, self.kernels)


def done(jaxpr: Any, chips: int) -> Flops:
    """Products of a traced program, over all chips.

    Args:
        jaxpr: `jax.jit(f).trace(...).jaxpr`, its shapes global ones.
        chips: of the mesh; what is inside a `shard_map` is done by each part of its axes.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = Flops()
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            total += _product(eqn)
            continue
        if name == "pallas_call" or name.startswith("dot_product_attention"):
            total += Flops(kernels=1)
            continue
        times = 1
        if name == "scan":
            times = eqn.params["length"]
        elif name == "shard_map":
            mesh = eqn.params["mesh"]
            times = math.prod(mesh.shape[axis] for axis in _manual(eqn))
        inner = [done(sub, chips) for sub in _inside(eqn.params)]
        if name == "cond" and inner:
            inner = [max(inner, key=lambda f: f.total)]
        for found in inner:
            total += found * times
        if name == "while" and any(found.total for found in inner):
            total += Flops(loops=1)
    return total


def _manual(eqn: Any) -> frozenset[str]:
    """The mesh axes along which a `shard_map` works on parts; the name of the entry has changed."""
    return next(axes for name, axes in eqn.params.items() if name.endswith("manual_axes"))


def _inside(params: dict[str, Any]) -> list[Any]:
    """The programs among an operation's parameters."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (core.Jaxpr, core.ClosedJaxpr)):
                found.append(item)
    return found


def _product(eqn: Any) -> Flops:
    left, right = (v.aval for v in eqn.invars)
    (contracted, _), _ = eqn.params["dimension_numbers"]
    inner = math.prod(left.shape[i] for i in contracted)
    count = 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
    precision = eqn.params.get("precision")
    whole = precision is not None and jax.lax.Precision.HIGHEST in tuple(precision)
    if whole and left.dtype == right.dtype == "float32":
        return Flops(float32=count)
    return Flops(fast=count)
