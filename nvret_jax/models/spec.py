"""What a model folder says about itself: architecture, pooling, normalisation, prompts, lengths.

A folder is read the way sentence-transformers reads it, because that is who wrote it; what the
folder leaves open gets that library's default, or what the architecture is known for. Both
spellings of a pooling config are understood: the booleans of old (`pooling_mode_mean_tokens`) and
today's `pooling_mode`. A module or a setting that would change the embedding and that we do not
compute is refused, never skipped.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.models import late_interaction
from nvret_jax.models.decoder_config import CAUSAL_FLAGS, FLAVOURS
from nvret_jax.models.families import FAMILIES, Family
from nvret_jax.models.late_interaction import LateInteraction
from nvret_jax.models.pooling import OF_FOLDERS, DenseConfig, check_pooling
from nvret_jax.models.weights import read_json

SUPPORTED_MODELS = tuple(FAMILIES)
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
# Whether the tokens of a prompt are pooled: all, none, or but the last of them (NV-Embed's code).
PROMPT_IN_POOLING = ("all", "none", "last")


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """All that decides an embedding besides weights and tokenizer.

    Attributes:
        architecture: HF's config.json.
        pooling: one of `pooling.MODES`.
        normalize: whether embeddings have unit length.
        query_prompt, passage_prompt: put before the text, '' for none.
        max_length: tokens a text is cut to, special ones included.
        lowercase: whether texts are lower-cased before the tokenizer sees them.
        similarity: what the model's authors compare with, 'cosine' or 'dot' ('maxsim' where the
            pooling is 'tokens'). Search is by dot product; that is cosine where `normalize` holds.
        dtype, param_dtype: of the products, and of the weights at rest.
        prompt_in_pooling: one of `PROMPT_IN_POOLING`.
        append_eos: whether each text gets an end token if the tokenizer adds none.
        dense: what follows the pooling (with 'tokens': the backbone).
        dense_folders: where in the model's folder their weights are.
        late: how texts of a late-interaction model are prepared; None for others.
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
    prompt_in_pooling: str = "all"
    append_eos: bool = False
    dense: tuple[DenseConfig, ...] = ()
    dense_folders: tuple[str, ...] = ()
    late: LateInteraction | None = None

    @property
    def family(self) -> Family:
        """What stands behind the model_type."""
        return FAMILIES[self.architecture["model_type"]]

    @property
    def backbone(self) -> Any:
        """What shapes the backbone: a `BertConfig`, `DecoderConfig` or `ModernBertConfig`."""
        return self.family.config.from_hf(self.architecture)

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return self.dense[-1].out_features if self.dense else self.backbone.hidden_size

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


@dataclasses.dataclass
class _Modules:
    """What modules.json lists; folders are relative to the model's."""

    backbone: str = ""
    pooling: str | None = None
    dense: list[str] = dataclasses.field(default_factory=list)
    mask: str | None = None  # of a late-interaction model
    normalize: bool = False


def _modules(folder: epath.Path, late: bool) -> _Modules:
    """Reads modules.json; without one, the folder is a backbone alone."""
    path, found = folder / "modules.json", _Modules()
    if not path.exists():
        return found
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(m, dict) for m in listed):
        raise InputError(f"{path}: expected a list of modules")
    for number, module in enumerate(listed):
        kind, where = str(module.get("type", "")), str(module.get("path", ""))
        name = kind.rsplit(".", 1)[-1]
        if not kind.startswith("sentence_transformers.") and kind != "pylate.models.Dense.Dense":
            raise InputError(f"{path}: module {number} is {kind!r}; code of a model is never run")
        if name == "Transformer" and number == 0:
            found.backbone = where
        elif name == "Pooling" and number == 1:
            found.pooling = None if late else where
        elif name == "Dense" and number and not found.normalize:
            found.dense.append(where)
        elif name == "MultiVectorMask" and late:
            found.mask = where
        elif name == "Normalize" and number:
            found.normalize = True
        else:
            raise InputError(
                f"{path}: module {number} is {name!r}; supported: Transformer, Pooling, "
                "then optionally Dense and Normalize (late interaction: Transformer, Dense)"
            )
    return found


def _pooling(folder: epath.Path | None) -> tuple[str | None, bool | None]:
    """(mode, whether the prompt is pooled too); None where the folder does not say."""
    if folder is None:
        return None, None
    path = folder / "config.json"
    config = _object(path)
    mode = config.get("pooling_mode")
    if mode is None:
        active = [name for key, name in OLD_POOLING.items() if config.get(key)]
        if len(active) > 1:
            raise InputError(f"{path}: pools {' + '.join(active)}; supported: one at a time")
        mode = active[0] if active else None
    elif isinstance(mode, (list, tuple)):
        if len(mode) != 1:
            raise InputError(f"{path}: pools {' + '.join(mode)}; supported: one at a time")
        mode = mode[0]
    if mode is not None:
        check_pooling(mode, str(path), OF_FOLDERS)
    return mode, config.get("include_prompt")


def _dense(folder: epath.Path, names: list[str], width: int) -> tuple[DenseConfig, ...]:
    """The Dense modules in these folders, the first of which takes vectors of `width`."""
    found = []
    for name in names:
        path = folder / name / "config.json"
        if not path.exists():
            raise InputError(f"{path}: no such file, though modules.json lists a Dense module")
        found.append(DenseConfig.from_folder(_object(path), width, str(path)))
        width = found[-1].out_features
    return tuple(found)


def _architecture(folder: epath.Path, bidirectional: bool | None) -> dict[str, Any]:
    """config.json, checked; with the attention's direction changed where that is asked for."""
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: no config.json in this folder; it does not hold a model")
    config = _object(path)
    supported = ", ".join(SUPPORTED_MODELS)
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type)
    if config.get("auto_map") and not (family and family.own_code):
        raise InputError(
            f"{path}: 'auto_map' asks to run code that came with the model, which is never done; "
            f"supported model_type: {supported}"
        )
    if family is None:
        raise InputError(
            f"{path}: model_type={model_type!r} "
            f"(architectures={config.get('architectures')}); supported: {supported}"
        )
    if bidirectional is not None:
        config = _directed(config, bidirectional, str(path))
    family.config.from_hf(config, str(path))
    return config


def _directed(config: dict[str, Any], bidirectional: bool, where: str) -> dict[str, Any]:
    """A decoder's config.json that says which way attention goes, as every reader wants to hear."""
    model_type = config["model_type"]
    if model_type not in FLAVOURS:
        if bidirectional:
            return config
        raise InputError(f"{where}: bidirectional=False, but a {model_type!r} always is")

    def said(config: dict[str, Any], inner: tuple[str, ...]) -> dict[str, Any]:
        out = {k: v for k, v in config.items() if k not in CAUSAL_FLAGS}
        if inner:
            return out | {inner[0]: said(out.get(inner[0]) or {}, inner[1:])}
        return out | {"is_causal": not bidirectional, "use_bidirectional_attention": bidirectional}

    return said(config, FLAVOURS[model_type].text)


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


def _similarity(path: epath.Path, shared: Mapping[str, Any], late: bool) -> str:
    name = shared.get("similarity_fn_name") or "cosine"
    if late:
        return "maxsim"
    if name not in ("cosine", "dot"):
        raise InputError(f"{path}: similarity_fn_name={name!r}; supported: 'cosine', 'dot'")
    return name


def _limit(folder: epath.Path, settings: Mapping[str, Any], positions: int) -> int:
    """The longest text, where nobody asks for another limit."""
    stated = settings.get("max_seq_length")
    if stated is None:
        stated = _object(folder / "tokenizer_config.json").get("model_max_length")
    # Tokenizers without a limit state one of 1e30.
    return positions if stated is None else int(min(stated, positions))


def _prompt_in_pooling(
    given: str | None, include: bool | None, family: Family, pooling: str
) -> str:
    if given is not None and given not in PROMPT_IN_POOLING:
        known = ", ".join(PROMPT_IN_POOLING)
        raise InputError(f"prompt_in_pooling={given!r}: expected one of {known}")
    if given is None and include is not None and family.prompt_in_pooling != "last":
        given = "all" if include else "none"
    given = family.prompt_in_pooling if given is None else given
    return "all" if pooling in ("lasttoken", "tokens") else given


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
    prompt_in_pooling: str | None = None,
    bidirectional: bool | None = None,
) -> tuple[EncoderSpec, epath.Path]:
    """Reads a model folder; each argument that is not None overrides what the folder says.

    Args:
        bidirectional: of a decoder: whether tokens see what comes after them.
        others: see `EncoderSpec`.

    Returns:
        the spec, and the folder of backbone and tokenizer (old models keep it one level down).

    Raises:
        InputError: a file is not what it should be, or asks for what we do not compute.
    """
    folder = epath.Path(folder)
    shared_path = folder / "config_sentence_transformers.json"
    shared = _object(shared_path)
    is_late = late_interaction.is_late_interaction(shared) or pooling == "tokens"
    modules = _modules(folder, is_late)
    backbone = folder / modules.backbone if modules.backbone else folder
    architecture = _architecture(backbone, bidirectional)
    family = FAMILIES[architecture["model_type"]]
    shape = family.config.from_hf(architecture)
    settings = _object(backbone / "sentence_bert_config.json")
    found, include = _pooling(None if modules.pooling is None else folder / modules.pooling)
    pooling = _mode(folder, family, pooling, found, is_late)
    query_prompt, passage_prompt = _prompts(shared_path, shared, query_prompt, passage_prompt)
    if normalize is None:
        normalize = modules.normalize or is_late
        if not (folder / "modules.json").exists():
            normalize = family.normalize or is_late
    similarity = _similarity(shared_path, shared, is_late)
    if similarity == "cosine" and not normalize:
        _say_once(
            f"{folder}: the model is compared by cosine but does not normalise, so dot products "
            "of its embeddings are not its similarity; normalize=True makes them so"
        )
    if max_length is None:
        max_length = _limit(backbone, settings, shape.max_tokens)
    check_max_length(max_length, shape.max_tokens)
    late = None
    if is_late:
        mask = {} if modules.mask is None else _object(folder / modules.mask / "config.json")
        late = late_interaction.read(shared, settings, mask, str(folder))
    tokenizer = _object(backbone / "tokenizer_config.json")
    spec = EncoderSpec(
        architecture=architecture,
        pooling=pooling,
        normalize=bool(normalize),
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        max_length=max_length,
        lowercase=bool(settings.get("do_lower_case", False)),
        similarity=similarity,
        dtype=dtype,
        param_dtype=param_dtype,
        prompt_in_pooling=_prompt_in_pooling(prompt_in_pooling, include, family, pooling),
        append_eos=bool(
            architecture.get("add_eos", architecture["model_type"] == "nvembed")
            or tokenizer.get("add_eos_token")
        ),
        dense=_dense(folder, modules.dense, shape.hidden_size),
        dense_folders=tuple(modules.dense),
        late=late,
    )
    return spec, backbone


def _mode(
    folder: epath.Path, family: Family, given: str | None, found: str | None, is_late: bool
) -> str:
    """The pooling: as given, as the folder says, as the architecture is known for, or the mean."""
    if is_late and given not in (None, "tokens"):
        raise InputError(
            f"{folder}: pooling={given!r}, but this is a late-interaction model: its tokens keep "
            "their vectors (pooling='tokens')"
        )
    if is_late:
        return "tokens"
    if (given == "latent") != (family.pooling == "latent") and given is not None:
        raise InputError(
            f"{folder}: pooling={given!r}, but latent attention belongs to NV-Embed "
            "(model_type='nvembed'), and NV-Embed to it"
        )
    if given is not None:
        return check_pooling(given)
    if family.pooling == "latent":
        return "latent"
    if found is None and family.pooling is None:
        _say_once(f"{folder}: the model does not say how it pools; taking the mean")
    return found or family.pooling or "mean"


def check_max_length(max_length: int, positions: int) -> None:
    """Raises InputError where a text cannot be cut to `max_length` tokens for this model."""
    if not SHORTEST <= max_length <= positions:
        raise InputError(
            f"max_length={max_length}: expected {SHORTEST} to {positions}, the positions this "
            "model has"
        )
