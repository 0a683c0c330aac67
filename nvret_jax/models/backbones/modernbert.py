"""ModernBERT (arXiv 2412.13663): a bidirectional encoder with rotary positions and local attention.

Most layers see only `local_attention` / 2 tokens to either side, every third sees all; the two
kinds have different rotary frequencies. LayerNorm without bias precedes each branch, except the
first layer's attention, which follows the embeddings' own. The feed-forward is GeGLU.

The choices are those of `bert.py`, and:

- All layers run in one `jax.lax.scan`: their differences (the window, the angles, the norm that the
  first lacks) are stacked and scanned with them. A local layer computes all scores and masks those
  outside the window; at the lengths of retrieval that costs little.
- Fused kernels stay fused, [D, 3, H, K] and [D, 2, F], so that an adapter has the same meaning as
  in PEFT.

Shapes: B batch, T tokens, D width, H heads, K head width, F feed-forward width, L layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from nvret_jax import mesh as mesh_lib
from nvret_jax.models import lora
from nvret_jax.models.attention.grouped import grouped_attention
from nvret_jax.models.backbones.blocks import Backbone, lookup
from nvret_jax.models.backbones.layer import (
    ACTIVATIONS,
    SIZES,
    Options,
    Weights,
    dropout,
    layer_norm,
)
from nvret_jax.models.backbones.rope import Rope, angles, rotate
from nvret_jax.models.pretrained.folder import Fields
from nvret_jax.models.pretrained.weights import COPY, FROM_HEADS, FUSED, FUSED_BIAS, LINEAR, Table

KINDS = ("full_attention", "sliding_attention")
_THETA = {"full_attention": ("global_rope_theta", 160000.0)}
_THETA["sliding_attention"] = ("local_rope_theta", 10000.0)


@dataclasses.dataclass(frozen=True)
class ModernBertConfig:
    """The shape of a ModernBERT; field names are HF's where HF has one."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    layer_is_local: tuple[bool, ...]
    window: int  # tokens a local layer sees to either side
    global_rope: Rope
    local_rope: Rope
    norm_eps: float = 1e-5
    hidden_activation: str = "gelu"
    initializer_range: float = 0.02
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the model supports."""
        return self.max_position_embeddings

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> ModernBertConfig:
        """Reads HF's config.json, of transformers 4 or 5.

        Args:
            config: its content.
            where: its path, for messages.

        Raises:
            InputError: a field is missing or requests something unsupported; all such fields are
                named in one message.
        """
        fields = Fields(config)
        wrong = fields.wrong
        values = {name: fields.integer(name, high=high) for name, high in SIZES.items()}
        values["norm_eps"] = fields.number("norm_eps", 1e-5, high=1.0)
        values["initializer_range"] = fields.number("initializer_range", 0.02, high=100.0)
        values["hidden_activation"] = fields.text("hidden_activation", "gelu", choices=ACTIVATIONS)
        for name in ("attention_bias", "mlp_bias", "norm_bias"):
            values[name] = fields.flag(name)
        width, heads = values["hidden_size"], values["num_attention_heads"]
        if width and heads and width % (2 * heads):
            wrong.append(f"hidden_size={width} is not an even multiple of {heads} heads")
        values["layer_is_local"] = _local(fields, values["num_hidden_layers"] or 0)
        values["window"] = fields.integer("local_attention", 128, low=2) // 2
        values["global_rope"], values["local_rope"] = (_rope(fields, kind) for kind in KINDS)
        fields.check(where)
        return cls(**values)


def _local(fields: Fields, layers: int) -> tuple[bool, ...]:
    """Whether each layer is local."""
    every = fields.integer("global_attn_every_n_layers", 3)
    types = fields.texts("layer_types", None)
    if types is None:
        return tuple(bool(layer % every) for layer in range(layers))
    odd = sorted(set(types) - set(KINDS))
    if odd or len(types) != layers:
        fields.wrong.append(
            f"layer_types has {len(types)} entries{' with ' + ', '.join(odd) if odd else ''}, "
            f"expected {layers} of {' and '.join(KINDS)}"
        )
    return tuple(t == "sliding_attention" for t in types)


def _rope(fields: Fields, kind: str) -> Rope:
    by_kind = Fields(fields.object("rope_parameters", {}), fields.wrong)
    scaling = by_kind.object(kind, None)
    if scaling is None:
        scaling = fields.object("rope_scaling", {})
    name, default = _THETA[kind]
    config = fields.content
    theta = scaling.get("rope_theta", config.get(name, default))
    if theta is None:  # old files: local layers then have the angles of global ones
        theta = config.get("global_rope_theta", 160000.0)
    return Rope.from_hf(config, fields.wrong, scaling=scaling, theta=theta)


class Norm(Weights):
    """LayerNorm, with a bias or without."""

    AXES: ClassVar = {"norm_scale": (None,), "norm_bias": (None,)}

    def __init__(self, config: ModernBertConfig, *, param_dtype: Any):
        self.norm_scale = nnx.Param(jnp.ones((config.hidden_size,), param_dtype))
        if config.norm_bias:
            self.norm_bias = nnx.Param(jnp.zeros((config.hidden_size,), param_dtype))

    def __call__(self, hidden_btd: jax.Array, config: ModernBertConfig) -> jax.Array:
        """float32 [B, T, D] -> float32 [B, T, D]."""
        scale_d = self._use("norm_scale", jnp.float32)
        bias_d = self._use("norm_bias", jnp.float32) if config.norm_bias else 0.0
        return layer_norm(hidden_btd, scale_d, bias_d, config.norm_eps)


class Embeddings(Norm):
    """The token table and its LayerNorm."""

    AXES: ClassVar = {"word": (None, "embed"), **Norm.AXES}

    def __init__(self, config: ModernBertConfig, *, param_dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, param_dtype=param_dtype)
        normal = nnx.initializers.normal(config.initializer_range)
        shape = (config.vocab_size, config.hidden_size)
        self.word = nnx.Param(normal(rngs.params(), shape, param_dtype))

    def __call__(self, tokens_bt: jax.Array, config: ModernBertConfig) -> jax.Array:
        """int32 [B, T] -> float32 [B, T, D]."""
        return super().__call__(lookup(self.word[...], tokens_bt), config)


class AttentionNorms(Weights):
    """The LayerNorms before attention, [L - 1, D]: the first layer has none."""

    AXES: ClassVar = {"norm_scale": (None, None), "norm_bias": (None, None)}

    def __init__(self, config: ModernBertConfig, *, param_dtype: Any):
        shape = (config.num_hidden_layers - 1, config.hidden_size)
        self.norm_scale = nnx.Param(jnp.ones(shape, param_dtype))
        if config.norm_bias:
            self.norm_bias = nnx.Param(jnp.zeros(shape, param_dtype))

    def stacked(self, config: ModernBertConfig) -> tuple[jax.Array, jax.Array]:
        """(scale, bias), float32 [L, D]; the first layer's must not be used."""
        scale_ld = self._use("norm_scale", jnp.float32)
        bias_ld = self._use("norm_bias", jnp.float32) if config.norm_bias else scale_ld * 0.0
        return tuple(jnp.pad(x, ((1, 0), (0, 0))) for x in (scale_ld, bias_ld))


class Layer(Weights):
    """One transformer block, LayerNorm before each branch. Stacked by `ModernBert`."""

    AXES: ClassVar = {
        "qkv_kernel": ("embed", None, "heads", None),  # [D, 3, H, K]
        "qkv_bias": (None, "heads", None),
        "out_kernel": ("heads", None, "embed"),  # [H, K, D]
        "out_bias": (None,),
        "mlp_norm_scale": (None,),
        "mlp_norm_bias": (None,),
        "up_kernel": (
            "embed",
            None,
            "mlp",
        ),  # [D, 2, F]: what goes through the activation, the gate
        "up_bias": (None, "mlp"),
        "down_kernel": ("mlp", "embed"),  # [F, D]
        "down_bias": (None,),
    }

    def __init__(self, config: ModernBertConfig, *, param_dtype: Any, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(config.initializer_range)
        width, wide = config.hidden_size, config.intermediate_size
        heads = (config.num_attention_heads, config.head_dim)
        shapes = {
            "qkv_kernel": (width, 3, *heads),
            "out_kernel": (*heads, width),
            "mlp_norm_scale": (width,),
            "up_kernel": (width, 2, wide),
            "down_kernel": (wide, width),
        }
        if config.norm_bias:
            shapes["mlp_norm_bias"] = (width,)
        if config.attention_bias:
            shapes |= {"qkv_bias": (3, *heads), "out_bias": (width,)}
        if config.mlp_bias:
            shapes |= {"up_bias": (2, wide), "down_bias": (width,)}
        self._add(shapes, normal, rngs, param_dtype)

    def __call__(
        self,
        hidden_btd: jax.Array,
        lengths_b: jax.Array,
        keys_b: jax.Array | None,
        turns: tuple[jax.Array, jax.Array],
        own: dict[str, jax.Array],
        *,
        config: ModernBertConfig,
        options: Options,
    ) -> jax.Array:
        """float32 [B, T, D] -> float32 [B, T, D]; `own` holds what differs between layers."""
        rate, eps = options.dropout, config.norm_eps
        act_btd = mesh_lib.spec("batch", None, None)
        cos_tk, sin_tk = (x[own["kind"]] for x in turns)
        product = functools.partial(lora.product, self, options=options, keys_b=keys_b)
        drop = functools.partial(dropout, keys_b=keys_b, place=0, rate=rate)
        with jax.named_scope("attention"):
            x_btd = layer_norm(hidden_btd, own["scale"], own["bias"], eps)
            x_btd = jnp.where(own["is_first"], hidden_btd, x_btd)
            qkv_btchk = product("btd,dchk->btchk", x_btd, "qkv")
            q_bthk, k_bthk, v_bthk = (qkv_btchk[:, :, i] for i in range(3))
            mix = functools.partial(
                grouped_attention,
                implementation=options.attention,
                precision=options.precision,
                dropout=drop if keys_b is not None and rate else None,
                recompute=options.remat == "attention",
            )
            qkv = (
                rotate(q_bthk, cos_tk, sin_tk)[:, :, :, None],
                rotate(k_bthk, cos_tk, sin_tk),
                v_bthk,
            )
            if options.attention in ("auto", "xla"):
                mixed_bthgk = mix(*qkv, lengths_b, window=own["window"])
            else:  # a kernel is compiled for its window: one of the two runs
                kinds = [functools.partial(mix, window=w) for w in (None, config.window)]
                mixed_bthgk = jax.lax.switch(own["kind"], kinds, *qkv, lengths_b)
            mixed_bthk = mixed_bthgk[:, :, :, 0]
            out_btd = product("bthk,hkd->btd", mixed_bthk, "out", out_sharding=act_btd)
            hidden_btd = hidden_btd + dropout(out_btd, keys_b, 1, rate).astype(jnp.float32)
        with jax.named_scope("mlp"):
            bias_d = self._use("mlp_norm_bias", jnp.float32) if config.norm_bias else 0.0
            scale_d = self._use("mlp_norm_scale", jnp.float32)
            x_btd = layer_norm(hidden_btd, scale_d, bias_d, eps)
            both_btcf = product("btd,dcf->btcf", x_btd, "up")
            act = ACTIVATIONS[config.hidden_activation]
            wide_btf = act(both_btcf[:, :, 0]) * both_btcf[:, :, 1]
            out_btd = product("btf,fd->btd", wide_btf, "down", out_sharding=act_btd)
            return hidden_btd + dropout(out_btd, keys_b, 2, rate).astype(jnp.float32)


class ModernBert(Backbone):
    """ModernBERT: local layers, within a window, and global ones."""

    EMBEDDINGS, LAYER = Embeddings, Layer

    def __init__(self, config: ModernBertConfig, *, param_dtype: Any = "float32", **more: Any):
        super().__init__(config, param_dtype=param_dtype, **more)
        self.attention_norms = AttentionNorms(config, param_dtype=param_dtype)
        self.final = Norm(config, param_dtype=param_dtype)

    @staticmethod
    def windowed(config: ModernBertConfig) -> bool:
        """Whether some layer attends within a window only."""
        return any(config.layer_is_local)

    def shared(self, tokens: int) -> tuple[jax.Array, jax.Array]:
        """cos and sin of rotary positions, by kind of layer."""
        turns = [angles(rope, self.config.head_dim, tokens) for rope in _ropes(self.config)]
        cos_ctk, sin_ctk = (jnp.stack(both) for both in zip(*turns, strict=True))
        return cos_ctk, sin_ctk

    def per_layer(self, tokens: int) -> dict[str, jax.Array]:
        """What differs between layers: their kind, their window and their first norm."""
        config = self.config
        kinds_l = jnp.asarray(config.layer_is_local, jnp.int32)
        scale_ld, bias_ld = self.attention_norms.stacked(config)
        return {
            "kind": kinds_l,
            "is_first": jnp.arange(config.num_hidden_layers) == 0,
            "window": jnp.where(kinds_l == 1, config.window, tokens),
            "scale": scale_ld,
            "bias": bias_ld,
        }

    def last(self, hidden_btd: jax.Array) -> jax.Array:
        """The final norm."""
        with jax.named_scope("final_norm"):
            return self.final(hidden_btd, self.config)


def _ropes(config: ModernBertConfig) -> tuple[Rope, Rope]:
    """By kind of layer: global, local."""
    return config.global_rope, config.local_rope


MODERNBERT_TABLE: Table = {
    "embeddings.tok_embeddings.weight": (("embeddings", "word"), COPY),
    "embeddings.norm.weight": (("embeddings", "norm_scale"), COPY),
    "embeddings.norm.bias": (("embeddings", "norm_bias"), COPY),
    "layers.{layer+1}.attn_norm.weight": (("attention_norms", "norm_scale"), COPY),
    "layers.{layer+1}.attn_norm.bias": (("attention_norms", "norm_bias"), COPY),
    **{
        f"layers.{{layer}}.{hf}": (("layers", ours), transform)
        for hf, ours, transform in (
            ("attn.Wqkv.weight", "qkv_kernel", FUSED),
            ("attn.Wqkv.bias", "qkv_bias", FUSED_BIAS),
            ("attn.Wo.weight", "out_kernel", FROM_HEADS),
            ("attn.Wo.bias", "out_bias", COPY),
            ("mlp_norm.weight", "mlp_norm_scale", COPY),
            ("mlp_norm.bias", "mlp_norm_bias", COPY),
            ("mlp.Wi.weight", "up_kernel", FUSED),
            ("mlp.Wi.bias", "up_bias", FUSED_BIAS),
            ("mlp.Wo.weight", "down_kernel", LINEAR),
            ("mlp.Wo.bias", "down_bias", COPY),
        )
    },
    "final_norm.weight": (("final", "norm_scale"), COPY),
    "final_norm.bias": (("final", "norm_bias"), COPY),
}
MODERNBERT_PREFIXES = ("", "model.")
MODERNBERT_IGNORED = (r"head\..*", r"decoder\..*", r"classifier\..*")  # of masked language models
