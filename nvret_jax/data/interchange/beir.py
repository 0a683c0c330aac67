"""A folder in BEIR's layout, with this package's negatives in addition.

    corpus.jsonl            {"_id", "title", "text"}
    queries.jsonl           {"_id", "text"}
    qrels/<split>.tsv       query-id, corpus-id, score
    negatives/<split>.jsonl {"query_id", "positive_ids", "negative_ids", "positive_scores",
                             "negative_scores", "extra"}: ours; other readers of BEIR ignore it

The path is the folder, or one of its qrels/<split>.tsv for a split other than train. Reading first
checks everything with `nvret_jax.data.beir`. Without a file of negatives, the positives of a
query's row are the passages judged 1 or more. Any other grade, and a judgment that is not a
positive of a row, is kept as the row's extra key `judgments` {passage id: grade}; other keys of a
passage or query are kept with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from etils import epath

from nvret_jax.data import beir as beir_lib
from nvret_jax.data.interchange.rows import Builder, Row, Rows, Texts, need_rows, tell_losses
from nvret_jax.errors import InputError
from nvret_jax.files import atomic, fields, json_lines
from nvret_jax.files.fields import Json, Notes
from nvret_jax.files.lines import find_file, is_plain, stem

_OWN = frozenset(
    ("query_id", "positive_ids", "negative_ids", "positive_scores", "negative_scores", "extra")
)
_SIDES = ("positive", "negative")
_JUDGMENTS = "judgments"


def read(path: epath.Path, notes: Notes) -> Rows:
    """Reads one split of a folder.

    Raises:
        InputError: as `nvret_jax.data.beir.read_beir`, and for a file of negatives that does not
            fit the judgments.
    """
    folder, split = _split(path)
    if split is None:
        split = _find_split(folder)
    try:
        dataset = beir_lib.read_beir(folder, [split], allow_empty=True, given=False)
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{folder}: cannot be read ({error})") from None
    builder = Builder()
    for where, record in json_lines.json_lines(find_file(folder / "corpus.jsonl"), "passages"):
        extra = fields.rest(record, frozenset(("_id", "title", "text")), where)
        name = fields.identifier(record["_id"], "_id", where, notes)
        builder.passage(where, record["text"], name, record.get("title"), extra)
    for where, record in json_lines.json_lines(find_file(folder / "queries.jsonl"), "queries"):
        extra = fields.rest(record, frozenset(("_id", "text")), where)
        name = fields.identifier(record["_id"], "_id", where, notes)
        builder.query(where, record["text"], name, extra)
    judged = {query: dict(grades) for query, grades in dataset.qrels[split].items()}
    negatives = find_file(folder / "negatives" / f"{split}.jsonl")
    if negatives.exists():
        _read_negatives(builder, negatives, judged, notes)
    for query, grades in judged.items():
        _add_judged(builder, query, grades)
    return builder.build()


def _split(path: epath.Path) -> tuple[epath.Path, str | None]:
    name, suffix = stem(path)
    if suffix == ".tsv":
        if path.parent.name != "qrels":
            raise InputError(f"{path}: expected a folder, or its qrels/<split>.tsv")
        return path.parent.parent, name
    return path, None


def _find_split(folder: epath.Path) -> str:
    found = beir_lib.find_splits(folder)
    if len(found) == 1 or "train" in found:
        return "train" if "train" in found else found[0]
    raise InputError(f"{folder}: has the splits {', '.join(found)}; name one as qrels/<split>.tsv")


def _add_judged(builder: Builder, query: str, grades: dict[str, int]) -> None:
    positives = [passage for passage, grade in grades.items() if grade >= 1]
    extra = _judgments(grades, positives)
    found = [builder.find_passage(query, passage) for passage in positives]
    builder.add(builder.find_query(query, query), found, [], extra=extra)


def _judgments(grades: dict[str, int], positives: list[str]) -> Json:
    """The information beyond the positives."""
    known = set(positives)
    odd = {
        passage: grade for passage, grade in grades.items() if grade != 1 or passage not in known
    }
    return {_JUDGMENTS: odd} if odd else {}


def _read_negatives(
    builder: Builder, path: epath.Path, judged: dict[str, dict[str, int]], notes: Notes
) -> None:
    """Adds the rows of the file, and takes their queries out of `judged`."""
    records, positives_of = [], {}
    for where, record in json_lines.json_lines(path, "rows of negatives"):
        for key in sorted(record.keys() - _OWN):
            raise InputError(f"{where}: key '{key}' is not known; put it under 'extra'")
        query = fields.identifier(fields.need(record, "query_id", where), "query_id", where, notes)
        names, rows, scores = [], [], []
        for side in _SIDES:
            key = f"{side}_ids"
            names.append(fields.identifiers(record, key, where, notes))
            rows.append([builder.find_passage(f"{where}, {key}", name) for name in names[-1]])
            scores.append(fields.scores(record, f"{side}_scores", len(names[-1]), key, where))
        for name in names[0]:
            if judged.get(query, {}).get(name, 0) < 1:
                raise InputError(
                    f"{where}: passage {name!r} is a positive of {query!r} but not judged 1 or more"
                )
        extra = record.get("extra") or {}
        if not isinstance(extra, dict):
            raise InputError(f"{where}: 'extra' must be an object, got {fields.kind(extra)}")
        fields.rest(extra, frozenset(), where)
        positives_of.setdefault(query, []).extend(names[0])
        records.append((builder.find_query(where, query), query, rows, scores, extra))
    for row, query, rows, scores, extra in records:
        grades = judged.pop(query, {})  # at the first row of each query
        said = _judgments(grades, positives_of[query])
        builder.add(row, *rows, *scores, extra | said)


def write(rows: Rows, path: epath.Path, notes: Notes) -> int:
    """Writes a new folder of one split; returns how many rows.

    Raises:
        InputError: an id that the judgments cannot hold; no positive at all; a folder that is not
            empty.
    """
    need_rows(rows, str(path))
    folder, split = _split(path)
    holds = {
        "ids",
        "titles",
        "scores",
        "extra",
        "passage_extra",
        "query_extra",
        "passages",
        "queries",
    }
    tell_losses(rows, holds, str(folder), notes)
    for table, what in ((rows.queries, "query"), (rows.passages, "passage")):
        _check(table, what, str(folder), notes)
    lines = _qrels(rows, str(folder), notes)
    with atomic.whole_folder(folder) as aside:
        _write_texts(aside / "corpus.jsonl", rows.passages, rows.has_titles, notes)
        _write_texts(aside / "queries.jsonl", rows.queries, False, notes)
        (aside / "qrels").mkdir()
        text = "query-id\tcorpus-id\tscore\n" + "".join(lines)
        (aside / "qrels" / f"{split or 'train'}.tsv").write_bytes(text.encode())
        (aside / "negatives").mkdir()
        with (aside / "negatives" / f"{split or 'train'}.jsonl").open("wb") as file:
            return json_lines.write_json_lines(file, (_record(rows, row) for row in rows))


def _check(table: Texts, what: str, where: str, notes: Notes) -> None:
    for row, name in enumerate(table.ids):
        if not is_plain(name):
            raise InputError(
                f"{where}: {what} id {name!r} is empty or has white space or control characters, "
                "which BEIR's judgments cannot hold"
            )
        if not table.full(row).strip():
            notes.add(where, f"a {what} has no text; reading it needs data.allow_empty")


def _qrels(rows: Rows, where: str, notes: Notes) -> list[str]:
    grades: dict[str, dict[str, int]] = {}
    for row in rows:
        judged = grades.setdefault(rows.queries.ids[row.query], {})
        for passage in row.positives:
            judged.setdefault(rows.passages.ids[passage], 1)
    known = set(rows.passages.ids)
    for row in rows:
        judged = grades[rows.queries.ids[row.query]]
        for name, grade in _said(row).items():
            if name in known:
                positive = name in judged and grade < 1
                judged[name] = 1 if positive else grade
            else:
                notes.add(where, "a judgment is left out; its passage is not among the passages")
    if not any(grade >= 1 for judged in grades.values() for grade in judged.values()):
        raise InputError(f"{where}: no row has a positive, and BEIR's judgments need one")
    return [
        f"{query}\t{passage}\t{grade}\n"
        for query, judged in grades.items()
        for passage, grade in judged.items()
    ]


def _said(row: Row) -> dict[str, int]:
    """The key 'judgments' of a row, if it is what this module puts there."""
    said = row.extra.get(_JUDGMENTS)
    if isinstance(said, dict) and all(type(grade) is int for grade in said.values()):
        return said
    return {}


def _write_texts(path: epath.Path, table: Texts, titled: bool, notes: Notes) -> None:
    def records() -> Iterator[Json]:
        for row, (name, text) in enumerate(zip(table.ids, table.texts, strict=True)):
            title = {"title": table.titles[row] or ""} if titled else {}
            record = {"_id": name, **title, "text": text}
            yield fields.with_extra(record, table.extra.get(row, {}), str(path), notes)

    with path.open("wb") as file:
        json_lines.write_json_lines(file, records())


def _record(rows: Rows, row: Row) -> Json:
    record: Json = {"query_id": rows.queries.ids[row.query]}
    sides = ((row.positives, row.positive_scores), (row.negatives, row.negative_scores))
    for side, (passages, scores) in zip(_SIDES, sides, strict=True):
        record[f"{side}_ids"] = [rows.passages.ids[passage] for passage in passages]
        if not np.isnan(scores).all():
            record[f"{side}_scores"] = [fields.known_or_null(score) for score in scores]
    extra = row.extra
    if _said(row):
        extra = {key: value for key, value in extra.items() if key != _JUDGMENTS}
    return record | ({"extra": extra} if extra else {})
