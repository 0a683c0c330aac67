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
import numbers
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.models.backbones.decoder_config import CAUSAL_FLAGS, FLAVOURS
from nvret_jax.models.backbones.families import FAMILIES, Family
from nvret_jax.models.latent import LatentConfig
from nvret_jax.models.options import PROMPT_IN_POOLING
from nvret_jax.models.pooling import OF_FOLDERS, DenseConfig, check_pooling
from nvret_jax.models.pretrained import late_interaction
from nvret_jax.models.pretrained.folder import Fields, inside, read_json, read_object, shown
from nvret_jax.models.pretrained.late_interaction import SHORTEST, LateInteraction

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
# The one file of a Transformer module, under all names that sentence-transformers has given it.
SETTINGS_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# In it: arguments for transformers' loaders (by their old and new names), those among them that
# change no vector, and all keys there are.
_ARGUMENTS = (
    "model_args",
    "model_kwargs",
    "tokenizer_args",
    "processor_kwargs",
    "config_args",
    "config_kwargs",
)
_HARMLESS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "padding_side",
    "revision",
    "subfolder",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_fast",
    "use_safetensors",
)
_SETTINGS = (
    "max_seq_length",
    "do_lower_case",
    "tokenizer_name_or_path",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "processing_kwargs",
    "unpad_inputs",
    "query_length",
    "document_length",
    "query_expansion",
    *_ARGUMENTS,
)
PYLATE_DENSE = ("pylate.models.Dense.Dense", "pylate.models.Dense")
# The poolings of NVIDIA's own embedders, in config.json.
NEMO_POOLING = {"avg": "mean", "cls": "cls", "last": "lasttoken"}


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
        prompt_in_pooling: one of `options.PROMPT_IN_POOLING`.
        append_eos: whether each text gets an end token if the tokenizer adds none.
        dense: what follows the pooling (with 'tokens': the backbone).
        dense_folders: where in the model's folder their weights are.
        truncate_dim: how many components of an embedding are kept, the first ones; None: all. A
            model that is compared by cosine and normalises gives them unit length again.
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
    truncate_dim: int | None = None
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
        whole = self.dense[-1].out_features if self.dense else self.backbone.hidden_size
        return whole if self.truncate_dim is None else self.truncate_dim

    def prompt(self, kind: str) -> str:
        """The prompt of 'query' or 'passage'; InputError for another kind."""
        if kind not in ("query", "passage"):
            raise InputError(f"kind={kind!r}: expected 'query' or 'passage'")
        return self.query_prompt if kind == "query" else self.passage_prompt


@functools.lru_cache(maxsize=256)
def _say_once(message: str) -> None:
    logging.warning("%s", message)


@dataclasses.dataclass
class _Modules:
    """What modules.json lists; folders are relative to the model's."""

    listed: bool = False  # whether there is a modules.json
    backbone: str = ""
    pooling: str | None = None
    dense: list[str] = dataclasses.field(default_factory=list)
    mask: str | None = None  # of a late-interaction model
    normalize: bool = False


def _modules(folder: epath.Path, late: bool) -> _Modules:
    """Reads modules.json; without one, the folder is a backbone alone."""
    path, found = inside(folder, "modules.json"), _Modules()
    if not path.exists():
        return found
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(m, dict) for m in listed):
        raise InputError(f"{path}: expected a list of modules")
    if not listed:
        raise InputError(f"{path}: lists no module; copy or download it again")
    found.listed = True
    for number, module in enumerate(listed):
        fields = Fields(module)
        kind, where = fields.text("type", ""), fields.text("path", "")
        fields.check(f"{path}: module {number}")
        inside(folder, where, path)
        name = kind.rsplit(".", 1)[-1]
        if not kind.startswith("sentence_transformers.") and kind not in PYLATE_DENSE:
            raise InputError(
                f"{path}: module {number} is {shown(kind)}; code of a model is never run"
            )
        if name == "Transformer" and number == 0:
            found.backbone = where
        elif name == "Pooling" and number == 1:
            found.pooling = None if late else where
        elif name == "Dense" and number and not found.normalize:
            found.dense.append(where)
        elif name == "MultiVectorMask" and late:
            found.mask = where
        elif name == "Normalize" and number:
            _check_input(read_object(folder, _config_of(where)), late, folder, where)
            found.normalize = True
        else:
            raise InputError(
                f"{path}: module {number} is {shown(name)}; supported: Transformer, Pooling, "
                "then optionally Dense and Normalize (late interaction: Transformer, Dense)"
            )
    return found


def _config_of(module: str) -> str:
    """The name of a module's config.json, relative to the model's folder."""
    return f"{module}/config.json" if module else "config.json"


def _check_input(config: dict[str, Any], late: bool, folder: epath.Path, module: str) -> None:
    """Raises InputError for a module that works on another of the features than its place says."""
    fields = Fields(config)
    plain = ("sentence_embedding", *(("token_embeddings",) if late else ()))
    for name in ("module_input_name", "module_output_name"):
        fields.only(name, plain)
    fields.check(folder / _config_of(module))


def _pooling(folder: epath.Path, module: str | None) -> tuple[str | None, bool | None]:
    """(mode, whether the prompt is pooled too); None where the folder does not say."""
    if module is None:
        return None, None
    name = _config_of(module)
    path = inside(folder, name)
    if not path.exists():
        raise InputError(
            f"{path}: no such file, though modules.json lists a Pooling module; the folder is not "
            "whole: copy or download it again"
        )
    config = read_object(folder, name)
    fields = Fields(config)
    fields.known(
        (
            "word_embedding_dimension",
            "embedding_dimension",
            "pooling_mode",
            "include_prompt",
            *OLD_POOLING,
        )
    )
    include = fields.flag("include_prompt", None)
    active = [mode for key, mode in OLD_POOLING.items() if fields.flag(key)]
    mode = config.get("pooling_mode")
    if mode is None:
        mode = active
    if isinstance(mode, list) and all(isinstance(m, str) for m in mode):
        if len(mode) > 1:
            fields.wrong.append(f"pools {' + '.join(mode)}; supported: one at a time")
        mode = mode[0] if mode else None
    if mode is not None and not isinstance(mode, str):
        fields.wrong.append(f"pooling_mode={shown(mode)}, expected a string")
    fields.check(path)
    if mode is not None:
        check_pooling(mode, str(path), OF_FOLDERS)
    return mode, include


def _dense(folder: epath.Path, names: list[str], width: int, late: bool) -> tuple[DenseConfig, ...]:
    """The Dense modules in these folders, the first of which takes vectors of `width`."""
    found = []
    for name in names:
        path = inside(folder, _config_of(name))
        if not path.exists():
            raise InputError(f"{path}: no such file, though modules.json lists a Dense module")
        config = read_object(folder, _config_of(name))
        _check_input(config, late, folder, name)
        found.append(DenseConfig.from_folder(config, width, str(path)))
        width = found[-1].out_features
    return tuple(found)


def _architecture(
    folder: epath.Path, bidirectional: bool | None, pooling: str | None
) -> dict[str, Any]:
    """config.json, checked; with the attention's direction changed where that is asked for."""
    path = inside(folder, "config.json")
    if not path.exists():
        raise InputError(f"{folder}: no config.json in this folder; it does not hold a model")
    config = read_object(folder, "config.json")
    supported = ", ".join(SUPPORTED_MODELS)
    fields = Fields(config)
    model_type = fields.text("model_type", None)
    classes = fields.texts("architectures", ())
    fields.check(path)
    family = FAMILIES.get(model_type)
    if config.get("auto_map") and not (family and family.own_code):
        raise InputError(
            f"{path}: 'auto_map' asks to run code that came with the model, which is never done; "
            f"supported model_type: {supported}"
        )
    if family is None:
        raise InputError(
            f"{path}: model_type={shown(model_type)} "
            f"(architectures={shown(config.get('architectures'))}); supported: {supported}"
        )
    if config.get("quantization_config") or config.get("compression_config"):
        raise InputError(
            f"{path}: the weights are quantised ('quantization_config'), which is not supported; "
            "take the model's unquantised weights"
        )
    if pooling is None and any(name.endswith("ForSequenceClassification") for name in classes):
        raise InputError(
            f"{path}: architectures={', '.join(classes)} is a classifier or cross-encoder, not an "
            "encoder of texts: score pairs with it (CrossEncoder, or --config.rescorer.model); "
            "pooling='mean' takes its token vectors all the same"
        )
    if bidirectional is not None:
        config = _directed(config, bidirectional, str(path))
    shape = family.config.from_hf(config, str(path))
    if family.pooling == "latent":
        LatentConfig.from_hf(config, shape.hidden_size, str(path))
        for name, plain in (("is_mask_instruction", True), ("mask_type", "b")):
            fields.only(name, (plain,))
        fields.check(path)
    return config


def _append_eos(folder: epath.Path, architecture: Mapping[str, Any]) -> bool:
    """Whether config.json or tokenizer_config.json asks for an end token."""
    fields = Fields(architecture)
    by_model = fields.flag("add_eos", architecture["model_type"] == "nvembed")
    fields.check(folder / "config.json")
    fields = Fields(read_object(folder, "tokenizer_config.json"))
    by_tokenizer = fields.flag("add_eos_token")
    fields.check(folder / "tokenizer_config.json")
    return by_model or by_tokenizer


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
    path: epath.Path,
    config: Mapping[str, Any],
    family: Family,
    query: str | None,
    passage: str | None,
) -> tuple[str, str]:
    """(query prompt, passage prompt): given ones first, then the folder's, then its default.

    A family that was trained with prompts gets those where there is no file that could name any.
    """
    if not path.exists() and family.prompts and None in (query, passage):
        _say_once(
            f"{path.parent}: no {path.name} names prompts; taking {family.prompts[0]!r} and "
            f"{family.prompts[1]!r}, with which models of this type are trained; query_prompt and "
            "passage_prompt set others"
        )
        query = family.prompts[0] if query is None else query
        passage = family.prompts[1] if passage is None else passage
    fields = Fields(config)
    prompts = Fields(fields.object("prompts", {}), fields.wrong)
    found = {name: prompts.text(name, None) for name in prompts.content}
    default_name = fields.text("default_prompt_name", None)
    if default_name is not None and default_name not in found:
        fields.wrong.append(
            f"default_prompt_name={shown(default_name)} is not among prompts "
            f"{', '.join(found) or '(none)'}"
        )
    fields.check(path)
    default = found.get(default_name) or ""
    if query is None:
        query = found.get("query")
    if passage is None:
        named = [found[n] for n in PASSAGE_PROMPTS if found.get(n) is not None]
        passage = named[0] if named else None
    return (default if query is None else query), (default if passage is None else passage)


def _similarity(path: epath.Path, shared: Mapping[str, Any], late: bool) -> str:
    if late:
        return "maxsim"
    fields = Fields(shared)
    name = fields.text("similarity_fn_name", "cosine")
    fields.only("model_type", ("SentenceTransformer",))
    fields.check(path)
    if name not in ("cosine", "dot"):
        raise InputError(f"{path}: similarity_fn_name={shown(name)}; supported: 'cosine', 'dot'")
    return name


def _settings(folder: epath.Path) -> dict[str, Any]:
    """sentence_bert_config.json, by whichever of its names; what is not read is refused."""
    name = next((n for n in SETTINGS_FILES if inside(folder, n).exists()), SETTINGS_FILES[0])
    config = read_object(folder, *SETTINGS_FILES)
    fields = Fields(config)
    fields.known(_SETTINGS)
    fields.only("transformer_task", ("feature-extraction",))
    fields.only("module_output_name", ("token_embeddings",))
    fields.only("tokenizer_name_or_path", ())
    fields.flag("do_lower_case")
    fields.limit("max_seq_length")
    text = Fields(fields.object("modality_config", {}), fields.wrong).object("text", {})
    for key, plain in (("method", "forward"), ("method_output_name", "last_hidden_state")):
        Fields(text, fields.wrong).only(key, (plain,))
    for key in _ARGUMENTS:
        for inner in fields.object(key, {}):
            if inner not in _HARMLESS:
                fields.wrong.append(f"{key}.{inner} is not supported")
    for kind in ("common", "text"):
        processing = Fields(fields.object("processing_kwargs", {}), fields.wrong)
        for inner in processing.object(kind, {}):
            if inner not in ("padding", "truncation", "return_tensors"):
                fields.wrong.append(f"processing_kwargs.{kind}.{inner} is not supported")
    fields.check(folder / name)
    return config


def _limit(folder: epath.Path, settings: Mapping[str, Any], family: Family, shape: Any) -> int:
    """The longest text, where nobody asks for another limit."""
    stated = settings.get("max_seq_length")
    if stated is None:
        fields = Fields(read_object(folder, "tokenizer_config.json"))
        stated = fields.limit("model_max_length")
        fields.check(folder / "tokenizer_config.json")
        known = [n for n in (stated, family.max_length) if n is not None]
        stated = min(known, default=shape.max_position_embeddings)
    positions = shape.max_tokens
    window = getattr(shape, "sliding_window", None)
    if window and window == positions < min(stated, shape.max_position_embeddings):
        _say_once(
            f"{folder}: texts are cut to {positions:,} tokens, the model's sliding window, though "
            f"the folder allows {min(stated, shape.max_position_embeddings):,}; a longer text "
            "would need attention within a window, which is not supported"
        )
    return int(min(stated, positions))


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
    shared = read_object(folder, shared_path.name)
    is_late = late_interaction.is_late_interaction(shared) or pooling == "tokens"
    modules = _modules(folder, is_late)
    backbone = folder / modules.backbone if modules.backbone else folder
    architecture = _architecture(backbone, bidirectional, pooling)
    family = FAMILIES[architecture["model_type"]]
    shape = family.config.from_hf(architecture)
    settings = _settings(backbone)
    found, include = _pooling(folder, modules.pooling)
    pooling = _mode(folder, family, pooling, found, architecture, is_late)
    query_prompt, passage_prompt = _prompts(
        shared_path, shared, family, query_prompt, passage_prompt
    )
    if normalize is None:
        normalize = modules.normalize or is_late
        if not modules.listed:
            normalize = family.normalize or is_late
    similarity = _similarity(shared_path, shared, is_late)
    if similarity == "cosine" and not normalize:
        _say_once(
            f"{folder}: the model is compared by cosine but does not normalise, so dot products "
            "of its embeddings are not its similarity; normalize=True makes them so"
        )
    dense = _dense(folder, modules.dense, shape.hidden_size, is_late)
    truncate_dim = _truncate_dim(
        shared_path, shared, dense[-1].out_features if dense else shape.hidden_size, is_late
    )
    late = None
    if is_late:
        mask = {} if modules.mask is None else read_object(folder, _config_of(modules.mask))
        late = late_interaction.read(shared, settings, mask, str(folder))
    if max_length is None:
        if late is not None and late_interaction.is_pylate(shared):
            # PyLate sets max_seq_length to what it tokenised last: the two lengths are what counts.
            max_length = min(max(late.query_length, late.passage_length), shape.max_tokens)
        else:
            max_length = _limit(backbone, settings, family, shape)
        check_max_length(max_length, shape.max_tokens, f"{backbone}: ")
    check_max_length(max_length, shape.max_tokens)
    append_eos = _append_eos(backbone, architecture)
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
        append_eos=append_eos,
        dense=dense,
        dense_folders=tuple(modules.dense),
        truncate_dim=truncate_dim,
        late=late,
    )
    return spec, backbone


def _truncate_dim(
    path: epath.Path, shared: Mapping[str, Any], width: int, late: bool
) -> int | None:
    """The first components of an embedding that the model is used with; None: all."""
    fields = Fields(shared)
    found = fields.integer("truncate_dim", None)
    if found is not None and late:
        fields.wrong.append(f"truncate_dim={found}, which late interaction does not have")
    fields.check(path)
    return None if found is None or found >= width else found


def _mode(
    folder: epath.Path,
    family: Family,
    given: str | None,
    found: str | None,
    architecture: Mapping[str, Any],
    is_late: bool,
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
    said = architecture.get("pooling")
    if said is not None:
        if not isinstance(said, str) or said not in NEMO_POOLING:
            raise InputError(
                f"{folder}/config.json: pooling={shown(said)}; supported: {', '.join(NEMO_POOLING)}"
            )
        said = NEMO_POOLING[said]
        if found is not None and found != said:
            raise InputError(
                f"{folder}: config.json pools {architecture['pooling']!r} and the Pooling module "
                f"{found!r}; say which with pooling={said!r} or pooling={found!r}"
            )
    elif found is None and family.pooling is None:
        _say_once(f"{folder}: the model does not say how it pools; taking the mean")
    return found or said or family.pooling or "mean"


def check_max_length(max_length: int, positions: int, said_by: str = "") -> None:
    """Raises InputError, which begins with `said_by`, where texts cannot be cut to `max_length`."""
    whole = isinstance(max_length, numbers.Integral) and not isinstance(max_length, bool)
    if not whole or not SHORTEST <= max_length <= positions:
        raise InputError(
            f"{said_by}max_length={shown(max_length)}: expected {SHORTEST} to {positions}, the "
            "positions this model has"
        )
