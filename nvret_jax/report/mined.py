"""What mining made of one training set, for the page: counts, scores, and queries worth reading.

Examples are chosen by interest: queries with a negative that scores closest to its ceiling (where a
false negative is most likely), queries for which most candidates were rejected, and queries whose
negatives are easiest.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from nvret_jax.data.dataset import Dataset
from nvret_jax.mining.exclude.exclusion import Exclusions, Reason
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Options
from nvret_jax.mining.survivors import Fate, judge
from nvret_jax.report.content import Example, Mined, Mining, Passage, TeacherScores
from nvret_jax.search.candidates import Candidates

_WHY = {
    Fate.ABOVE: "at or above the ceiling",
    Fate.SKIPPED: "among the ranks skipped",
    Fate.BEYOND: "behind the last rank allowed",
    Fate.BELOW: "below the least score",
}
_WHY_EXCLUDED = {
    Reason.OWN_TEXT: "the query's own text",
    Reason.SAME_TEXT: "a positive's text under another id",
    Reason.NEAR_COPY: "a near copy of a positive",
    Reason.SAME_DOCUMENT: "from a positive's document",
    Reason.VERDICT: "ruled out by a judge",
}
_DROPPED_SHOWN = 5
_CLOSE = "a negative scores close to its positive"
_REJECTED = "most candidates rejected"
_EASY = "easiest negatives"


@dataclasses.dataclass(frozen=True)
class MinedSet:
    """What mining read and made of one training set.

    Attributes:
        title: of the set, for people.
        data: its queries and corpus.
        candidates: of the first teacher, each text once.
        negatives: what was kept.
        excluded: what could never be a negative of the candidates' queries.
        options: how it was mined.
        rule, teachers: for people.
        has_one_scale: whether the ceilings are on the scale of the candidates' scores.
        wanted: negatives asked for per query.
        used: how many of them training takes, in words; '' where nothing is trained.
        false_negatives: how many may be relevant, a sentence; '' where that is not known.
    """

    title: str
    data: Dataset
    candidates: Candidates
    negatives: Negatives
    excluded: Exclusions
    options: Options
    rule: str
    teachers: str
    has_one_scale: bool
    wanted: int
    used: str = ""
    false_negatives: str = ""


def mined(of: MinedSet, shown: int) -> Mined:
    """What mining made of one set; `shown`: greatest number of examples."""
    data, wanted, options = of.data, of.wanted, of.options
    candidates, negatives, excluded = of.candidates, of.negatives, of.excluded
    place = {int(row): number for number, row in enumerate(candidates.query_rows)}
    numbers_r = np.array([place[int(row)] for row in negatives.query_rows], np.int64)
    ceilings_q = negatives.ceilings
    fates_qk, ranks_qk = judge(
        candidates, numbers_r, ceilings_q, options.rule, excluded.rows, options.window
    )
    scores_qk = candidates.scores.take(numbers_r).padded(-np.inf)
    rows_qk = candidates.passage_rows.take(numbers_r).padded(-1)
    reasons_qk = excluded.take(numbers_r).reason_of(rows_qk)
    if not of.has_one_scale:
        fates_qk[:] = Fate.EMPTY
    rejected_qk = np.isin(fates_qk, [*_WHY, Fate.EXCLUDED])

    def why(q: int, k: int) -> str:
        fate = Fate(int(fates_qk[q, k]))
        if fate == Fate.EXCLUDED:
            return _WHY_EXCLUDED[Reason(int(reasons_qk[q, k]))]
        return _WHY[fate]

    def passage(row: int, score: float, **more: Any) -> Passage:
        return Passage(data.corpus.ids[row], data.corpus.texts[row], float(score), **more)

    def example(q: int, chosen: str) -> Example:
        rejected = np.flatnonzero(rejected_qk[q])[:_DROPPED_SHOWN]
        ranks = negatives.negative_ranks[q].tolist()
        return Example(
            query_id=data.queries.ids[negatives.query_rows[q]],
            query=data.queries.texts[negatives.query_rows[q]],
            positives=[
                passage(row, score)
                for row, score in zip(
                    negatives.positive_rows[q][:5], negatives.positive_scores[q][:5], strict=True
                )
            ],
            negatives=[
                passage(row, score, rank=rank or None)
                for row, score, rank in zip(
                    negatives.negative_rows[q], negatives.negative_scores[q], ranks, strict=True
                )
            ],
            dropped=[
                passage(
                    rows_qk[q, k],
                    scores_qk[q, k],
                    rank=int(ranks_qk[q, k]) or None,
                    why=why(q, int(k)),
                )
                for k in rejected
            ],
            ceiling=float(ceilings_q[q]) if np.isfinite(ceilings_q[q]) else math.inf,
            chosen=chosen,
        )

    kept = negatives.negative_rows.counts
    chosen = _chosen(negatives, rejected_qk.sum(axis=1), shown)
    return Mined(
        dataset=of.title,
        mining=Mining(
            rule=of.rule,
            teacher=of.teachers,
            queries=len(negatives),
            filled=int((kept >= wanted).sum()),
            underfilled=int((kept < wanted).sum()),
            negatives=int(kept.sum()),
            dropped={
                words: int(count)
                for words, count in (
                    *((_WHY[v], (fates_qk == v).sum()) for v in _WHY),
                    *(
                        (_WHY_EXCLUDED[r], ((reasons_qk == r) & rejected_qk).sum())
                        for r in _WHY_EXCLUDED
                    ),
                )
                if count
            },
            wanted=wanted,
            used=of.used,
            false_negatives=of.false_negatives,
        ),
        teacher_scores=TeacherScores(
            positive=negatives.positive_scores.values,
            negative=negatives.negative_scores.values,
            dropped=scores_qk[rejected_qk],
            ceiling=ceilings_q,
        ),
        examples=[example(q, reason) for q, reason in chosen.items()],
    )


def _chosen(negatives: Negatives, rejected_q: np.ndarray, shown: int) -> dict[int, str]:
    """Row -> why it is shown; half of them for negatives close to their positive."""
    count = len(negatives)
    rows = negatives.negative_rows
    lowest_q, hardest_q = np.full(count, np.inf), np.full(count, -np.inf)
    scores = negatives.positive_scores
    np.minimum.at(lowest_q, scores.row_of, scores.values.astype(np.float64))
    np.maximum.at(hardest_q, rows.row_of, negatives.negative_scores.values.astype(np.float64))
    with np.errstate(invalid="ignore"):
        gap_q = lowest_q - hardest_q  # infinite where there is no negative
    close = np.argsort(gap_q, kind="stable")
    close = close[np.isfinite(gap_q[close])]
    most = np.argsort(-rejected_q, kind="stable")
    most = most[rejected_q[most] > 0]
    quarter = shown // 4
    out: dict[int, str] = {}
    for order, reason, limit in (
        (close, _CLOSE, shown - 2 * quarter),
        (most, _REJECTED, quarter),
        (close[::-1], _EASY, quarter),
    ):
        left = [int(row) for row in order if int(row) not in out]
        out |= dict.fromkeys(left[:limit], reason)
    rest = [row for row in range(count) if row not in out]
    return out | dict.fromkeys(rest[: max(0, shown - len(out))], "")
