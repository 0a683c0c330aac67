"""What a model folder says about itself: architecture, pooling, normalisation, prompts, lengths.

A folder is read the way sentence-transformers reads it, because that is who wrote it: its modules
(modules.py) and the settings beside them (settings.py). What the folder leaves open gets that
library's default, or what the architecture is known for. This module reads config.json, and decides
what holds where folder, architecture and caller differ.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.models.backbones.decoder_config import CAUSAL_FLAGS, FLAVOURS
from nvret_jax.models.backbones.families import FAMILIES, Family
from nvret_jax.models.latent import LatentConfig
from nvret_jax.models.options import PROMPT_IN_POOLING
from nvret_jax.models.pooling import DenseConfig, check_pooling
from nvret_jax.models.pretrained import late_interaction
from nvret_jax.models.pretrained.folder import Fields, inside, read_object, shown
from nvret_jax.models.pretrained.late_interaction import SHORTEST, LateInteraction
from nvret_jax.models.pretrained.modules import (
    config_of,
    read_dense,
    read_modules,
    read_pooling,
)
from nvret_jax.models.pretrained.settings import (
    longest_text,
    read_prompts,
    read_settings,
    read_similarity,
    read_truncate_dim,
    say_once,
)

SUPPORTED_MODELS = tuple(FAMILIES)
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
        dense_folders: where in the model's folder their weights are. A new projection, which is the
            last of `dense`, has none.
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
        """The family of the model_type."""
        return FAMILIES[self.architecture["model_type"]]

    @property
    def backbone(self) -> Any:
        """What shapes the backbone: a `BertConfig`, `DecoderConfig` or `ModernBertConfig`."""
        return self.family.config.from_hf(self.architecture)

    @property
    def projects(self) -> bool:
        """Whether a new projection follows what the folder has."""
        return len(self.dense) > len(self.dense_folders)

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
    projection: int = 0,
) -> tuple[EncoderSpec, epath.Path]:
    """Reads a model folder; each argument that is not None overrides what the folder says.

    Args:
        bidirectional: of a decoder: whether tokens see what comes after them.
        projection: the width of a new linear layer after all others; 0: none.
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
    modules = read_modules(folder, is_late)
    backbone = folder / modules.backbone if modules.backbone else folder
    architecture = _architecture(backbone, bidirectional, pooling)
    family = FAMILIES[architecture["model_type"]]
    shape = family.config.from_hf(architecture)
    settings = read_settings(backbone)
    found, include = read_pooling(folder, modules.pooling)
    pooling = _mode(folder, family, pooling, found, architecture, is_late)
    query_prompt, passage_prompt = read_prompts(
        shared_path, shared, family, query_prompt, passage_prompt
    )
    if normalize is None:
        normalize = modules.normalize or is_late
        if not modules.listed:
            normalize = family.normalize or is_late
    similarity = read_similarity(shared_path, shared, is_late)
    if similarity == "cosine" and not normalize:
        say_once(
            f"{folder}: the model is compared by cosine but does not normalise, so dot products "
            "of its embeddings are not its similarity; normalize=True makes them so"
        )
    dense = read_dense(folder, modules.dense, shape.hidden_size, is_late)
    truncate_dim = read_truncate_dim(
        shared_path, shared, dense[-1].out_features if dense else shape.hidden_size, is_late
    )
    if projection:
        dense = (*dense, _projection(folder, dense, shape.hidden_size, projection, is_late))
        if truncate_dim is not None:
            raise InputError(
                f"{folder}: projection={projection}, but the model keeps only the first "
                f"{truncate_dim} components of what would be projected; expected a model that "
                "keeps all"
            )
    late = None
    if is_late:
        mask = {} if modules.mask is None else read_object(folder, config_of(modules.mask))
        late = late_interaction.read(shared, settings, mask, str(folder))
    if max_length is None:
        if late is not None and late_interaction.is_pylate(shared):
            # PyLate sets max_seq_length to what it tokenised last: the two lengths are what counts.
            max_length = min(max(late.query_length, late.passage_length), shape.max_tokens)
        else:
            max_length = longest_text(backbone, settings, family, shape)
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


def _projection(
    folder: epath.Path, dense: Sequence[DenseConfig], width: int, outputs: int, is_late: bool
) -> DenseConfig:
    """The shape of a new projection behind `dense`, or behind a pooling of this width."""
    if is_late:
        raise InputError(
            f"{folder}: projection={outputs}, but this model keeps a vector for each token; "
            "expected one that pools"
        )
    inputs = dense[-1].out_features if dense else width
    return DenseConfig(inputs, outputs, bias=False, activation_function="Identity")


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
        say_once(f"{folder}: the model does not say how it pools; taking the mean")
    return found or said or family.pooling or "mean"


def check_max_length(max_length: int, positions: int, said_by: str = "") -> None:
    """Raises InputError, which begins with `said_by`, where texts cannot be cut to `max_length`."""
    whole = isinstance(max_length, numbers.Integral) and not isinstance(max_length, bool)
    if not whole or not SHORTEST <= max_length <= positions:
        raise InputError(
            f"{said_by}max_length={shown(max_length)}: expected {SHORTEST} to {positions}, the "
            "positions this model has"
        )
