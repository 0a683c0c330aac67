"""The three tables of PyLate, LightOn and sentence-transformers' `resolve_ids`, as parquet.

    train.parquet      query_id, document_ids [ids], scores [numbers]      the positive comes first
    queries.parquet    query_id, query (or text)
    documents.parquet  document_id, document (or text)

A folder holds the three, each a file or a folder of parts. One line has one positive, so rows with
several become neighbouring lines with the same negatives, joined when read. Further keys of a row
go into a column `extra` as JSON, which those tools ignore; unknown columns of the source are kept
the same way. Lists written as strings, as in some of LightOn's sets, are read, too.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator

import pyarrow as pa
from etils import epath

from nvret_jax.data.interchange.rows import Builder, Merger, Rows, need_rows, tell_losses
from nvret_jax.errors import InputError
from nvret_jax.files import atomic, fields, json_lines
from nvret_jax.files.fields import Json, Notes
from nvret_jax.files.records import Records, open_records, write_parquet

_OWN = frozenset(("query_id", "document_ids", "scores", "extra"))


def read(path: epath.Path, notes: Notes) -> Rows:
    """Reads a folder of three tables.

    Raises:
        InputError: a table, a column or a text that is missing, or a value of the wrong kind.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected train, queries and documents in it")
    builder = Builder()
    _read_texts(path, "queries", "query", builder.query, notes)
    _read_texts(path, "documents", "document", builder.passage, notes)
    merger = Merger(builder)
    for table in _tables(path, "train"):
        table.need("query_id", "document_ids")
        for where, record in table.read(table.names):
            query = fields.identifier(record["query_id"], "query_id", where, notes)
            for key in ("document_ids", "scores"):
                record[key] = _as_list(record.get(key), key, where)
            names = fields.identifiers(record, "document_ids", where, notes)
            if not names:
                raise InputError(f"{where}: 'document_ids' is empty; the positive comes first")
            scores = fields.scores(record, "scores", len(names), "document_ids", where)
            passages = [builder.find_passage(where, name) for name in names]
            row = builder.find_query(where, query)
            extra = _extra(record, where)
            merger.feed(row, passages[0], scores[0], passages[1:], scores[1:], extra)
    merger.finish()
    return builder.build()


def _tables(folder: epath.Path, name: str) -> Iterator[Records]:
    """The file of this name, or the files in the folder of this name."""
    file, parts = folder / f"{name}.parquet", folder / name
    found = [file]
    if not file.exists() and parts.is_dir():
        found = sorted(part for part in parts.iterdir() if part.suffix == ".parquet")
        if not found:
            raise InputError(f"{parts}: holds no parquet file; expected the table '{name}'")
    for part in found:
        yield open_records(part, f"the table '{name}'")


def _read_texts(
    folder: epath.Path, name: str, what: str, enter: Callable[..., int], notes: Notes
) -> None:
    key, first = f"{what}_id", {}
    for table in _tables(folder, name):
        column = what if what in table.names or "text" not in table.names else "text"
        table.need(key, column)
        for other in table.names:
            if other not in (key, column):
                notes.add(str(table.path), f"column '{other}' is left out; a {what} is id and text")
        for where, record in table.read((key, column)):
            identifier = fields.identifier(record[key], key, where, notes)
            if identifier in first:
                raise InputError(
                    f"{where}: {key} {identifier!r} was already used at {first[identifier]}"
                )
            first[identifier] = where
            enter(where, fields.text(record, column, where), identifier)


def _as_list(value: object, key: str, where: str) -> object:
    """A list from its text form; anything else unchanged."""
    if not isinstance(value, str):
        return value
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        parsed = None
    if not isinstance(parsed, list):
        raise InputError(f"{where}: key '{key}' must be a list, got the string {value[:40]!r}")
    return parsed


def _extra(record: Json, where: str) -> Json:
    extra = fields.rest(record, _OWN, where)
    if record.get("extra") is not None:
        ours = json_lines.parse_json(
            fields.text(record, "extra", where), f"{where}, column 'extra'"
        )
        if not isinstance(ours, dict):
            raise InputError(f"{where}: 'extra' must be a JSON object, got {fields.kind(ours)}")
        extra |= fields.rest(ours, frozenset(), where)
    return extra


def write(rows: Rows, path: epath.Path, notes: Notes) -> int:
    """Writes the three tables, as a new folder; returns how many rows of train."""
    need_rows(rows, str(path))
    where = str(path)
    tell_losses(rows, {"ids", "scores", "extra", "passages", "queries"}, where, notes)
    with atomic.whole_folder(path) as folder:
        for name, what in (("queries", "query"), ("documents", "document")):
            table = rows.queries if name == "queries" else rows.passages
            schema = pa.schema({f"{what}_id": pa.string(), what: pa.string()})
            with (folder / f"{name}.parquet").open("wb") as file:
                records = (
                    {f"{what}_id": table.ids[i], what: table.full(i)} for i in range(len(table))
                )
                write_parquet(file, schema, records)
        columns = {"query_id": pa.string(), "document_ids": pa.list_(pa.string())}
        if rows.has_scores:
            columns["scores"] = pa.list_(pa.float64())
        if any(rows.extra):
            columns["extra"] = pa.string()
        with (folder / "train.parquet").open("wb") as file:
            count = write_parquet(file, pa.schema(columns), _records(rows, where, notes))
            if not count:
                raise InputError(f"{where}: no row has a positive; there is nothing to write")
    return count


def _records(rows: Rows, where: str, notes: Notes) -> Iterator[Json]:
    scored, any_extra = rows.has_scores, any(rows.extra)
    for row in rows:
        if not row.positives:
            notes.add(where, "a row without a positive is left out")
        negatives = [rows.passages.ids[passage] for passage in row.negatives]
        below = [fields.known_or_null(score) for score in row.negative_scores]
        for positive, score in zip(row.positives, row.positive_scores, strict=True):
            record = {
                "query_id": rows.queries.ids[row.query],
                "document_ids": [rows.passages.ids[positive], *negatives],
            }
            if scored:
                record["scores"] = [fields.known_or_null(score), *below]
            if any_extra:
                text = json.dumps(row.extra, ensure_ascii=False, allow_nan=False)
                record["extra"] = text if row.extra else None
            yield record
