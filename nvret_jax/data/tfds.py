"""`tfds:`, data sets prepared by TensorFlow Datasets as array_record, read without TensorFlow.

    tfds:beir/scifact                               BEIR: passages, queries, judgments
    tfds:squad?query=question&passage=context       any other set: its columns as pairs
    tfds:/data/beir/scifact/1.0.0                   the prepared folder itself

Nothing is prepared or downloaded here. A name is searched for in `data_dir=`, in TFDS_DATA_DIR or
in ~/tensorflow_datasets; the default is the newest version. Choices:

- array_record is the one format of TensorFlow Datasets that is read without TensorFlow and whose
  rows can be counted: a set that holds fewer rows than it says is refused.
- Rows come in the order of a hash that differs between preparations; they are read in the order of
  their ids, or of their texts, so that the same data have one fingerprint.
- `validation` is called `dev`, as everywhere in this project.
- The title of a passage of BEIR is in its metadata; it goes in front of the text.
- TensorFlow Datasets keeps one query of each judged passage of BEIR. Where that loses judgments
  they can be read from a folder of BEIR's own files beside it: `qrels=DIR`, with DIR/test.tsv.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from nvret_jax.data import splits as splits_lib
from nvret_jax.data.dataset import Asked, Dataset, safe_name
from nvret_jax.data.folding import kept
from nvret_jax.data.judged import read_judged
from nvret_jax.data.pairs import OPTIONS, fold_tables
from nvret_jax.data.roles import recognise
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.files.fields import Json
from nvret_jax.files.lines import Mistakes, stem
from nvret_jax.files.records import Records, find_files, open_records
from nvret_jax.files.source import Source

_INFO = "dataset_info.json"
_BEIR = ("passage", "query")  # splits beside those of judgments
_BLOCK = 1000  # records read at a time


def read_tfds(source: Source, asked: Asked) -> Dataset:
    """Reads a prepared data set.

    Raises:
        InputError: it is not prepared, or not as array_record; a package is missing; or whatever
            is wrong with the rows.
    """
    source.check((*OPTIONS, "data_dir", "qrels"))
    folder = _folder(source)
    said = _info(source, folder)
    splits = [split["name"] for split in said.get("splits", [])]
    opened = _opener(source, folder)
    config = (said.get("configName") or "").strip()
    name = safe_name(config or said.get("name") or folder.name)
    if set(_BEIR) <= set(splits):
        source.check(("data_dir", "qrels"))
        return _read_beir(source, asked, name, splits, opened)
    tables = []
    for split in splits:
        data = opened(split)
        names = list(data[0]) if len(data) else []
        named = {key: value for key, value in source.options.items() if key in ("query", "passage")}
        roles = recognise(names, f"{source.shown}, split '{split}'", named)
        key = [column for column in roles.columns if column in (roles.query, roles.passage)]
        records = _records(f"{source.shown}/{split}", data, names, key, _decoded)
        tables.append((records, splits_lib.usual(split)))
    return fold_tables(source, asked, tables, name)


def _read_beir(
    source: Source,
    asked: Asked,
    name: str,
    splits: Sequence[str],
    opened: Callable[[str], Sequence[Any]],
) -> Dataset:
    def table(split: str, names: list[str], key: list[str]) -> Records:
        return _records(f"{source.shown}/{split}", opened(split), names, key, _beir_row)

    corpus = table("passage", ["passage_id", "title", "passage"], ["passage_id"])
    queries = table("query", ["query_id", "query"], ["query_id"])
    if "qrels" in source.options:
        place = str(paths.local(source.options["qrels"], f"{source.shown}: qrels"))
        files = {stem(path)[0]: path for path in find_files(place, "judgments")}
        found = {splits_lib.usual(s): [open_records(f, "judgments")] for s, f in files.items()}
    else:
        columns = ["query_id", "passage_id", "score"]
        found = {
            splits_lib.usual(split): [table(split, columns, columns[:2])]
            for split in splits
            if split not in _BEIR
        }
        logging.warning(
            "%s: TensorFlow Datasets keeps one query per judged passage, so judgments may be "
            "missing; ?qrels=DIR reads them from the files of BEIR (DIR/test.tsv)",
            source.shown,
        )
    return read_judged(name, [corpus], [queries], kept(found, asked.splits, source.shown), asked)


def _beir_row(record: Json) -> Json:
    row = _decoded(record)
    title = json.loads(row.get("passage_metadata") or "{}").get("title")
    return row | {"title": title if isinstance(title, str) else ""}


def _decoded(record: Json) -> Json:
    return {name: _value(value) for name, value in record.items()}


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray) and value.ndim:
        return [_value(item) for item in value.tolist()]
    if isinstance(value, np.generic | np.ndarray):
        return _value(value.item())
    return value


def _records(
    label: str,
    data: Sequence[Any],
    names: list[str],
    key: Sequence[str],
    decode: Callable[[Json], Json],
) -> Records:
    """Records of a split in the order of some columns."""

    def block(rows: Sequence[int]) -> Iterator[tuple[str, Json]]:
        try:
            found = data.__getitems__(list(rows))
        except (RuntimeError, ValueError, IndexError, KeyError, OSError) as error:
            raise InputError(f"{label}: cannot be read ({_line(error)})") from None
        for row, record in zip(rows, found, strict=True):
            where = f"{label}, record {row}"
            try:
                yield where, decode(record)
            except (UnicodeDecodeError, ValueError) as error:
                raise InputError(f"{where}: cannot be read as text ({error})") from None

    def read(wanted: Sequence[str], _: Mistakes | None) -> Iterator[tuple[str, Json]]:
        keys: list[tuple[str, ...]] = []
        for start in range(0, len(data), _BLOCK):
            for _, record in block(range(start, min(start + _BLOCK, len(data)))):
                keys.append(tuple(str(record[name]) for name in key))
        order = sorted(range(len(data)), key=keys.__getitem__)
        del keys
        for start in range(0, len(order), _BLOCK):
            for where, record in block(order[start : start + _BLOCK]):
                yield where, {name: record[name] for name in wanted}

    return Records(epath.Path(label), names, read)


# --- the prepared folder -------------------------------------------------------------------------


def _folder(source: Source) -> epath.Path:
    """The folder of one version."""
    place = epath.Path(source.place)
    if not (place / _INFO).exists() and not place.is_dir():
        base = source.options.get("data_dir") or os.environ.get("TFDS_DATA_DIR")
        base = paths.local(base or "~/tensorflow_datasets", f"{source.shown}: data_dir")
        place = base / source.place.replace(":", "/")
    if (place / _INFO).exists():
        return place
    found = sorted(place.glob(f"*/{_INFO}")) if place.is_dir() else []
    if not found:
        deeper = (
            [p.parent.parent.name for p in place.glob(f"*/*/{_INFO}")] if place.is_dir() else []
        )
        configs = ", ".join(sorted(set(deeper)))
        if configs:
            raise InputError(f"{source.shown}: has the configs {configs}; name one")
        raise InputError(f"{source.shown}: is not prepared in {place}; {_command(source)}")
    versions = [[int(n) if n.isdigit() else -1 for n in p.parent.name.split(".")] for p in found]
    return found[versions.index(max(versions))].parent


def _command(source: Source) -> str:
    """What prepares a data set."""
    name = source.place if "/" in source.place or source.place.isidentifier() else "NAME"
    name = name if not epath.Path(name).is_dir() else "NAME"
    where = source.options.get("data_dir")
    data_dir = f" --data_dir={where}" if where else ""
    return (
        "prepare it once, in an environment with TensorFlow: pip install tensorflow "
        "tensorflow-datasets apache-beam importlib_resources array_record mlcroissant; "
        f"tfds build {name} --file_format=array_record{data_dir}"
    )


def _info(source: Source, folder: epath.Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / _INFO).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / _INFO}: cannot be read ({error})") from None
    form = said.get("fileFormat", "tfrecord")
    if form != "array_record":
        raise InputError(
            f"{folder}: is prepared as {form}, which takes TensorFlow to read; {_command(source)}"
        )
    return said


def _opener(source: Source, folder: epath.Path) -> Callable[[str], Sequence[Any]]:
    """Name of a split -> its records, whose number is as the data set says."""
    try:
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise InputError(
            f"{source.shown}: cannot be read without a package ({error}); "
            "pip install tensorflow-datasets array_record"
        ) from None
    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # whatever the library says of a folder that is damaged
        raise InputError(f"{folder}: cannot be read ({_line(error)})") from None

    def opened(split: str) -> Sequence[Any]:
        try:
            data = builder.as_data_source(split=split)
            count = 0
            for path in builder.info.splits[split].filepaths:
                reader = ArrayRecordReader(os.fspath(path))
                count += reader.num_records()
                reader.close()
        except Exception as error:
            why = f"cannot be read ({_line(error)})"
            raise InputError(f"{folder}, split '{split}': {why}") from None
        said = builder.info.splits[split].num_examples
        if count != said:
            raise InputError(
                f"{folder}, split '{split}': holds {count:,} records and should hold {said:,}; "
                f"{_command(source)}"
            )
        return data

    return opened


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
