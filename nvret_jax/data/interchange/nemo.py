"""NVIDIA NeMo's retriever data: a JSON file with corpus folders, or JSON lines with texts.

`nemo`, a folder of train.json and corpus/:

    {"corpus": [{"path": "./corpus"}], "mining": {…}, "data": [{"question_id", "question",
     "corpus_id", "pos_doc": [{"id", "score"}], "neg_doc": [{"id", "score"}]}]}
    corpus/merlin_metadata.json {"corpus_id", "class": "TextQADataset"}, corpus/train.parquet
    (id, text)

`nemo-inline`, one file: {"query", "pos_doc": str or […], "neg_doc": […]} per line; a document is a
string or {"text", "score"}, of which NeMo reads the text.

A score of -1 means that the document was not scored; a real score of -1 is read that way, too,
which the writer reports. `mining`, other keys of the file and the metadata of the corpus are kept.
Several corpora are read into one table, so an id must have the same text in all of them; they are
written separately again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
from etils import epath

from nvret_jax.data.interchange.rows import Builder, Row, Rows, need_rows, said_of, tell_losses
from nvret_jax.errors import InputError
from nvret_jax.files import atomic, fields, json_lines
from nvret_jax.files.fields import UNKNOWN, Json, Notes
from nvret_jax.files.records import open_records, write_parquet

_OWN = frozenset(("question_id", "question", "corpus_id", "pos_doc", "neg_doc"))
_OWN_DOCUMENT = frozenset(("id", "score"))
_OWN_INLINE = frozenset(("query", "question", "question_id", "pos_doc", "neg_doc"))
_SIDES = ("pos_doc", "neg_doc")
_DEFAULT = {"corpus_id": "corpus", "class": "TextQADataset"}


def read(path: epath.Path, notes: Notes) -> Rows:
    """Reads train.json of a folder, or the given JSON file, with its corpora.

    Raises:
        InputError: something that is not as above, by file, row and key.
    """
    path = path / "train.json" if path.is_dir() else path
    whole = json_lines.json_file(path, "'corpus' and 'data'")
    builder = Builder()
    corpora = _read_corpora(builder, path, whole, notes)
    fields.need(whole, "data", str(path))
    for number, record in enumerate(fields.items(whole, "data", str(path)), 1):
        where = f"{path}, data {number}"
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected an object, got {fields.kind(record)}")
        _read_row(builder, record, corpora, where, notes)
    if not fields.items(whole, "data", str(path)):
        raise InputError(f"{path}: 'data' is empty; expected training rows")
    rest = fields.rest(whole, frozenset(("corpus", "data")), str(path))
    metadata = [metadata for metadata, _ in corpora.values()]
    if rest or metadata != [_DEFAULT]:
        builder.meta["nemo"] = {"file": rest, "corpora": metadata}
        if len(corpora) > 1:
            builder.meta["nemo"]["ids"] = {name: ids for name, (_, ids) in corpora.items()}
    return builder.build()


def _read_corpora(
    builder: Builder, path: epath.Path, whole: Json, notes: Notes
) -> dict[str, tuple[Json, list[str]]]:
    """corpus id -> its metadata and the ids of its passages."""
    entries, corpora = fields.need(whole, "corpus", str(path)), {}
    for entry in entries if isinstance(entries, list) else [entries]:
        where = f"{path}, key 'corpus'"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected {{'path': …}}, got {fields.kind(entry)}")
        folder = fields.text(entry, "path", where)
        if not folder or "\0" in folder or "://" in folder:
            raise InputError(f"{where}: path {folder!r} is not a folder next to the file")
        folder = path.parent / folder
        source = folder / "merlin_metadata.json"
        metadata = json_lines.json_file(source, "the metadata of a corpus")
        fields.rest(metadata, frozenset(), str(source))
        name = fields.text(metadata, "corpus_id", str(source))
        if name in corpora:
            raise InputError(f"{source}: corpus id {name!r} is used by two corpora")
        corpora[name] = metadata, list(_read_passages(builder, folder, notes))
    if not corpora:
        raise InputError(f"{path}: key 'corpus' is empty; expected [{{'path': …}}]")
    return corpora


def _read_passages(builder: Builder, folder: epath.Path, notes: Notes) -> Iterator[str]:
    parts = sorted(p for p in folder.iterdir() if p.suffix == ".parquet")
    if not parts:
        raise InputError(f"{folder}: no parquet file; expected one with columns id and text")
    first: dict[str, str] = {}
    for part in parts:
        table = open_records(part, "the passages")
        table.need("id", "text")
        for name in table.names:
            if name not in ("id", "text"):
                notes.add(str(part), f"column '{name}' is left out; a passage is id and text")
        for where, record in table.read(("id", "text")):
            name = fields.identifier(record["id"], "id", where, notes)
            if name in first:
                raise InputError(f"{where}: id {name!r} was already used at {first[name]}")
            first[name] = where
            builder.passage(where, fields.text(record, "text", where), name)
            yield name


def _read_row(builder: Builder, record: Json, corpora: dict, where: str, notes: Notes) -> None:
    text, name = fields.text(record, "question", where), record.get("question_id")
    if name is not None:
        name = fields.identifier(name, "question_id", where, notes)
    corpus = fields.text(record, "corpus_id", where)
    if corpus not in corpora:
        known = ", ".join(map(repr, corpora))
        raise InputError(f"{where}: corpus_id {corpus!r} is not among {known}")
    query, extra = builder.query(where, text, name), fields.rest(record, _OWN, where)
    if len(corpora) > 1:
        extra["corpus_id"] = corpus
    rows, scores = [], []
    fields.need(record, "pos_doc", where)
    for key in _SIDES:
        found = [
            _read_document(builder, document, extra, f"{where}, {key} {number}", notes)
            for number, document in enumerate(fields.items(record, key, where), 1)
        ]
        rows.append([row for row, _ in found])
        scores.append([score for _, score in found])
    builder.add(query, *rows, *scores, extra)


def _read_document(
    builder: Builder, document: Any, row_extra: Json, where: str, notes: Notes
) -> tuple[int, float]:
    if not isinstance(document, dict):
        document = {"id": document}
    name = fields.identifier(fields.need(document, "id", where), "id", where, notes)
    row = builder.find_passage(where, name)
    if extra := fields.rest(document, _OWN_DOCUMENT, where):
        row_extra.setdefault("passage_extra", {})[name] = extra
    score = fields.score(document.get("score"), "score", where)
    return row, UNKNOWN if score == -1 else score


def write(rows: Rows, path: epath.Path, notes: Notes) -> int:
    """Writes train.json and the corpus folders, as a new folder; returns how many rows."""
    need_rows(rows, str(path))
    where = str(path)
    tell_losses(rows, {"ids", "scores", "extra", "passages", "meta:nemo"}, where, notes)
    for values in (rows.positive_scores.values, rows.negative_scores.values):
        if (values == -1).any():
            notes.add(where, "a score of exactly -1 is written, which means unknown in this format")
    if any(not row.positives for row in rows):
        notes.add(where, "has rows without a positive, which NeMo does not accept")
    meta = rows.meta.get("nemo", {})
    corpora = _corpora(rows, meta, where, notes)
    with atomic.whole_folder(path) as folder:
        for name, (metadata, passages) in corpora.items():
            _write_corpus(rows, folder / name, metadata, passages)
        with (folder / "train.json").open("wb") as file:
            _write_file(rows, file, corpora, meta.get("file", {}), where, notes)
    return len(rows)


def _corpora(rows: Rows, meta: Json, where: str, notes: Notes) -> dict[str, tuple[Json, list[int]]]:
    """Name of a folder -> metadata and passages of the corpus in it."""
    every = list(range(len(rows.passages)))
    metadata, ids = meta.get("corpora", [_DEFAULT]), meta.get("ids", {})
    if len(metadata) == 1:
        return {"corpus": (metadata[0], every)}
    row_of = {name: row for row, name in enumerate(rows.passages.ids)}
    found = {
        f"corpus-{number}": (entry, [row_of[i] for i in ids[entry["corpus_id"]]])
        for number, entry in enumerate(metadata, 1)
    }
    return found


def _write_corpus(rows: Rows, folder: epath.Path, metadata: Json, passages: list[int]) -> None:
    folder.mkdir()
    text = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "merlin_metadata.json").write_bytes(text.encode() + b"\n")
    schema = pa.schema({"id": pa.string(), "text": pa.string()})
    table = rows.passages
    with (folder / "train.parquet").open("wb") as file:
        records = ({"id": table.ids[p], "text": table.full(p)} for p in passages)
        write_parquet(file, schema, records)


def _write_file(
    rows: Rows, file: IO[bytes], corpora: dict, more: Json, where: str, notes: Notes
) -> None:
    """Row by row, so that the file is never in memory as a whole."""
    head = {"corpus": [{"path": f"./{name}"} for name in corpora]}
    head = fields.with_extra(head, {k: v for k, v in more.items() if k != "data"}, where, notes)
    file.write(json.dumps(head, ensure_ascii=False, allow_nan=False)[:-1].encode())
    file.write(b', "data": [')
    members = [(metadata["corpus_id"], set(passages)) for metadata, passages in corpora.values()]
    scored = rows.has_scores
    for number, row in enumerate(rows):
        corpus = _corpus_of(row, members, where)
        record = _record(rows, row, corpus, scored, where, notes)
        file.write(b",\n" if number else b"\n")
        file.write(json_lines.dump_line(record).rstrip(b"\n"))
    file.write(b"\n]}\n")


def _corpus_of(row: Row, members: list[tuple[str, set[int]]], where: str) -> str:
    if len(members) == 1:
        return members[0][0]
    used, wanted = {*row.positives, *row.negatives}, row.extra.get("corpus_id")
    able = [name for name, passages in members if used <= passages]
    if not able:
        raise InputError(f"{where}: a row has passages of several corpora")
    return wanted if wanted in able else able[0]


def _record(rows: Rows, row: Row, corpus: str, scored: bool, where: str, notes: Notes) -> Json:
    said, extra = said_of(row.extra)
    extra = {key: value for key, value in extra.items() if (key, value) != ("corpus_id", corpus)}
    record: Json = {
        "question_id": rows.queries.ids[row.query],
        "question": rows.queries.texts[row.query],
        "corpus_id": corpus,
    }
    sides = ((row.positives, row.positive_scores), (row.negatives, row.negative_scores))
    for key, (passages, scores) in zip(_SIDES, sides, strict=True):
        record[key] = []
        for passage, score in zip(passages, scores, strict=True):
            name = rows.passages.ids[passage]
            document: Json = {"id": name}
            if scored:
                document["score"] = -1 if np.isnan(score) else score
            more = said.get(name, {})
            record[key].append(fields.with_extra(document, more, where, notes))
    return fields.with_extra(record, extra, where, notes)


def read_inline(path: epath.Path, notes: Notes) -> Rows:
    """Reads JSON lines with the texts inside.

    Raises:
        InputError: a line that is not as above.
    """
    builder = Builder()
    for where, record in json_lines.json_lines(path, "training rows of NeMo, texts inside"):
        key = "question" if "query" not in record and "question" in record else "query"
        text, name = fields.text(record, key, where), record.get("question_id")
        if name is not None:
            name = fields.identifier(name, "question_id", where, notes)
        query, extra = builder.query(where, text, name), fields.rest(record, _OWN_INLINE, where)
        if key == "question" and "query" in record:
            extra["question"] = record["question"]
        fields.need(record, "pos_doc", where)
        sides = [_inline_texts(record, key, where, notes) for key in _SIDES]
        rows = [[builder.passage(where, text) for text, _ in side] for side in sides]
        scores = [[score for _, score in side] for side in sides]
        builder.add(query, *rows, *scores, extra)
    return builder.build()


def _inline_texts(record: Json, key: str, where: str, notes: Notes) -> list[tuple[str, float]]:
    value = record.get(key)
    value = [value] if isinstance(value, str | dict) else fields.items(record, key, where)
    found = []
    for number, document in enumerate(value, 1):
        at = f"{where}, {key} {number}"
        if isinstance(document, str):
            found.append((document, UNKNOWN))
        elif isinstance(document, dict):
            for name in sorted(document.keys() - {"text", "score"}):
                raise InputError(
                    f"{at}: key '{name}' is not known; here a document has only a text"
                )
            score = fields.score(document.get("score"), "score", at)
            found.append((fields.text(document, "text", at), score))
        else:
            raise InputError(f"{at}: expected a string, got {fields.kind(document)}")
    return found


def write_inline(rows: Rows, path: epath.Path, notes: Notes) -> int:
    """Writes JSON lines with the texts inside, and returns how many.

    A document with a score is an object; NeMo reads its text and ignores the rest.
    """
    need_rows(rows, str(path))
    tell_losses(rows, {"extra", "scores", "query ids"}, str(path), notes)

    def records() -> Iterator[Json]:
        for row in rows:
            record = {"question_id": rows.queries.ids[row.query]}
            record["query"] = rows.queries.texts[row.query]
            sides = ((row.positives, row.positive_scores), (row.negatives, row.negative_scores))
            for key, side in zip(_SIDES, sides, strict=True):
                record[key] = [
                    text if np.isnan(score) else {"text": text, "score": score}
                    for text, score in zip(map(rows.passages.full, side[0]), side[1], strict=True)
                ]
            yield fields.with_extra(record, row.extra, str(path), notes)

    with atomic.whole_file(path) as file:
        return json_lines.write_json_lines(file, records())
