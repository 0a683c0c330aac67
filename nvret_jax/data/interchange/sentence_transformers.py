"""The four forms of sentence-transformers' `mine_hard_negatives`, as parquet or JSON lines.

    triplet       anchor, positive, negative             [scores: positive's, negative's]
    n-tuple       anchor, positive, negative_1 … n       [scores: positive's, each negative's]
    labeled-pair  anchor, positive, label 1 or 0         [score in place of label]
    labeled-list  anchor, positive: [texts], labels      [scores in place of labels]

The stated form of a file is checked against its columns. sentence-transformers reads columns by
position, so (query, answer, hard) is a triplet, too; columns named anchor and positive are read by
name. Other names of the first two columns are kept. Its trainer treats every further column as a
text, so none is written or read.

- triplet, n-tuple and lists of scores have one positive per line: rows with several positives
  become neighbouring lines with the same negatives, and are joined when read.
- n-tuple has one width. The writer chooses the n for which n × (rows with n negatives) is largest,
  and reports how many rows and negatives are left out.
- A labeled pair or list keeps the positives of a row first; order between labels is not kept.
- Lists of scores have their positive first. Pairs with scores do not mark the positives: the first
  of a query is taken as its positive, which both reader and writer report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from etils import epath

from nvret_jax.data.interchange.rows import Builder, Merger, Row, Rows, need_rows, tell_losses
from nvret_jax.errors import InputError
from nvret_jax.files import atomic, fields, json_lines
from nvret_jax.files.fields import UNKNOWN, Json, Notes
from nvret_jax.files.records import open_records, write_parquet

FORMS = ("triplet", "n-tuple", "labeled-pair", "labeled-list")
_LABELS = ("label", "labels", "score", "scores")
_META = "sentence-transformers"
_NEGATIVE = re.compile(r"negative(_[0-9]{1,6})?")


class _Columns(NamedTuple):
    anchor: str
    positive: str
    negatives: tuple[str, ...]
    label: str | None


def reader(form: str) -> Callable[[epath.Path, Notes], Rows]:
    """The reader of one form; the columns show whether there are scores."""

    def read(path: epath.Path, notes: Notes) -> Rows:
        names, records = _open(path)
        columns = _columns(names, form, str(path))
        builder = Builder()
        if (columns.anchor, columns.positive) != ("anchor", "positive"):
            builder.meta[_META] = {"columns": [columns.anchor, columns.positive]}
        if columns.negatives:
            _read_tuples(builder, records, columns, triplet=form == "triplet")
        elif form == "labeled-pair":
            _read_pairs(builder, records, columns, notes)
        else:
            _read_lists(builder, records, columns, notes)
        return builder.build()

    return read


def _open(path: epath.Path) -> tuple[list[str], Iterator[tuple[str, Json]]]:
    """Column names, and ('place', record) one by one."""
    if path.suffix == ".parquet":
        table = open_records(path, "training rows")
        return table.names, table.read(table.names)
    _check_suffix(path)
    records = json_lines.json_lines(path, "training rows")
    first = next(records)
    return list(first[1]), _alike(first, records)


def _check_suffix(path: epath.Path) -> None:
    if path.suffix not in (".parquet", ".jsonl", ".json"):
        raise InputError(f"{path}: the name must end in .parquet or .jsonl")


def _alike(
    first: tuple[str, Json], others: Iterable[tuple[str, Json]]
) -> Iterator[tuple[str, Json]]:
    yield first
    keys = first[1].keys()
    for where, record in others:
        if record.keys() != keys:
            odd = sorted(record.keys() ^ keys)[0]
            raise InputError(f"{where}: key '{odd}' is in some lines and not in others")
        yield where, record


def _columns(names: Sequence[str], form: str, where: str) -> _Columns:
    labels = [name for name in names if name in _LABELS]
    texts = [name for name in names if name not in _LABELS]
    if len(labels) > 1:
        raise InputError(f"{where}: has both columns '{labels[0]}' and '{labels[1]}'; one is read")
    texts = _in_order(texts, where)
    label = labels[0] if labels else None
    found = _form(len(texts), label)
    if form != found and not (len(texts) == 3 and {form, found} <= {"triplet", "n-tuple"}):
        shown = ", ".join(names) or "none"
        it_is = f"that is the form {found}" if found else "which is none of its four forms"
        raise InputError(f"{where}: expected the columns of {form}, got {shown}; {it_is}")
    return _Columns(texts[0], texts[1], tuple(texts[2:]), label)


def _in_order(texts: list[str], where: str) -> list[str]:
    """Anchor, positive, negatives: by name if the names are known, else by position."""
    negatives = sorted((t for t in texts if _NEGATIVE.fullmatch(t)), key=_numbered)
    others = [text for text in texts if text not in negatives]
    if not negatives and not {"anchor", "positive"} <= set(others):
        return texts
    if {"anchor", "positive"} <= set(others):
        return [
            "anchor",
            "positive",
            *(t for t in others if t not in ("anchor", "positive")),
            *negatives,
        ]
    if len(others) != 2:
        raise InputError(
            f"{where}: in addition to negatives it has {', '.join(others) or 'no column'}; "
            f"expected an anchor and a positive"
        )
    return [*(others[::-1] if others[0] == "positive" else others), *negatives]


def _form(texts: int, label: str | None) -> str | None:
    if texts >= 3 and label in (None, "scores"):
        return "triplet" if texts == 3 else "n-tuple"
    if texts == 2:
        known = {"label": "labeled-pair", "score": "labeled-pair"}
        return known.get(label, "labeled-list" if label else None)
    return None


def _numbered(name: str) -> tuple[int, str]:
    """negative_2 before negative_10."""
    tail = name.removeprefix("negative").removeprefix("_")
    return (int(tail) if tail else 0, name)


def _read_tuples(
    builder: Builder, records: Iterable[tuple[str, Json]], columns: _Columns, *, triplet: bool
) -> None:
    merger = Merger(builder)
    opened: tuple | None = None  # for triplets: what the previous line shares with its neighbours
    negatives: list[int] = []
    scores: list[float] = []
    for where, record in records:
        query = builder.query(where, fields.text(record, columns.anchor, where))
        positive = builder.passage(where, fields.text(record, columns.positive, where))
        found = [builder.passage(where, fields.text(record, n, where)) for n in columns.negatives]
        of = f"{columns.positive} and negatives"
        numbers = [UNKNOWN] * (1 + len(found))
        if columns.label:
            fields.need(record, columns.label, where)
            numbers = fields.scores(record, columns.label, len(numbers), of, where)
        key = (query, positive, numbers[0])
        if opened is not None and (not triplet or key != opened):
            merger.feed(*opened, negatives, scores)
            negatives, scores = [], []
        opened = key
        negatives.extend(found)
        scores.extend(numbers[1:])
    if opened is not None:
        merger.feed(*opened, negatives, scores)
    merger.finish()


def _read_pairs(
    builder: Builder, records: Iterable[tuple[str, Json]], columns: _Columns, notes: Notes
) -> None:
    scored = columns.label == "score"
    query, sides, numbers = None, ([], []), ([], [])
    for where, record in records:
        this = builder.query(where, fields.text(record, columns.anchor, where))
        if this != query and query is not None:
            builder.add(query, *sides, *numbers)
            sides, numbers = ([], []), ([], [])
        query = this
        value, number = fields.need(record, columns.label, where), UNKNOWN
        if scored:
            number = fields.score(value, "score", where)
            side = 1 if sides[0] else 0
            if side == 0:
                notes.add(
                    where,
                    "the first pair of a query is taken as its positive, the others as negatives, "
                    "because pairs with scores do not mark them",
                )
        else:
            side = 0 if _label(value, "label", where) else 1
        sides[side].append(builder.passage(where, fields.text(record, columns.positive, where)))
        numbers[side].append(number)
    builder.add(query, *sides, *numbers)


def _label(value: object, key: str, where: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1):
        raise InputError(f"{where}: key '{key}' must be 1 or 0, got {fields.kind(value)}")
    return bool(value)


def _read_lists(
    builder: Builder, records: Iterable[tuple[str, Json]], columns: _Columns, notes: Notes
) -> None:
    merger = Merger(builder)
    for where, record in records:
        query = builder.query(where, fields.text(record, columns.anchor, where))
        texts = fields.texts(record, columns.positive, where, notes)
        passages = [builder.passage(where, text) for text in texts]
        if not passages:
            raise InputError(f"{where}: key '{columns.positive}' is an empty list")
        if columns.label == "scores":
            numbers = fields.scores(record, "scores", len(passages), columns.positive, where)
            merger.feed(query, passages[0], numbers[0], passages[1:], numbers[1:])
            continue
        values = fields.items(record, "labels", where)
        if len(values) != len(passages):
            raise InputError(f"{where}: {len(values)} labels for {len(passages)} texts")
        labels = [_label(value, "labels", where) for value in values]
        sides = ([], [])
        for passage, label in zip(passages, labels, strict=True):
            sides[0 if label else 1].append(passage)
        builder.add(query, *sides)
    merger.finish()


def writer(form: str, *, scored: bool) -> Callable[[Rows, epath.Path, Notes], int]:
    """The writer of one form, with scores or without; it returns how many records it wrote."""

    def write(rows: Rows, path: epath.Path, notes: Notes) -> int:
        need_rows(rows, str(path))
        if path.suffix != ".parquet":
            _check_suffix(path)
        holds = {"scores", f"meta:{_META}"} if scored else {f"meta:{_META}"}
        tell_losses(rows, holds, str(path), notes)
        if scored:
            _need_scores(rows, form, str(path))
        writing = _Writing(rows, str(path), notes, scored)
        schema = writing.schema(form)
        records = writing.records(form)
        with atomic.whole_file(path) as file:
            if path.suffix == ".parquet":
                count = write_parquet(file, schema, records)
            else:
                count = json_lines.write_json_lines(file, records)
            if not count:
                raise InputError(f"{path}: no row has what {form} needs; there is nothing to write")
        return count

    return write


def _need_scores(rows: Rows, form: str, where: str) -> None:
    for values in (rows.positive_scores, rows.negative_scores):
        if np.isnan(values.values).any():
            row = int(values.row_of[np.flatnonzero(np.isnan(values.values))[0]])
            name = rows.queries.ids[rows.query_rows[row]]
            raise InputError(
                f"{where}: query {name!r} has a passage without a score; write 'st-{form}', which "
                f"has no scores"
            )


class _Writing:
    """Rows as the records of a form."""

    def __init__(self, rows: Rows, where: str, notes: Notes, scored: bool):
        self._rows, self._where, self._notes, self._scored = rows, where, notes, scored
        columns = rows.meta.get(_META, {}).get("columns", ["anchor", "positive"])
        self._anchor, self._positive = columns
        self._width = 0

    def schema(self, form: str) -> pa.Schema:
        """The columns of a form, in order."""
        text, number = pa.string(), pa.float64()
        columns = {self._anchor: text, self._positive: text}
        if form == "triplet":
            columns["negative"] = text
        elif form == "n-tuple":
            self._width = self._best_width()
            columns |= {f"negative_{i}": text for i in range(1, self._width + 1)}
        elif form == "labeled-list":
            columns[self._positive] = pa.list_(text)
        if form == "labeled-pair":
            columns |= {"score": number} if self._scored else {"label": pa.int64()}
        elif self._scored:
            columns["scores"] = pa.list_(number)
        elif form == "labeled-list":
            columns["labels"] = pa.list_(pa.int64())
        return pa.schema(columns)

    def _best_width(self) -> int:
        counts = self._rows.negatives.counts[self._rows.positives.counts > 0]
        widths = np.arange(counts.max(initial=0) + 1)
        # rows with at least this many
        enough = len(counts) - np.searchsorted(np.sort(counts), widths)
        best = int(np.argmax(widths * enough))
        what = f"n-tuple of {best} negatives"
        if short := int((counts < best).sum()):
            self._left_out(f"{what}: rows with fewer are left out ({short:,})")
        if over := int(np.maximum(counts - best, 0).sum()):
            self._left_out(f"{what}: negatives beyond are left out ({over:,})")
        return best

    def records(self, form: str) -> Iterator[Json]:
        """The records of a form, one by one."""
        make = {
            "triplet": self._triplets,
            "n-tuple": self._tuples,
            "labeled-pair": self._pairs,
            "labeled-list": self._score_lists if self._scored else self._label_lists,
        }[form]
        for row in self._rows:
            if not row.positives and form in ("triplet", "n-tuple"):
                self._left_out("a row without a positive is left out")
            elif not row.negatives and form in ("triplet", "n-tuple"):
                self._left_out("a row without a negative is left out")
            else:
                yield from make(row)

    def _left_out(self, what: str) -> None:
        self._notes.add(self._where, what)

    def _head(self, row: Row, positive: object) -> Json:
        return {self._anchor: self._rows.queries.texts[row.query], self._positive: positive}

    def _texts(self, passages: Iterable[int]) -> list[str]:
        return [self._rows.passages.full(passage) for passage in passages]

    def _triplets(self, row: Row) -> Iterator[Json]:
        negatives = self._texts(row.negatives)
        for positive, score in zip(self._texts(row.positives), row.positive_scores, strict=True):
            for negative, below in zip(negatives, row.negative_scores, strict=True):
                scores = {"scores": [score, below]} if self._scored else {}
                yield self._head(row, positive) | {"negative": negative} | scores

    def _tuples(self, row: Row) -> Iterator[Json]:
        if len(row.negatives) < self._width:
            return  # counted when the width was chosen
        negatives = self._texts(row.negatives[: self._width])
        columns = {f"negative_{i}": text for i, text in enumerate(negatives, 1)}
        for positive, score in zip(self._texts(row.positives), row.positive_scores, strict=True):
            scores = [score, *row.negative_scores[: self._width]]
            more = {"scores": scores} if self._scored else {}
            yield self._head(row, positive) | columns | more

    def _pairs(self, row: Row) -> Iterator[Json]:
        if not row.positives and not row.negatives:
            self._left_out("a row without a passage is left out")
        if self._scored and len(row.positives) != 1:
            self._left_out(
                "a row does not have exactly one positive; readers of pairs with scores cannot "
                "distinguish positives"
            )
        sides = ((row.positives, row.positive_scores, 1), (row.negatives, row.negative_scores, 0))
        for passages, scores, label in sides:
            for text, score in zip(self._texts(passages), scores, strict=True):
                yield self._head(row, text) | (
                    {"score": score} if self._scored else {"label": label}
                )

    def _label_lists(self, row: Row) -> Iterator[Json]:
        texts = self._texts([*row.positives, *row.negatives])
        if not texts:
            self._left_out("a row without a passage is left out")
            return
        labels = [1] * len(row.positives) + [0] * len(row.negatives)
        yield self._head(row, texts) | {"labels": labels}

    def _score_lists(self, row: Row) -> Iterator[Json]:
        if not row.positives:
            self._left_out("a row without a positive is left out")
        negatives = self._texts(row.negatives)
        for positive, score in zip(self._texts(row.positives), row.positive_scores, strict=True):
            scores = [score, *row.negative_scores]
            yield self._head(row, [positive, *negatives]) | {"scores": scores}
