"""The entry point for data sets: `load_dataset("scheme:rest")`, or Python objects.

`READERS` maps schemes to readers; a new source is a module, a function and a line here.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from nvret_jax import options
from nvret_jax.data import labelled
from nvret_jax.data.beir import read_beir
from nvret_jax.data.dataset import MISSING, Asked, Dataset
from nvret_jax.data.hub import read_hub
from nvret_jax.data.objects import read_objects
from nvret_jax.data.pairs import read_pairs
from nvret_jax.data.pydocs import build_pydocs
from nvret_jax.data.tfds import read_tfds
from nvret_jax.data.training_rows import read_rows
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.files.records import LAYOUT, is_data, layout_of
from nvret_jax.files.source import Source, parse
from nvret_jax.options import calls


def _read_beir(source: Source, asked: Asked) -> Dataset:
    source.check(())
    folder = _place(source, "folder", "/data/scifact")
    return read_beir(folder, asked.splits, allow_empty=asked.allow_empty, missing=asked.missing)


def _read_pydocs(source: Source, asked: Asked) -> Dataset:
    source.check(())
    if source.place:
        raise InputError(f"dataset '{source.shown}': 'pydocs:' takes nothing after the colon")
    return build_pydocs(asked.splits)


def _read_labelled(source: Source, asked: Asked) -> Dataset:
    readers = {"labels": labelled.read_labels, "examples": labelled.read_examples}
    source.check(LAYOUT)
    file, layout = _place(source, "file", "/data/train.jsonl"), layout_of(source)
    read = readers[source.scheme]
    return read(file, asked.splits, allow_empty=asked.allow_empty, layout=layout)


def _read_sts(source: Source, asked: Asked) -> Dataset:
    source.check(("min_score", *LAYOUT))
    file, layout = _place(source, "file", "/data/train.jsonl"), layout_of(source)
    score, empty = source.number("min_score", labelled.MIN_SCORE), asked.allow_empty
    return labelled.read_sts(file, asked.splits, min_score=score, allow_empty=empty, layout=layout)


def _read_pairs(source: Source, asked: Asked) -> Dataset:
    _place(source, "file", "/data/faq.csv")
    return read_pairs(source, asked)


def _read_rows(source: Source, asked: Asked) -> Dataset:
    _place(source, "file or folder", "/data/train.jsonl")
    return read_rows(source, asked)


def _read_hf(source: Source, asked: Asked) -> Dataset:
    _place(source, "folder or the hub's data set", "mteb/scifact")
    return read_hub(source, asked)


def _read_tfds(source: Source, asked: Asked) -> Dataset:
    _place(source, "prepared data set", "beir/scifact")
    return read_tfds(source, asked)


def _place(source: Source, what: str, example: str) -> str:
    if not source.place:
        scheme = source.scheme
        raise InputError(f"dataset '{scheme}:': name the {what}, as in '{scheme}:{example}'")
    return source.place


# The formats of training rows that are read without being converted first; `interchange` has them.
ROW_FORMATS = (
    "flagembedding",
    "tevatron",
    "tevatron-ids",
    "nemo",
    "nemo-inline",
    "st-triplet",
    "st-triplet-scores",
    "st-n-tuple",
    "st-n-tuple-scores",
    "st-labeled-pair",
    "st-labeled-pair-scores",
    "st-labeled-list",
    "st-labeled-list-scores",
    "three-table",
    "arctic",
)
READERS: dict[str, Callable[[Source, Asked], Dataset]] = {
    "beir": _read_beir,
    "pairs": _read_pairs,
    "hf": _read_hf,
    "tfds": _read_tfds,
    "pydocs": _read_pydocs,
    "labels": _read_labelled,
    "examples": _read_labelled,
    "sts": _read_sts,
    **dict.fromkeys(ROW_FORMATS, _read_rows),
}


_SPEC = options.text("a data set, such as beir:DIR")
_TAKES = {
    "splits": options.many(options.text("the name of a split"), unset=True),
    "allow_empty": options.flag(),
    "missing": options.choice(*MISSING),
    "download": options.flag(),
}


@calls.checked()
def load_dataset(
    spec: Any,
    *,
    splits: str | Sequence[str] | None = None,
    allow_empty: bool = False,
    missing: str = "error",
    download: bool = False,
    **settings: Any,
) -> Dataset:
    """Reads a data set.

    Args:
        spec: 'pairs:FILE' (questions and answers, triplets, scored pairs; see pairs.py),
            'beir:FOLDER' (BEIR layout), 'hf:FOLDER' or 'hf:OWNER/NAME' (Hugging Face), 'tfds:NAME'
            (TensorFlow Datasets, prepared), 'pydocs:' (docstrings of the installed packages),
            'labels:FILE', 'examples:FILE', 'sts:FILE' (see labelled.py), or a format of training
            rows and its file, such as 'flagembedding:FILE'. A path without a scheme, a string or a
            `pathlib.Path`, is a folder in BEIR layout, or a file or folder of pairs
            (`with_scheme`).
            Or the data themselves: pairs of texts, dicts, columns, a table of pandas, polars or
            pyarrow, a `datasets.Dataset`, or a dict of these by split (see objects.py).
        splits: the splits to read, all of which must exist, or one; None reads all.
        allow_empty: keep passages and queries without any text instead of refusing them.
        missing: 'error', or 'drop' to leave out judgments of passages and queries that are not
            there, and rows of pairs with a blank text.
        download: whether the Hugging Face hub may be accessed; else only its local cache is read.
        **settings: options of the source, such as query='ask', passage='reply', test=0.2; the same
            as after a question mark: 'pairs:faq.csv?query=ask&passage=reply&test=0.2'.

    Raises:
        InputError: unknown scheme, or mistakes in the data, in one line.
    """
    splits = (splits,) if isinstance(splits, str) else splits
    options.check_arguments("load_dataset", locals(), _TAKES)
    given = {name: _written(name, value) for name, value in settings.items()}
    asked = Asked(splits, allow_empty, missing, download)
    if isinstance(spec, Dataset):
        raise InputError("load_dataset: already a Dataset; use it directly")
    if isinstance(spec, os.PathLike):
        spec = os.fspath(spec)
        if has_scheme(spec):  # a file of that name
            spec = os.path.join(os.curdir, spec)
    if not isinstance(spec, str):
        return read_objects(spec, given, asked)
    wrong = options.mistake("spec", spec, _SPEC)
    if wrong:
        raise InputError(f"load_dataset: {wrong}")
    spec = with_scheme(spec)
    scheme = spec.partition(":")[0]
    source = parse(spec)
    if source.place:
        place = paths.local(source.place, f"dataset '{scheme}:'")
        source = dataclasses.replace(source, place=str(place))
    for name, value in given.items():
        if source.options.get(name, value) != value:
            raise InputError(f"{source.shown}: option '{name}' is given twice")
    source = dataclasses.replace(source, options={**source.options, **given})
    return READERS[scheme](source, asked)


def has_scheme(spec: str) -> bool:
    """Whether a string names its kind of data set, as 'beir:DIR' does; a bare path does not."""
    scheme, colon, _ = spec.partition(":")
    return bool(colon) and scheme in READERS


def with_scheme(spec: str) -> str:
    """A data set with its scheme: 'data/scifact' is 'beir:data/scifact', 'faq.csv' 'pairs:faq.csv'.

    Options may follow a bare path, too: 'faq.csv?query=ask'.

    Raises:
        InputError: neither a known scheme nor a path that exists.
    """
    if has_scheme(spec):
        return spec
    place = paths.local(parse(f":{spec}").place, f"dataset '{spec}'")
    if place.exists():
        return f"{_kind(place) if place.is_dir() else 'pairs'}:{spec}"
    names = [name for name in READERS if name not in ROW_FORMATS]
    known = ", ".join(f"'{name}:'" for name in names) + ", and formats such as 'flagembedding:'"
    scheme, colon, _ = spec.partition(":")
    if colon:
        raise InputError(
            f"dataset '{spec}': unknown scheme '{scheme}'; known are {known}; tables of any kind "
            "are read as 'pairs:FILE'"
        )
    hint = f"'pairs:{spec}' for a table" if "." in spec else f"'beir:{spec}' for a folder"
    raise InputError(
        f"dataset '{spec}': no such file or folder; give a path, or a scheme as in {hint}; known "
        f"are {known}"
    )


def _kind(folder: epath.Path) -> str:
    """The scheme of a folder: BEIR's layout, or files of pairs."""
    names = [path.name for path in folder.iterdir()]
    beir = any(name.startswith("corpus.jsonl") or name == "qrels" for name in names)
    return "pairs" if not beir and any(map(is_data, folder.iterdir())) else "beir"


def _written(name: str, value: Any) -> str:
    """An option's value in the form after a question mark."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Number) and not isinstance(value, str):
        return str(value.item() if hasattr(value, "item") else value)
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return ",".join(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise InputError(
        f"load_dataset: {name}={options.shown(value)}: expected a name, a number, True or False"
    )
