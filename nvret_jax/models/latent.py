"""NV-Embed's latent attention (arXiv 2405.17428 §3.1), which precedes its mean pooling.

Token vectors are the queries, a few hundred trained vectors the keys and values of one
cross-attention, which acts as a dictionary for the tokens:

    x = x + out( softmax(q(norm(x)) · k(norm_c(latents))) · v(norm_c(latents)) )
    x = x + down( a · gelu(g) ),   [a, g] = up(norm(x))

The activation is applied to the second half of `up`, unlike in ModernBERT. The mean over tokens
follows (`pooling.pool`). Heads are wide in the released model: 8 heads of 4,096.

Tokens do not depend on each other, so padding needs no mask here. All in float32 except the
products.

Shapes: B batch, T tokens, D width, R latents, C their width, H heads, K head width, F 4 · D.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models.backbones.layer import ACTIVATIONS, SIZES, Options, Weights, layer_norm
from nvret_jax.models.pretrained.folder import Fields
from nvret_jax.models.pretrained.weights import (
    COPY,
    FROM_HEADS,
    FUSED,
    FUSED_BIAS,
    LINEAR,
    TO_HEADS,
    Table,
)

EPS = 1e-5  # torch's default, which no config of the model overrides


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """Its shape; names and defaults are those of NV-Embed's `LatentAttentionConfig`.

    The released config.json gives only the model_type of this part: the sizes are defaults.
    """

    hidden_dim: int = 4096  # of the token vectors
    latent_dim: int = 4096
    num_latents_value: int = 512
    num_cross_heads: int = 8
    cross_dim_head: int = 4096

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], width: int, where: str = "config.json"
    ) -> LatentConfig:
        """Reads `latent_attention_config` of NV-Embed's config.json.

        Args:
            config: the content of config.json.
            width: of the backbone's token vectors, D.
            where: its path, for messages.

        Raises:
            InputError: an invalid size, or one that differs from the width of the backbone's token
                vectors; or a pooled vector that is not normalised, which this model's code always
                does.
        """
        outer = Fields(config)
        fields = Fields(outer.object("latent_attention_config", {}), outer.wrong)
        values = {
            field.name: fields.integer(field.name, field.default, high=SIZES["hidden_size"])
            for field in dataclasses.fields(cls)
        }
        fields.only("output_normalize", (True,))
        for name in ("hidden_dim", "latent_dim"):
            if not fields.wrong and values[name] != width:
                fields.wrong.append(f"{name}={values[name]}, expected the backbone's width {width}")
        fields.check(f"{where}: latent_attention_config")
        return cls(**values)


def check_mesh(config: LatentConfig, mesh: Mesh) -> None:
    """Raises InputError, with the numbers, if `mesh` cannot split this pooling evenly."""
    if config.num_cross_heads % mesh.shape["tensor"]:
        raise InputError(
            f"this model does not fit the mesh: num_cross_heads={config.num_cross_heads} is not a "
            f"multiple of mesh.tensor={mesh.shape['tensor']}"
        )


class LatentAttention(Weights):
    """From token vectors [B, T, D] to token vectors of the same shape."""

    AXES: ClassVar = {
        "latents": (None, "embed"),  # [R, C]
        "norm_scale": (None,),
        "norm_bias": (None,),
        "context_norm_scale": (None,),
        "context_norm_bias": (None,),
        "query_kernel": ("embed", "heads", None),  # [D, H, K]
        "kv_kernel": ("embed", None, "heads", None),  # [C, 2, H, K]
        "out_kernel": ("heads", None, "embed"),  # [H, K, D]
        "mlp_norm_scale": (None,),
        "mlp_norm_bias": (None,),
        "up_kernel": ("embed", None, "mlp"),  # [D, 2, F]
        "up_bias": (None, "mlp"),
        "down_kernel": ("mlp", "embed"),  # [F, D]
        "down_bias": (None,),
    }

    def __init__(self, config: LatentConfig, *, options: Options, param_dtype: Any, rngs: nnx.Rngs):
        self.options = options
        width, latent = config.hidden_dim, config.latent_dim
        heads = (config.num_cross_heads, config.cross_dim_head)
        wide = 4 * width
        shapes = {
            "latents": (config.num_latents_value, latent),
            "norm_scale": (width,),
            "norm_bias": (width,),
            "context_norm_scale": (latent,),
            "context_norm_bias": (latent,),
            "query_kernel": (width, *heads),
            "kv_kernel": (latent, 2, *heads),
            "out_kernel": (*heads, width),
            "mlp_norm_scale": (width,),
            "mlp_norm_bias": (width,),
            "up_kernel": (width, 2, wide),
            "up_bias": (2, wide),
            "down_kernel": (wide, width),
            "down_bias": (width,),
        }
        for name, shape in shapes.items():
            if name.endswith("kernel") or name == "latents":
                deviation = 1.0 if name == "latents" else 0.02
                value = nnx.initializers.normal(deviation)(rngs.params(), shape, param_dtype)
            else:
                value = jnp.full(shape, float(name.endswith("scale")), param_dtype)
            setattr(self, name, nnx.Param(value))

    def __call__(self, hidden_btd: jax.Array) -> jax.Array:
        """[B, T, D] -> float32 [B, T, D]."""
        dtype, inner = self.options.dtype, self.options.inner_dtype
        act_btd = mesh_lib.spec("batch", None, None)
        run = functools.partial(
            jnp.einsum, precision=self.options.precision, preferred_element_type=inner
        )

        def product(einsum: str, x: jax.Array, name: str, **kwargs: Any) -> jax.Array:
            return run(einsum, x.astype(dtype), self._use(f"{name}_kernel", dtype), **kwargs)

        def norm(x: jax.Array, name: str) -> jax.Array:
            scale, bias = (self._use(f"{name}norm_{p}", jnp.float32) for p in ("scale", "bias"))
            return layer_norm(x, scale, bias, EPS)

        hidden_btd = hidden_btd.astype(jnp.float32)
        q_bthk = product("btd,dhk->bthk", norm(hidden_btd, ""), "query")
        latents_rc = self._use("latents", jnp.float32)
        kv_rchk = product("re,echk->rchk", norm(latents_rc, "context_"), "kv")
        scale = q_bthk.shape[-1] ** -0.5
        scores_bthr = jnp.einsum(
            "bthk,rhk->bthr",
            q_bthk * jnp.asarray(scale, q_bthk.dtype),
            kv_rchk[:, 0],
            precision=self.options.precision,
            preferred_element_type=jnp.float32,
        )
        weights_bthr = jax.nn.softmax(scores_bthr, axis=-1).astype(inner)
        mixed_bthk = run("bthr,rhk->bthk", weights_bthr, kv_rchk[:, 1])
        out_btd = product("bthk,hkd->btd", mixed_bthk, "out", out_sharding=act_btd)
        hidden_btd = hidden_btd + out_btd.astype(jnp.float32)
        both_btcf = product("btd,dcf->btcf", norm(hidden_btd, "mlp_"), "up")
        both_btcf = both_btcf + self._use("up_bias", inner)
        wide_btf = both_btcf[:, :, 0] * ACTIVATIONS["gelu"](both_btcf[:, :, 1])
        out_btd = product("btf,fd->btd", wide_btf, "down", out_sharding=act_btd)
        out_btd = out_btd + self._use("down_bias", inner)
        return hidden_btd + out_btd.astype(jnp.float32)


LATENT_TABLE: Table = {
    "latents": (("latents",), COPY),
    "cross_attend_blocks.0.norm.weight": (("norm_scale",), COPY),
    "cross_attend_blocks.0.norm.bias": (("norm_bias",), COPY),
    "cross_attend_blocks.0.norm_context.weight": (("context_norm_scale",), COPY),
    "cross_attend_blocks.0.norm_context.bias": (("context_norm_bias",), COPY),
    "cross_attend_blocks.0.fn.to_q.weight": (("query_kernel",), TO_HEADS),
    "cross_attend_blocks.0.fn.to_kv.weight": (("kv_kernel",), FUSED),
    "cross_attend_blocks.0.fn.to_out.weight": (("out_kernel",), FROM_HEADS),
    "cross_attend_blocks.1.norm.weight": (("mlp_norm_scale",), COPY),
    "cross_attend_blocks.1.norm.bias": (("mlp_norm_bias",), COPY),
    "cross_attend_blocks.1.fn.net.0.weight": (("up_kernel",), FUSED),
    "cross_attend_blocks.1.fn.net.0.bias": (("up_bias",), FUSED_BIAS),
    "cross_attend_blocks.1.fn.net.2.weight": (("down_kernel",), LINEAR),
    "cross_attend_blocks.1.fn.net.2.bias": (("down_bias",), COPY),
}
LATENT_PREFIXES = ("latent_attention_model.",)
LATENT_IGNORED = (r"(?!latent_attention_model\.).*",)  # the backbone, which is read separately
