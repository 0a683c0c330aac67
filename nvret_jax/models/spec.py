"""What a model folder says about itself: architecture, pooling, normalisation, prompts, lengths.

A folder is read the way sentence-transformers reads it, because that is who wrote it; what the
folder leaves open gets that library's default. Both spellings of a pooling config are understood:
the booleans of old (`pooling_mode_mean_tokens`) and today's `pooling_mode`. A module or a setting
that would change the embedding and that we do not compute is refused, never skipped.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.models.bert import OFFSET_POSITIONS, BertConfig
from nvret_jax.models.pooling import check_pooling
from nvret_jax.models.weights import read_json

SUPPORTED_MODELS = tuple(OFFSET_POSITIONS)
# sentence-transformers looks for a passage's prompt under these names, in this order.
PASSAGE_PROMPTS = ("document", "passage", "corpus")
OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SHORTEST = 3  # tokens: two special ones and one of the text


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """All that decides an embedding besides weights and tokenizer.

    Attributes:
        architecture: HF's config.json.
        pooling: a key of `pooling.POOLINGS`.
        normalize: whether embeddings have unit length.
        query_prompt, passage_prompt: put before the text, '' for none.
        max_length: tokens a text is cut to, special ones included.
        lowercase: whether texts are lower-cased before the tokenizer sees them.
        similarity: what the model's authors compare with, 'cosine' or 'dot'. Search is by dot
            product; that is cosine where `normalize` holds.
        dtype, param_dtype: of the products, and of the weights at rest.
    """

    architecture: dict[str, Any]
    pooling: str
    normalize: bool
    query_prompt: str
    passage_prompt: str
    max_length: int
    lowercase: bool
    similarity: str
    dtype: str
    param_dtype: str

    @property
    def bert(self) -> BertConfig:
        return BertConfig.from_hf(self.architecture)

    def prompt(self, kind: str) -> str:
        """The prompt of 'query' or 'passage'; InputError for another kind."""
        if kind not in ("query", "passage"):
            raise InputError(f"kind={kind!r}: expected 'query' or 'passage'")
        return self.query_prompt if kind == "query" else self.passage_prompt


@functools.lru_cache(maxsize=256)
def _say_once(message: str) -> None:
    logging.warning("%s", message)


def _object(path: epath.Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one where there is no file."""
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _modules(folder: epath.Path) -> tuple[epath.Path, epath.Path | None, bool]:
    """(folder of the backbone, folder of the pooling or None, normalised) from modules.json."""
    path = folder / "modules.json"
    if not path.exists():
        return folder, None, False
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(m, dict) for m in listed):
        raise InputError(f"{path}: expected a list of modules")
    backbone, pooling, normalize = folder, None, False
    for number, module in enumerate(listed):
        kind, where = str(module.get("type", "")), str(module.get("path", ""))
        name = kind.rsplit(".", 1)[-1]
        if not kind.startswith("sentence_transformers."):
            raise InputError(f"{path}: module {number} is {kind!r}; code of a model is never run")
        if name == "Transformer" and number == 0:
            backbone = folder / where if where else folder
        elif name == "Pooling" and number == 1:
            pooling = folder / where
        elif name == "Normalize" and number >= 2:
            normalize = True
        else:
            raise InputError(
                f"{path}: module {number} is {name!r}; supported: Transformer, Pooling, "
                "then optionally Normalize"
            )
    return backbone, pooling, normalize


def _pooling(folder: epath.Path | None) -> tuple[str | None, bool]:
    """(mode or None where the folder does not say, whether the prompt is pooled too)."""
    if folder is None:
        return None, True
    path = folder / "config.json"
    config = _object(path)
    mode = config.get("pooling_mode")
    if mode is None:
        active = [name for key, name in OLD_POOLING.items() if config.get(key)]
        if len(active) > 1:
            raise InputError(f"{path}: pools {' + '.join(active)}; supported: one of mean, cls")
        mode = active[0] if active else None
    elif isinstance(mode, (list, tuple)):
        if len(mode) != 1:
            raise InputError(f"{path}: pools {' + '.join(mode)}; supported: one of mean, cls")
        mode = mode[0]
    if mode is not None:
        check_pooling(mode, str(path))
    return mode, bool(config.get("include_prompt", True))


def _architecture(folder: epath.Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: no config.json in this folder; it does not hold a model")
    config = _object(path)
    supported = ", ".join(SUPPORTED_MODELS)
    if config.get("auto_map"):
        raise InputError(
            f"{path}: 'auto_map' asks to run code that came with the model, which is never done; "
            f"supported model_type: {supported}"
        )
    if config.get("model_type") not in SUPPORTED_MODELS:
        raise InputError(
            f"{path}: model_type={config.get('model_type')!r} "
            f"(architectures={config.get('architectures')}); supported: {supported}"
        )
    BertConfig.from_hf(config, str(path))
    return config


def _prompts(
    path: epath.Path, config: Mapping[str, Any], query: str | None, passage: str | None
) -> tuple[str, str]:
    """(query prompt, passage prompt): given ones first, then the folder's, then its default."""
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise InputError(f"{path}: 'prompts' must map names to prompts, got {prompts!r}")
    default_name = config.get("default_prompt_name")
    if default_name is not None and default_name not in prompts:
        raise InputError(
            f"{path}: default_prompt_name={default_name!r} is not among prompts "
            f"{', '.join(prompts) or '(none)'}"
        )
    default = prompts.get(default_name) or ""
    if query is None:
        query = prompts.get("query")
    if passage is None:
        named = [prompts[n] for n in PASSAGE_PROMPTS if prompts.get(n) is not None]
        passage = named[0] if named else None
    return (default if query is None else query), (default if passage is None else passage)


def read_spec(
    folder: epath.PathLike,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    max_length: int | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
) -> tuple[EncoderSpec, epath.Path]:
    """Reads a model folder; each argument that is not None overrides what the folder says.

    Returns:
        the spec, and the folder of backbone and tokenizer (old models keep it one level down).

    Raises:
        InputError: a file is not what it should be, or asks for what we do not compute.
    """
    folder = epath.Path(folder)
    backbone, pooling_folder, has_normalize = _modules(folder)
    architecture = _architecture(backbone)
    found, pools_prompt = _pooling(pooling_folder)
    if pooling is not None:
        check_pooling(pooling)
    elif found is None:
        _say_once(f"{folder}: the model does not say how it pools; taking the mean")
    shared_path = folder / "config_sentence_transformers.json"
    shared = _object(shared_path)
    query_prompt, passage_prompt = _prompts(shared_path, shared, query_prompt, passage_prompt)
    if not pools_prompt and (query_prompt or passage_prompt):
        raise InputError(
            f"{pooling_folder}/config.json: include_prompt=false leaves the prompt out of the "
            "pooling, which is not supported; use empty prompts or another model"
        )
    normalize = has_normalize if normalize is None else normalize
    similarity = shared.get("similarity_fn_name") or "cosine"
    if similarity not in ("cosine", "dot"):
        raise InputError(
            f"{shared_path}: similarity_fn_name={similarity!r}; supported: 'cosine', 'dot'"
        )
    if similarity == "cosine" and not normalize:
        _say_once(
            f"{folder}: the model is compared by cosine but does not normalise, so dot products "
            "of its embeddings are not its similarity; normalize=True makes them so"
        )
    settings = _object(backbone / "sentence_bert_config.json")
    positions = BertConfig.from_hf(architecture).max_tokens
    if max_length is None:
        stated = settings.get("max_seq_length")
        if stated is None:
            stated = _object(backbone / "tokenizer_config.json").get("model_max_length")
        # Tokenizers without a limit state one of 1e30.
        max_length = positions if stated is None else int(min(stated, positions))
    check_max_length(max_length, positions)
    spec = EncoderSpec(
        architecture=architecture,
        pooling=pooling or found or "mean",
        normalize=bool(normalize),
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        max_length=max_length,
        lowercase=bool(settings.get("do_lower_case", False)),
        similarity=similarity,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return spec, backbone


def check_max_length(max_length: int, positions: int) -> None:
    """Raises InputError where a text cannot be cut to `max_length` tokens for this model."""
    if not SHORTEST <= max_length <= positions:
        raise InputError(
            f"max_length={max_length}: expected {SHORTEST} to {positions}, the positions this "
            "model has"
        )
