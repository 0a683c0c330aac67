"""BERT and its RoBERTa / XLM-R form: token ids in, token vectors out.

Choices:

- **Layers are stacked** ([L, ...] weights) and run by one `jax.lax.scan`: one layer is compiled,
  and a model has about twenty arrays whatever its depth.
- **Logical axes are declared once**, in `AXES` of each module. A stored weight has the sharding
  `mesh.spec(*axes)`; for use it gets `mesh.spec(*axes, compute=True)`: fsdp is gathered layer by
  layer inside the scan, the tensor axis keeps splitting heads and feed-forward.
- Only the token table is never gathered; see `blocks.lookup`.
- Vectors of model width (biases, LayerNorm) are never split: gathering each would cost more than
  the few KB they take.
- LayerNorm, softmax and residual sums are float32 for any compute dtype. With `Options.wide`, so is
  everything except the operands of products with weights: the products return float32, and bias,
  activation and attention stay in it. On a CPU that is the only fast way to use bfloat16 (there are
  instructions for bfloat16 products only); on an accelerator it would double the memory traffic.
- With compute dtype float32 the products are float32, too (`Precision.HIGHEST`), on every device:
  an accelerator would otherwise silently use TF32 or bfloat16. For speed, set 'bfloat16'.
- **Dropout keys belong to examples**, not to calls: what is dropped depends on the example's key,
  the layer and the position in it, so it is the same on any mesh and for any chunking.
- The pooler of HF checkpoints and token types other than 0 are not part of a text encoder.

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
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models import lora
from nvret_jax.models.attention.attention import attention
from nvret_jax.models.backbones.blocks import Backbone, lookup
from nvret_jax.models.backbones.layer import (
    ACTIVATIONS,
    SIZES,
    Options,
    Weights,
    dropout,
    layer_norm,
)
from nvret_jax.models.pretrained.folder import Fields

# RoBERTa's descendants count positions from pad_token_id + 1, so that padding has its position.
OFFSET_POSITIONS = {"bert": False, "roberta": True, "xlm-roberta": True, "camembert": True}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT; field names are HF's where HF has one."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    position_offset: int = 0  # the position id of the first token

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """The longest sequence with position embeddings."""
        return self.max_position_embeddings - self.position_offset

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> BertConfig:
        """Reads HF's config.json.

        Args:
            config: its content.
            where: its path, for messages.

        Raises:
            InputError: a field is missing or requests something unsupported; all such fields are
                named in one message.
        """
        fields = Fields(config)
        values = {name: fields.integer(name, high=high) for name, high in SIZES.items()}
        values["type_vocab_size"] = fields.integer("type_vocab_size", 2, high=1 << 20)
        values["layer_norm_eps"] = fields.number("layer_norm_eps", 1e-12, high=1.0)
        values["initializer_range"] = fields.number("initializer_range", 0.02, high=100.0)
        values["hidden_act"] = fields.text("hidden_act", "gelu", choices=ACTIVATIONS)
        fields.text("position_embedding_type", "absolute", choices=("absolute",))
        for flag in ("is_decoder", "add_cross_attention"):
            if fields.flag(flag):
                fields.wrong.append(f"{flag}=true, supported: false")
        width, heads = values["hidden_size"], values["num_attention_heads"]
        if width and heads and width % heads:
            fields.wrong.append(
                f"hidden_size={width} is not a multiple of num_attention_heads={heads}"
            )
        if OFFSET_POSITIONS.get(config.get("model_type", "bert"), False):
            pad_id = fields.integer("pad_token_id", 1, low=0)
            values["position_offset"] = pad_id + 1
            positions = values["max_position_embeddings"]
            if positions and positions <= pad_id + 1:
                fields.wrong.append(
                    f"max_position_embeddings={positions} leaves no position after those up to "
                    f"pad_token_id={pad_id}"
                )
        fields.check(where)
        return cls(**values)


def check_mesh(config: BertConfig, mesh: Mesh) -> None:
    """Raises InputError, with the numbers, if `mesh` cannot split this model evenly."""
    wrong = [
        f"{name}={size} is not a multiple of mesh.{axis}={mesh.shape[axis]}"
        for name, size, axis in (
            ("num_attention_heads", config.num_attention_heads, "tensor"),
            ("intermediate_size", config.intermediate_size, "tensor"),
            ("hidden_size", config.hidden_size, "fsdp"),
        )
        if size % mesh.shape[axis]
    ]
    if wrong:
        raise InputError(f"this model does not fit the mesh: {'; '.join(wrong)}")


class Embeddings(Weights):
    """Token + position + type-0 embeddings, then LayerNorm."""

    AXES: ClassVar = {
        # The vocabulary is never split: gradients scattered into a split table have been wrong on
        # GPUs (openxla/xla #42481), and a lookup in one needs a reduction over the mesh.
        "word": (None, "embed"),
        "position": (None, "embed"),
        "token_type": (None, "embed"),
        "norm_scale": (None,),
        "norm_bias": (None,),
    }

    def __init__(self, config: BertConfig, *, param_dtype: Any, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(config.initializer_range)
        width = config.hidden_size

        def table(rows: int) -> nnx.Param:
            return nnx.Param(normal(rngs.params(), (rows, width), param_dtype))

        self.word = table(config.vocab_size)
        self.position = table(config.max_position_embeddings)
        self.token_type = table(config.type_vocab_size)
        self.norm_scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.norm_bias = nnx.Param(jnp.zeros((width,), param_dtype))

    def __call__(self, tokens_bt: jax.Array, config: BertConfig) -> jax.Array:
        """int32 [B, T] -> float32 [B, T, D]."""
        first = config.position_offset
        hidden_btd = lookup(self.word[...], tokens_bt)
        position_td = self._use("position", jnp.float32)[first : first + tokens_bt.shape[1]]
        token_type_d = self._use("token_type", jnp.float32)[0]
        hidden_btd = hidden_btd + (position_td + token_type_d)
        scale_d = self._use("norm_scale", jnp.float32)
        bias_d = self._use("norm_bias", jnp.float32)
        return layer_norm(hidden_btd, scale_d, bias_d, config.layer_norm_eps)


class Layer(Weights):
    """One transformer block, LayerNorm after each residual sum. Stacked by `Bert`."""

    AXES: ClassVar = {
        "query_kernel": ("embed", "heads", None),  # [D, H, K]
        "query_bias": ("heads", None),  # [H, K]
        "key_kernel": ("embed", "heads", None),
        "key_bias": ("heads", None),
        "value_kernel": ("embed", "heads", None),
        "value_bias": ("heads", None),
        "out_kernel": ("heads", None, "embed"),  # [H, K, D]
        "out_bias": (None,),
        "attention_norm_scale": (None,),
        "attention_norm_bias": (None,),
        "up_kernel": ("embed", "mlp"),  # [D, F]
        "up_bias": ("mlp",),
        "down_kernel": ("mlp", "embed"),  # [F, D]
        "down_bias": (None,),
        "mlp_norm_scale": (None,),
        "mlp_norm_bias": (None,),
    }

    def __init__(self, config: BertConfig, *, param_dtype: Any, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(config.initializer_range)
        width, heads, head_dim = config.hidden_size, config.num_attention_heads, config.head_dim
        wide = config.intermediate_size

        def kernel(*shape: int) -> nnx.Param:
            return nnx.Param(normal(rngs.params(), shape, param_dtype))

        def zeros(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.zeros(shape, param_dtype))

        self.query_kernel = kernel(width, heads, head_dim)
        self.query_bias = zeros(heads, head_dim)
        self.key_kernel = kernel(width, heads, head_dim)
        self.key_bias = zeros(heads, head_dim)
        self.value_kernel = kernel(width, heads, head_dim)
        self.value_bias = zeros(heads, head_dim)
        self.out_kernel = kernel(heads, head_dim, width)
        self.out_bias = zeros(width)
        self.attention_norm_scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.attention_norm_bias = zeros(width)
        self.up_kernel = kernel(width, wide)
        self.up_bias = zeros(wide)
        self.down_kernel = kernel(wide, width)
        self.down_bias = zeros(width)
        self.mlp_norm_scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.mlp_norm_bias = zeros(width)

    def __call__(
        self,
        hidden_btd: jax.Array,
        lengths_b: jax.Array,
        keys_b: jax.Array | None,
        shared: None,
        own: None,
        *,
        config: BertConfig,
        options: Options,
    ) -> jax.Array:
        """float32 [B, T, D] -> float32 [B, T, D]."""
        rate = options.dropout
        act_btd = mesh_lib.spec("batch", None, None)
        product = functools.partial(lora.product, self, options=options, keys_b=keys_b)
        drop = functools.partial(dropout, keys_b=keys_b, place=0, rate=rate)

        def residual(hidden_btd: jax.Array, out_btd: jax.Array, name: str) -> jax.Array:
            return layer_norm(
                hidden_btd + out_btd.astype(jnp.float32),
                self._use(f"{name}_norm_scale", jnp.float32),
                self._use(f"{name}_norm_bias", jnp.float32),
                config.layer_norm_eps,
            )

        with jax.named_scope("attention"):
            mixed_bthk = attention(
                product("btd,dhk->bthk", hidden_btd, "query"),
                product("btd,dhk->bthk", hidden_btd, "key"),
                product("btd,dhk->bthk", hidden_btd, "value"),
                lengths_b,
                implementation=options.attention,
                precision=options.precision,
                dropout=drop if keys_b is not None and rate else None,
                recompute=options.remat == "attention",
            )
            # Summed over heads, which the tensor axis splits: the result is whole on each device.
            out_btd = product("bthk,hkd->btd", mixed_bthk, "out", out_sharding=act_btd)
            hidden_btd = residual(hidden_btd, dropout(out_btd, keys_b, 1, rate), "attention")
        with jax.named_scope("mlp"):
            wide_btf = ACTIVATIONS[config.hidden_act](product("btd,df->btf", hidden_btd, "up"))
            out_btd = product("btf,fd->btd", wide_btf, "down", out_sharding=act_btd)
            return residual(hidden_btd, dropout(out_btd, keys_b, 2, rate), "mlp")


class Bert(Backbone):
    """BERT, RoBERTa and their descendants, without a pooler."""

    EMBEDDINGS, LAYER = Embeddings, Layer
