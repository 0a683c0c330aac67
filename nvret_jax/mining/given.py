"""Negatives that come with a data set: added to the mined ones, used instead, or ignored.

    only    a query has only the negatives of the data set
    add     given and mined negatives alternate, a given one first, until there are enough
    ignore  only mined ones

Given negatives keep their order. The rule does not apply to them, because a person or a model may
have judged them. Those at or above the ceiling of the rule are counted, because unlabelled
positives are found there. Passages that can never be negatives are dropped here, too: judged
positives, copies of a positive, the query's own text, passages that a judge has rejected. A text
counts once for a query, whatever its ids. The first teacher scores all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.miner import Teacher
from nvret_jax.mining.negatives import GIVEN, Negatives
from nvret_jax.mining.rules import anchors


@dataclasses.dataclass(frozen=True)
class GivenCounts:
    """What happened to the negatives of the data set.

    Attributes:
        queries: training queries that have any.
        given: pairs of query and negative.
        ruled_out: of these, those that cannot be negatives of their query, or repeat a text.
        above: of the others, those that score at or above the ceiling of the rule.
        used: given negatives in the table; if each positive is an anchor, they count once per
            positive.
        without: rows without a negative.
    """

    queries: int
    given: int
    ruled_out: int
    above: int
    used: int
    without: int


def rows_of(
    given: Mapping[str, Sequence[str]], queries: Sequence[str], row: Mapping[str, int]
) -> Ragged:
    """Given negatives as passage rows.

    Args:
        given: query id -> passage ids.
        queries: ids of Q queries.
        row: passage id -> row.

    Returns:
        int32, a row per query.
    """
    return Ragged.from_rows([[row[p] for p in given.get(q, ())] for q in queries], np.int32)


def check(mode: str, given: Ragged, name: str) -> None:
    """Raises InputError if only given negatives are to be used and there are none."""
    if mode == "only" and not len(given.values):
        raise InputError(
            f"mining.given='only': no training query of data set {name} comes with negatives; "
            "use 'add', which mines them"
        )


def combine(
    negatives: Negatives,
    given: Ragged,
    mode: str,
    teacher: Teacher,
    *,
    excluded: Ragged,
    most: int,
    texts: SameText | None = None,
) -> tuple[Negatives, GivenCounts]:
    """The table of negatives with those of the data set.

    Args:
        negatives: what was mined.
        given: int32, for each query of the teacher's candidates its given negatives.
        mode: one of `options.GIVEN_MODES`.
        teacher: the first one, which scores; its candidates name queries and positives.
        excluded: int32, for each query the passages that can never be negatives, apart from
            positives.
        most: largest number of negatives per row.
        texts: of the corpus; None: every id is a distinct text.

    Returns:
        The table, with rows in the same order; and what happened.
    """
    candidates = teacher.candidates
    allowed = _allowed(given, excluded, candidates.positive_rows, texts)
    numbers_r = candidates.numbers_of(negatives.query_rows)
    scores = allowed.like(_scores(teacher, allowed))
    rule_ceilings = _ceilings(teacher, negatives, numbers_r)
    own = allowed.take(numbers_r)
    own_scores = scores.take(numbers_r)
    above = own_scores.values >= rule_ceilings[own_scores.row_of]
    counts = GivenCounts(
        queries=int((given.counts > 0).sum()),
        given=len(given.values),
        ruled_out=len(given.values) - len(allowed.values),
        above=int(above.sum()),
        used=0,
        without=int((negatives.negative_rows.counts == 0).sum()),
    )
    if mode == "ignore" or not len(given.values):
        return negatives, counts
    number = len(negatives.teachers)
    columns = {
        "negative_rows": own,
        "negative_scores": own_scores,
        "negative_ranks": own.like(np.zeros(len(own.values), np.int32)),
        "negative_teachers": own.like(np.full(len(own.values), number, np.int32)),
        "negative_ceilings": own.like(np.full(len(own.values), np.inf, np.float32)),
    }
    if mode == "add":
        sizes, order = _alternating(own, negatives.negative_rows, texts, most)
        columns = {
            name: _merged(values, getattr(negatives, name), sizes, order)
            for name, values in columns.items()
        }
    else:
        columns = {name: values.head(most) for name, values in columns.items()}
    made = dataclasses.replace(negatives, teachers=(*negatives.teachers, GIVEN), **columns)
    used = int((made.negative_teachers.values == number).sum())
    without = int((made.negative_rows.counts == 0).sum())
    return made, dataclasses.replace(counts, used=used, without=without)


def _allowed(given: Ragged, excluded: Ragged, positives: Ragged, texts: SameText | None) -> Ragged:
    """Given negatives without positives, exclusions and repeated texts."""
    first = (lambda row: row) if texts is None else texts.first_n.__getitem__
    found = []
    for query in range(len(given)):
        never = {*positives[query].tolist(), *excluded[query].tolist()}
        seen: set[int] = set()
        kept = []
        for row in given[query].tolist():
            text = int(first(row))
            if row not in never and text not in seen:
                seen.add(text)
                kept.append(row)
        found.append(kept)
    return Ragged.from_rows(found, np.int32)


def _scores(teacher: Teacher, rows: Ragged) -> np.ndarray:
    if not len(rows.values):
        return np.zeros(0, np.float32)
    if teacher.ranker is None:
        return np.full(len(rows.values), -np.inf, np.float32)
    return teacher.ranker.score(np.arange(len(rows)), rows).astype(np.float32)


def _ceilings(teacher: Teacher, negatives: Negatives, numbers_r: np.ndarray) -> np.ndarray:
    """The ceiling of each row on the first teacher's scale."""
    rule, candidates = teacher.rule, teacher.candidates
    if rule is None:
        return negatives.ceilings
    if rule.anchor == "own":
        return rule.ceilings(negatives.positive_scores.reduce(np.minimum, np.inf))
    return rule.ceilings(anchors(candidates.positive_scores, rule.anchor))[numbers_r]


def _alternating(
    own: Ragged, mined: Ragged, texts: SameText | None, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Given and mined negatives, alternating.

    Returns:
        (how many each row has, their places among the given values and then the mined ones)
    """
    rows = np.concatenate([own.row_of, mined.row_of])
    turns = np.concatenate([2 * own.position, 2 * mined.position + 1])
    values = np.concatenate([own.values, mined.values]).astype(np.int64)
    if texts is not None:
        values = texts.first_n[values].astype(np.int64)
    order = np.lexsort((turns, rows))
    # A text that both have counts at its first position.
    span = np.int64(values.max(initial=0) + 1)
    _, first = np.unique((rows * span + values)[order], return_index=True)
    fresh = np.zeros(len(order), bool)
    fresh[first] = True
    order = order[fresh]
    place = np.arange(len(order)) - np.searchsorted(rows[order], rows[order])
    order = order[place < most]
    counts = np.bincount(rows[order], minlength=len(own))
    return counts, order


def _merged(own: Ragged, mined: Ragged, counts: np.ndarray, order: np.ndarray) -> Ragged:
    values = np.concatenate([own.values, mined.values.astype(own.values.dtype)])[order]
    return Ragged(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), values)
