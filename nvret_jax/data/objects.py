"""Data sets from Python objects, for notebooks and other programs.

    load_dataset([("question", "answer"), …])                  pairs
    load_dataset([{"query": …, "positive": …, "negative": …}, …])
    load_dataset({"question": […], "answer": […]})              columns
    load_dataset(frame)                                         of pandas or polars
    load_dataset(table)                                         a datasets.Dataset, a pyarrow.Table
    load_dataset({"train": rows, "test": rows})                 splits, each any of the above
    load_dataset({"corpus": …, "queries": …, "qrels": …})       BEIR's three tables as dicts

Rows and columns follow the rules of `pairs:`, the three tables those of a BEIR folder.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from nvret_jax.data.dataset import Asked, Dataset, safe_name
from nvret_jax.data.judged import read_judged
from nvret_jax.data.pairs import fold_tables
from nvret_jax.data.roles import OPTIONS as ROLES
from nvret_jax.data.splits import usual
from nvret_jax.errors import InputError
from nvret_jax.files.fields import Json
from nvret_jax.files.lines import Mistakes
from nvret_jax.files.records import Records
from nvret_jax.files.source import Source
from nvret_jax.options import shown

OPTIONS = (*ROLES, "min_score", "split", "dev", "test", "seed", "near")
_BEIR = {"corpus", "queries", "qrels"}
_ROWS = 1000  # of a table turned into Python at a time


def read_objects(value: Any, options: Mapping[str, str], asked: Asked) -> Dataset:
    """A data set from Python objects.

    Args:
        value: see the module's docstring.
        options: those of `pairs:`, as text.
        asked: what the caller asks for.

    Raises:
        InputError: another kind of object, or mistakes in the rows, by number.
    """
    kind = type(value).__name__
    if isinstance(value, Mapping):  # what an iterator has given once is gone
        value = {k: list(v) if isinstance(v, Iterator) else v for k, v in value.items()}
    source = Source("pairs", kind, options)
    if isinstance(value, Mapping) and {"corpus", "queries"} <= value.keys():
        if "qrels" not in value:
            raise InputError("load_dataset: 'qrels' is missing beside 'corpus' and 'queries'")
        source.check(("split",))
        return _beir(value, options.get("split", "test"), asked)
    source.check(OPTIONS)
    if isinstance(value, Mapping) and not _is_columns(value):
        if not value:
            raise InputError("load_dataset: an empty dict; give rows or columns")
        for split in value:
            if not isinstance(split, str):
                raise InputError(f"load_dataset: {shown(split)}: expected the name of a split")
        tables = [(_records(rows, split), usual(split)) for split, rows in value.items()]
        return fold_tables(source, asked, tables, "data")
    return fold_tables(source, asked, [(_records(value, kind), None)], safe_name(kind))


def _is_columns(value: Mapping) -> bool:
    """Whether a dict holds columns, at least one of them texts; else its values are tables."""
    for column in value.values():
        if isinstance(column, str | Mapping) or _library(column) == "datasets":
            continue
        if hasattr(column, "columns") or not isinstance(column, Iterable):
            continue
        if isinstance(next(iter(column), None), str):
            return True
    return False


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _records(value: Any, what: str) -> Records:
    """Rows in any form as records with names."""
    rows = iter(_rows(value, what))
    try:
        first = next(rows)
    except StopIteration:
        raise InputError(f"load_dataset: {what}: there are no rows") from None
    names = list(first)

    def read(_: Sequence[str], mistakes: Mistakes | None) -> Iterator[tuple[str, Json]]:
        del mistakes  # rows of objects have none of a file's
        for number, row in enumerate(itertools.chain([first], rows), 1):
            for name in row:
                if name not in names:
                    names.append(name)
            yield f"{what}, row {number}", row

    return Records(epath.Path(what), names, read)


def _rows(value: Any, what: str) -> Iterator[dict[str, Any]]:
    """Each row as a dict."""
    library = _library(value)
    if isinstance(value, str | os.PathLike):
        raise InputError(
            f"load_dataset: {what}: {shown(value)}: expected rows or a table; a file is given "
            "alone, and a column 'split' names its splits"
        )
    if library == "pandas" and hasattr(value, "columns"):
        if twice := [str(name) for name in value.columns[value.columns.duplicated()]]:
            raise InputError(f"load_dataset: {what}: two columns are named '{twice[0]}'")
        columns = {str(name): value[name].tolist() for name in value.columns}
        yield from _of_columns(columns, what)
    elif library == "polars" and hasattr(value, "iter_rows"):
        yield from value.iter_rows(named=True)
    elif library == "pyarrow" and hasattr(value, "to_batches"):
        for batch in value.to_batches(_ROWS):
            yield from batch.to_pylist()
    elif library == "datasets" and hasattr(value, "with_format"):
        yield from map(dict, value.with_format(None))
    elif isinstance(value, Mapping):
        yield from _of_columns({str(name): column for name, column in value.items()}, what)
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes | set | frozenset):
        for number, row in enumerate(value, 1):
            yield _row(row, f"{what}, row {number}")
    else:
        raise InputError(
            f"load_dataset: {shown(value)} ({type(value).__name__}): expected a source such as "
            "'pairs:faq.csv', pairs of texts, columns, a table of pandas or a datasets.Dataset"
        )


def _of_columns(columns: Mapping[str, Any], what: str) -> Iterator[dict[str, Any]]:
    found: dict[str, list] = {}
    for name, column in columns.items():
        if isinstance(column, str) or not isinstance(column, Iterable):
            raise InputError(f"load_dataset: {what}: column '{name}' is not a list of values")
        found[name] = list(column)
    sizes = {name: len(column) for name, column in found.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"'{name}' {size:,}" for name, size in sizes.items())
        raise InputError(f"load_dataset: {what}: columns of different lengths: {found}")
    for values in zip(*found.values(), strict=True):
        yield {name: _plain(one) for name, one in zip(found, values, strict=True)}


def _row(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, Mapping):
        return {str(name): _plain(one) for name, one in row.items()}
    if hasattr(row, "tolist"):
        row = row.tolist()
    if isinstance(row, list | tuple):
        # As for a file without column names: a query, its passage, and negatives.
        return {str(place): _plain(one) for place, one in enumerate(row, 1)}
    if hasattr(row, "texts") and isinstance(row.texts, list | tuple):  # an InputExample
        return {str(place): one for place, one in enumerate(row.texts, 1)}
    raise InputError(
        f"{where} is {shown(row)} ({type(row).__name__}); expected a pair of texts, or a dict"
    )


def _plain(value: Any) -> Any:
    """A value in the form of JSON: no numpy types, and None for NaN."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and value != value:
        return None
    return list(value) if isinstance(value, tuple) else value


def _grades(judged: Any, query: Any) -> Mapping[str, Any]:
    """Passage id -> grade, 1 for those of a set or list (sentence-transformers has sets)."""
    if isinstance(judged, Mapping):
        return judged
    if isinstance(judged, set | frozenset | list | tuple):
        return dict.fromkeys(judged, 1)
    raise InputError(
        f"load_dataset: qrels: query {query!r}: {shown(judged)} ({type(judged).__name__}): "
        "expected passage ids with grades, or a set of passage ids"
    )


def _beir(value: Mapping[str, Any], split: str, asked: Asked) -> Dataset:
    """BEIR's dicts: id -> text, or its title and text; query id -> passage id -> grade."""
    for name in sorted(_BEIR):
        if not isinstance(value[name], Mapping):
            raise InputError(
                f"load_dataset: {name} is {type(value[name]).__name__}; expected a dict by id"
            )
    qrels = value["qrels"]
    first = next(iter(qrels.values()), {})
    nested = isinstance(first, Mapping) and isinstance(next(iter(first.values()), 1), Mapping)
    by_split = qrels if nested else {split: qrels}
    wanted = by_split if asked.splits is None else asked.splits
    for name in wanted:
        if name not in by_split:
            raise InputError(f"load_dataset: no split '{name}'; splits: {', '.join(by_split)}")

    def texts(name: str) -> Records:
        rows = (
            {"_id": key, **(text if isinstance(text, Mapping) else {"text": text})}
            for key, text in value[name].items()
        )
        return _records(rows, name)

    def judgments(name: str) -> Records:
        rows = (
            {"query-id": query, "corpus-id": passage, "score": grade}
            for query, judged in by_split[name].items()
            for passage, grade in _grades(judged, query).items()
        )
        return _records(rows, f"qrels {name}")

    found = {name: [judgments(name)] for name in wanted}
    return read_judged("data", [texts("corpus")], [texts("queries")], found, asked)
