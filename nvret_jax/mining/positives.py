"""Positives that the teacher ranks low: doubtful pairs, left out or weighed down.

A known positive far down the teacher's ranking is either hard or wrong: a crossed line in a file, a
passage that answers another question. Its rank is counted among what could be a negative, so other
positives do not count. A doubtful pair's passage stays a known positive of its query: it is never
its negative in a batch, and anchors do not change.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Positives
from nvret_jax.mining.rules import NAIVE, Rule
from nvret_jax.mining.survivors import CELLS, judge
from nvret_jax.search.candidates import Candidates


def ranks(candidates: Candidates, excluded: Ragged) -> Ragged:
    """The rank of each positive among itself and what could be a negative, int64, from 1.

    One that scores below all stored candidates ranks behind the last.

    Args:
        candidates: of Q queries.
        excluded: int32, per query what is never a negative, positives aside.
    """
    lists, positives = candidates.passage_rows, candidates.positive_scores
    out = np.ones(len(positives.values), np.int64)
    step = max(1, CELLS // max(1, int(lists.counts.max(initial=0))))
    for start in range(0, len(lists), step):
        numbers = np.arange(start, min(start + step, len(lists)))
        no_ceiling = np.full(len(numbers), np.inf, np.float32)
        _, ranks_rk = judge(candidates, numbers, no_ceiling, Rule(NAIVE), excluded)
        scores_rk = candidates.scores.take(numbers).padded(-np.inf, ranks_rk.shape[1])
        free_rk = np.where(ranks_rk > 0, scores_rk, -np.inf)
        first, last = positives.offsets[start], positives.offsets[numbers[-1] + 1]
        row_of = positives.row_of[first:last] - start
        for at in range(0, last - first, step):  # a query may have many positives
            part = slice(at, at + step)
            ahead = free_rk[row_of[part]] > positives.values[first:last][part][:, None]
            out[first:last][part] += ahead.sum(axis=1)
    return positives.like(out)


@dataclasses.dataclass(frozen=True)
class DoubtfulCounts:
    """What became of doubtful pairs of query and positive.

    Attributes:
        pairs: pairs that rows of the table train on.
        doubtful: of them, those whose positive ranks beyond the bound.
        rows_dropped: rows that had no other positive, where pairs are dropped.
        listed: [query row, passage row, rank] of each doubtful pair.
    """

    pairs: int
    doubtful: int
    rows_dropped: int
    listed: list[tuple[int, int, int]]


def apply(
    negatives: Negatives, candidates: Candidates, ranks: Ragged, options: Positives
) -> tuple[Negatives, DoubtfulCounts]:
    """The table without doubtful pairs, or with their weights.

    Args:
        negatives: the table.
        candidates: the first teacher's.
        ranks: of all positives of the candidates, see `ranks`.
        options: what is doubtful and what becomes of it.

    Returns:
        The table, and what happened. What a judge has promoted is not doubtful.
    """
    numbers = candidates.numbers_of(negatives.query_rows)
    known, rank = candidates.positive_rows.take(numbers), ranks.take(numbers)
    own, span = negatives.positive_rows, np.int64(2**31)
    low = rank.values > options.max_rank
    keys = (known.row_of * span + known.values)[low]
    own_keys = own.row_of * span + own.values
    doubtful = np.isin(own_keys, keys)
    rank_of = dict(zip(keys.tolist(), rank.values[low].tolist(), strict=True))
    listed = {
        (int(negatives.query_rows[row]), int(passage)): rank_of[key]
        for row, passage, key in zip(
            own.row_of[doubtful].tolist(),
            own.values[doubtful].tolist(),
            own_keys[doubtful].tolist(),
            strict=True,
        )
    }
    dropped = 0
    if options.doubtful == "weigh":
        weights = np.where(doubtful, np.float32(options.weight), np.float32(1))
        changed = dataclasses.replace(negatives, positive_weights=own.like(weights))
    else:
        columns: dict[str, Any] = {
            name: getattr(negatives, name).mask(~doubtful)
            for name in ("positive_rows", "positive_scores")
        }
        changed = dataclasses.replace(negatives, **columns)
        left = np.flatnonzero(changed.positive_rows.counts > 0)
        dropped = len(negatives) - len(left)
        changed = changed.take(left)
    counts = DoubtfulCounts(
        len(own.values),
        int(doubtful.sum()),
        dropped,
        sorted((*pair, rank) for pair, rank in listed.items()),
    )
    return changed, counts
