"""The shape of a decoder, read from Hugging Face's config.json.

`FLAVOURS` defines what a `model_type` implies beyond its numbers. Everything else comes from the
file; missing fields get the defaults of transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from nvret_jax.errors import InputError
from nvret_jax.models.backbones.layer import ACTIVATIONS, SIZES
from nvret_jax.models.backbones.rope import Rope
from nvret_jax.models.pretrained.folder import Fields, shown


@dataclasses.dataclass(frozen=True)
class Flavour:
    """What a model_type implies beyond its numbers.

    Attributes:
        causal: if config.json does not say.
        biases: 'none', 'qkv' always, or 'config': from `attention_bias` and `mlp_bias`.
        qk_norm: queries and keys are normalised, head by head.
        text: where in config.json the text model is described.
        windowed: whether `sliding_window` is read.
    """

    causal: bool = True
    biases: str = "none"
    qk_norm: bool = False
    text: tuple[str, ...] = ()
    windowed: bool = True


FLAVOURS = {
    "mistral": Flavour(),
    "llama": Flavour(biases="config"),
    "qwen2": Flavour(biases="qkv"),
    "qwen3": Flavour(biases="config", qk_norm=True),
    # Embedders that come with their own code, which this file replaces.
    "llama_bidirec": Flavour(causal=False, biases="config"),  # llama-nemotron-embed-1b-v2
    "nvretriever": Flavour(causal=False),  # NV-Retriever-v1
    "nvembed": Flavour(causal=False, text=("text_config",), windowed=False),  # NV-Embed-v2
    # The text side of omni-embed-nemotron-3b, and of its base model.
    "nvomniembed": Flavour(causal=False, biases="qkv", text=("text_config",)),
    "qwen2_5_omni_thinker": Flavour(biases="qkv", text=("text_config",)),
    "qwen2_5_omni": Flavour(biases="qkv", text=("thinker_config", "text_config")),
}
# Names with which tools select bidirectional attention: transformers and vLLM, and
# text-embeddings-inference. Value -> whether causal.
CAUSAL_FLAGS = {"is_causal": {True: True, False: False}}
CAUSAL_FLAGS["use_bidirectional_attention"] = {True: False, False: True}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder; field names are HF's where HF has one."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    max_position_embeddings: int
    head_dim: int
    rope: Rope
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    causal: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None

    @property
    def max_tokens(self) -> int:
        """The longest sequence that has positions and fits any sliding window."""
        return min(self.max_position_embeddings, self.sliding_window or 1 << 62)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
        """Reads HF's config.json.

        Args:
            config: its content; `model_type` must be one of `FLAVOURS`.
            where: its path, for messages.

        Raises:
            InputError: a field is missing or requests something unsupported; all such fields are
                named in one message.
        """
        flavour = FLAVOURS[config["model_type"]]
        outer = text = Fields(config)
        for key in flavour.text:
            text = Fields(text.object(key, {}), outer.wrong)
        values = _numbers(text)
        values["hidden_act"] = text.text("hidden_act", "silu", choices=ACTIVATIONS)
        values["causal"] = _causal(config, text.content, flavour, text.wrong)
        values["rope"] = Rope.from_hf(text.content, text.wrong)
        biased = text.flag("attention_bias") and flavour.biases == "config"
        values["qkv_bias"] = biased or flavour.biases == "qkv"
        values["out_bias"] = biased
        values["mlp_bias"] = text.flag("mlp_bias") and flavour.biases == "config"
        values["qk_norm"] = flavour.qk_norm
        values["sliding_window"] = _window(text, flavour)
        text.check(f"{where}: {'.'.join(flavour.text)}" if flavour.text else where)
        return cls(**values)


def _numbers(text: Fields) -> dict[str, Any]:
    """The sizes, with HF's defaults for fields that old files lack."""
    values = {name: text.integer(name, high=high) for name, high in SIZES.items()}
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if text.content.get("head_dim") is None and width and heads and width % heads:
        text.wrong.append(f"hidden_size={width} is not a multiple of {heads} heads")
    shared = text.integer("num_key_value_heads", heads, high=SIZES["num_attention_heads"])
    head = text.integer("head_dim", (width or 0) // (heads or 1) or None, high=1 << 16)
    if heads and shared and heads % shared:
        text.wrong.append(f"num_attention_heads={heads} is not a multiple of {shared} kv heads")
    if head and head % 2:
        text.wrong.append(f"head_dim={head}, expected an even number")
    return values | {
        "num_key_value_heads": shared,
        "head_dim": head,
        "rms_norm_eps": text.number("rms_norm_eps", 1e-6, high=1.0),
        "initializer_range": text.number("initializer_range", 0.02, high=100.0),
    }


def _causal(
    config: Mapping[str, Any], text: Mapping[str, Any], flavour: Flavour, wrong: list[str]
) -> bool:
    said = {}
    for where in (text, config):
        for name, meaning in CAUSAL_FLAGS.items():
            if (value := where.get(name)) is not None:
                known = meaning[value] if isinstance(value, bool) else None
                said[f"{name}={shown(value)}"] = known
    if None in said.values() or len(set(said.values())) > 1:
        wrong.append(f"{' and '.join(said)}: expected true or false, and the same for all")
    return next(iter(said.values()), flavour.causal)


def _window(text: Fields, flavour: Flavour) -> int | None:
    """The sliding window, if it is active."""
    window, types = text.integer("sliding_window", None), text.texts("layer_types", None)
    on = text.flag("use_sliding_window", True) if types is None else "sliding_attention" in types
    return window if on and flavour.windowed else None


def check_mesh(config: DecoderConfig, mesh: Mesh) -> None:
    """Raises InputError, with the numbers, if `mesh` cannot split this model evenly."""
    wrong = [
        f"{name}={size} is not a multiple of mesh.{axis}={mesh.shape[axis]}"
        for name, size, axis in (
            ("num_key_value_heads", config.num_key_value_heads, "tensor"),
            ("intermediate_size", config.intermediate_size, "tensor"),
            ("hidden_size", config.hidden_size, "fsdp"),
        )
        if size % mesh.shape[axis]
    ]
    if wrong:
        raise InputError(f"this model does not fit the mesh: {'; '.join(wrong)}")
