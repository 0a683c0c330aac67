"""Floating point operations: those a model needs, and those a program does.

*Needed* is counted from the model's shapes, by hand: two for each weight of a product and token,
attention's two products, three times that for training (forward, and two backward: for the input
and for the weight), twice for weights that are frozen, which have no gradient of their own. Nothing
is added for what is computed again. It is the numerator of MFU (PaLM, arXiv 2204.02311, App. B).
Attention is counted whole, as it is computed, also where it is causal or local.

*Done* is counted from the traced program, product by product, scans as often as they run; what is
recomputed under `jax.checkpoint` stands in it. Everything that is no matrix product is left out of
both. XLA's count takes all operations, but a loop's body once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from flax import nnx
from jax.extend import core

FORWARD, FROZEN, TRAINED = 1, 2, 3


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


@dataclasses.dataclass(frozen=True)
class Shape:
    """What of a model's shape its operations depend on.

    Attributes:
        frozen, trained: numbers in the weights that each token is multiplied with.
        per_text: the same of what comes after the pooling.
        attention: layers times heads times head width.
        latents: R times heads times head width of NV-Embed's latent attention, or 0.
        weights: numbers in all weights; `trained_weights`: those that training changes.
    """

    frozen: int
    trained: int
    per_text: int
    attention: int
    latents: int
    weights: int
    trained_weights: int

    def forward(self, texts: int, tokens: int) -> float:
        """Operations of embedding `texts` texts of `tokens` tokens each."""
        return self._of(texts, tokens, FORWARD, FORWARD)

    def training(self, texts: int, tokens: int) -> float:
        """The same with what training adds: the backward pass, without any recomputation."""
        return self._of(texts, tokens, FROZEN, TRAINED)

    def _of(self, texts: int, tokens: int, frozen: int, trained: int) -> float:
        products = frozen * self.frozen + trained * self.trained
        attention = trained * 2 * (tokens * self.attention + self.latents)
        return 2.0 * texts * (tokens * (products + attention) + trained * self.per_text)


def shape_of(model: nnx.Module, trainable: Any) -> Shape:
    """Counts a model's weights.

    Args:
        model: an `EmbeddingModel`, abstract or not.
        trainable: filter of what training changes (`Encoder.trainable`).
    """
    config = model.backbone.config
    heads = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    is_trained = nnx.filterlib.to_predicate(trainable)
    counts = {"frozen": 0, "trained": 0, "per_text": 0, "weights": 0, "trained_weights": 0}
    latents = 0
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        size, changes = math.prod(variable.shape), is_trained(path, variable)
        counts["weights"] += size
        counts["trained_weights"] += size * changes
        name = str(path[-1])
        if path[0] == "latent" and name == "latents":
            rows = variable.shape[0]
            latents = rows * math.prod(model.latent.query_kernel.shape[1:])
        elif path[0] == "latent" and name == "kv_kernel":
            continue  # of the latents, not of the tokens
        elif path[0] == "dense" and model.pooling != "tokens":
            counts["per_text"] += size * name.endswith("kernel")
        elif name.endswith("kernel") or "_lora_" in name:
            counts["trained" if changes else "frozen"] += size
    return Shape(attention=heads, latents=latents, **counts)
