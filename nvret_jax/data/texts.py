"""Texts from a file of any kind, to embed or to search with.

A `.txt` file has one text per line; any other file of `files.records` is a table, with a column of
texts and perhaps one of their ids. Files of any size are read: see `mapped`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from nvret_jax.data import roles
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.interchange.rows import joined
from nvret_jax.data.mapped import IdRows, TextWriter
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.files.lines import lines, stem
from nvret_jax.files.records import LAYOUT, Records, find_files, layout_of, open_records
from nvret_jax.files.source import parse
from nvret_jax.options import shown

_WHAT = "texts"
_IDS = ("_id", "id", "docid", "doc_id", "passage_id", "query_id", "pid", "qid")


def read_texts(
    place: os.PathLike | str,
    *,
    kind: str = "passage",
    column: str = "",
    id_column: str = "",
    allow_empty: bool = False,
) -> TextTable:
    """The texts of a file, or of several by a pattern or a folder.

    Args:
        place: the file; options of its layout may follow, as in 'a.csv?encoding=cp1252'.
        kind: 'passage' or 'query': whose usual column names come first. A passage has its title
            before it, if there is a column of titles.
        column: of the texts; '': the first of the usual names.
        id_column: of their ids; '': a usual name, or else the numbers of the rows, from 0.
        allow_empty: keep blank texts, which are refused otherwise.

    Raises:
        InputError: no such file or column, a value that is not text, a repeated id.
    """
    source = parse(f"texts:{os.fspath(place)}")
    source.check(LAYOUT)
    found = find_files(str(paths.local(source.place, _WHAT)), _WHAT)
    ids, texts = TextWriter(), TextWriter()
    numbered = False
    for path in found:
        if stem(path)[1] == ".txt" and not column:
            rows: Iterator = _of_lines(path)
        else:
            records = open_records(path, _WHAT, layout_of(source))
            rows = _of_records(records, kind, column, id_column)
        for where, identifier, text in rows:
            if not text.strip() and not allow_empty:
                raise InputError(f"{where}: a blank text; remove it, or pass --allow_empty")
            numbered = numbered or identifier is None
            ids.add(str(len(ids)) if identifier is None else identifier)
            texts.add(text)
    if not len(texts):
        raise InputError(f"{os.fspath(place)}: has no texts")
    table = TextTable(_ids(ids.done()), texts.done())
    if not numbered:
        _check_distinct(table, os.fspath(place))
    return table


def _ids(ids: Sequence[str]) -> Sequence[str]:
    return tuple(ids) if isinstance(ids, list) else ids


def _of_lines(path) -> Iterator[tuple[str, None, str]]:
    for number, line in lines(path, _WHAT):
        if line.strip():
            yield f"{path}:{number}", None, line.strip()


def _of_records(
    records: Records, kind: str, column: str, id_column: str
) -> Iterator[tuple[str, str | None, str]]:
    where = str(records.path)
    named = {"text": column, "id": id_column}
    for role, name in named.items():
        if name and name not in records.names:
            there = ", ".join(records.names)
            raise InputError(f"{where}: no column {shown(name)} ({role}); columns there: {there}")
    title = None
    text = column or roles.text_column(records.names, kind, where)
    if not column and kind == "passage":
        title = roles.title_column(records.names, text)
    identifier = id_column or next((n for n in records.names if n.lower() in _IDS), None)
    wanted = list(dict.fromkeys(n for n in (text, title, identifier) if n is not None))
    for place, record in records.read(wanted):
        value = record.get(text)
        if not isinstance(value, str):
            raise InputError(f"{place}: column '{text}' must be text, got {shown(value)}")
        if title and isinstance(record.get(title), str):
            value = joined(record[title], value)
        name = record.get(identifier) if identifier else None
        if identifier and (not isinstance(name, str | int) or isinstance(name, bool) or name == ""):
            raise InputError(f"{place}: column '{identifier}' must be an id, got {shown(name)}")
        yield place, None if name is None else str(name), value


def _check_distinct(table: TextTable, place: str) -> None:
    twins = IdRows(table.ids).twins()
    if pair := next(twins, None):
        first, second = pair
        raise InputError(
            f"{place}: id {shown(table.ids[first])} is in rows {first + 1} and {second + 1}; "
            "expected every id once"
        )
