"""How likely a negative is false: a probability from the teacher's score and rank, and its uses.

A model is fitted to what is known (`audit/risk_fit.py`) and says of any candidate how likely it is
relevant although no label says so. It never falls with the score nor rises with the rank. Uses:

- `of_negatives`: the risk of each mined negative, stored beside it; a loss may weight by it.
- `ceilings`: a risk budget. Per task the hardest stretch of candidates whose mean risk is within
  the budget; what ranks ahead of it is above the task's ceiling. Where a percent is one number
  for all queries, this is as strict as each query needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.rules import Rule, anchors
from nvret_jax.mining.survivors import CELLS, Fate, Tasks, judge
from nvret_jax.search.candidates import Candidates

LABELS, RANKS = "labels", "ranks"


@dataclasses.dataclass(frozen=True)
class RiskModel:
    """P(relevant | score, rank) of one teacher's candidates.

    Attributes:
        method: 'labels': the score counts relative to the anchor; 'ranks': by itself.
        score_weight, rank_weight: at least 0, of the score and of -log rank in the index.
        index: float64 [K], ascending places on the index.
        risk: float64 [K], the probability there, ascending; in between by lines.
        deepest: the rank that what is beyond the stored candidates counts as.
    """

    method: str
    score_weight: float
    rank_weight: float
    index: np.ndarray
    risk: np.ndarray
    deepest: int

    def __call__(self, scores: np.ndarray, positives: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """The probability that each is relevant.

        Args:
            scores: float, the teacher's.
            positives: float, the score of the anchor of each.
            ranks: int, from 1, positives not counted; 0: beyond the stored candidates.

        Returns:
            float64 in [0, 1], of the broadcast shape.
        """
        feature = relative(scores, positives) if self.method == LABELS else scores
        ranks = np.where(np.asarray(ranks) > 0, ranks, self.deepest)
        place = self.score_weight * np.asarray(feature, np.float64) - self.rank_weight * np.log(
            ranks
        )
        place = np.where(np.isnan(place), -np.inf, place)
        return np.interp(place, self.index, self.risk)


def relative(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """(score - anchor) / |anchor|, float64; an anchor of 0 leaves the difference."""
    scores, positives = np.asarray(scores, np.float64), np.asarray(positives, np.float64)
    size = np.abs(positives)
    return (scores - positives) / np.where(size > 0, size, 1.0)


def ceilings(
    model: RiskModel,
    candidates: Candidates,
    tasks: Tasks,
    ceilings_r: np.ndarray,
    rule: Rule,
    *,
    excluded: Ragged,
    budget: float,
    count: int,
    window: int = 0,
) -> np.ndarray:
    """The highest ceilings under which the expected share of false negatives is within a budget.

    Args:
        model: of the teacher.
        candidates: its, of Q queries.
        tasks: R tasks.
        ceilings_r: float32 [R], those of the rule; none is raised.
        rule: for its ranks, its anchor and `min_score`.
        excluded: int32, per query what is never a negative.
        budget: the mean risk that the negatives of a task may have.
        count: negatives per task.
        window: see `survivors.judge`.

    Returns:
        float32 [R]. A task of which no stretch of stored candidates is within the budget gets a
        ceiling below all of them: what a search finds under it is less likely relevant still.
    """
    positives_r = anchors(candidates.positive_scores, rule.anchor)
    lowest = np.array(ceilings_r, np.float32)
    width = max(1, int(candidates.passage_rows.counts.max(initial=0)))
    step = max(1, CELLS // width)
    for start in range(0, len(tasks), step):
        block = slice(start, start + step)
        numbers = tasks.numbers[block]
        fates_rk, ranks_rk = judge(candidates, numbers, lowest[block], rule, excluded, window)
        scores_rk = candidates.scores.take(numbers).padded(-np.inf, fates_rk.shape[1])
        kept_rk = fates_rk == Fate.SURVIVOR
        risk_rk = model(scores_rk, positives_r[block][:, None], ranks_rk)
        lowest[block] = np.minimum(
            lowest[block], _highest(risk_rk, scores_rk, kept_rk, budget, count)
        )
    return lowest


def _highest(risk_rk, scores_rk, kept_rk, budget: float, count: int) -> np.ndarray:
    """For each row the ceiling just above its first stretch within the budget."""
    # Survivors to the front of each row, in their order.
    order = np.argsort(~kept_rk, axis=1, kind="stable")
    risk_rk = np.take_along_axis(np.where(kept_rk, risk_rk, 0.0), order, axis=1)
    scores_rk = np.take_along_axis(scores_rk, order, axis=1)
    kept = kept_rk.sum(axis=1)
    place = np.arange(risk_rk.shape[1])
    end_rk = np.minimum(place[None, :] + count, kept[:, None])
    sums_rk = np.pad(np.cumsum(risk_rk, axis=1), ((0, 0), (1, 0)))
    inside = np.take_along_axis(sums_rk, end_rk, axis=1) - sums_rk[:, :-1]
    there_rk = place[None, :] < kept[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        within_rk = there_rk & (inside <= budget * (end_rk - place[None, :]))
    first = np.where(within_rk.any(axis=1), within_rk.argmax(axis=1), kept)
    before = np.take_along_axis(scores_rk, np.maximum(first - 1, 0)[:, None], axis=1)[:, 0]
    return np.where(first > 0, before, np.float32(np.inf)).astype(np.float32)


def of_negatives(
    negatives: Negatives, teachers: Mapping[str, tuple[Candidates, RiskModel]], rule: Rule
) -> Ragged:
    """The risk of each mined negative, float32, rows as `negatives.negative_rows`.

    Args:
        negatives: the table.
        teachers: what it was mined from, in its order: candidates and model by name.
        rule: for its anchor.
    """
    entries = negatives.negative_rows
    out = np.full(len(entries.values), np.nan, np.float32)
    names = {name: number for number, name in enumerate(teachers)}
    # What is given or drawn at random is scored by the first teacher.
    whose = np.array([names.get(name, 0) for name in negatives.teachers], np.int64)
    teacher_of = whose[negatives.negative_teachers.values]
    for number, (candidates, model) in enumerate(teachers.values()):
        mine = teacher_of == number
        if not mine.any():
            continue
        positives = _anchors(negatives, candidates, rule)[entries.row_of[mine]]
        out[mine] = model(
            negatives.negative_scores.values[mine],
            positives,
            negatives.negative_ranks.values[mine],
        )
    return entries.like(out)


def _anchors(negatives: Negatives, candidates: Candidates, rule: Rule) -> np.ndarray:
    """The anchor of each row of the table on one teacher's scale."""
    numbers = candidates.numbers_of(negatives.query_rows)
    rows, scores = candidates.positive_rows.take(numbers), candidates.positive_scores.take(numbers)
    own = negatives.positive_rows
    span = np.int64(2**31)
    trained = np.isin(rows.row_of * span + rows.values, own.row_of * span + own.values)
    which = "min" if rule.anchor == "own" else rule.anchor
    return anchors(scores.mask(trained), which)
