"""The settings beside the modules: sentence_bert_config.json and config_sentence_transformers.json.

They say how long a text may be, which prompts go before it, how embeddings are compared and how
many components of them are used. A setting that would change the embedding and that is not
computed here is refused, never skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.models.backbones.families import Family
from nvret_jax.models.pretrained.folder import Fields, inside, read_object, shown

# sentence-transformers looks for a passage's prompt under these names, in this order.
PASSAGE_PROMPTS = ("document", "passage", "corpus")
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


@functools.lru_cache(maxsize=256)
def say_once(message: str) -> None:
    """Logs a message about a folder the first time it is given."""
    logging.warning("%s", message)


def read_prompts(
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
        say_once(
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


def read_similarity(path: epath.Path, shared: Mapping[str, Any], late: bool) -> str:
    """What the model's authors compare with: 'cosine', 'dot' or 'maxsim'."""
    if late:
        return "maxsim"
    fields = Fields(shared)
    name = fields.text("similarity_fn_name", "cosine")
    fields.only("model_type", ("SentenceTransformer",))
    fields.check(path)
    if name not in ("cosine", "dot"):
        raise InputError(f"{path}: similarity_fn_name={shown(name)}; supported: 'cosine', 'dot'")
    return name


def read_settings(folder: epath.Path) -> dict[str, Any]:
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


def longest_text(
    folder: epath.Path, settings: Mapping[str, Any], family: Family, shape: Any
) -> int:
    """The default limit on the length of a text."""
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
        say_once(
            f"{folder}: texts are cut to {positions:,} tokens, the model's sliding window, though "
            f"the folder allows {min(stated, shape.max_position_embeddings):,}; a longer text "
            "would need attention within a window, which is not supported"
        )
    return int(min(stated, positions))


def read_truncate_dim(
    path: epath.Path, shared: Mapping[str, Any], width: int, late: bool
) -> int | None:
    """The first components of an embedding that the model is used with; None: all."""
    fields = Fields(shared)
    found = fields.integer("truncate_dim", None)
    if found is not None and late:
        fields.wrong.append(f"truncate_dim={found}, which late interaction does not have")
    fields.check(path)
    return None if found is None or found >= width else found
