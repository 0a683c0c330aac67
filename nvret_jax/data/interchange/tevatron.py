"""Tevatron's training rows: with the texts, or by id with a corpus.

`tevatron`, one file:

    {"query_id", "query", "positive_passages": [{"docid", "title", "text", "score"}],
     "negative_passages": […]}

`tevatron-ids`, a folder of train.jsonl and corpus.jsonl:

    {"query_id", "query_text", "positive_document_ids": […], "negative_document_ids": […]}
    {"docid", "title", "text"}

Tevatron's distillation reads `score` inside a passage; the format by id has no field for scores, so
they go to `positive_scores` and `negative_scores`, which Tevatron ignores. A title is written for
every passage or for none, because Tevatron uses it whenever the key is present.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from etils import epath

from nvret_jax.data.interchange.rows import (
    Builder,
    Row,
    Rows,
    need_rows,
    said_of,
    tell_losses,
)
from nvret_jax.errors import InputError
from nvret_jax.files import atomic, fields, json_lines
from nvret_jax.files.fields import Json, Notes

_OWN = frozenset(("query_id", "query", "positive_passages", "negative_passages"))
_OWN_PASSAGE = frozenset(("docid", "title", "text", "score"))
_OWN_IDS = frozenset(
    (
        "query_id",
        "query_text",
        "positive_document_ids",
        "negative_document_ids",
        "positive_scores",
        "negative_scores",
    )
)
_SIDES = ("positive", "negative")


def read(path: epath.Path, notes: Notes) -> Rows:
    """Reads a file with the texts inside.

    Raises:
        InputError: a line that is not as above; one docid with two texts.
    """
    builder = Builder()
    for where, record in json_lines.json_lines(path, "training rows of Tevatron"):
        extra = fields.rest(record, _OWN, where)
        query = _query(builder, record, "query", where, notes)
        rows, scores = [], []
        fields.need(record, "positive_passages", where)
        for side in _SIDES:
            key, found = f"{side}_passages", []
            for number, passage in enumerate(fields.items(record, key, where), 1):
                at = f"{where}, {key} {number}"
                found.append(_passage(builder, passage, extra, at, notes))
            rows.append([row for row, _ in found])
            scores.append([score for _, score in found])
        builder.add(query, *rows, *scores, extra)
    return builder.build()


def _query(builder: Builder, record: Json, key: str, where: str, notes: Notes) -> int:
    text, name = fields.text(record, key, where), record.get("query_id")
    if name is not None:
        name = fields.identifier(name, "query_id", where, notes)
    return builder.query(where, text, name)


def _passage(
    builder: Builder, passage: object, row_extra: Json, where: str, notes: Notes
) -> tuple[int, float]:
    if not isinstance(passage, dict):
        raise InputError(f"{where}: expected an object, got {fields.kind(passage)}")
    text, name = fields.text(passage, "text", where), passage.get("docid")
    title = fields.optional_text(passage, "title", where)
    if name is not None:
        name = fields.identifier(name, "docid", where, notes)
    extra = fields.rest(passage, _OWN_PASSAGE, where)
    row = builder.passage(where, text, name, title, extra)
    builder.said_here(row_extra, row, extra)
    return row, fields.score(passage.get("score"), "score", where)


def write(rows: Rows, path: epath.Path, notes: Notes) -> int:
    """Writes a file with the texts inside; returns how many lines."""
    need_rows(rows, str(path))
    holds = {"ids", "titles", "scores", "extra", "passage_extra"}
    tell_losses(rows, holds, str(path), notes)
    with atomic.whole_file(path) as file:
        return json_lines.write_json_lines(file, _records(rows, str(path), notes))


def _records(rows: Rows, where: str, notes: Notes) -> Iterator[Json]:
    titled = rows.has_titles
    for row in rows:
        said, extra = said_of(row.extra)
        record = {
            "query_id": rows.queries.ids[row.query],
            "query": rows.queries.texts[row.query],
        }
        for side, passages, scores in _sides(row):
            found = []
            for passage, score in zip(passages, scores, strict=True):
                entry = _document(rows, passage, titled)
                if not np.isnan(score):
                    entry["score"] = score
                more = said.get(entry["docid"], rows.passages.extra.get(passage, {}))
                found.append(fields.with_extra(entry, more, where, notes))
            record[f"{side}_passages"] = found
        yield fields.with_extra(record, extra, where, notes)


def _sides(row: Row) -> tuple[tuple[str, list[int], list[float]], ...]:
    return (
        ("positive", row.positives, row.positive_scores),
        ("negative", row.negatives, row.negative_scores),
    )


def _document(rows: Rows, passage: int, titled: bool) -> Json:
    table = rows.passages
    title = {"title": table.titles[passage] or ""} if titled else {}
    return {"docid": table.ids[passage], **title, "text": table.texts[passage]}


def read_ids(path: epath.Path, notes: Notes) -> Rows:
    """Reads the form by id: a folder, or a file in it that is not train.jsonl.

    Raises:
        InputError: a line that is not as above; an id the corpus lacks.
    """
    path = path / "train.jsonl" if path.is_dir() else path
    builder = Builder()
    _read_corpus(builder, path.parent / "corpus.jsonl", notes)
    for where, record in json_lines.json_lines(path, "training rows of Tevatron, by id"):
        query = _query(builder, record, "query_text", where, notes)
        rows, scores = [], []
        fields.need(record, "positive_document_ids", where)
        for side in _SIDES:
            key = f"{side}_document_ids"
            names = fields.identifiers(record, key, where, notes)
            rows.append([builder.find_passage(f"{where}, key '{key}'", name) for name in names])
            scores.append(fields.scores(record, f"{side}_scores", len(names), key, where))
        builder.add(query, *rows, *scores, fields.rest(record, _OWN_IDS, where))
    return builder.build()


def _read_corpus(builder: Builder, path: epath.Path, notes: Notes) -> None:
    known = _OWN_PASSAGE - {"score"}
    first: dict[str, str] = {}
    for where, record in json_lines.json_lines(path, "the passages"):
        name = fields.identifier(fields.need(record, "docid", where), "docid", where, notes)
        if name in first:
            raise InputError(f"{where}: docid {name!r} was already used at {first[name]}")
        first[name] = where
        text = fields.text(record, "text", where)
        title = fields.optional_text(record, "title", where)
        builder.passage(where, text, name, title, fields.rest(record, known, where))


def write_ids(rows: Rows, path: epath.Path, notes: Notes) -> int:
    """Writes the form by id, as a new folder; returns how many rows."""
    need_rows(rows, str(path))
    holds = {"ids", "titles", "scores", "extra", "passage_extra", "passages"}
    tell_losses(rows, holds, str(path), notes)
    with atomic.whole_folder(path) as folder:
        with (folder / "corpus.jsonl").open("wb") as file:
            json_lines.write_json_lines(file, _corpus(rows, str(path), notes))
        with (folder / "train.jsonl").open("wb") as file:
            return json_lines.write_json_lines(file, _id_records(rows, str(path), notes))


def _corpus(rows: Rows, where: str, notes: Notes) -> Iterator[Json]:
    titled = rows.has_titles
    for passage in range(len(rows.passages)):
        more = rows.passages.extra.get(passage, {})
        yield fields.with_extra(_document(rows, passage, titled), more, where, notes)


def _id_records(rows: Rows, where: str, notes: Notes) -> Iterator[Json]:
    for row in rows:
        record = {
            "query_id": rows.queries.ids[row.query],
            "query_text": rows.queries.texts[row.query],
        }
        for side, passages, _ in _sides(row):
            record[f"{side}_document_ids"] = [rows.passages.ids[p] for p in passages]
        for side, _, scores in _sides(row):
            found = [fields.known_or_null(score) for score in scores]
            if any(score is not None for score in found):
                record[f"{side}_scores"] = found
        yield fields.with_extra(record, row.extra, where, notes)
