"""The model and the corpus that a command's arguments refer to."""

from __future__ import annotations

import json
import re

from etils import epath

from nvret_jax import platforms
from nvret_jax.commands.options import Model, Source
from nvret_jax.data.dataset import Dataset, TextTable
from nvret_jax.data.load import has_scheme, load_dataset
from nvret_jax.data.texts import read_texts
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.precision import embedding_dtype
from nvret_jax.processes import log


def named(word: str) -> str:
    """The model that an argument refers to: the export of a run's workdir, else the argument.

    Raises:
        InputError: a workdir without an export.
    """
    folder = epath.Path(word).expanduser() if "://" not in word else None
    if folder is None or not _is_workdir(folder):
        return word
    if not (folder / "export" / "config.json").exists():
        raise InputError(f"{word}: the workdir of a run without export/; run its stage export")
    return str(folder / "export")


def start_of(word: str) -> str:
    """The model that a run started from, if the argument is its workdir; else ''."""
    folder = epath.Path(word).expanduser() if "://" not in word else None
    if folder is None or not _is_workdir(folder):
        return ""
    return json.loads((folder / "config.json").read_text())["student"]["model"]


def _is_workdir(folder: epath.Path) -> bool:
    """Whether a folder has the config of a run, not that of a model."""
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and isinstance(found.get("student"), dict)


def encoder(word: str, options: Model) -> Encoder:
    """The encoder that an argument refers to.

    Args:
        word: a folder, the workdir of a run, the name of a weights package, or a hub id.
        options: for reading it.

    Raises:
        InputError: as `Encoder.from_pretrained`, or a length that the model does not have.
    """
    given = {
        "pooling": options.pooling,
        "normalize": options.normalize,
        "query_prompt": options.query_prompt,
        "passage_prompt": options.passage_prompt,
    }
    made = Encoder.from_pretrained(
        named(word),
        dtype=embedding_dtype(options.dtype, "float32", platforms.here()),
        adapter=options.adapter or None,
        download=options.download,
        **given,
    )
    positions = made.spec.backbone.max_tokens
    for kind in ("query", "passage"):
        length = getattr(options, f"{kind}_length")
        if length > positions:
            raise InputError(
                f"--{kind}_length={length}: {word} takes at most {positions} tokens; use that or "
                "less, or 0 for its own length"
            )
    log.say(f"model     {made!r}")
    return made


def dataset(word: str, options: Source, *, download: bool, splits=None) -> Dataset:
    """The data set that an argument refers to; InputError as `load_dataset`."""
    return load_dataset(
        word,
        splits=splits,
        allow_empty=options.allow_empty,
        missing=options.missing,
        download=download,
    )


def corpus(word: str, options: Source, *, download: bool, column: str, id_column: str) -> TextTable:
    """The passages that an argument refers to: of a data set, or of a file of texts.

    Raises:
        InputError: as `load_dataset` and `read_texts`.
    """
    if has_scheme(word) or (re.match(r"[a-z-]+:", word) and not epath.Path(word).exists()):
        return dataset(word, options, download=download).corpus
    path = paths.local(word, "corpus")
    if path.is_dir() and any((path / f"corpus.jsonl{end}").exists() for end in ("", ".gz", ".zst")):
        return dataset(f"beir:{path}", options, download=download).corpus
    return read_texts(word, column=column, id_column=id_column, allow_empty=options.allow_empty)
