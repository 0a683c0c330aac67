"""The common form that every reader returns and every writer takes.

`Rows` are training rows over two tables, queries and passages. A row is a query, its positives and
its negatives, as row numbers of the tables, with the known scores. Choices:

- Ids are text. If a format has none, an id is a hash of the content: same text, same id, on any
  machine. Two passages with the same text and different ids stay separate.
- A title is kept separate from the text; if a target has no titles, it is put before the text, as
  in BEIR's readers. An empty title counts as none.
- Nothing else in a file is discarded: unknown keys are kept as `extra` of their row, query or
  passage, keys of the file itself as `meta`.
- What a target cannot hold is reported once, by `tell_losses`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.files.fields import UNKNOWN, Json, Notes

PASSAGE_EXTRA = "passage_extra"  # key of a row's extra: passage id -> its description in this row


def content_id(prefix: str, text: str, title: str | None = None) -> str:
    """The id of a text without one: a letter and 80 bits of sha256, as hex."""
    data = text.encode("utf-8", "surrogatepass")
    if title:
        head = title.encode("utf-8", "surrogatepass")
        data = b"%d:" % len(head) + head + data
    return prefix + hashlib.sha256(data).hexdigest()[:20]


def joined(title: str | None, text: str) -> str:
    """Title and text as one string, as `nvret_jax.data.beir` reads them."""
    return f"{title} {text}".strip() if title else text


@dataclasses.dataclass(frozen=True)
class Texts:
    """A table of queries or of passages.

    Attributes:
        ids: unique.
        texts: as many strings.
        titles: as many strings or None; queries have none.
        extra: row -> further keys of that row; most rows have none.
    """

    ids: list[str]
    texts: list[str]
    titles: list[str | None]
    extra: dict[int, Json]

    def __len__(self) -> int:
        return len(self.ids)

    def full(self, row: int) -> str:
        """Title and text of one row as one string."""
        return joined(self.titles[row], self.texts[row])


@dataclasses.dataclass(frozen=True)
class Row:
    """One training row, in the form for writers.

    Attributes:
        query: row of the table of queries.
        positives, negatives: rows of the table of passages.
        positive_scores, negative_scores: one each; nan where unknown.
        extra: further keys.
    """

    query: int
    positives: list[int]
    negatives: list[int]
    positive_scores: list[float]
    negative_scores: list[float]
    extra: Json


@dataclasses.dataclass(frozen=True)
class Rows:
    """Training rows, R of them.

    Attributes:
        queries, passages: the tables; either may hold unused rows.
        query_rows: int64 [R].
        positives, negatives: int64, rows of `passages`, in the order of the source.
        positive_scores, negative_scores: float64, as long as these; nan where unknown.
        extra: R dicts, mostly empty, of unknown keys.
        meta: keys of the file itself, under the name of its format.
    """

    queries: Texts
    passages: Texts
    query_rows: np.ndarray
    positives: Ragged
    negatives: Ragged
    positive_scores: Ragged
    negative_scores: Ragged
    extra: Sequence[Json]
    meta: Json

    def __len__(self) -> int:
        return len(self.query_rows)

    def __iter__(self) -> Iterator[Row]:
        for i, query in enumerate(self.query_rows.tolist()):
            yield Row(
                query,
                self.positives[i].tolist(),
                self.negatives[i].tolist(),
                self.positive_scores[i].tolist(),
                self.negative_scores[i].tolist(),
                self.extra[i],
            )

    @property
    def has_scores(self) -> bool:
        """Whether any score is known."""
        return any(
            bool((~np.isnan(s.values)).any()) for s in (self.positive_scores, self.negative_scores)
        )

    @property
    def has_titles(self) -> bool:
        """Whether any passage has a title."""
        return any(self.passages.titles)


class Builder:
    """Collects rows one by one; the tables grow with the texts.

    A text without an id is added once; one with an id is added once per id, and must be the same
    each time.
    """

    def __init__(self):
        self._tables = (_Table("query", "q"), _Table("passage", "p"))
        self._query_rows: list[int] = []
        self._lists: tuple[list, ...] = ([], [], [], [])
        self._extra: list[Json] = []
        self.meta: Json = {}

    def query(self, where: str, text: str, name: str | None = None, extra: Json | None = None):
        """Row number of a query; `where` is the place for an error.

        Raises:
            InputError: the id `name` had another text before.
        """
        return self._tables[0].row(where, text, None, name, extra)

    def passage(
        self,
        where: str,
        text: str,
        name: str | None = None,
        title: str | None = None,
        extra: Json | None = None,
    ) -> int:
        """Row number of a passage; see `query`."""
        return self._tables[1].row(where, text, title or None, name, extra)

    def find_query(self, where: str, name: str) -> int:
        """Row number of a query that was already added."""
        return self._tables[0].find(where, name)

    def find_passage(self, where: str, name: str) -> int:
        """Row number of a passage that was already added."""
        return self._tables[1].find(where, name)

    def said_here(self, row_extra: Json, passage: int, extra: Json) -> None:
        """Keeps a row's description of a passage in the row, if it differs from the table's."""
        table = self._tables[1]
        if extra != table.extra.get(passage, {}):
            row_extra.setdefault(PASSAGE_EXTRA, {})[table.ids[passage]] = extra

    def add(
        self,
        query: int,
        positives: Sequence[int],
        negatives: Sequence[int],
        positive_scores: Sequence[float] | None = None,
        negative_scores: Sequence[float] | None = None,
        extra: Json | None = None,
    ) -> None:
        """Adds one row; scores left out are unknown."""
        self._query_rows.append(query)
        given = (positives, negatives, positive_scores, negative_scores)
        for i, values in enumerate(given):
            values = [UNKNOWN] * len(given[i - 2]) if values is None else values
            self._lists[i].append(values)
        self._extra.append(extra or {})

    def build(self) -> Rows:
        """The collected rows."""
        positives, negatives, positive_scores, negative_scores = self._lists
        return Rows(
            *(table.done() for table in self._tables),
            np.asarray(self._query_rows, np.int64),
            Ragged.from_rows(positives, np.int64),
            Ragged.from_rows(negatives, np.int64),
            Ragged.from_rows(positive_scores, np.float64),
            Ragged.from_rows(negative_scores, np.float64),
            self._extra,
            self.meta,
        )


class _Table:
    def __init__(self, what: str, prefix: str):
        self._what, self._prefix = what, prefix
        self.ids: list[str] = []
        self._texts: list[str] = []
        self._titles: list[str | None] = []
        self.extra: dict[int, Json] = {}
        self._row: dict[str, int] = {}
        self._unnamed: dict[tuple[str, str | None], int] = {}  # saves hashing a text again

    def row(
        self, where: str, text: str, title: str | None, name: str | None, extra: Json | None
    ) -> int:
        if name is None:
            row = self._unnamed.get((text, title))
            if row is None:
                name = content_id(self._prefix, text, title)
                row = self._unnamed[text, title] = self.row(where, text, title, name, extra)
            return row
        row = self._row.get(name)
        if row is None:
            row = self._row[name] = len(self.ids)
            self.ids.append(name)
            self._texts.append(text)
            self._titles.append(title)
            if extra:
                self.extra[row] = extra
        elif (self._texts[row], self._titles[row]) != (text, title):
            part = "text" if self._texts[row] != text else "title"
            raise InputError(
                f"{where}: {self._what} id {name!r} had another {part} before; an id must have "
                f"one text"
            )
        return row

    def find(self, where: str, name: str) -> int:
        if name not in self._row:
            raise InputError(f"{where}: {self._what} id {name!r} is not among the texts")
        return self._row[name]

    def done(self) -> Texts:
        return Texts(self.ids, self._texts, self._titles, self.extra)


def from_negatives(negatives: Any, queries: Any, corpus: Any) -> Rows:
    """Mined hard negatives as `Rows`.

    Args:
        negatives: has query_rows [Q] and, as `Ragged` of Q rows, positive_rows, positive_scores,
            negative_rows and negative_scores, such as `nvret_jax.mining.negatives.Negatives`.
        queries, corpus: have ids and texts by row, such as `nvret_jax.data.dataset.TextTable`.

    Returns:
        Rows in the given order; the tables also hold passages and queries in no row. A float32
        score becomes the shortest decimal that round-trips.
    """

    def table(texts: Any) -> Texts:
        return Texts(list(texts.ids), list(texts.texts), [None] * len(texts.ids), {})

    def numbers(values: Ragged, dtype) -> Ragged:
        return Ragged(np.asarray(values.offsets, np.int64), np.asarray(values.values).astype(dtype))

    def decimals(values: Ragged) -> Ragged:
        if values.values.dtype == np.float32:
            values = Ragged(values.offsets, values.values.astype("U32"))
        return numbers(values, np.float64)

    query_rows = np.asarray(negatives.query_rows).astype(np.int64)
    return Rows(
        table(queries),
        table(corpus),
        query_rows,
        numbers(negatives.positive_rows, np.int64),
        numbers(negatives.negative_rows, np.int64),
        decimals(negatives.positive_scores),
        decimals(negatives.negative_scores),
        [{}] * len(query_rows),
        {},
    )


class Merger:
    """Joins lines with one positive each, for formats that repeat the negatives.

    Neighbouring lines of the same query, negatives, scores of these and further keys are one row
    with several positives.
    """

    def __init__(self, builder: Builder):
        self._builder, self._key = builder, None
        self._positives: list[int] = []
        self._scores: list[float] = []

    def feed(
        self,
        query: int,
        positive: int,
        score: float,
        negatives: Sequence[int],
        negative_scores: Sequence[float],
        extra: Json | None = None,
    ) -> None:
        """Adds one line."""
        key = (query, tuple(negatives), tuple(negative_scores), extra or {})
        if key != self._key:
            self.finish()
            self._key = key
        self._positives.append(positive)
        self._scores.append(score)

    def finish(self) -> None:
        """Adds the row that is still open."""
        if self._key is not None:
            query, negatives, scores, extra = self._key
            self._builder.add(query, self._positives, negatives, self._scores, scores, extra)
        self._key, self._positives, self._scores = None, [], []


def said_of(extra: Json) -> tuple[dict[str, Json], Json]:
    """The descriptions kept by `Builder.said_here`, by passage id, and the row's other keys."""
    said = extra.get(PASSAGE_EXTRA)
    if not isinstance(said, dict) or not all(isinstance(value, dict) for value in said.values()):
        return {}, extra
    return said, {key: value for key, value in extra.items() if key != PASSAGE_EXTRA}


def tell_losses(rows: Rows, holds: frozenset[str] | set[str], where: str, notes: Notes) -> None:
    """Notes, in one line, what a target with only these places cannot hold.

    Args:
        rows: to be written.
        holds: of 'ids' (or only 'query ids'), 'titles', 'scores', 'extra' (of rows),
            'passage_extra', 'query_extra', 'passages' and 'queries' (those in no row), and
            'meta:NAME'.
        where: the target.
        notes: takes the line, if anything is lost.
    """
    lost = []

    def count(number: int, what: str) -> None:
        if number:
            lost.append(f"{what} ({number:,})")

    queries, passages = rows.queries, rows.passages
    for table, prefix, what in ((queries, "q", "query ids"), (passages, "p", "passage ids")):
        if not {"ids", what} & holds:
            entries = zip(table.ids, table.texts, table.titles, strict=True)
            count(sum(i != content_id(prefix, x, t) for i, x, t in entries), what)
    if "titles" not in holds:
        count(sum(t is not None for t in passages.titles), "titles, now put before their texts")
    if "scores" not in holds:
        pairs = (rows.positive_scores, rows.negative_scores)
        count(sum(int((~np.isnan(s.values)).sum()) for s in pairs), "scores")
    if "extra" not in holds:
        keys = sorted({key for extra in rows.extra for key in extra})
        count(sum(map(bool, rows.extra)), f"keys of rows, {', '.join(keys[:5])}")
    if "passage_extra" not in holds:
        count(len(passages.extra), "further keys of passages")
    if "query_extra" not in holds:
        count(len(queries.extra), "further keys of queries")
    if "passages" not in holds:
        used = np.unique(np.concatenate([rows.positives.values, rows.negatives.values]))
        count(len(passages) - len(used), "passages in no row")
    if "queries" not in holds:
        count(len(queries) - len(np.unique(rows.query_rows)), "queries in no row")
    lost += [f"metadata of the source, {key}" for key in rows.meta if f"meta:{key}" not in holds]
    if lost:
        notes.add(where, "this format has no place for " + "; ".join(lost))


def need_rows(rows: Rows, where: str) -> None:
    """Raises InputError if there is nothing to write."""
    if not len(rows):
        raise InputError(f"{where}: there are no rows to write")
