"""Decoders as text encoders: Mistral, Llama, Qwen2, Qwen3, and embedders based on them.

They are one architecture (RMSNorm before each branch, grouped query attention with rotary
positions, a gated feed-forward) with four switches: biases on q, k, v (Qwen2), biases everywhere
(Llama, if its config says so), an RMSNorm on each head's query and key (Qwen3), and whether a token
sees later tokens. Embedders made from them (`decoder_config.FLAVOURS`) mostly do, although their
bases do not.

The choices are those of `bert.py` (layers stacked and scanned, axes declared with the weights,
float32 for norms, softmax and residual sums, dropout by example), and:

- Weights of queries keep the heads that share a key head together, [D, kv heads, group, K]: the
  tensor axis of the mesh splits keys, values and queries the same way, and nothing is ever
  reshaped.
- No sliding window. An active one limits the length of a text (`max_tokens`): within it there is no
  difference, and beyond it the model would be a different one.
- Only right padding. There is no cache, no head over the vocabulary, no generation.

Shapes: B batch, T tokens, D width, N kv heads, G query heads per kv head, K head width, F
feed-forward width, L layers.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from nvret_jax import mesh as mesh_lib
from nvret_jax.models import lora
from nvret_jax.models.attention.grouped import grouped_attention
from nvret_jax.models.backbones.blocks import Backbone, lookup
from nvret_jax.models.backbones.decoder_config import DecoderConfig
from nvret_jax.models.backbones.layer import ACTIVATIONS, Options, Weights, dropout
from nvret_jax.models.backbones.rope import angles, rotate
from nvret_jax.models.pretrained.weights import (
    COPY,
    FROM_HEADS,
    HEADS_BIAS,
    LINEAR,
    TO_HEADS,
    Table,
)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / its root mean square over the last axis, times scale; float32 in and out."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps) * scale


class Embeddings(Weights):
    """The token table; attention handles positions."""

    AXES: ClassVar = {"word": (None, "embed")}

    def __init__(self, config: DecoderConfig, *, param_dtype: Any, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(config.initializer_range)
        shape = (config.vocab_size, config.hidden_size)
        self.word = nnx.Param(normal(rngs.params(), shape, param_dtype))

    def __call__(self, tokens_bt: jax.Array, config: DecoderConfig) -> jax.Array:
        """int32 [B, T] -> float32 [B, T, D]."""
        return lookup(self.word[...], tokens_bt)


class Layer(Weights):
    """One transformer block, RMSNorm before each branch. Stacked by `Decoder`."""

    AXES: ClassVar = {
        "attention_norm_scale": (None,),
        "query_kernel": ("embed", "kv_heads", None, None),  # [D, N, G, K]
        "query_bias": ("kv_heads", None, None),
        "query_norm_scale": (None,),  # [K]
        "key_kernel": ("embed", "kv_heads", None),  # [D, N, K]
        "key_bias": ("kv_heads", None),
        "key_norm_scale": (None,),
        "value_kernel": ("embed", "kv_heads", None),
        "value_bias": ("kv_heads", None),
        "out_kernel": ("kv_heads", None, None, "embed"),  # [N, G, K, D]
        "out_bias": (None,),
        "mlp_norm_scale": (None,),
        "gate_kernel": ("embed", "mlp"),  # [D, F]
        "gate_bias": ("mlp",),
        "up_kernel": ("embed", "mlp"),
        "up_bias": ("mlp",),
        "down_kernel": ("mlp", "embed"),  # [F, D]
        "down_bias": (None,),
    }

    def __init__(self, config: DecoderConfig, *, param_dtype: Any, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(config.initializer_range)
        width, wide, head = config.hidden_size, config.intermediate_size, config.head_dim
        shared = config.num_key_value_heads
        grouped = (shared, config.num_attention_heads // shared, head)
        shapes = {
            "attention_norm_scale": (width,),
            "query_kernel": (width, *grouped),
            "key_kernel": (width, shared, head),
            "value_kernel": (width, shared, head),
            "out_kernel": (*grouped, width),
            "mlp_norm_scale": (width,),
            "gate_kernel": (width, wide),
            "up_kernel": (width, wide),
            "down_kernel": (wide, width),
        }
        if config.qkv_bias:
            shapes |= {f"{name}_bias": shapes[f"{name}_kernel"][1:] for name in _QKV}
        if config.out_bias:
            shapes["out_bias"] = (width,)
        if config.mlp_bias:
            shapes |= {"gate_bias": (wide,), "up_bias": (wide,), "down_bias": (width,)}
        if config.qk_norm:
            shapes |= {"query_norm_scale": (head,), "key_norm_scale": (head,)}
        self._add(shapes, normal, rngs, param_dtype)

    def __call__(
        self,
        hidden_btd: jax.Array,
        lengths_b: jax.Array,
        keys_b: jax.Array | None,
        turns: tuple[jax.Array, jax.Array],
        own: None,
        *,
        config: DecoderConfig,
        options: Options,
    ) -> jax.Array:
        """float32 [B, T, D] -> float32 [B, T, D]; `turns` are the angles of `rope.angles`."""
        rate = options.dropout
        act_btd = mesh_lib.spec("batch", None, None)
        product = functools.partial(lora.product, self, options=options, keys_b=keys_b)
        drop = functools.partial(dropout, keys_b=keys_b, place=0, rate=rate)

        def norm(x: jax.Array, name: str) -> jax.Array:
            scale = self._use(f"{name}_norm_scale", jnp.float32)
            return rms_norm(x, scale, config.rms_norm_eps)

        def turned(x: jax.Array, name: str) -> jax.Array:
            if config.qk_norm:
                x = norm(x, name).astype(x.dtype)
            return rotate(x, *turns)

        with jax.named_scope("attention"):
            x_btd = norm(hidden_btd, "attention")
            mixed_btngk = grouped_attention(
                turned(product("btd,dngk->btngk", x_btd, "query"), "query"),
                turned(product("btd,dnk->btnk", x_btd, "key"), "key"),
                product("btd,dnk->btnk", x_btd, "value"),
                lengths_b,
                causal=config.causal,
                implementation=options.attention,
                precision=options.precision,
                dropout=drop if keys_b is not None and rate else None,
                recompute=options.remat == "attention",
            )
            out_btd = product("btngk,ngkd->btd", mixed_btngk, "out", out_sharding=act_btd)
            hidden_btd = hidden_btd + dropout(out_btd, keys_b, 1, rate).astype(jnp.float32)
        with jax.named_scope("mlp"):
            x_btd = norm(hidden_btd, "mlp")
            gate_btf = ACTIVATIONS[config.hidden_act](product("btd,df->btf", x_btd, "gate"))
            wide_btf = gate_btf * product("btd,df->btf", x_btd, "up")
            out_btd = product("btf,fd->btd", wide_btf, "down", out_sharding=act_btd)
            return hidden_btd + dropout(out_btd, keys_b, 2, rate).astype(jnp.float32)


_QKV = ("query", "key", "value")


class FinalNorm(Weights):
    """The RMSNorm after the last layer."""

    AXES: ClassVar = {"norm_scale": (None,)}

    def __init__(self, config: DecoderConfig, *, param_dtype: Any):
        self.norm_scale = nnx.Param(jnp.ones((config.hidden_size,), param_dtype))

    def __call__(self, hidden_btd: jax.Array, config: DecoderConfig) -> jax.Array:
        return rms_norm(hidden_btd, self._use("norm_scale", jnp.float32), config.rms_norm_eps)


class Decoder(Backbone):
    """Decoders such as Llama, Mistral and Qwen, causal or bidirectional."""

    EMBEDDINGS, LAYER = Embeddings, Layer

    def __init__(self, config: DecoderConfig, *, param_dtype: Any = "float32", **more: Any):
        super().__init__(config, param_dtype=param_dtype, **more)
        self.final = FinalNorm(config, param_dtype=param_dtype)

    def shared(self, tokens: int) -> tuple[jax.Array, jax.Array]:
        """The angles of rotary positions."""
        return angles(self.config.rope, self.config.head_dim, tokens)

    def last(self, hidden_btd: jax.Array) -> jax.Array:
        """The final norm."""
        with jax.named_scope("final_norm"):
            return self.final(hidden_btd, self.config)


# HF's names; the same for all flavours, after a prefix.
DECODER_TABLE: Table = {
    "embed_tokens.weight": (("embeddings", "word"), COPY),
    **{
        f"layers.{{layer}}.{hf}": (("layers", ours), transform)
        for hf, ours, transform in (
            ("input_layernorm.weight", "attention_norm_scale", COPY),
            ("self_attn.q_proj.weight", "query_kernel", TO_HEADS),
            ("self_attn.q_proj.bias", "query_bias", HEADS_BIAS),
            ("self_attn.q_norm.weight", "query_norm_scale", COPY),
            ("self_attn.k_proj.weight", "key_kernel", TO_HEADS),
            ("self_attn.k_proj.bias", "key_bias", HEADS_BIAS),
            ("self_attn.k_norm.weight", "key_norm_scale", COPY),
            ("self_attn.v_proj.weight", "value_kernel", TO_HEADS),
            ("self_attn.v_proj.bias", "value_bias", HEADS_BIAS),
            ("self_attn.o_proj.weight", "out_kernel", FROM_HEADS),
            ("self_attn.o_proj.bias", "out_bias", COPY),
            ("post_attention_layernorm.weight", "mlp_norm_scale", COPY),
            ("mlp.gate_proj.weight", "gate_kernel", LINEAR),
            ("mlp.gate_proj.bias", "gate_bias", COPY),
            ("mlp.up_proj.weight", "up_kernel", LINEAR),
            ("mlp.up_proj.bias", "up_bias", COPY),
            ("mlp.down_proj.weight", "down_kernel", LINEAR),
            ("mlp.down_proj.bias", "down_bias", COPY),
        )
    },
    "norm.weight": (("final", "norm_scale"), COPY),
}
DECODER_PREFIXES = (
    "",
    "model.",  # a checkpoint with a head, and omni-embed-nemotron
    "embedding_model.",  # NV-Embed
    "model.language_model.",  # how transformers 5 names the text side of a multimodal model
    "thinker.model.",  # Qwen2.5-Omni
    "thinker.model.language_model.",
)
# Keys that are not needed for a text embedding: heads over the vocabulary, the other modalities of
# multimodal models, rotary tables of old versions, and NV-Embed's pooling, which `latent.py` reads.
DECODER_IGNORED = (
    r"(.*\.)?lm_head\..*",
    r"(.*\.)?rotary_emb\..*",
    r"(thinker\.|model\.)*(audio_tower|visual)\..*",
    r"(talker|token2wav)\..*",
    r"score\..*",
    r"latent_attention_model\..*",
)
