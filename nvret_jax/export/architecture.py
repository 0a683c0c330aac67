"""config.json of an exported folder: the backbone under a name that every reader knows.

Embedders that came with code of their own (llama_bidirec, nvretriever, the text side of
omni-embed-nemotron) are written as what they are beneath it, Llama, Mistral or Qwen2, so that
nobody has to run that code. NV-Embed alone has no such name: its latent attention is read by this
package, or by its own code.

Decoders say which way attention goes under both names in use: `is_causal` (transformers, vLLM) and
`use_bidirectional_attention` (text-embeddings-inference). Their sliding window is written as null:
no text is longer than the window (`max_seq_length`), and with it a bidirectional reader would look
for a second kind of mask.
"""

from __future__ import annotations

from typing import Any

from nvret_jax.models.decoder_config import FLAVOURS

# Class names by model_type, for a config.json that came without `architectures`.
_ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
    "modernbert": "ModernBertModel",
    "mistral": "MistralModel",
    "llama": "LlamaModel",
    "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model",
    "nvembed": "NVEmbedModel",
}
# What an architecture of somebody's own is beneath its name.
_PLAIN = {
    "llama_bidirec": "llama",
    "nvretriever": "mistral",
    "nvomniembed": "qwen2",
    "qwen2_5_omni_thinker": "qwen2",
    "qwen2_5_omni": "qwen2",
}
BERT_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")
# Fields text-embeddings-inference's BERT has no default for, with Hugging Face's own defaults.
_REQUIRED = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
}
_STALE = (
    "_name_or_path",
    "transformers_version",
    "id2label",
    "label2id",
    "problem_type",
    "auto_map",
)
# Of a decoder: the window (see above), and an end token, which goes into tokenizer.json.
_DROPPED = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "add_eos")


def config_json(spec: Any, dtype: str) -> dict[str, Any]:
    """The content of config.json.

    Args:
        spec: a `models.spec.EncoderSpec`.
        dtype: of the stored weights.
    """
    source = spec.architecture
    if source["model_type"] in FLAVOURS:
        config = _decoder(spec)
    else:
        required = _REQUIRED if source["model_type"] in BERT_TYPES else {}
        config = {**required, **{k: v for k, v in source.items() if v is not None}}
    model_type = config["model_type"]
    # The task class a checkpoint was trained as (BertForMaskedLM, …) is not what is written here.
    config["architectures"] = [_ARCHITECTURES.get(model_type, f"{model_type.title()}Model")]
    for stale in _STALE:
        config.pop(stale, None)
    return config | {"torch_dtype": dtype, "dtype": dtype}


def _decoder(spec: Any) -> dict[str, Any]:
    outer = spec.architecture
    model_type = outer["model_type"]
    if model_type == "nvembed":  # read by this package alone: as it came
        return dict(outer)
    text = outer
    for key in FLAVOURS[model_type].text:
        text = text[key]
    config = {k: v for k, v in text.items() if v is not None and k not in _DROPPED}
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(name), dict):
            config[name] = _rope(config[name])
    causal = spec.backbone.causal
    config |= {"is_causal": causal, "use_bidirectional_attention": not causal}
    config |= {"model_type": _PLAIN.get(model_type, model_type), "sliding_window": None}
    if config["model_type"].startswith("qwen"):
        config["use_sliding_window"] = False
    return config


def _rope(scaling: dict[str, Any]) -> dict[str, Any]:
    """Qwen's three-fold positions are one where there is only text."""
    out = {k: v for k, v in scaling.items() if k != "mrope_section"}
    return {k: "default" if v == "mrope" else v for k, v in out.items()}
