"""Snowflake Arctic's training relations: parquet with 64-bit ids, and tables of texts.

    relations.parquet  QUERY_ID, DOCUMENT_ID (uint64), RELEVANCE (int8: 1 positive, -1 negative)
    queries.parquet    QUERY_ID, QUERY_TEXT
    documents.parquet  DOCUMENT_ID, DOCUMENT_TEXT

A folder holds the three; another file with the relations can be given instead of the folder, and
labels.parquet, which has no RELEVANCE, is read as positives. An id that is not a uint64 is written
as 64 bits of its sha256, with the original in a column ORIGINAL_ID, from which the reader restores
it. There are no scores, and one row per query: rows of the same query are joined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from etils import epath

from nvret_jax.data.interchange.rows import Builder, Rows, Texts, need_rows, tell_losses
from nvret_jax.errors import InputError
from nvret_jax.files import atomic, fields
from nvret_jax.files.fields import Json, Notes
from nvret_jax.files.records import Records, open_records, write_parquet

_ORIGINAL = "ORIGINAL_ID"


def read(path: epath.Path, notes: Notes) -> Rows:
    """Reads a folder of three tables, or the file of relations with the others in the same folder.

    Raises:
        InputError: a table, a column or a text that is missing, or a value of the wrong kind.
    """
    if path.is_dir():
        relations = path / "relations.parquet"
        if not relations.exists() and (path / "labels.parquet").exists():
            relations = path / "labels.parquet"
    else:
        relations, path = path, path.parent
    builder = Builder()
    queries = _read_texts(path / "queries.parquet", "QUERY", builder.query, notes)
    documents = _read_texts(path / "documents.parquet", "DOCUMENT", builder.passage, notes)
    for query, (positives, negatives) in _read_relations(relations, queries, documents, notes):
        builder.add(query, positives, negatives)
    return builder.build()


def _read_texts(
    path: epath.Path, what: str, enter: Callable[..., int], notes: Notes
) -> dict[int, int]:
    """Adds the texts; number in the file -> row."""
    table = open_records(path, f"the table of {what}_TEXT")
    names = [f"{what}_ID", f"{what}_TEXT"]
    table.need(*names)
    _check_numbers(table, names[0])
    if _ORIGINAL in table.names:
        names.append(_ORIGINAL)
    _left_out(table, names, notes)
    rows: dict[int, int] = {}
    for where, record in table.read(names):
        number = _number(record, names[0], where)
        if number in rows:
            raise InputError(f"{where}: {names[0]} {number} was used before")
        original = fields.optional_text(record, _ORIGINAL, where)
        name = str(number) if original is None else original
        name = fields.identifier(name, _ORIGINAL, where, notes)
        rows[number] = enter(where, fields.text(record, names[1], where), name)
    if len(set(rows.values())) != len(rows):
        raise InputError(f"{path}: an {_ORIGINAL} occurs twice")
    return rows


def _check_numbers(table: Records, name: str) -> None:
    kind = table.schema.field(name).type
    if not pa.types.is_integer(kind):
        raise InputError(f"{table.path}: column '{name}' must be whole numbers, got {kind}")


def _number(record: Json, name: str, where: str) -> int:
    if record[name] is None:
        raise InputError(f"{where}: column '{name}' is null")
    return record[name]


def _left_out(table: Records, names: list[str], notes: Notes) -> None:
    for name in table.names:
        if name not in names:
            notes.add(str(table.path), f"column '{name}' is left out")


def _read_relations(
    path: epath.Path, queries: dict[int, int], documents: dict[int, int], notes: Notes
) -> Iterator[tuple[int, tuple[list[int], list[int]]]]:
    table = open_records(path, "the relations")
    names = ["QUERY_ID", "DOCUMENT_ID"]
    table.need(*names)
    for name in names:
        _check_numbers(table, name)
    if "RELEVANCE" in table.names:
        names.append("RELEVANCE")
        _check_numbers(table, "RELEVANCE")
    elif path.name != "labels.parquet":
        table.need("RELEVANCE")
    _left_out(table, names, notes)
    found: dict[int, tuple[list[int], list[int]]] = {}
    seen: dict[tuple[int, int], str] = {}
    for where, record in table.read(names):
        query = _number(record, "QUERY_ID", where)
        document = _number(record, "DOCUMENT_ID", where)
        relevance = record.get("RELEVANCE", 1)
        if relevance not in (1, -1):
            raise InputError(f"{where}: RELEVANCE must be 1 or -1, got {fields.kind(relevance)}")
        for number, table_, what in ((query, queries, "QUERY"), (document, documents, "DOCUMENT")):
            if number not in table_:
                raise InputError(f"{where}: {what}_ID {number} has no {what}_TEXT")
        pair = queries[query], documents[document]
        if pair in seen:
            raise InputError(
                f"{where}: this query and document were already related at {seen[pair]}"
            )
        seen[pair] = where
        sides = found.setdefault(pair[0], ([], []))
        sides[0 if relevance == 1 else 1].append(pair[1])
    yield from found.items()


def write(rows: Rows, path: epath.Path, notes: Notes) -> int:
    """Writes the three tables, as a new folder; returns how many relations.

    Raises:
        InputError: two ids share their 64 bits; a passage is both positive and negative for a
            query.
    """
    need_rows(rows, str(path))
    where = str(path)
    tell_losses(rows, {"ids", "passages", "queries"}, where, notes)
    if len(np.unique(rows.query_rows)) < len(rows):
        notes.add(where, "rows of the same query are written as one")
    queries = _numbers(rows.queries, where)
    documents = _numbers(rows.passages, where)
    relations = _relations(rows, where, notes)
    if not relations:
        raise InputError(f"{where}: no row has a passage; there is nothing to write")
    with atomic.whole_folder(path) as folder:
        _write_texts(rows.queries, queries, "QUERY", folder / "queries.parquet")
        _write_texts(rows.passages, documents, "DOCUMENT", folder / "documents.parquet")
        schema = pa.schema(
            {"QUERY_ID": pa.uint64(), "DOCUMENT_ID": pa.uint64(), "RELEVANCE": pa.int8()}
        )
        with (folder / "relations.parquet").open("wb") as file:
            records = (
                {"QUERY_ID": queries[q], "DOCUMENT_ID": documents[d], "RELEVANCE": relevance}
                for (q, d), relevance in relations.items()
            )
            return write_parquet(file, schema, records)


def is_uint64(name: str) -> bool:
    """Whether an id is a uint64 in decimal digits, without a sign or leading zeros."""
    digits = name.isascii() and name.isdigit() and len(name) <= 20
    return digits and str(int(name)) == name and int(name) < 2**64


def number_of(name: str) -> int:
    """An id as uint64: itself, or the first 64 bits of its sha256."""
    if is_uint64(name):
        return int(name)
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _numbers(table: Texts, where: str) -> list[int]:
    numbers = [number_of(name) for name in table.ids]
    first: dict[int, str] = {}
    for number, name in zip(numbers, table.ids, strict=True):
        if first.setdefault(number, name) != name:
            raise InputError(
                f"{where}: ids {first[number]!r} and {name!r} are the same 64 bits ({number}); "
                "rename one"
            )
    return numbers


def _relations(rows: Rows, where: str, notes: Notes) -> dict[tuple[int, int], int]:
    relations: dict[tuple[int, int], int] = {}
    for row in rows:
        if not row.positives and not row.negatives:
            notes.add(where, "a row without a passage is left out")
        for passages, relevance in ((row.positives, 1), (row.negatives, -1)):
            for passage in passages:
                before = relations.setdefault((row.query, passage), relevance)
                if before != relevance:
                    names = rows.queries.ids[row.query], rows.passages.ids[passage]
                    raise InputError(
                        f"{where}: passage {names[1]!r} is both positive and negative for query "
                        f"{names[0]!r}"
                    )
    return relations


def _write_texts(table: Texts, numbers: list[int], what: str, path: epath.Path) -> None:
    columns = {f"{what}_ID": pa.uint64(), f"{what}_TEXT": pa.string()}
    named = not all(map(is_uint64, table.ids))
    if named:
        columns[_ORIGINAL] = pa.string()
    with path.open("wb") as file:
        records = (
            {
                f"{what}_ID": numbers[row],
                f"{what}_TEXT": table.full(row),
                **({_ORIGINAL: table.ids[row]} if named else {}),
            }
            for row in range(len(table))
        )
        write_parquet(file, pa.schema(columns), records)
