"""Model folders small enough to make in a test, written without torch.

The HF names and shapes are spelled out here on their own, not taken from the package's table, so
that a mistake in the table cannot agree with itself.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import safetensors.numpy

WORDS = "the a of wing flow heat shock layer plate body speed is in at cell gene".split()


def config(model_type: str = "bert", **changes) -> dict:
    """A config.json: 3 layers, 32 wide, 4 heads."""
    base = {
        "model_type": model_type,
        "architectures": ["BertModel"],
        "vocab_size": 24,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "type_vocab_size": 2 if model_type == "bert" else 1,
        "layer_norm_eps": 1e-12 if model_type == "bert" else 1e-5,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "pad_token_id": 0 if model_type == "bert" else 1,
    }
    if model_type != "bert":
        base["architectures"] = ["XLMRobertaModel"]
    return base | changes


def tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under HF's names, large enough that a mistake shows."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            shapes[f"{at}attention.self.{name}.weight"] = (width, width)
            shapes[f"{at}attention.self.{name}.bias"] = (width,)
        shapes[f"{at}attention.output.dense.weight"] = (width, width)
        shapes[f"{at}attention.output.dense.bias"] = (width,)
        shapes[f"{at}intermediate.dense.weight"] = (wide, width)
        shapes[f"{at}intermediate.dense.bias"] = (wide,)
        shapes[f"{at}output.dense.weight"] = (width, wide)
        shapes[f"{at}output.dense.bias"] = (width,)
        for norm in ("attention.output", "output"):
            shapes[f"{at}{norm}.LayerNorm.weight"] = (width,)
            shapes[f"{at}{norm}.LayerNorm.bias"] = (width,)
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape).astype(np.float32) * 0.3
        out[name] = value + 1 if name.endswith("LayerNorm.weight") else value
    return out


def tokenizer_json(pad: str = "[PAD]", pad_id: int = 0) -> dict:
    """A word-level tokenizer over `WORDS` with [CLS] … [SEP]."""
    special = ["[CLS]", "[SEP]", "[UNK]"]
    special.insert(pad_id, pad)
    vocab = {word: i for i, word in enumerate([*special, *WORDS])}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocab[t],
                "content": t,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for t in special
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", vocab["[SEP]"]],
            "cls": ["[CLS]", vocab["[CLS]"]],
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    }


def write(
    folder: pathlib.Path,
    model_type: str = "bert",
    *,
    weights: dict[str, np.ndarray] | None = None,
    pooling: str | None = "mean",
    normalize: bool = True,
    seed: int = 0,
    **changes,
) -> pathlib.Path:
    """A complete sentence-transformers folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = config(model_type, **changes)

    def put(name: str, value) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))

    put("config.json", content)
    put("tokenizer.json", tokenizer_json(pad_id=content["pad_token_id"]))
    put(
        "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"},
    )
    put("sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    names = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
    put(
        "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": "" if i == 0 else f"{i}_{name}",
                "type": f"sentence_transformers.models.{name}",
            }
            for i, name in enumerate(names)
        ],
    )
    if pooling:
        put(
            "1_Pooling/config.json",
            {
                "word_embedding_dimension": content["hidden_size"],
                "pooling_mode_cls_token": pooling == "cls",
                "pooling_mode_mean_tokens": pooling == "mean",
            },
        )
    safetensors.numpy.save_file(
        tensors(content, seed) if weights is None else weights,
        str(folder / "model.safetensors"),
        {"format": "pt"},
    )
    return folder


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 0 to 30 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, n)) for n in rng.integers(0, 31, count)]
