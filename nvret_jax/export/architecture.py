"""config.json of an exported folder, with the backbone under a name that every reader knows.

Embedders that come with their own code (llama_bidirec, nvretriever, the text side of
omni-embed-nemotron) are written as the underlying architecture, Llama, Mistral or Qwen2, so that
this code is not needed. Only NV-Embed has no such name: its latent attention is read by this
package, or by its own code.

Readers use different names, so some values are written under several:

* The direction of attention: `is_causal` (transformers from 5, vLLM, text-embeddings-inference's
  Qwen2) and `use_bidirectional_attention` (text-embeddings-inference's other decoders).
* Rotary positions: `rope_parameters` (transformers from 5), and `rope_theta` with `rope_scaling`
  or ModernBERT's `global_rope_theta` and `local_rope_theta` (transformers 4 and
  text-embeddings-inference). A reader that finds only the other name silently uses its defaults.
* The dtype: `torch_dtype` (transformers 4) and `dtype` (5).
* `transformers_version` declares that the file follows transformers 5, which these names need.
  Without it, or with an older one, transformers warns about a faulty Mistral tokenizer and offers
  to change it, but the vectors here are from the unchanged tokenizer.json.

Fields without a default in some reader are filled with the value used by this package, or with
Hugging Face's default if it is not used. A decoder's sliding window is written as null: no text is
longer than the window (`max_seq_length`), and with one a bidirectional reader would expect a second
kind of mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvret_jax.models.backbones import families
from nvret_jax.models.backbones.bert import OFFSET_POSITIONS
from nvret_jax.models.backbones.decoder_config import FLAVOURS
from nvret_jax.models.backbones.rope import Rope

BERT_TYPES = tuple(OFFSET_POSITIONS)
# Fields that text-embeddings-inference has no default for and that no embedding depends on, or
# that the reader of config.json fills with the same value, as Hugging Face's defaults.
_BERT_REQUIRED = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
}
_MODERNBERT_REQUIRED = {
    "initializer_range": 0.02,
    "initializer_cutoff_factor": 2.0,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "hidden_activation": "gelu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "local_attention": 128,
    "classifier_activation": "gelu",
}
# Token ids that readers require, and in order the roles that replace a missing one.
_TOKEN_IDS = {
    "bert": {"pad": ()},
    "modernbert": {"pad": (), "bos": ("cls",), "eos": ("sep",), "cls": ("bos",), "sep": ("eos",)},
    "decoder": {"pad": (), "bos": (), "eos": ("pad",)},
}
_FORMAT = "5.0.0"  # the oldest transformers that writes files like this one
_STALE = (
    "id2label",
    "label2id",
    "problem_type",
    "auto_map",
    "attn_implementation",
    # Fields about packed weights of the source; exports hold plain numbers.
    "quantization_config",
    "compression_config",
)
# Fields of a decoder: the window (see above), and an end token, which is written into
# tokenizer.json.
_DROPPED = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "add_eos")


def written_type(spec: Any) -> str:
    """The `model_type` of an export of `spec`."""
    return families.written_type(spec.architecture["model_type"])


def config_json(
    spec: Any, dtype: str, token_ids: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The content of config.json.

    Args:
        spec: a `models.spec.EncoderSpec`.
        dtype: of the stored weights.
        token_ids: the tokenizer's, by role ('pad', 'bos', 'eos', 'cls', 'sep'), for a source that
            lacks them.
    """
    source = spec.architecture
    model_type = source["model_type"]
    if model_type in FLAVOURS:
        config = _decoder(spec)
    else:
        config = {k: v for k, v in source.items() if v is not None}
        if model_type in BERT_TYPES:
            # If positions begin after pad_token_id, another id would shift them all.
            pad = {"pad_token_id": 1} if OFFSET_POSITIONS[model_type] else {}
            config = _BERT_REQUIRED | pad | config
        elif model_type == "modernbert":
            config = _modernbert(_MODERNBERT_REQUIRED | config, spec.backbone)
    if model_type != "nvembed":
        _fill_token_ids(config, token_ids or {})
    model_type = config["model_type"]
    # The task class a checkpoint was trained as (BertForMaskedLM, …) does not apply to the export.
    config["architectures"] = [families.class_name(model_type)]
    for name in [name for name in config if name in _STALE or name.startswith("_")]:
        del config[name]
    return config | {"torch_dtype": dtype, "dtype": dtype, "transformers_version": _FORMAT}


def _decoder(spec: Any) -> dict[str, Any]:
    outer = spec.architecture
    model_type = outer["model_type"]
    if model_type == "nvembed":  # read only by this package: unchanged
        return dict(outer)
    text = outer
    for key in FLAVOURS[model_type].text:
        text = text[key]
    config = {k: v for k, v in text.items() if v is not None and k not in _DROPPED}
    shape = spec.backbone
    for name in (
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "hidden_act",
        "initializer_range",
    ):
        config[name] = getattr(shape, name)
    config |= {"model_type": written_type(spec), "sliding_window": None}
    config |= {"is_causal": shape.causal, "use_bidirectional_attention": not shape.causal}
    if config["model_type"].startswith("qwen"):
        config["use_sliding_window"] = False
    if FLAVOURS[model_type].biases == "config":
        config["attention_bias"] = shape.out_bias
        if config["model_type"] == "llama":
            config["mlp_bias"] = shape.mlp_bias
    config.pop("rope_scaling", None)
    config |= {"rope_theta": shape.rope.theta, "rope_parameters": _rope(shape.rope)}
    if shape.rope.kind != "default":
        config["rope_scaling"] = _rope(shape.rope, theta=False)
    return config


def _rope(rope: Rope, *, theta: bool = True) -> dict[str, Any]:
    """Rotary positions in one object, as in transformers 5; 4 keeps theta outside."""
    out: dict[str, Any] = {"rope_type": rope.kind}
    if theta:
        out["rope_theta"] = rope.theta
    if rope.kind != "default":
        out["factor"] = rope.factor
    if rope.kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            out[name] = getattr(rope, name)
    return out


def _every(layer_is_local: tuple[bool, ...]) -> list[int]:
    """Each n for which every n-th layer, from the first, sees the whole text and no other does."""
    layers = range(len(layer_is_local))
    return [
        every
        for every in range(1, len(layer_is_local) + 1)
        if all(local == bool(i % every) for i, local in zip(layers, layer_is_local, strict=True))
    ]


def known_to_old_readers(shape: Any) -> bool:
    """Whether transformers 4 can describe a ModernBERT's layers and rotary positions."""
    plain = shape.global_rope.kind == shape.local_rope.kind == "default"
    return plain and bool(_every(shape.layer_is_local))


def _modernbert(config: dict[str, Any], shape: Any) -> dict[str, Any]:
    """`config` with the fields that distinguish local and global layers, under both names."""
    config = dict(config)
    kinds = {"full_attention": shape.global_rope, "sliding_attention": shape.local_rope}
    stated = config.pop("global_attn_every_n_layers", None)
    for old in ("global_rope_theta", "local_rope_theta", "rope_scaling"):
        config.pop(old, None)
    config["layer_types"] = [
        "sliding_attention" if local else "full_attention" for local in shape.layer_is_local
    ]
    config["rope_parameters"] = {kind: _rope(rope) for kind, rope in kinds.items()}
    # The old names hold only what they can express, so that readers that require them refuse
    # others.
    every = _every(shape.layer_is_local)
    if every:
        config["global_attn_every_n_layers"] = stated if stated in every else every[0]
    if all(rope.kind == "default" for rope in kinds.values()):
        config["global_rope_theta"] = shape.global_rope.theta
        config["local_rope_theta"] = shape.local_rope.theta
    return config


def _fill_token_ids(config: dict[str, Any], token_ids: Mapping[str, int]) -> None:
    """Adds ids of special tokens that the source left out; of several it keeps the first."""
    model_type = config["model_type"]
    kind = "bert" if model_type in BERT_TYPES else model_type
    for role, others in _TOKEN_IDS.get(kind, _TOKEN_IDS["decoder"]).items():
        name = f"{role}_token_id"
        stated = config.get(name)
        if isinstance(stated, list):  # Llama 3's two end tokens, which vectors do not need
            stated = stated[0] if stated else None
        found = [stated, *(token_ids.get(r) for r in (role, *others))]
        size = config.get("vocab_size")
        fitting = [i for i in found if isinstance(i, int) and (size is None or 0 <= i < size)]
        if stated is None and not fitting and kind in ("bert", "modernbert"):
            fitting = [0]
        if fitting:
            config[name] = fitting[0] if stated is None else stated
