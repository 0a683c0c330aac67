"""A ranking somebody wrote down as a teacher: a run file.

    trec       query Q0 passage rank score tag     six columns; what most tools write
    colbert    query passage rank score            four columns
    msmarco    query passage rank                  three columns, the third a rank from 1
    tevatron   query passage score                 three columns, the third a score

Columns are separated by tabs, or by any white space where the first line has no tabs. The form is
told from the number of columns; of the two with three, a file is 'msmarco' if its third column has
whole numbers of at least 1 only, different ones within each query, and a 1 for every query. A name
that ends in .gz or .zst is decompressed.

What a run means here:

- **Scores decide.** Where ranks contradict them, that is said once and the scores win. Scores are
  float32; equal ones are ordered by row.
- Without scores, the score is minus the rank: a margin then counts ranks, and a relative margin of
  5 % takes out what ranks up to 1.05 times as low as the positive.
- **A run knows only what it lists** (`deep` is False): `rank` filters the stored list, and a query
  that a rule leaves short stays short.
- **What is not listed** has no score. `score` answers with the lowest listed score of the query,
  which is the most it can have had. For a positive this means that everything listed outranks it,
  so a ceiling taken from it keeps nothing: no negative is better than one that may be a positive.
  Where a query lists nothing at all, the answer is 0.
- Queries of the file that the run has no use for are skipped and counted, and queries of ours that
  it does not have are counted (`remarks`). A passage that the corpus does not have means that the
  run belongs to another corpus, and is an error.
"""

from __future__ import annotations

import array
import dataclasses
import io
import os
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging
from etils import epath

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.files.lines import bytes_of
from nvret_jax.files.numbers import decimal
from nvret_jax.search.index import checks
from nvret_jax.search.rankers import topk


@dataclasses.dataclass(frozen=True)
class Form:
    """Where things stand in a line: columns, and the number of each, from 0."""

    columns: int
    query: int
    passage: int
    rank: int | None
    score: int | None


FORMS = {
    "trec": Form(6, 0, 2, 3, 4),
    "colbert": Form(4, 0, 1, 2, 3),
    "msmarco": Form(3, 0, 1, 2, None),
    "tevatron": Form(3, 0, 1, None, 2),
}


class RunRanker:
    """A run over the queries and passages of a data set.

    Attributes:
        queries, passages, deep: see `Ranker`.
        form: one of `FORMS`.
        skipped_queries: queries of the file that are not among ours.
        empty_queries: queries of ours that the file does not have.
        unlisted_positives: judged positives that the run does not list for their query.
    """

    deep = False

    def __init__(self, rows: Ragged, scores: Ragged, passages: int):
        """Use `read`.

        Args:
            rows: int32, passages listed for each query, in any order, none twice.
            scores: float32, aligned with `rows`.
            passages: N.
        """
        order = np.lexsort((rows.values, -scores.values, rows.row_of))
        self._rows = Ragged(rows.offsets, rows.values[order])
        self._scores = Ragged(scores.offsets, scores.values[order])
        self._lowest_q = scores.reduce(np.minimum, 0.0).astype(np.float32)
        by_row = np.lexsort((rows.values, rows.row_of))  # for look-ups
        self._sorted_keys = rows.row_of[by_row] * passages + rows.values[by_row]
        self._sorted_scores = scores.values[by_row]
        self.queries, self.passages = len(rows), passages
        self.form, self.skipped_queries, self.unlisted_positives = "", 0, 0
        self._path, self._positives = "", 0
        self.empty_queries = int((rows.counts == 0).sum())

    @classmethod
    def read(
        cls,
        path: os.PathLike | str,
        query_ids: Sequence[str],
        passage_ids: Sequence[str],
        positive_rows: Ragged,
        *,
        form: str | None = None,
    ) -> RunRanker:
        """Reads a run file.

        Args:
            path: the file.
            query_ids: Q ids, those the run is wanted for.
            passage_ids: N ids, the corpus.
            positive_rows: judged positives, a row per query; only counted, see the attributes.
            form: one of `FORMS`; None: told from the columns.

        Raises:
            InputError: no such file, a line that cannot be read, a passage that the corpus does
                not have or that is listed twice, or no query of ours in the whole file.
        """
        path = paths.local(path, "run")
        if form is not None and form not in FORMS:
            raise InputError(f"{path}: form {form!r}; expected one of {', '.join(FORMS)}")
        checks.check_exclude(positive_rows, len(query_ids), len(passage_ids))
        listed = _read(path, form, query_ids, passage_ids)
        order = np.argsort(listed.query, kind="stable")
        counts = np.bincount(listed.query, minlength=len(query_ids))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        ranker = cls(
            Ragged(offsets, listed.passage[order].astype(np.int32)),
            Ragged(offsets, listed.score[order]),
            len(passage_ids),
        )
        ranker.form, ranker.skipped_queries = listed.form, len(listed.unknown)
        ranker._path, ranker._positives = str(path), len(positive_rows.values)
        keys = positive_rows.row_of * len(passage_ids) + positive_rows.values
        ranker.unlisted_positives = int((~np.isin(keys, ranker._sorted_keys)).sum())
        return ranker

    @property
    def remarks(self) -> list[str]:
        """What a user should know of the ranking, a line each, with numbers."""
        out = []
        if self.empty_queries:
            out.append(
                f"{self._path} lists nothing for {self.empty_queries:,} of {self.queries:,} "
                "queries; they get no negatives from it"
            )
        if self.unlisted_positives:
            out.append(
                f"{self._path} does not list {self.unlisted_positives:,} of {self._positives:,} "
                "positives; each counts as scored at the last entry of its query"
            )
        if self.skipped_queries:
            out.append(f"queries of {self._path} that are not asked for: {self.skipped_queries:,}")
        return out

    def rank(self, numbers, k, *, ceiling_q=None, exclude=None, progress=False):
        """See `Ranker.rank`; from the stored lists."""
        del progress  # nothing here takes long
        numbers = topk.check_numbers(numbers, self.queries)
        k = checks.check_k(k, self.passages)
        ceiling_q = checks.check_ceiling(ceiling_q, len(numbers))
        pairs = checks.check_exclude(exclude, len(numbers), self.passages)
        rows, scores = self._rows.take(numbers), self._scores.take(numbers)
        keep = np.ones(len(rows.values), bool)
        if ceiling_q is not None:
            keep &= scores.values < ceiling_q[rows.row_of]
        if pairs is not None:
            left_out = pairs[0].astype(np.int64) * self.passages + pairs[1]
            keep &= ~np.isin(rows.row_of * self.passages + rows.values, left_out)
        kept = np.bincount(rows.row_of[keep], minlength=len(numbers))
        offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        return (
            Ragged(offsets, scores.values[keep]).padded(-np.inf, k),
            Ragged(offsets, rows.values[keep]).padded(-1, k),
        )

    def score(self, numbers: np.ndarray, pairs: Ragged) -> np.ndarray:
        """See `Ranker.score`, and the module's docstring for passages that are not listed."""
        numbers = topk.check_numbers(numbers, self.queries)
        checks.check_exclude(pairs, len(numbers), self.passages)
        query = numbers[pairs.row_of]
        scores = self._lowest_q[query]
        if len(self._sorted_keys):
            keys = query * self.passages + pairs.values
            place = np.searchsorted(self._sorted_keys, keys)
            place = np.minimum(place, len(self._sorted_keys) - 1)
            listed = self._sorted_keys[place] == keys
            scores[listed] = self._sorted_scores[place[listed]]
        return scores


@dataclasses.dataclass(frozen=True)
class _Listed:
    """The lines of a run that concern us, as flat arrays [M] in the order of the file.

    Attributes:
        form: one of `FORMS`.
        query, passage: int64, query numbers and passage rows.
        score: float32.
        unknown: query ids of the file that are not among ours.
    """

    form: str
    query: np.ndarray
    passage: np.ndarray
    score: np.ndarray
    unknown: set[str]


def _read(
    path: epath.Path, form: str | None, query_ids: Sequence[str], passage_ids: Sequence[str]
) -> _Listed:
    """Reads and checks a file."""
    query_row = {identifier: row for row, identifier in enumerate(query_ids)}
    passage_row = {identifier: row for row, identifier in enumerate(passage_ids)}
    # Typed arrays: a hundred million lines take 4 GB, and as Python lists ten times that.
    query, passage, line_of = array.array("q"), array.array("q"), array.array("q")
    numbers = {"rank": array.array("d"), "score": array.array("d")}
    unknown: set[str] = set()
    layout, separator = None, None
    for number, line in _lines(path):
        if layout is None:
            guessed, separator = _guess(f"{path}:{number}", line, form)
            layout = FORMS[guessed]
            columns = (("rank", layout.rank), ("score", layout.score))
            wanted = [(c, numbers[name]) for name, c in columns if c is not None]
        parts = line.split(separator)
        if len(parts) != layout.columns:
            raise InputError(
                f"{path}:{number}: {len(parts)} columns, expected {layout.columns} ({guessed})"
            )
        at = query_row.get(parts[layout.query])
        if at is None:
            unknown.add(parts[layout.query])
            continue
        row = passage_row.get(parts[layout.passage])
        if row is None:
            raise InputError(
                f"{path}:{number}: passage {parts[layout.passage]!r} is not among the "
                f"{len(passage_ids)} of the corpus; the run belongs to another one"
            )
        query.append(at)
        passage.append(row)
        line_of.append(number)
        try:
            for column, values in wanted:
                values.append(decimal(parts[column].strip()))
        except ValueError:
            raise InputError(
                f"{path}:{number}: {parts[column]!r} in column {column + 1} is not a number "
                f"({guessed})"
            ) from None
    if layout is None:
        raise InputError(f"{path}: an empty run; expected a line for every listed passage")
    if not query:
        raise InputError(
            f"{path}: none of its {len(unknown)} queries is among the {len(query_ids)} wanted; "
            f"one of them is {min(unknown)!r}"
        )
    kept = [np.frombuffer(column, np.int64) for column in (query, passage, line_of)]
    _refuse_twice(path, *kept, query_ids, passage_ids)
    values = {name: np.frombuffer(column, np.float64) for name, column in numbers.items()}
    guessed, scores = _scores(path, guessed, form is not None, kept[0], kept[2], values)
    return _Listed(guessed, kept[0], kept[1], scores, unknown)


def _scores(
    path: epath.Path,
    form: str,
    forced: bool,
    query: np.ndarray,
    line_of: np.ndarray,
    values: dict[str, np.ndarray],
) -> tuple[str, np.ndarray]:
    """The form, now that all lines are known, and a float32 score for each."""
    rank, score = values["rank"], values["score"]
    if not forced and form == "tevatron" and _look_like_ranks(query, score):
        form, rank, score = "msmarco", score, rank
    for name, numbers in (("rank", rank), ("score", score)):
        bad = ~(np.abs(numbers) <= np.finfo(np.float32).max)
        if bad.any():
            at = int(np.argmax(bad))
            raise InputError(
                f"{path}:{line_of[at]}: {name} {numbers[at]} is not a finite float32 number"
            )
    if not len(score):
        score = -rank
    elif len(rank):
        _warn_of_ranks(path, query, rank, score)
    return form, score.astype(np.float32)


def _lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank."""
    with bytes_of(path, "a run") as file:
        try:
            for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig"), start=1):
                if not line.isspace():
                    yield number, line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text ({error})") from None


def _guess(where: str, line: str, form: str | None) -> tuple[str, str | None]:
    """The form a first line has, and its separator; 'tevatron' stands for three columns."""
    counts = {"\t": len(line.split("\t")), None: len(line.split())}
    for separator, columns in counts.items():
        for name in ("trec", "colbert", "tevatron") if form is None else (form,):
            if FORMS[name].columns == columns:
                return name, separator
    expected = "6, 4 or 3" if form is None else f"{FORMS[form].columns} ({form})"
    raise InputError(f"{where}: {counts[None]} columns, expected {expected}")


def _look_like_ranks(query: np.ndarray, values: np.ndarray) -> bool:
    """Whether these are whole numbers from 1, different within each query and 1 in all of them."""
    if not ((values >= 1) & (values == np.floor(values))).all():
        return False
    if len(np.unique(query)) != len(np.unique(query[values == 1])):
        return False
    order = np.lexsort((values, query))
    return not ((np.diff(query[order]) == 0) & (np.diff(values[order]) == 0)).any()


def _refuse_twice(path, query, passage, line_of, query_ids, passage_ids) -> None:
    """InputError naming the second line of a (query, passage) that has two."""
    order = np.lexsort((line_of, passage, query))
    same = (np.diff(query[order]) == 0) & (np.diff(passage[order]) == 0)
    if same.any():
        at = int(np.argmax(same))
        first, second = order[at], order[at + 1]
        raise InputError(
            f"{path}:{line_of[second]}: passage {passage_ids[passage[second]]!r} again for query "
            f"{query_ids[query[second]]!r}, after line {line_of[first]}"
        )


def _warn_of_ranks(path, query, rank, score) -> None:
    """Says once for how many queries the ranks order passages otherwise than the scores."""
    order = np.lexsort((-score, rank, query))
    rises = (np.diff(query[order]) == 0) & (np.diff(score[order]) > 0)
    if rises.any():
        logging.warning(
            "%s: for %d queries the ranks contradict the scores; the scores are used",
            path,
            len(np.unique(query[order][1:][rises])),
        )
