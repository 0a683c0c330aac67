"""What shapes a decoder, read from Hugging Face's config.json: `decoder.py` without a weight.

`FLAVOURS` says what a `model_type` means beyond its numbers. Everything else comes from the file;
what it leaves out gets the default that transformers gives it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from nvret_jax.errors import InputError
from nvret_jax.models.layer import ACTIVATIONS
from nvret_jax.models.rope import Rope


@dataclasses.dataclass(frozen=True)
class Flavour:
    """What a model_type means beyond its numbers.

    Attributes:
        causal: where config.json does not say.
        biases: 'none', 'qkv' always, or 'config': as `attention_bias` and `mlp_bias` say.
        qk_norm: queries and keys are normalised, head by head.
        text: where in config.json the text model is described.
        windowed: whether `sliding_window` is heeded.
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
    # Embedders that came with code of their own, which this file is instead of.
    "llama_bidirec": Flavour(causal=False, biases="config"),  # llama-nemotron-embed-1b-v2
    "nvretriever": Flavour(causal=False),  # NV-Retriever-v1
    "nvembed": Flavour(causal=False, text=("text_config",), windowed=False),  # NV-Embed-v2
    # The text side of omni-embed-nemotron-3b, and of the model it was made of.
    "nvomniembed": Flavour(causal=False, biases="qkv", text=("text_config",)),
    "qwen2_5_omni_thinker": Flavour(biases="qkv", text=("text_config",)),
    "qwen2_5_omni": Flavour(biases="qkv", text=("thinker_config", "text_config")),
}
# Names under which tools ask for bidirectional attention: transformers and vLLM, and
# text-embeddings-inference. Value -> whether causal.
CAUSAL_FLAGS = {"is_causal": {True: True, False: False}}
CAUSAL_FLAGS["use_bidirectional_attention"] = {True: False, False: True}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What shapes a decoder; field names are HF's where HF has one."""

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
        """The longest sequence there are positions for, and no sliding window cuts into."""
        return min(self.max_position_embeddings, self.sliding_window or 1 << 62)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
        """Reads HF's config.json.

        Args:
            config: its content; `model_type` must be one of `FLAVOURS`.
            where: its path, for messages.

        Raises:
            InputError: a field is missing or asks for something this decoder does not do; all
                such fields are named in one message.
        """
        flavour = FLAVOURS[config["model_type"]]
        text = config
        for key in flavour.text:
            text = text.get(key) or {}
        wrong: list[str] = []
        values = _numbers(text, wrong)
        if text.get("hidden_act", "silu") not in ACTIVATIONS:
            wrong.append(f"hidden_act={text['hidden_act']!r}, supported: {', '.join(ACTIVATIONS)}")
        values["causal"] = _causal(config, text, flavour, wrong)
        values["rope"] = Rope.from_hf(text, wrong)
        biased = flavour.biases == "config" and bool(text.get("attention_bias"))
        values["qkv_bias"] = biased or flavour.biases == "qkv"
        values["out_bias"] = biased
        values["mlp_bias"] = flavour.biases == "config" and bool(text.get("mlp_bias"))
        values["qk_norm"] = flavour.qk_norm
        values["sliding_window"] = _window(text, flavour, wrong)
        if wrong:
            at = f"{where}: {'.'.join(flavour.text)}: " if flavour.text else f"{where}: "
            raise InputError(at + "; ".join(wrong))
        return cls(hidden_act=text.get("hidden_act", "silu"), **values)


def _numbers(text: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    """The sizes, with HF's defaults for what old files leave out."""
    values: dict[str, Any] = {}
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "num_key_value_heads",
        "head_dim",
    ):
        value = text.get(name)
        if value is None and name == "num_key_value_heads":
            value = values["num_attention_heads"]
        if value is None and name == "head_dim":
            width, heads = values["hidden_size"], values["num_attention_heads"]
            if width and heads and width % heads:
                wrong.append(f"hidden_size={width} is not a multiple of {heads} heads")
            value = (width or 0) // (heads or 1) or None
        if value is None:
            wrong.append(f"{name} is missing")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            wrong.append(f"{name}={value!r}, expected a positive int")
            value = None
        values[name] = value
    heads, shared = values["num_attention_heads"], values["num_key_value_heads"]
    if heads and shared and heads % shared:
        wrong.append(f"num_attention_heads={heads} is not a multiple of {shared} kv heads")
    if values["head_dim"] and values["head_dim"] % 2:
        wrong.append(f"head_dim={values['head_dim']}, expected an even number")
    for name, default in (("rms_norm_eps", 1e-6), ("initializer_range", 0.02)):
        value = text.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            wrong.append(f"{name}={value!r}, expected a positive number")
        values[name] = value
    return values


def _causal(
    config: Mapping[str, Any], text: Mapping[str, Any], flavour: Flavour, wrong: list[str]
) -> bool:
    said = {}
    for where in (text, config):
        for name, meaning in CAUSAL_FLAGS.items():
            if where.get(name) is not None:
                said[f"{name}={where[name]!r}"] = meaning.get(where[name])
    if None in said.values() or len(set(said.values())) > 1:
        wrong.append(f"{' and '.join(said)}: say true or false, and the same")
    return next(iter(said.values()), flavour.causal)


def _window(text: Mapping[str, Any], flavour: Flavour, wrong: list[str]) -> int | None:
    """The sliding window, where one is switched on."""
    window, types = text.get("sliding_window"), text.get("layer_types")
    on = text.get("use_sliding_window", True) if types is None else "sliding_attention" in types
    if window is None or not on or not flavour.windowed:
        return None
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        wrong.append(f"sliding_window={window!r}, expected a positive int or null")
        return None
    return window


def check_mesh(config: DecoderConfig, mesh: Mesh) -> None:
    """Raises InputError, with the numbers, where `mesh` cannot cut this model evenly."""
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
