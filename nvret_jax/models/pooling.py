"""From token vectors to the vectors that represent a text: one, or one per token.

The pooling is part of a model: it was trained with it, and its folder names it
(`1_Pooling/config.json`). Sums are float32 over the real tokens only; special tokens count, as in
sentence-transformers. Tokens at the beginning (an instruction) can be left out.

    mean, cls, lasttoken   one vector, under sentence-transformers' names
    latent                 NV-Embed: the mean, after `latent.LatentAttention`
    tokens                 late interaction (ColBERT): no pooling, each token keeps its vector

`Dense` may follow: sentence-transformers' module of that name, PyLate's projection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from nvret_jax.errors import InputError
from nvret_jax.models.backbones.layer import ACTIVATIONS, SIZES, Options, Weights
from nvret_jax.models.pretrained.folder import Fields, shown
from nvret_jax.models.pretrained.weights import COPY, LINEAR, Table

Unpooled = int | jax.Array | None


def _at(tokens: int) -> jax.Array:
    return jnp.arange(tokens)[None, :]


def _picked(hidden_btd: jax.Array, index_b: jax.Array) -> jax.Array:
    """Row `index_b` of each sequence. A masked sum: a gather would move more on a mesh."""
    chosen_bt = _at(hidden_btd.shape[1]) == index_b[:, None]
    return jnp.where(chosen_bt[:, :, None], hidden_btd.astype(jnp.float32), 0.0).sum(axis=1)


def _mean(hidden_btd: jax.Array, lengths_b: jax.Array, unpooled: Unpooled) -> jax.Array:
    first_b = (
        jnp.zeros_like(lengths_b) if unpooled is None else jnp.zeros_like(lengths_b) + unpooled
    )
    at = _at(hidden_btd.shape[1])
    real_bt = (at >= first_b[:, None]) & (at < lengths_b[:, None])
    # where, not a product with the mask: 0 × inf would turn a padded position into NaN.
    kept_btd = jnp.where(real_bt[:, :, None], hidden_btd.astype(jnp.float32), 0.0)
    count_b = jnp.maximum(lengths_b - first_b, 1)
    return kept_btd.sum(axis=1) / count_b[:, None].astype(jnp.float32)


def _cls(hidden_btd: jax.Array, lengths_b: jax.Array, unpooled: Unpooled) -> jax.Array:
    if unpooled is None:  # the first token is always real
        return hidden_btd[:, 0].astype(jnp.float32)
    return _picked(hidden_btd, jnp.where(unpooled < lengths_b, unpooled, 0))


def _last(hidden_btd: jax.Array, lengths_b: jax.Array, unpooled: Unpooled) -> jax.Array:
    del unpooled  # a text that is only an instruction keeps its last token, too
    return _picked(hidden_btd, lengths_b - 1)


POOLINGS = {"mean": _mean, "cls": _cls, "lasttoken": _last, "latent": _mean}
MODES = (*POOLINGS, "tokens")
OF_FOLDERS = ("mean", "cls", "lasttoken")  # modes that a 1_Pooling/config.json may name


def check_pooling(mode: str, where: str = "pooling", known: tuple[str, ...] = MODES) -> str:
    """`mode`, if it is one of `known`; otherwise InputError that begins with `where`."""
    if mode not in known:
        raise InputError(f"{where}: mode {mode!r} is not supported; known: {', '.join(known)}")
    return mode


def pool(
    hidden_btd: jax.Array, lengths_b: jax.Array, mode: str, *, unpooled: Unpooled = None
) -> jax.Array:
    """One vector per sequence.

    Args:
        hidden_btd: [B, T, D], any float dtype.
        lengths_b: int32 [B], real tokens per sequence; the rest is padding on the right.
        mode: 'mean' over the real tokens ('latent' likewise), 'cls': the first token, 'lasttoken':
            the last real one.
        unpooled: number of tokens at the beginning that are left out, for all sequences or int32
            [B]; an empty mean is 0.

    Returns:
        float32 [B, D], not normalised.

    Raises:
        InputError: another mode.
    """
    if check_pooling(mode) not in POOLINGS:
        raise InputError(f"pooling: mode {mode!r} gives no single vector")
    return POOLINGS[mode](hidden_btd, lengths_b, unpooled)


def l2_normalize(emb_bd: jax.Array) -> jax.Array:
    """Rows at unit length; a zero row stays zero (the floor of 1e-12 is torch's).

    The gradient of a zero row is zero: that of a square root at 0 is infinite, and would make all
        weights NaN.
    """
    square_b1 = jnp.sum(jnp.square(emb_bd), axis=-1, keepdims=True)
    zero_b1 = square_b1 == 0  # non-finite values stay so, and are reported
    norm_b1 = jnp.sqrt(jnp.where(zero_b1, 1.0, square_b1))
    return jnp.where(zero_b1, 0.0, emb_bd) / jnp.maximum(norm_b1, 1e-12)


# torch's class -> ours. sentence-transformers writes the whole path; its last part is sufficient.
_ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "GELU": ACTIVATIONS["gelu"],
    "ReLU": jax.nn.relu,
    "SiLU": jax.nn.silu,
    "Sigmoid": jax.nn.sigmoid,
}


@dataclasses.dataclass(frozen=True)
class DenseConfig:
    """The shape of a `Dense`; field names are sentence-transformers'.

    Attributes:
        in_features, out_features: its widths.
        bias: whether it has one.
        activation_function: a key of `_ACTIVATIONS`.
        use_residual: the input is added, through a separate kernel if the widths differ.
    """

    in_features: int
    out_features: int
    bias: bool = True
    activation_function: str = "Tanh"
    use_residual: bool = False

    @classmethod
    def from_folder(cls, config: Mapping[str, Any], width: int, where: str) -> DenseConfig:
        """Reads a module's config.json.

        Raises:
            InputError: it requests something unsupported, or does not take vectors of `width`.
        """
        fields = Fields(config)
        fields.known(
            (*(f.name for f in dataclasses.fields(cls)), "module_input_name", "module_output_name")
        )
        high = SIZES["hidden_size"]
        inputs = fields.integer("in_features", high=high)
        outputs = fields.integer("out_features", high=high)
        if inputs and inputs != width:
            fields.wrong.append(f"in_features={inputs}, but it follows {width}")
        whole = fields.text("activation_function", "torch.nn.modules.activation.Tanh")
        activation = whole.rsplit(".", 1)[-1]
        if activation not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            fields.wrong.append(f"activation_function={shown(whole)}, supported: {known}")
        bias, residual = fields.flag("bias", True), fields.flag("use_residual")
        fields.check(where)
        return cls(inputs, outputs, bias, activation, residual)


class Dense(Weights):
    """activation(x · kernel + bias) (+ x, or x · residual); over vectors of texts or of tokens."""

    AXES: ClassVar = {
        "kernel": (None, None),  # [in, out]
        "bias": (None,),
        "residual_kernel": (None, None),
    }

    def __init__(self, config: DenseConfig, *, options: Options, param_dtype: Any, rngs: nnx.Rngs):
        self.config, self.options = config, options
        normal = nnx.initializers.normal(config.in_features**-0.5)
        shape = (config.in_features, config.out_features)
        self.kernel = nnx.Param(normal(rngs.params(), shape, param_dtype))
        if config.bias:
            self.bias = nnx.Param(jnp.zeros(shape[1:], param_dtype))
        if config.use_residual and shape[0] != shape[1]:
            self.residual_kernel = nnx.Param(normal(rngs.params(), shape, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> float32 [..., out]."""
        options = self.options

        def product(name: str) -> jax.Array:
            out = jnp.einsum(
                "...i,io->...o",
                x.astype(options.dtype),
                self._use(name, options.dtype),
                precision=options.precision,
                preferred_element_type=jnp.float32,
            )
            return out

        out = product("kernel")
        if self.config.bias:
            out = out + self._use("bias", jnp.float32)
        out = _ACTIVATIONS[self.config.activation_function](out)
        if not self.config.use_residual:
            return out
        return out + (product("residual_kernel") if hasattr(self, "residual_kernel") else x)


DENSE_TABLE: Table = {
    "linear.weight": (("kernel",), LINEAR),
    "linear.bias": (("bias",), COPY),
    "residual.weight": (("residual_kernel",), LINEAR),
}
