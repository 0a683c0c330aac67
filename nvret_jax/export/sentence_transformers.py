"""One folder for sentence-transformers, transformers and text-embeddings-inference.

    config.json                        the backbone as Hugging Face describes it
    model.safetensors                  its weights under Hugging Face's keys, float32 or float16
    tokenizer.json, …                  the tokenizer, with truncation and padding switched off
    modules.json                       backbone → 1_Pooling (→ 2_Normalize)
    1_Pooling/config.json              how token vectors become one vector
    sentence_bert_config.json          how many tokens of a text are read
    config_sentence_transformers.json  prompts and the similarity
    README.md                          the model card (`model_card`)

Readers disagree about these files, so each is written to suit all of them:

* sentence-transformers since 5.4 writes `pooling_mode` and `embedding_dimension` and drops the old
  booleans; text-embeddings-inference reads only the booleans. Both are written. The same goes for
  `max_seq_length`, which new versions leave out and text-embeddings-inference requires.
* Modules carry their old class paths, which every version of sentence-transformers resolves.
* Prompts stand under "query" and, for passages, under both "passage" (the E5 habit) and
  "document" (what `encode_document` looks for).
* config.json holds every field that text-embeddings-inference has no default for, and the dtype
  both as `torch_dtype` (transformers 4) and `dtype` (5).
* A pooler that the source checkpoint had is written back, though no embedding uses it:
  transformers would report it as missing.

The folder is written aside and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from etils import epath

from nvret_jax import artifacts
from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.export.model_card import ModelCard, render

DTYPES = {"float32": np.float32, "float16": np.float16}
# Class names by model_type, for a config.json that came without `architectures`.
_ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
}
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


def export(
    encoder: Any,
    folder: epath.PathLike,
    *,
    dtype: str = "float32",
    card: ModelCard | None = None,
    overwrite: bool = False,
) -> epath.Path:
    """Writes `encoder` to `folder` for other tools; all processes call it, one writes.

    Args:
        encoder: a `models.encoder.Encoder`.
        folder: where; made with its parents. An empty folder may stand there.
        dtype: of the stored weights: 'float32', or 'float16' for half the size.
        card: what the model card tells; a bare card when None.
        overwrite: replace a folder that is not empty.

    Returns:
        The folder.

    Raises:
        InputError: the folder is not empty and `overwrite` is False, or is a file; unknown dtype;
            a weight that float16 cannot hold.
    """
    folder = epath.Path(os.fspath(folder).rstrip("/"))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"export: {folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise InputError(
            f"export: {folder} is not empty; name another folder, or pass overwrite=True"
        )
    mesh_lib.barrier(f"export looked at {folder}")
    aside = folder.parent / f"{folder.name}.partial"
    if mesh_lib.is_main():
        artifacts.remove(aside)
    write_files(encoder, aside, dtype=dtype, card=card)
    if mesh_lib.is_main():
        artifacts.remove(folder)
        aside.rename(folder)
    mesh_lib.barrier(f"exported {folder}")
    return folder


def write_files(
    encoder: Any,
    folder: epath.PathLike,
    *,
    dtype: str = "float32",
    card: ModelCard | None = None,
) -> None:
    """`export` without the rename: writes into `folder` as it is, for a caller that names it later.

    Raises:
        InputError: unknown dtype; a weight that float16 cannot hold.
    """
    if dtype not in DTYPES:
        raise InputError(f"export dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    weights = _weights(encoder, dtype)  # gathers shards: every process takes part
    if not mesh_lib.is_main():
        return
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec = encoder.spec
    files = {
        "config.json": _config(spec, dtype),
        "modules.json": _modules(spec.normalize),
        "1_Pooling/config.json": _pooling(spec.pooling, encoder.width),
        "sentence_bert_config.json": {
            "max_seq_length": spec.max_length,
            "do_lower_case": spec.lowercase,
        },
        "config_sentence_transformers.json": _prompts(spec),
    }
    for name, content in files.items():
        _write_json(folder / name, content)
    if spec.normalize:
        # Nothing to configure, but older versions want every module's folder to be there, and
        # git and most uploaders drop an empty one.
        _write_json(folder / "2_Normalize" / "config.json", {})
    _save_tokenizer(encoder, folder)
    _save_safetensors(folder / "model.safetensors", weights)
    (folder / "README.md").write_text(render(card or ModelCard(), encoder, dtype))


def _weights(encoder: Any, dtype: str) -> dict[str, np.ndarray]:
    tensors = {key: np.asarray(value) for key, value in encoder.save_weights_hf().items()}
    out = {}
    for key in sorted(tensors):
        with np.errstate(over="ignore"):  # told below, with the name of the weight
            out[key] = np.ascontiguousarray(tensors[key], DTYPES[dtype])
        bad = np.isfinite(np.asarray(tensors[key], np.float32)) & ~np.isfinite(out[key])
        if bad.any():
            raise InputError(
                f"export: {key} holds {float(np.abs(tensors[key]).max()):.3g}, more than float16 "
                "can; export with dtype='float32'"
            )
    return out


def _config(spec: Any, dtype: str) -> dict[str, Any]:
    config = {**_REQUIRED, **{k: v for k, v in spec.architecture.items() if v is not None}}
    model_type = config.setdefault("model_type", "bert")
    # The task class a checkpoint was trained as (BertForMaskedLM, …) is not what is written here.
    config["architectures"] = [_ARCHITECTURES.get(model_type, f"{model_type.title()}Model")]
    for stale in ("_name_or_path", "transformers_version", "id2label", "label2id", "problem_type"):
        config.pop(stale, None)
    return config | {"torch_dtype": dtype, "dtype": dtype}


def _modules(normalize: bool) -> list[dict[str, Any]]:
    names = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if normalize:
        names.append(("2_Normalize", "Normalize"))
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(names)
    ]


def _pooling(mode: str, width: int) -> dict[str, Any]:
    return {
        "word_embedding_dimension": width,
        "embedding_dimension": width,
        "pooling_mode": mode,
        "pooling_mode_cls_token": mode == "cls",
        "pooling_mode_mean_tokens": mode == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
        "include_prompt": True,
    }


def _prompts(spec: Any) -> dict[str, Any]:
    return {
        "model_type": "SentenceTransformer",
        "prompts": {
            "query": spec.query_prompt or "",
            "passage": spec.passage_prompt or "",
            "document": spec.passage_prompt or "",
        },
        "default_prompt_name": None,
        "similarity_fn_name": spec.similarity,
    }


def _save_tokenizer(encoder: Any, folder: epath.Path) -> None:
    encoder.tokenizer.save(folder, max_length=encoder.spec.max_length)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    # Paths of the machine it was made on; no reader needs them.
    for stale in ("name_or_path", "special_tokens_map_file", "tokenizer_file"):
        config.pop(stale, None)
    _write_json(path, config)


def _save_safetensors(path: epath.Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save, save_file

    metadata = {"format": "pt"}  # transformers refuses a file without it
    if "://" in os.fspath(path):
        path.write_bytes(save(tensors, metadata=metadata))
    else:
        save_file(tensors, os.fspath(path), metadata=metadata)


def _write_json(path: epath.Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
