"""Common parts of the layers of every backbone: options, dropout, LayerNorm, activations.

A layer is a `Weights` module: it declares the logical axes of each of its weights, and returns a
weight by name, in the dtype and layout for computation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models.attention.kernels import check_options
from nvret_jax.models.options import REMAT
from nvret_jax.models.pretrained.folder import INT32

# The results of products with weights have this name, for remat='dots' to keep.
PRODUCT = "product"


def _gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, by erf as torch has it; `jax.nn.gelu` takes the slower erfc."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))


ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

# The sizes that every backbone has, and their limits: at least ten times those of any model, and
# small enough that building the shapes does not hang.
SIZES = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 18,
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 14,
    "intermediate_size": 1 << 22,
    "max_position_embeddings": INT32,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model is run, independent of its weights.

    Attributes:
        dtype: of the products ('float32', 'bfloat16').
        dropout: rate on embeddings, attention probabilities and both residual branches.
        remat: of `options.REMAT`, what the backward pass recomputes instead of keeping it, from
            least to most: 'none'; 'attention', the scores of all heads (arXiv 2205.05198); 'dots',
            all but the products with weights; 'full', whole layers.
        attention: of `options.ATTENTION`; see `kernels.py`.
        wide: products of a narrow dtype return float32, and all values between them are float32.
    """

    dtype: str = "float32"
    dropout: float = 0.0
    remat: str = "none"
    attention: str = "xla"
    wide: bool = False

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise InputError(f"dtype={self.dtype!r}: expected float32, bfloat16 or float16")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout={self.dropout}: expected a rate in [0, 1)")
        if self.remat not in REMAT:  # also rejects True and False
            raise InputError(f"unknown remat={self.remat!r}; known: {', '.join(REMAT)}")
        check_options(self.attention, dtype=self.dtype, drops=self.dropout > 0.0)

    @property
    def inner_dtype(self) -> str:
        """The dtype of products with weights, and of all values up to the next one."""
        return "float32" if self.wide else self.dtype

    @property
    def precision(self) -> jax.lax.Precision | None:
        return jax.lax.Precision.HIGHEST if self.dtype == "float32" else None


def dropout(x: jax.Array, keys_b: jax.Array | None, place: int, rate: float) -> jax.Array:
    """Drops entries of x [B, ...] at `rate`, by each example's own key. Without key or rate: x.

    A draw depends only on (key, place, index within the example); `place` distinguishes the uses of
    one key.
    """
    if keys_b is None or rate == 0.0:
        return x
    keys_b = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_b, place)
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys_b)
    keep = jax.reshard(keep, jax.typeof(x).sharding.spec)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


def layer_norm(x: jax.Array, scale_d: jax.Array, bias_d: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over the last axis, float32 in and out."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * scale_d + bias_d


def in_use(value: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A weight in the layout for computation: whole along the `mesh.GATHERED` axes.

    Args:
        value: the stored weight, or within `shard_map` this device's part of it.
        axes: its logical axes.
    """
    for dim, name in enumerate(axes):
        if name in mesh_lib.GATHERED and (cut := mesh_lib.cut_here(name)):
            value = gathered(value, dim, cut)
    spec = mesh_lib.spec(*axes, compute=True)
    # An unchanged weight stays an input of the scan over layers, which keeps no copy of it for the
    # backward pass. Even a reshard to the same layout would be an operation.
    sharding = jax.typeof(value).sharding
    if sharding.mesh.empty or _padded(sharding.spec, value.ndim) == _padded(spec, value.ndim):
        return value
    return jax.reshard(value, spec)


def _padded(spec: P, ndim: int) -> tuple[Any, ...]:
    entries = ((e,) if isinstance(e, str) else tuple(e or ()) for e in spec)
    return (*entries, *((),) * (ndim - len(spec)))


def gathered(value: jax.Array, dim: int, axes: tuple[str, ...]) -> jax.Array:
    """All parts of an array along manual mesh axes, joined along a dimension."""
    mesh = jax.sharding.get_abstract_mesh()
    run = functools.partial(jax.lax.all_gather, axis_name=axes, axis=dim, tiled=True)
    # Its transpose is a sum over devices, which JAX 0.10 and 0.12 cannot compile for an array that
    # is split over a non-manual axis. So all axes are manual here.
    rest = set(mesh.axis_names) - set(mesh.manual_axes)
    if rest:
        spec = jax.typeof(value).sharding.spec
        run = jax.shard_map(run, in_specs=spec, out_specs=spec, axis_names=rest, check_vma=False)
    return run(value)


class Weights(nnx.Module):
    """A module that knows the logical axes of each of its weights.

    Attributes:
        whole: names of weights that are not split along the `mesh.GATHERED` axes, whatever `AXES`
            says: they were gathered before.
    """

    AXES: ClassVar[dict[str, tuple[str | None, ...]]] = {}
    whole: tuple[str, ...] = ()

    def _add(
        self, shapes: Mapping[str, tuple[int, ...]], new: Any, rngs: nnx.Rngs, dtype: Any
    ) -> None:
        """Weights by name: kernels as the initializer `new` draws them, scales 1, biases 0."""
        for name, shape in shapes.items():
            if name.endswith("kernel"):
                value = new(rngs.params(), shape, dtype)
            else:
                value = jnp.full(shape, float(name.endswith("scale")), dtype)
            setattr(self, name, nnx.Param(value))

    def _use(self, name: str, dtype: Any) -> jax.Array:
        """The weight in the dtype and layout for computation."""
        value = getattr(self, name)[...].astype(dtype)
        return value if name in self.whole else in_use(value, self.AXES[name])
