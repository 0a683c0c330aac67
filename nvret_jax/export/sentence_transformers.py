"""One folder for sentence-transformers, transformers and text-embeddings-inference.

    config.json                        the backbone as Hugging Face describes it
    model.safetensors                  its weights under Hugging Face's keys, float32 or float16
    tokenizer.json, …                  the tokenizer, with truncation and padding switched off
    modules.json                       backbone → 1_Pooling (→ 2_Dense …) (→ 3_Normalize)
    1_Pooling/config.json              how token vectors become one vector
    2_Dense/config.json, model.safetensors   what follows it
    sentence_bert_config.json          how many tokens of a text are read
    config_sentence_transformers.json  prompts and the similarity
    README.md                          the model card (`model_card`)

Readers differ in their use of these files, so each file is written to suit all of them;
tests/export/test_readers.py measures what readers need, and `readers` lists their restrictions.

* 1_Pooling has `pooling_mode` and the old booleans, the only keys known to
  text-embeddings-inference and sentence-transformers before 5.4. Another key there stops those
  older versions, so the width is only under its old name. `max_seq_length`, which new versions
  leave out, is required by text-embeddings-inference.
* Modules carry their old class paths, which every version of sentence-transformers resolves.
* The passages' prompt is under "document", where `encode_document` and mteb expect it.
* config.json has both names of fields that transformers 4 and 5 name differently; see
  `architecture`.
* Only tokenizer.json decides the ids; see `models.pretrained.tokenizer`. An end token that the
  source's configs require is written into it (`end_token`).
* A Dense module whose residual can be a part of its kernel is written without one, which most
  readers would skip; a late-interaction model without a Dense gets one that changes nothing,
  because PyLate adds a random projection to a model without.
* Trained prefixes (Matryoshka) are in config.json under vLLM's names.
* Adapters are merged into the kernels: the folder is a plain model.
* A late-interaction model has no Pooling and PyLate's settings (`late_interaction`). NV-Embed's
  latent attention is not a module: its folder is read by this package (`architecture`).
* A pooler that the source checkpoint had is written back, although no embedding uses it:
  transformers would report it as missing.
* All files have the mode of the user's umask, also the weights, which the safetensors library makes
  readable only by their owner.

The folder is written under a temporary name and renamed, so it exists whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax import options
from nvret_jax.artifacts import artifact
from nvret_jax.errors import InputError
from nvret_jax.export import end_token, late_interaction, readers
from nvret_jax.export.architecture import config_json
from nvret_jax.export.model_card import ModelCard, render
from nvret_jax.export.options import Export
from nvret_jax.files import atomic, paths
from nvret_jax.models.pooling import DenseConfig
from nvret_jax.options import calls

DTYPES = {"float32": np.float32, "float16": np.float16}
# torch's module of an activation by its class name.
_TORCH = {"Identity": "linear.Identity"}


_TAKES = {
    "folder": options.Anything("a folder", (str, os.PathLike)),
    "dtype": options.takes_of(Export)["dtype"],
    "overwrite": options.flag(),
    "card": options.Anything("a ModelCard", (ModelCard,), unset=True),
    "matryoshka": options.many(options.whole(1, 1 << 20), distinct=True),
}


@calls.checked(
    {
        "path": "give the folder second, as in export(encoder, folder)",
        "model_name": "give card=ModelCard(name=…)",
        "safe_serialization": "weights are always safetensors",
    }
)
def export(
    encoder: Any,
    folder: epath.PathLike,
    *,
    dtype: str = "float32",
    card: ModelCard | None = None,
    overwrite: bool = False,
    matryoshka: Sequence[int] = (),
) -> epath.Path:
    """Writes `encoder` to `folder` for other tools; all processes call it, one writes.

    Args:
        encoder: a `models.encoder.Encoder`.
        folder: the target; made with its parents. It may be an empty folder.
        dtype: of the stored weights: 'float32', or 'float16' for half the size.
        card: the content of the model card; a minimal card if None.
        overwrite: replace a folder that is not empty.
        matryoshka: the trained prefixes of an embedding.

    Returns:
        The folder.

    Raises:
        InputError: the folder is not empty and `overwrite` is False, or is a file; unknown dtype;
            a weight that float16 cannot hold.
    """
    options.check_arguments("export", locals(), _TAKES)
    if not hasattr(encoder, "save_weights_hf"):
        raise InputError(
            f"export: encoder={options.shown(encoder)} ({type(encoder).__name__}): expected an "
            "Encoder"
        )
    folder = paths.replaceable(folder, "export folder")
    if os.path.islink(folder):  # a user's own: what it leads to is replaced, not the link
        folder = epath.Path(os.path.realpath(folder))
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"export: {folder} is a file; expected a folder")
    full = os.path.isdir(folder) and bool(os.listdir(folder))
    if full and not overwrite:
        raise InputError(
            f"export: {folder} is not empty; use another folder, or pass overwrite=True"
        )
    if full and not any((folder / name).exists() for name in ("config.json", "modules.json")):
        raise InputError(
            f"export: {folder} holds no model, and overwrite=True would remove what it holds; use "
            "another folder"
        )
    mesh_lib.barrier(f"export checked {folder}")
    aside = folder.parent / f"{folder.name}.partial"
    main = mesh_lib.is_main()
    with atomic.cleaned(folder, aside) if main else contextlib.nullcontext():
        if main:
            if os.path.islink(aside):  # it may belong to others, so nothing is written through it
                os.unlink(aside)
            artifact.remove(aside)
        write_files(encoder, aside, dtype=dtype, card=card, matryoshka=matryoshka)
        if main:
            artifact.remove(folder)
            aside.rename(folder)
    if main:
        for program, sentence in readers.describe(encoder.spec).items():
            logging.info("export: %s: %s", program, sentence)
    mesh_lib.barrier(f"exported {folder}")
    return folder


def write_files(
    encoder: Any,
    folder: epath.PathLike,
    *,
    dtype: str = "float32",
    card: ModelCard | None = None,
    matryoshka: Sequence[int] = (),
) -> None:
    """`export` without the rename: writes directly into `folder`, for a caller that renames it
    later.

    Raises:
        InputError: unknown dtype; a weight that float16 cannot hold.
    """
    if dtype not in DTYPES:
        raise InputError(f"export dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    _say_joined_prompts(encoder)
    # Both gather shards: every process takes part.
    weights = _weights(encoder.save_weights_hf(), dtype)
    dense = _dense_modules(encoder)
    dense = [(config, _weights(tensors, dtype)) for config, tensors in dense]
    spec = encoder.spec
    modules = _modules(spec, len(dense))
    files = {
        "config.json": config_json(spec, dtype, _token_ids(encoder.tokenizer))
        | _matryoshka(matryoshka, spec.width),
        "modules.json": _listed(modules, late=spec.late is not None),
        "sentence_bert_config.json": _settings(spec),
        "config_sentence_transformers.json": _shared(spec),
    }
    for path, kind in modules:
        if kind == "Pooling":
            files[f"{path}/config.json"] = _pooling(spec)
        elif kind == "Normalize":
            # There is nothing to configure, but older versions need every module's folder, and git
            # and most uploaders drop empty ones.
            files[f"{path}/config.json"] = {}
    dense_paths = [path for path, kind in modules if kind == "Dense"]
    for path, (config, _) in zip(dense_paths, dense, strict=True):
        files[f"{path}/config.json"] = _dense(config)
    if not mesh_lib.is_main():
        return
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _write_json(folder / name, content)
    _save_tokenizer(encoder, folder)
    _save_safetensors(folder / "model.safetensors", weights)
    for path, (_, tensors) in zip(dense_paths, dense, strict=True):
        _save_safetensors(folder / path / "model.safetensors", tensors)
    (folder / "README.md").write_text(render(card or ModelCard(), encoder, dtype))


def _say_joined_prompts(encoder: Any) -> None:
    """Warns if sentence-transformers leaves a text's first word out of the pooling."""
    for kind in ("query", "passage"):
        prompt = encoder.joined_prompt(kind)
        if prompt is not None:
            shorter = prompt.rstrip(" ")
            remedy = f"{shorter!r} has no such end" if shorter != prompt else "end it in a mark"
            logging.warning(
                "export: the %s prompt %r is not pooled, and the tokenizer joins its end to the "
                "text's first word; sentence-transformers then leaves that word out, too, and "
                "embeds a text of one word as zeros; %s",
                kind,
                prompt,
                remedy,
            )


def _matryoshka(dims: Sequence[int], width: int) -> dict[str, Any]:
    """Fields for shorter embeddings in vLLM; sentence-transformers takes any truncate_dim."""
    if not dims:
        return {}
    return {"is_matryoshka": True, "matryoshka_dimensions": sorted({*dims, width})}


def _weights(tensors: Mapping[str, Any], dtype: str) -> dict[str, np.ndarray]:
    tensors = {key: np.asarray(value) for key, value in tensors.items()}
    out = {}
    for key in sorted(tensors):
        if not np.isfinite(np.asarray(tensors[key], np.float32)).all():
            raise InputError(
                f"export: {key} holds NaN or an infinity; the weights are damaged or training "
                "diverged, and nothing is written"
            )
        with np.errstate(over="ignore"):  # reported below, with the name of the weight
            out[key] = np.ascontiguousarray(tensors[key], DTYPES[dtype])
        if not np.isfinite(out[key]).all():
            raise InputError(
                f"export: {key} holds {float(np.abs(tensors[key]).max()):.3g}, more than float16 "
                "can; export with dtype='float32'"
            )
    return out


def _modules(spec: Any, dense: int) -> list[tuple[str, str]]:
    """(folder, kind) of each module, in order, with this many Dense modules."""
    kinds = ["Transformer"]
    if spec.pooling not in ("tokens", "latent"):
        kinds.append("Pooling")
    kinds += ["Dense"] * dense
    if spec.normalize and spec.late is None:  # its readers always normalise
        kinds.append("Normalize")
    return [(f"{i}_{kind}" if i else "", kind) for i, kind in enumerate(kinds)]


def _listed(modules: list[tuple[str, str]], *, late: bool) -> list[dict[str, Any]]:
    """modules.json."""
    types = {"Dense": "pylate.models.Dense.Dense"} if late else {}
    return [
        {
            "idx": i,
            "name": str(i),
            "path": path,
            "type": types.get(kind, f"sentence_transformers.models.{kind}"),
        }
        for i, (path, kind) in enumerate(modules)
    ]


def _pooling(spec: Any) -> dict[str, Any]:
    if spec.prompt_in_pooling == "last":
        raise InputError(
            "export: prompt_in_pooling='last' is NV-Embed's, and 1_Pooling cannot express it; "
            "use 'all' or 'none'"
        )
    mode, width = spec.pooling, spec.backbone.hidden_size
    return {
        "word_embedding_dimension": width,
        "pooling_mode": mode,
        "pooling_mode_cls_token": mode == "cls",
        "pooling_mode_mean_tokens": mode == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": mode == "lasttoken",
        "include_prompt": spec.prompt_in_pooling == "all",
    }


def _dense_modules(encoder: Any) -> list[tuple[DenseConfig, dict[str, np.ndarray]]]:
    """The Dense modules to write, and their weights; every process takes part."""
    spec = encoder.spec
    weights = encoder.save_dense_hf()
    if spec.late is None:
        return [
            _without_residual(config, tensors)
            for config, tensors in zip(spec.dense, weights, strict=True)
        ]
    if spec.dense:
        return list(zip(spec.dense, weights, strict=True))
    width = spec.backbone.hidden_size
    same = DenseConfig(width, width, bias=False, activation_function="Identity")
    return [(same, {"linear.weight": np.eye(width, dtype=np.float32)})]


def _without_residual(
    config: DenseConfig, tensors: dict[str, np.ndarray]
) -> tuple[DenseConfig, dict[str, np.ndarray]]:
    """x·K + x is x·(K + 1): without an activation, a residual is merged into its kernel."""
    if not config.use_residual or config.activation_function != "Identity":
        return config, tensors
    tensors = dict(tensors)
    kernel = np.asarray(tensors["linear.weight"], np.float32)
    residual = tensors.pop("residual.weight", np.eye(config.in_features))
    tensors["linear.weight"] = kernel + np.asarray(residual, np.float32)
    return dataclasses.replace(config, use_residual=False), tensors


def _dense(config: DenseConfig) -> dict[str, Any]:
    """config.json of a Dense module."""
    name = config.activation_function
    place = _TORCH.get(name, f"activation.{name}")
    out = dataclasses.asdict(config) | {"activation_function": f"torch.nn.modules.{place}"}
    if not config.use_residual:  # sentence-transformers before 6 does not know the key
        del out["use_residual"]
    return out


def _settings(spec: Any) -> dict[str, Any]:
    """sentence_bert_config.json."""
    settings = {"max_seq_length": spec.max_length, "do_lower_case": spec.lowercase}
    return settings | (late_interaction.expansion(spec) if spec.late else {})


def _shared(spec: Any) -> dict[str, Any]:
    """config_sentence_transformers.json."""
    shared = {
        "model_type": "SentenceTransformer",
        "prompts": {
            "query": spec.query_prompt or "",
            "document": spec.passage_prompt or "",
        },
        "default_prompt_name": None,
        "similarity_fn_name": spec.similarity,
    }
    if spec.truncate_dim is not None:
        shared["truncate_dim"] = spec.truncate_dim
    return shared | (late_interaction.shared_keys(spec) if spec.late else {})


def _token_ids(tokenizer: Any) -> dict[str, int]:
    """Ids of special tokens by role; always including padding."""
    found = {"pad": tokenizer.pad_id}
    for role in ("bos", "eos", "cls", "sep"):
        with contextlib.suppress(InputError):
            found[role] = tokenizer.special(f"{role}_token")
    return found


def _save_tokenizer(encoder: Any, folder: epath.Path) -> None:
    spec = encoder.spec
    inputs = ["input_ids", "attention_mask"]
    if spec.architecture["model_type"] == "bert":
        inputs.insert(1, "token_type_ids")
    new = readers.needs_version_5(spec) is not None
    encoder.tokenizer.save(folder, max_length=spec.max_length, inputs=inputs, version_5=new)
    if spec.append_eos and spec.pooling != "latent":
        _add_end_token(encoder, folder)


def _add_end_token(encoder: Any, folder: epath.Path) -> None:
    """Writes it into tokenizer.json, if it is not already there."""
    end = encoder.tokenizer.special("eos_token")
    if encoder.tokenizer.encode([""], 16)[0][-1:].tolist() == [end]:
        return
    token = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    token = token["content"] if isinstance(token, dict) else token
    path = folder / "tokenizer.json"
    content = end_token.with_end(json.loads(path.read_text()), token, end)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False))


def _save_safetensors(path: epath.Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save, save_file

    metadata = {"format": "pt"}  # transformers refuses a file without it
    if "://" in os.fspath(path):
        path.write_bytes(save(tensors, metadata=metadata))
        return
    save_file(tensors, os.fspath(path), metadata=metadata)
    # The library makes the file readable only by its owner, so it gets its neighbour's mode.
    neighbour = os.stat(path.parent / "config.json")
    os.chmod(path, stat.S_IMODE(neighbour.st_mode))


def _write_json(path: epath.Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
