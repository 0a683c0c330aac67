"""Sizes of well-known models, for plans with models that are not on this machine.

A plan (`nvret_jax.plan`) needs shapes, but neither weights nor a tokenizer. If the model's folder
is not available, this table replaces its config.json and pooling; `write` makes a folder from it,
for the same readers that read a real one. The table is not used if the folder exists.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from etils import epath

from nvret_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Known:
    """The settings in a model's folder that determine shapes.

    Attributes:
        config: the content of config.json.
        pooling: 'mean', 'cls' or 'lasttoken'; None: the architecture's own.
        normalize: whether embeddings have unit length.
        max_length: tokens to which a text is cut.
    """

    config: dict[str, Any]
    pooling: str | None = "mean"
    normalize: bool = True
    max_length: int = 512


def _bert(width: int, layers: int, heads: int, vocab: int = 30522) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }


def _xlmr(width: int, layers: int, heads: int) -> dict[str, Any]:
    return _bert(width, layers, heads, vocab=250002) | {
        "model_type": "xlm-roberta",
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    }


def _qwen3(width: int, wide: int, layers: int, heads: int, vocab: int, positions: int):
    return {
        "model_type": "qwen3",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
    }


_MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "hidden_act": "silu",
}
_NO_WINDOW = _MISTRAL | {"sliding_window": None}
_LLAMA_1B = {
    "model_type": "llama_bidirec",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "hidden_act": "silu",
}
_MODERNBERT_BASE = {
    "model_type": "modernbert",
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "max_position_embeddings": 8192,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "hidden_activation": "gelu",
}
_NV_EMBED = {
    "model_type": "nvembed",
    "add_eos": True,
    "text_config": _MISTRAL,
    "latent_attention_config": {"model_type": "latent_attention"},  # all sizes are defaults
}

KNOWN: dict[str, Known] = {
    "mistralai/Mistral-7B-v0.1": Known(_MISTRAL, None, False, 4096),
    "intfloat/e5-mistral-7b-instruct": Known(_MISTRAL, "lasttoken", True, 4096),
    "nvidia/NV-Retriever-v1": Known(
        _NO_WINDOW | {"model_type": "nvretriever"}, None, max_length=32768
    ),
    "nvidia/NV-Embed-v2": Known(_NV_EMBED, None, max_length=32768),
    "nvidia/llama-nemotron-embed-1b-v2": Known(_LLAMA_1B, None, max_length=8192),
    "intfloat/e5-large-v2": Known(_bert(1024, 24, 16)),
    "intfloat/e5-large-unsupervised": Known(_bert(1024, 24, 16)),
    "intfloat/multilingual-e5-small": Known(_bert(384, 12, 12, vocab=250037)),
    "intfloat/multilingual-e5-base": Known(_xlmr(768, 12, 12)),
    "intfloat/multilingual-e5-large": Known(_xlmr(1024, 24, 16)),
    "BAAI/bge-base-en-v1.5": Known(_bert(768, 12, 12), "cls"),
    "answerdotai/ModernBERT-base": Known(_MODERNBERT_BASE, "mean", False, 8192),
    "Qwen/Qwen3-Embedding-0.6B": Known(
        _qwen3(1024, 3072, 28, 16, 151669, 32768), "lasttoken", max_length=32768
    ),
    "Qwen/Qwen3-Embedding-4B": Known(
        _qwen3(2560, 9728, 36, 32, 151665, 40960), "lasttoken", max_length=40960
    ),
    "Qwen/Qwen3-Embedding-8B": Known(
        _qwen3(4096, 12288, 36, 32, 151665, 40960), "lasttoken", max_length=40960
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Known(_bert(384, 6, 12), max_length=256),
}


def write(name: str, folder: epath.PathLike) -> epath.Path:
    """Makes a folder with the settings of a known model, without weights and tokenizer.

    Args:
        name: a hub id, in any case.
        folder: an empty one.

    Returns:
        The folder, for `spec.read_spec`.

    Raises:
        InputError: a model that is not in the table; names those that are.
    """
    by_name = {key.lower(): known for key, known in KNOWN.items()}
    known = by_name.get(name.lower())
    if known is None:
        raise InputError(f"{name}: the table of known architectures has {', '.join(KNOWN)}")
    folder = epath.Path(folder)
    files: dict[str, Any] = {
        "config.json": known.config,
        "sentence_bert_config.json": {"max_seq_length": known.max_length},
        "config_sentence_transformers.json": {"prompts": {}},  # no tokenizer is needed
    }
    if known.pooling is not None:  # else only a backbone, whose architecture determines the rest
        types = ["Transformer", "Pooling"] + ["Normalize"] * known.normalize
        files["modules.json"] = [
            {"path": "" if i == 0 else f"{i}_{t}", "type": f"sentence_transformers.models.{t}"}
            for i, t in enumerate(types)
        ]
        files["1_Pooling/config.json"] = {"pooling_mode": known.pooling}
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content))
    return folder
