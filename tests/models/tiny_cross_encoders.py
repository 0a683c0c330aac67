"""Cross-encoder folders small enough to make in a test, written without torch."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import safetensors.numpy
import tiny_models

ARCHITECTURES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "camembert": "CamembertForSequenceClassification",
}


def tensors(config: dict, labels: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under HF's names."""
    bert = config["model_type"] == "bert"
    prefix = "bert." if bert else "roberta."
    width = config["hidden_size"]
    rng = np.random.default_rng(seed + 1000)

    def random(*shape):
        return rng.standard_normal(shape).astype(np.float32) * 0.3

    found = {prefix + name: value for name, value in tiny_models.tensors(config, seed).items()}
    if bert:
        out = "classifier"
    else:
        out = "classifier.out_proj"
        del found[prefix + "pooler.dense.weight"], found[prefix + "pooler.dense.bias"]
        found["classifier.dense.weight"] = random(width, width)
        found["classifier.dense.bias"] = random(width)
    return found | {f"{out}.weight": random(labels, width), f"{out}.bias": random(labels)}


def write(
    folder: pathlib.Path,
    model_type: str = "bert",
    *,
    labels: int = 1,
    seed: int = 0,
    weights: dict[str, np.ndarray] | None = None,
    tokenizer_config: dict | None = None,
    **changes,
) -> pathlib.Path:
    """A complete folder, as save_pretrained leaves one."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_models.config(model_type, **changes)
    config |= {
        "architectures": [ARCHITECTURES[model_type]],
        "id2label": {str(i): f"LABEL_{i}" for i in range(labels)},
        "label2id": {f"LABEL_{i}": i for i in range(labels)},
        "classifier_dropout": None,
    }
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    if model_type != "bert":
        inputs.remove("token_type_ids")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "model_input_names": inputs,
    }
    files = {
        "config.json": config,
        "tokenizer.json": tiny_models.tokenizer_json(pad_id=config["pad_token_id"]),
        "tokenizer_config.json": settings | (tokenizer_config or {}),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    safetensors.numpy.save_file(
        tensors(config, labels, seed) if weights is None else weights,
        str(folder / "model.safetensors"),
        {"format": "pt"},
    )
    return folder


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of texts of 0 to 30 words; some are longer than any model here allows."""
    words = tiny_models.texts(2 * count, seed)
    return list(zip(words[::2], words[1::2], strict=True))
