"""Test queries before and after training: how many won and lost, and which are worth reading.

Queries are chosen by interest, not at random: the largest gains, the largest losses, and those that
are still ranked worst. Where nothing was trained, the worst, and those that BM25 ranks better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from nvret_jax.data.dataset import Dataset
from nvret_jax.report.content import Compared, Hit, RankedQuery

_HITS = 5  # shown of a ranking
_EQUAL = 1e-9  # scores closer than this are the same

# query id -> passage ids, best first
Ranking = Mapping[str, Sequence[str]]
Scored = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Rankings of the test queries and their scores.

    Attributes:
        data, split: the queries, their corpus and judgments.
        min_relevance: judgments from this grade on are relevant.
        after: nDCG@10 by query, and `ranking_after`.
        before: the same before training; None where nothing was trained.
        bm25: the same of BM25; None where it was not scored.
    """

    data: Dataset
    split: str
    min_relevance: int
    after: Scored
    ranking_after: Ranking
    before: Scored | None = None
    ranking_before: Ranking = dataclasses.field(default_factory=dict)
    bm25: Scored | None = None
    ranking_bm25: Ranking = dataclasses.field(default_factory=dict)


def compare(ranked: Ranked, shown: int) -> Compared:
    """What became of the test queries.

    Args:
        ranked: before and after.
        shown: at most this many queries, over all groups.
    """
    ids = list(ranked.after)
    after_q = np.array([ranked.after[query] for query in ids])
    where = f"{ranked.data.name} {ranked.split}"
    groups: dict[str, list[str]] = {}
    if ranked.before is None:
        gains_q = np.zeros(0)
        third = -(-shown // 2)
    else:
        gains_q = after_q - np.array([ranked.before[query] for query in ids])
        third = -(-shown // 3)
        groups["Largest gains"] = _first(ids, -gains_q, gains_q > _EQUAL, third)
        groups["Largest losses"] = _first(ids, gains_q, gains_q < -_EQUAL, third)
    taken = {query for group in groups.values() for query in group}
    free_q = np.array([query not in taken for query in ids], bool)
    if ranked.before is None and ranked.bm25 is not None:
        ahead_q = np.array([ranked.bm25[query] for query in ids]) - after_q
        found = _first(ids, -ahead_q, ahead_q > _EQUAL, third)
        groups["BM25 ranks them better"] = found
        free_q &= np.array([query not in set(found) for query in ids], bool)
    groups["Ranked worst" if ranked.before is None else "Still ranked worst"] = _first(
        ids, after_q, free_q & (after_q < 1.0 - _EQUAL), third
    )
    left, out = shown, {}
    for heading, queries in groups.items():
        queries = queries[:left]
        left -= len(queries)
        if queries:
            out[heading] = [_query(ranked, query) for query in queries]
    return Compared(
        dataset=where,
        better=int((gains_q > _EQUAL).sum()),
        same=int((np.abs(gains_q) <= _EQUAL).sum()),
        worse=int((gains_q < -_EQUAL).sum()),
        differences=gains_q,
        groups=out,
    )


def _first(ids: Sequence[str], order_q: np.ndarray, allowed_q: np.ndarray, count: int) -> list[str]:
    """The queries with the lowest values among those allowed, in data order where equal."""
    places = [int(q) for q in np.argsort(order_q, kind="stable") if allowed_q[q]]
    return [ids[q] for q in places[:count]]


def _query(ranked: Ranked, query: str) -> RankedQuery:
    data = ranked.data
    judged = data.qrels[ranked.split][query]
    relevant = {passage for passage, grade in judged.items() if grade >= ranked.min_relevance}

    def hits(ranking: Ranking) -> list[Hit]:
        return [
            Hit(passage, data.corpus.texts[data.corpus.row[passage]], rank, passage in relevant)
            for rank, passage in enumerate(ranking.get(query, ())[:_HITS], start=1)
        ]

    def first(ranking: Ranking) -> int | None:
        for rank, passage in enumerate(ranking.get(query, ()), start=1):
            if passage in relevant:
                return rank
        return None

    of = {"after": ranked.ranking_after}
    if ranked.before is not None:
        of = {"before": ranked.ranking_before, **of}
    if ranked.bm25 is not None:
        of["BM25"] = ranked.ranking_bm25
    return RankedQuery(
        query_id=query,
        query=data.queries.texts[data.queries.row[query]],
        before=None if ranked.before is None else ranked.before[query],
        after=ranked.after[query],
        first={name: first(ranking) for name, ranking in of.items()},
        hits_before=hits(ranked.ranking_before) if ranked.before is not None else [],
        hits_after=hits(ranked.ranking_after),
    )
