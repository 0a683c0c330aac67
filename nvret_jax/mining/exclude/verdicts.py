"""Verdicts of a judge, a person or a language model, on mined negatives: files and effects.

`write_questions` writes the pairs worth judging, `read_verdicts` reads the answers, and
`Verdicts.for_queries` determines their effects on mining. The scheme is RLHN's (arXiv 2505.16967):
a "negative" that is relevant after all becomes a positive of its query (which worked better there
than dropping it, or the query), an unsure one is dropped, the others stay. Choices:

- A file is any that `files.records` reads, such as jsonl, csv, tsv or parquet, and has the columns
  query_id, passage_id and verdict, in any letter case; others are ignored. Pairs may be in any
  order.
- The words are those of `WORDS`, in any letter case. An empty verdict is a question not yet
  answered: it is counted and skipped, so that a partly filled file can be used.
- A repeated pair counts once if the verdicts agree; otherwise it is a mistake.
- The qrels of the data set take precedence over the judge: a judged positive is never dropped here,
  and contradictions are counted.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Iterator

import numpy as np
from etils import epath

from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.files import numbers, paths
from nvret_jax.files.lines import Mistakes, shown
from nvret_jax.files.records import open_records
from nvret_jax.mining.options import VERDICT_MODES


class Answer(enum.IntEnum):
    """The judge's verdict on one (query, passage)."""

    KEEP = 0  # it is a negative
    DROP = 1  # it is neither
    POSITIVE = 2  # it is relevant


WORDS = {
    Answer.POSITIVE: ("positive", "promote", "relevant", "true", "1", "yes"),
    Answer.DROP: ("drop", "remove", "unsure", "uncertain"),
    Answer.KEEP: ("keep", "negative", "irrelevant", "false", "0", "no"),
}
COLUMNS = ("query_id", "passage_id", "verdict")
_ANSWER_OF = {word: answer for answer, words in WORDS.items() for word in words}
_UNANSWERED = -1


@dataclasses.dataclass(frozen=True)
class EffectCounts:
    """Numbers of verdicts by their effect; together they are all verdicts of the file.

    Attributes:
        promoted: became positives.
        dropped: removed from the query's candidates.
        kept: stay negatives.
        already_positive: judged positive by the data set and by the judge.
        contradicting: positives of the data set that the judge rejects; they stay positives.
        with_query: verdicts on queries that are dropped as a whole.
        elsewhere: verdicts on other queries.
        queries_touched: queries that gained a positive or lost a candidate, or are dropped.
        queries_dropped: queries dropped as a whole.
        not_asked: mined negatives without a verdict; None where none were given.
    """

    promoted: int
    dropped: int
    kept: int
    already_positive: int
    contradicting: int
    with_query: int
    elsewhere: int
    queries_touched: int
    queries_dropped: int
    not_asked: int | None = None


@dataclasses.dataclass(frozen=True)
class VerdictEffect:
    """The effect of verdicts on Q queries.

    Attributes:
        promoted: int32 passage rows, ascending, that become positives of each query.
        dropped: int32 passage rows, ascending, that can be neither positive nor negative.
        dropped_queries: bool [Q]; their rows in both lists are empty.
        counts: in numbers.
    """

    promoted: Ragged
    dropped: Ragged
    dropped_queries: np.ndarray
    counts: EffectCounts


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The answers in one file, each pair once, sorted by (query row, passage row).

    Attributes:
        query_rows, passage_rows: int32 [V], rows of the data set's queries and corpus.
        answers: int8 [V], values of `Answer`.
        repeated: lines that repeat another one.
        unanswered: lines whose verdict is empty.
    """

    query_rows: np.ndarray
    passage_rows: np.ndarray
    answers: np.ndarray
    repeated: int = 0
    unanswered: int = 0

    def __len__(self) -> int:
        return len(self.answers)

    def for_queries(
        self,
        query_rows: np.ndarray,
        positive_rows: Ragged,
        *,
        mode: str = "relabel",
        max_promoted: int = 0,
        negative_rows: Ragged | None = None,
    ) -> VerdictEffect:
        """The effect of the verdicts on some queries.

        Args:
            query_rows: int [Q], unique rows of the data set's queries.
            positive_rows: int32, judged positives of each.
            mode: what happens to a passage judged positive: 'relabel' makes it a positive,
                'remove' drops it, 'remove_query' drops the query. One judged 'drop' is dropped in
                every mode.
            max_promoted: drop a query with more passages judged positive than this, not counting
                those it already has; 0: never. RLHN uses 7: more suggest a broad query whose other
                negatives cannot be trusted either.
            negative_rows: mined negatives of each query, only to count those without a verdict.

        Raises:
            InputError: the mode is not known or `max_promoted` is negative.
        """
        if mode not in VERDICT_MODES:
            raise InputError(
                f"verdicts: unknown mode={mode!r}; choose one of {', '.join(VERDICT_MODES)}"
            )
        if max_promoted < 0 or max_promoted != int(max_promoted):
            raise InputError(
                f"verdicts: max_promoted={max_promoted}; expected a whole number, 0 for no limit"
            )
        number_v = _numbers(query_rows, self.query_rows)
        here = number_v >= 0
        number, passage, answer = number_v[here], self.passage_rows[here], self.answers[here]
        already = positive_rows.contains(number, passage)
        hit = (answer == Answer.POSITIVE) & ~already
        count = len(positive_rows)
        asked = Ragged.distinct(number, passage, count)
        hits_q = np.bincount(number[hit], minlength=count)
        dropped_q = hits_q > max_promoted if max_promoted else np.zeros(count, bool)
        if mode == "remove_query":
            dropped_q = dropped_q | (hits_q > 0)
        live = ~dropped_q[number]
        removed = (answer == Answer.DROP) & ~already & live
        promoted = hit & live if mode == "relabel" else np.zeros_like(hit)
        if mode == "remove":
            removed |= hit & live
        touched_q = dropped_q.copy()
        touched_q[number[promoted | removed]] = True
        counts = EffectCounts(
            promoted=int(promoted.sum()),
            dropped=int(removed.sum()),
            kept=int(((answer == Answer.KEEP) & ~already & live).sum()),
            already_positive=int(((answer == Answer.POSITIVE) & already & live).sum()),
            contradicting=int(((answer != Answer.POSITIVE) & already & live).sum()),
            with_query=int((~live).sum()),
            elsewhere=int((~here).sum()),
            queries_touched=int(touched_q.sum()),
            queries_dropped=int(dropped_q.sum()),
            not_asked=None if negative_rows is None else len(negative_rows.minus(asked).values),
        )
        lists = [Ragged.distinct(number[m], passage[m], count) for m in (promoted, removed)]
        return VerdictEffect(*lists, dropped_q, counts)


def read_verdicts(path: epath.PathLike, queries: TextTable, corpus: TextTable) -> Verdicts:
    """Reads and checks a file of verdicts; see the module's docstring for its layout.

    Args:
        path: a file of records; its suffix says which.
        queries, corpus: the data set whose ids it names.

    Raises:
        InputError: it cannot be read, lacks a column, has no verdict at all, or has a line with an
            unknown word, an unknown id or a different verdict on the same pair. The first three
            mistakes are named by file and line, the others counted.
    """
    path, mistakes = paths.local(path, "verdicts"), Mistakes()
    known_queries, known_passages = queries.row, corpus.row
    places, query_rows, passage_rows, answers, unanswered = [], [], [], [], 0
    for place, query, passage, word in _records(path, mistakes):
        query_row, passage_row = known_queries.get(query), known_passages.get(passage)
        answer = _answer(word)
        if query_row is None:
            mistakes.add(f"{place}: query id {shown(query)} is not in the data set")
        elif passage_row is None:
            mistakes.add(f"{place}: passage id {shown(passage)} is not in the data set")
        elif answer is None:
            mistakes.add(
                f"{place}: unknown verdict {word!r}; use "
                + " or ".join(f"{words[0]} ({', '.join(words[1:])})" for words in WORDS.values())
            )
        elif answer == _UNANSWERED:
            unanswered += 1
        else:
            places.append(place)
            query_rows.append(query_row)
            passage_rows.append(passage_row)
            answers.append(answer)
    if not places and not mistakes.count:
        what = f"all {unanswered} verdicts are still empty" if unanswered else "empty"
        mistakes.add(f"{path}: {what}; expected query_id, passage_id and verdict on each line")
    order = np.lexsort((passage_rows, query_rows))  # stable: equal pairs in the order of the file
    query_row, passage_row = (
        np.asarray(column, np.int64)[order] for column in (query_rows, passage_rows)
    )
    answer = np.asarray(answers, np.int8)[order]
    again = np.zeros(len(order), bool)
    again[1:] = (query_row[1:] == query_row[:-1]) & (passage_row[1:] == passage_row[:-1])
    for i in np.flatnonzero(again[1:] & (answer[1:] != answer[:-1])) + 1:
        mistakes.add(
            f"{places[order[i]]}: query {queries.ids[query_row[i]]!r} and passage "
            f"{corpus.ids[passage_row[i]]!r} are judged {Answer(answer[i]).name.lower()} here and "
            f"{Answer(answer[i - 1]).name.lower()} in {places[order[i - 1]]}"
        )
    mistakes.check()
    first = ~again
    return Verdicts(
        query_row[first].astype(np.int32),
        passage_row[first].astype(np.int32),
        answer[first],
        repeated=int(again.sum()),
        unanswered=unanswered,
    )


def write_questions(
    path: epath.PathLike,
    negatives,
    queries: TextTable,
    corpus: TextTable,
    limit: int = 0,
    *,
    verdicts: Verdicts | None = None,
) -> int:
    """Writes pairs for a judge as jsonl, with an empty verdict on each line.

    The most suspicious pairs come first: those whose score is highest above (or least below) the
    lowest score of a positive of the same query. A line has query_id, passage_id, query, passage,
    positives (texts of all judged positives), score, positive_score (that lowest one) and verdict.

    Args:
        path: must not exist, because it may hold finished work.
        negatives: has query_rows [R] and, per row, negative_rows, negative_scores, positive_rows
            and positive_scores, as `mining.negatives.Negatives` has; judged_rows, too, if there are
            more positives.
        queries, corpus: the data set.
        limit: at most this many pairs; 0 writes all.
        verdicts: existing answers; their pairs are left out.

    Returns:
        How many pairs were written.

    Raises:
        InputError: `path` exists, cannot be written or is not named .jsonl, `limit` is negative, or
            there are no pairs to judge.
    """
    path = paths.local(path, "questions")
    if path.suffix.lower() != ".jsonl":
        raise InputError(f"{path}: questions are written as jsonl; give a name that ends in .jsonl")
    if path.exists():
        raise InputError(f"{path} exists and may hold answers; give another name or move it away")
    if limit < 0 or limit != int(limit):
        raise InputError(f"verdicts: limit={limit}; expected a whole number, 0 for all pairs")
    number, passage = negatives.negative_rows.row_of, negatives.negative_rows.values
    scores = negatives.negative_scores.values
    judged = getattr(negatives, "judged_rows", negatives.positive_rows)
    anchors_r = negatives.positive_scores.reduce(np.minimum, np.nan)
    query_row_m = np.asarray(negatives.query_rows, np.int64)[number]
    gap = np.nan_to_num(anchors_r[number] - scores, nan=np.inf)
    asked = np.argsort(gap, kind="stable")
    # A query with several rows may have a passage in more than one of them: written once.
    _, first = np.unique(np.stack([query_row_m, passage])[:, asked], axis=1, return_index=True)
    asked = asked[np.sort(first)]
    if verdicts is not None:
        known = Ragged.distinct(verdicts.query_rows, verdicts.passage_rows, len(queries))
        asked = asked[~known.contains(query_row_m[asked], passage[asked])]
    if not len(asked):
        raise InputError(f"{path}: no pairs to judge: all {len(passage)} negatives have a verdict")
    asked = asked[: limit or None]

    def line(i: int) -> str:
        q = int(number[i])
        query_row, passage_row = int(negatives.query_rows[q]), int(passage[i])
        anchor = float(anchors_r[q])
        record = {
            "query_id": queries.ids[query_row],
            "passage_id": corpus.ids[passage_row],
            "query": queries.texts[query_row],
            "passage": corpus.texts[passage_row],
            "positives": [corpus.texts[row] for row in judged[q]],
            "score": round(float(scores[i]), 6),
            "positive_score": round(anchor, 6) if math.isfinite(anchor) else None,
            "verdict": "",
        }
        return json.dumps(record, ensure_ascii=False) + "\n"

    aside = path.parent / f"{path.name}.partial"
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(line(i) for i in asked.tolist())
        aside.rename(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    return len(asked)


# --- the files -----------------------------------------------------------------------------------


def _records(path: epath.Path, mistakes: Mistakes) -> Iterator[tuple[str, str, str, object]]:
    """(place in the file, query id, passage id, verdict as written) of each record."""
    records = open_records(path, "verdicts")
    spelled = {name.lower(): name for name in records.names}
    names = [records.column(spelled.get(name, name)) for name in COLUMNS]
    for place, record in records.read(names, mistakes):
        missing = [name for name in names if name not in record]
        if missing:
            mistakes.add(f"{place}: missing key '{missing[0]}'; found {list(record)}")
            continue
        query, passage, word = (record[name] for name in names)
        ids = _identifier(query), _identifier(passage)
        if None in ids:
            name, value = (COLUMNS[0], query) if ids[0] is None else (COLUMNS[1], passage)
            mistakes.add(f"{place}: {name} must be a string, got {_shown(value)}")
            continue
        yield place, *ids, word


def _identifier(value: object) -> str | None:
    """An id as a string; other tools turn ids that look like whole numbers into numbers."""
    found = numbers.identifier(value)
    return None if found is None else found.strip()


def _answer(value: object) -> int | None:
    """The answer that a verdict means, `_UNANSWERED` for an empty one, None for an unknown one."""
    if value is None:
        return _UNANSWERED
    if isinstance(value, float):  # other tools write a column of 0 and 1 with gaps like this
        if math.isnan(value):
            return _UNANSWERED
        value = int(value) if value in (0.0, 1.0) else value
    word = str(value).strip().lower()
    if not word:
        return _UNANSWERED
    return _ANSWER_OF.get({"1.0": "1", "0.0": "0"}.get(word, word))


def _shown(value: object) -> str:
    """A value for a message, truncated."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "…"


# --- rows ----------------------------------------------------------------------------------------


def _numbers(query_rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The position of each of `wanted` in `query_rows`, int64; -1 if it is missing."""
    query_rows = np.asarray(query_rows)
    order = np.argsort(query_rows, kind="stable")
    ordered = query_rows[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise ValueError("query_rows must be unique")
    if not len(ordered):
        return np.full(len(wanted), -1, np.int64)
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[at] == wanted, order[at], -1).astype(np.int64)
