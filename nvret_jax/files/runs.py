"""Ranked runs, read and written: for each query the passages that some search returned.

    trec          query Q0 passage rank score tag    what most tools write
    colbert       query passage rank score
    msmarco       query passage rank                 ranks from 1
    tevatron-run  query passage score

Columns are separated by tabs, or by any white space where the first line has fewer tabs than
columns. A name that ends in .gz or .zst is decompressed. Where no form is given, it is the one with
as many columns as the first line; of the two with three, a file is 'msmarco' if its third column
has whole numbers of at least 1 only, different ones within each query, and a 1 for every query.

What a run means is the same wherever one is read:

- **Scores decide.** Where ranks contradict them, a warning says so once and the scores are used:
  tools sort by score. Without scores, the score is minus the rank.
- A score is a finite number of float32's range, a rank a whole number. A passage is listed at most
  once per query. Equal scores have the order of the file.
- Scores are written with as many digits as give the same float back. A reader that breaks ties in
  its own way needs scores without ties.
"""

from __future__ import annotations

import array
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.files.atomic import whole_file
from nvret_jax.files.lines import is_plain, lines
from nvret_jax.files.numbers import decimal, whole_number

TrecRun = dict[str, dict[str, float]]  # query id -> {passage id: score}, best first

# The columns of each form. Of two with as many columns, the last one is taken for the first line.
FORMS: dict[str, tuple[str, ...]] = {
    "trec": ("query", "Q0", "passage", "rank", "score", "tag"),
    "colbert": ("query", "passage", "rank", "score"),
    "msmarco": ("query", "passage", "rank"),
    "tevatron-run": ("query", "passage", "score"),
}
_RANKS_FROM = {"msmarco": 1}  # elsewhere from 0
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Listed:
    """The lines of a run as flat arrays [M], in the order of the file.

    Attributes:
        form: one of `FORMS`.
        query, passage: int64, rows of `query_ids` and `passage_ids`.
        scores: float64, of float32's range.
        query_ids, passage_ids: those given to `read`, or those of the file as they come.
        unknown: query ids of the file that are not among those given.
    """

    form: str
    query: np.ndarray
    passage: np.ndarray
    scores: np.ndarray
    query_ids: Sequence[str]
    passage_ids: Sequence[str]
    unknown: frozenset[str]


def read(
    path: epath.PathLike,
    form: str | None = None,
    *,
    query_ids: Sequence[str] | None = None,
    passage_ids: Sequence[str] | None = None,
) -> Listed:
    """Reads a run.

    Args:
        path: the file, read line by line.
        form: one of `FORMS`; None: by the columns.
        query_ids: the queries that are wanted; lines of others are skipped. None: all.
        passage_ids: the corpus the run is of. None: any passage.

    Raises:
        InputError: no such file, an empty one, one without a wanted query, or a bad line, named as
            file:line: too few or too many columns, a rank or score that is none, a passage that is
            not in the corpus, a passage (in msmarco a rank) twice for one query.
    """
    path = epath.Path(path)
    if form is not None:
        _check_form(form, path)
    queries, passages = _Ids(query_ids), _Ids(passage_ids)
    # Typed arrays: a hundred million lines take 4 GB; Python lists would take ten times that.
    query, passage, line_of = array.array("q"), array.array("q"), array.array("q")
    numbers = {"rank": array.array("d"), "score": array.array("d")}
    unknown: set[str] = set()
    layout: _Layout | None = None
    expected = "a run" if form is None else f"a run ({' '.join(FORMS[form])})"
    for number, line in lines(path, expected):
        where = f"{path}:{number}"
        layout = layout or _Layout.of(where, line, form)
        cells = layout.split(where, line)
        at = queries.row(cells["query"])
        if at is None:
            unknown.add(cells["query"])
            continue
        row = passages.row(cells["passage"])
        if row is None:
            raise InputError(
                f"{where}: passage {cells['passage']!r} is not among the {len(passages.ids)} of "
                "the corpus; the run belongs to another one"
            )
        query.append(at)
        passage.append(row)
        line_of.append(number)
        for name, values in numbers.items():
            if name in cells:
                values.append(_number(name, cells[name], layout.form, where))
    if layout is None:
        columns = " ".join(FORMS[form or "trec"])
        raise InputError(f"{path}: an empty run; expected lines such as: {columns}")
    if not query:
        raise InputError(
            f"{path}: none of its {len(unknown)} queries is among the {len(queries.ids)} wanted; "
            f"one of them is {min(unknown)!r}"
        )
    query_m, passage_m, line_m = (np.frombuffer(a, np.int64) for a in (query, passage, line_of))
    values = {name: np.frombuffer(found, np.float64) for name, found in numbers.items()}
    again = _second(query_m, passage_m, line_m)
    if again is not None:
        first, second = again
        raise InputError(
            f"{path}:{line_m[second]}: passage {passages.ids[passage_m[second]]!r} again for query "
            f"{queries.ids[query_m[second]]!r}, after line {line_m[first]}"
        )
    named, scores = layout.form, values["score"]
    if form is None and named == "tevatron-run" and _are_ranks(query_m, scores):
        named, scores, values["rank"] = "msmarco", -scores, scores
    elif not len(scores):
        scores = -values["rank"]
    elif len(values["rank"]):
        _warn_of_ranks(path, query_m, values["rank"], scores)
    again = _second(query_m, values["rank"], line_m) if named == "msmarco" else None
    if again is not None:
        rank, of = values["rank"][again[1]], queries.ids[query_m[again[1]]]
        raise InputError(f"{path}:{line_m[again[1]]}: rank {rank:.0f} again for query {of!r}")
    return Listed(named, query_m, passage_m, scores, queries.ids, passages.ids, frozenset(unknown))


def read_run(path: epath.PathLike, form: str | None = "trec") -> TrecRun:
    """Reads a run whole.

    Args:
        path: the file.
        form: as of `read`.

    Returns:
        {query id: {passage id: score}}: queries in the order of the file, passages best first.

    Raises:
        InputError: as `read`.
    """
    found = read(path, form)
    run: TrecRun = {query: {} for query in found.query_ids}
    order = np.lexsort((-found.scores, found.query))
    columns = (found.query[order], found.passage[order], found.scores[order])
    for query, passage, score in zip(*(column.tolist() for column in columns), strict=True):
        run[found.query_ids[query]][found.passage_ids[passage]] = score
    return run


def write_run(
    run: Mapping[str, Mapping[str, float]],
    path: epath.PathLike,
    form: str = "trec",
    *,
    tag: str = "nvret_jax",
) -> int:
    """Writes a run, whole or not at all.

    Args:
        run: {query id: {passage id: score}}; written best first, equal scores in the order given.
        path: the file; it is replaced.
        form: one of `FORMS`; 'msmarco' keeps the order and not the scores.
        tag: TREC's last column, one word.

    Returns:
        How many lines were written.

    Raises:
        InputError: an id or the tag cannot stand in a column; a score is not a finite
            float32 number; no hit.
    """
    path = epath.Path(path)
    _check_form(form, path)
    if not any(run.values()):
        raise InputError(f"{path}: the run is empty; there is nothing to write")
    if not is_plain(tag):
        raise InputError(f"{path}: tag {tag!r} must be one word")
    with whole_file(path) as file:
        count = 0
        for line in _written(run, form, tag, path):
            file.write(line.encode())
            count += 1
    return count


def _check_form(form: str, path: epath.Path) -> None:
    if form not in FORMS:
        known = ", ".join(FORMS)
        raise InputError(f"{path}: a run has no form {form!r}; expected one of {known}")


class _Ids:
    """Ids by row: those of a table, or those of a file in the order in which they come."""

    def __init__(self, ids: Sequence[str] | None):
        self._open = ids is None
        self.ids: Sequence[str] = [] if ids is None else ids
        self._rows = {identifier: row for row, identifier in enumerate(self.ids)}

    def row(self, identifier: str) -> int | None:
        """The row of an id; None where a table has no such id."""
        found = self._rows.get(identifier)
        if found is None and self._open:
            found = self._rows[identifier] = len(self._rows)
            self.ids.append(identifier)  # a list of our own
        return found


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the lines of a file are cut: one of `FORMS`, by tabs or (None) by any white space."""

    form: str
    separator: str | None

    @classmethod
    def of(cls, where: str, line: str, form: str | None) -> _Layout:
        """What a first line has; for three columns 'tevatron-run'."""
        by_columns = {len(columns): name for name, columns in FORMS.items()}
        wanted = by_columns if form is None else {len(FORMS[form]): form}
        counts = {"\t": len(line.split("\t")), None: len(line.split())}
        for separator, columns in counts.items():
            if columns in wanted:
                return cls(wanted[columns], separator)
        if form is not None:
            expected = f"{len(FORMS[form])} ({form}: {' '.join(FORMS[form])})"
        else:
            expected = "6, 4 or 3"
        raise InputError(f"{where}: {counts[None]} columns, expected {expected}")

    def split(self, where: str, line: str) -> dict[str, str]:
        """The cells of a line, by column."""
        cells = line.split(self.separator)
        names = FORMS[self.form]
        if len(cells) != len(names):
            raise InputError(
                f"{where}: {len(cells)} columns, expected {len(names)} ({self.form}: "
                f"{' '.join(names)})"
            )
        found = dict(zip(names, cells, strict=True))
        if not found["query"] or not found["passage"]:
            raise InputError(f"{where}: an id is empty")
        return found


def _number(name: str, word: str, form: str, where: str) -> float:
    """A rank or a score."""
    word = word.strip()
    if name == "rank":
        least = _RANKS_FROM.get(form, 0)
        try:
            rank = whole_number(word)
        except ValueError:
            rank = -1
        if rank < least:
            raise InputError(f"{where}: rank {word[:40]!r} is not a whole number from {least}")
        return rank
    try:
        score = decimal(word)
    except ValueError:
        raise InputError(f"{where}: score {word[:40]!r} is not a number") from None
    if not math.fabs(score) <= _LARGEST:  # NaN, too
        raise InputError(f"{where}: score {word[:40]!r} is not a finite float32 number")
    return score


def _are_ranks(query: np.ndarray, values: np.ndarray) -> bool:
    """Whether these are whole numbers from 1, different within each query and 1 in all of them."""
    if not ((values >= 1) & (values == np.floor(values))).all():
        return False
    if len(np.unique(query)) != len(np.unique(query[values == 1])):
        return False
    return _second(query, values, np.arange(len(query))) is None


def _second(query: np.ndarray, value: np.ndarray, line: np.ndarray) -> tuple[int, int] | None:
    """The places of a (query, value) that is there twice: the first of it and the next."""
    order = np.lexsort((line, value, query))
    same = (np.diff(query[order]) == 0) & (np.diff(value[order]) == 0)
    if not same.any():
        return None
    at = int(np.argmax(same))
    return int(order[at]), int(order[at + 1])


def _warn_of_ranks(path: epath.Path, query: np.ndarray, rank: np.ndarray, score: np.ndarray):
    """Logs for how many queries the ranks order passages otherwise than the scores."""
    order = np.lexsort((-score, rank, query))
    rises = (np.diff(query[order]) == 0) & (np.diff(score[order]) > 0)
    if rises.any():
        logging.warning(
            "%s: for %d queries the ranks contradict the scores; the scores are used",
            path,
            len(np.unique(query[order][1:][rises])),
        )


def _written(
    run: Mapping[str, Mapping[str, float]], form: str, tag: str, path: epath.Path
) -> Iterator[str]:
    """The lines of a run."""
    separator = " " if form == "trec" else "\t"
    for query, hits in run.items():
        _check_id(query, "query", form, path)
        best_first = sorted(hits.items(), key=lambda hit: -hit[1])
        for rank, (passage, score) in enumerate(best_first, 1):
            _check_id(passage, "passage", form, path)
            if not math.fabs(score) <= _LARGEST:
                raise InputError(
                    f"{path}: query {query!r}, passage {passage!r}: score {score} is not a finite "
                    "float32 number"
                )
            cells = {
                "query": query,
                "Q0": "Q0",
                "passage": passage,
                "rank": str(rank),
                "score": repr(float(score)),
                "tag": tag,
            }
            yield separator.join(cells[name] for name in FORMS[form]) + "\n"


def _check_id(name: str, what: str, form: str, path: epath.Path) -> None:
    bad = not is_plain(name) if form == "trec" else not name or set(name) & set("\t\r\n")
    if bad:
        raise InputError(f"{path}: {what} id {name!r} cannot stand in a column of {form}")
