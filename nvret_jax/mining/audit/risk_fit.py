"""The risk of negatives (`mining.risk`), fitted to hidden positives or to ranks; how true it is.

As in calibration there are two ways to know anything about false negatives:

    labels   queries with several positives: one stays visible and the others are hidden. A
             candidate is false if it is a hidden positive. Its score counts relative to the visible
             one's.
    ranks    one known positive per query. Known positives and other candidates have scores and
             ranks; where known ones are frequent, unknown ones are. With m relevant passages per
             query, of which the known is a random one, a candidate of some score and rank is
             relevant with (m - 1) times the odds that what is found there is the known one. m is
             bounded as in `rank_estimate`.

Score and rank become one index: the two weights, neither below 0, of a logistic regression. On the
index the probability is fitted by isotonic regression, so that it takes any rising form. What is
regressed are the means of groups of candidates, `_LEAST` in the topmost and a tenth more in each
next: where the risk is high there are few candidates, and each counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nvret_jax.data.hashing import stable_hash
from nvret_jax.data.ragged import Ragged, join_rows
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.audit.calibrate import ENOUGH, Exclude
from nvret_jax.mining.audit.holdout import (
    Hidden,
    hide,
    interval,
    queries_to_audit,
    sample,
    visible_positives,
    visible_rows,
    weights,
)
from nvret_jax.mining.audit.rank_estimate import RankLaw, rank_law
from nvret_jax.mining.risk import LABELS, RANKS, RiskModel, relative
from nvret_jax.search.candidates import Candidates

_LEAST, _GROWTH = 50, 1.1
# Edges of the groups of predicted risks in which false negatives are counted.
EDGES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def check_enough(how: str, queries: int, several: int, bound: str = "") -> bool:
    """Whether risks are fitted to hidden positives, and else to ranks.

    Args:
        how: 'labels', 'ranks' or 'auto'.
        queries: how many there are to fit to.
        several: how many have several positives.
        bound: the key that limits their number, if there is one.

    Raises:
        InputError: there are too few.
    """
    labelled = how == LABELS or (how == "auto" and several >= ENOUGH)
    count, what = (several, "with several positives ") if labelled else (queries, "")
    if count < ENOUGH:
        raise InputError(
            f"mining.risk={how!r}: needs at least {ENOUGH} training queries {what}to fit, and "
            f"there are {count}; "
            + (f"raise {bound}, or " if bound else "")
            + "set mining.risk='', mining.risk_budget=0 and mining.rule='perc_pos'"
        )
    return labelled


def estimate(
    candidates: Candidates,
    how: str,
    *,
    max_queries: int,
    excluded: Exclude,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    seed: int = 0,
    texts: SameText | None = None,
) -> tuple[RiskModel, int]:
    """The model of one teacher, fitted to its training queries.

    Args:
        candidates: of Q training queries, with all positives.
        how: 'labels', 'ranks' or 'auto', which takes labels where enough queries have several.
        max_queries: queries used; 0: all.
        excluded: see `calibrate.calibrate`.
        query_ids, passage_ids: of all queries and passages.
        seed: of the draw of queries and visible positives.
        texts: of the corpus.

    Returns:
        The model, and how many queries it is fitted to.

    Raises:
        InputError: there are too few queries for this.
    """
    several = queries_to_audit(candidates.positive_rows, query_ids, max_queries, seed)
    every = sample(np.arange(len(candidates)), query_ids, max_queries, seed)
    labelled = check_enough(how, len(every), len(several))
    numbers = several if labelled else every
    visible = visible_positives(candidates.positive_rows, query_ids, passage_ids, seed)
    shown = visible_rows(candidates.positive_rows, visible).take(numbers)
    hidden = hide(
        candidates,
        None,
        numbers,
        visible,
        excluded=excluded(numbers, shown),
        query_ids=query_ids,
        texts=texts,
    )
    if labelled:
        return fit_labels(hidden), len(numbers)
    # The other positives are left out of the corpus rather than hidden in it.
    barred = join_rows(hidden.excluded, hidden.hidden_rows)
    hidden = dataclasses.replace(hidden, excluded=barred)
    return fit_ranks(hidden, rank_law(hidden)), len(numbers)


def cross_checked(
    candidates: Candidates,
    *,
    visible: np.ndarray,
    excluded: Ragged,
    query_ids: Sequence[str],
    dataset: str,
    teacher: str,
    max_queries: int = 0,
    resamples: int = 2000,
    seed: int = 0,
    texts: SameText | None = None,
) -> list[Reliability]:
    """How true risks are: fitted to one half of the queries, by both methods, counted on the other.

    Args:
        candidates: of Q queries, with all positives.
        visible: int64 [Q], the positive of each that stays visible.
        excluded: int32, per query of all Q what is excluded when only that one is known.
        others: see `audit.audit`.

    Returns:
        Rows of 'labels', then of 'ranks'; none where a half has less than `ENOUGH` / 2 queries
        with several positives, or no candidate that is a hidden one.
    """
    numbers = queries_to_audit(candidates.positive_rows, query_ids, max_queries, seed)
    halves = np.sort(sample(numbers, query_ids, len(numbers) // 2, seed + 1))
    parts = []
    for part in (halves, np.setdiff1d(numbers, halves)):
        barred = excluded.take(part)
        parts.append(
            hide(candidates, None, part, visible, excluded=barred, query_ids=query_ids, texts=texts)
        )
    fit, count = parts
    if len(halves) < ENOUGH // 2 or not fit.is_hidden.any():
        return []
    alone = dataclasses.replace(fit, excluded=join_rows(fit.excluded, fit.hidden_rows))
    models = (fit_labels(fit), fit_ranks(alone, rank_law(alone)))
    how = {"dataset": dataset, "teacher": teacher, "resamples": resamples, "seed": seed}
    return [row for model in models for row in reliability(model, count, **how)]


def reliability_table(rows: Sequence[Reliability]):
    """A `rich.table.Table` of predicted and counted risks."""
    from rich.table import Table

    table = Table(title="Risk of candidates, on queries it was not fitted to", title_justify="left")
    for name in ("data set", "teacher", "fitted to"):
        table.add_column(name, no_wrap=True)
    for name in ("predicted", "counted", "95 % interval", "candidates"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        block = (row.dataset, row.teacher, row.method)
        before = rows[i - 1] if i else None
        same = before is not None and (before.dataset, before.teacher, before.method) == block
        table.add_row(
            *(("", "", "") if same else block),
            f"{row.predicted:.1%}",
            f"{row.counted:.1%}",
            f"{row.counted_low:.1%} … {row.counted_high:.1%}",
            f"{row.candidates:,}",
        )
    return table


def fit_labels(hidden: Hidden) -> RiskModel:
    """A model of which candidates are hidden positives.

    Raises:
        InputError: none is.
    """
    scores, positives, ranks, false = _entries(hidden)
    if not false.any():
        raise InputError(
            "mining.risk: no hidden positive is among the teacher's candidates, so nothing can be "
            "fitted; raise search.depth, or set mining.risk=''"
        )
    return _fit(LABELS, relative(scores, positives), ranks, false, _deepest(hidden))


def fit_ranks(hidden: Hidden, law: RankLaw) -> RiskModel:
    """A model of where known positives are found, and from it of where unknown ones may be.

    Args:
        hidden: queries with one visible positive.
        law: of `hidden`, for how many passages can be relevant.
    """
    scores, _, ranks, _ = _entries(hidden)
    known = hidden.candidates.positive_scores.values.astype(np.float64)
    found = _fit(
        RANKS,
        np.concatenate([scores, known]),
        np.concatenate([ranks, hidden.visible_ranks]),
        np.concatenate([np.zeros(len(scores), bool), np.ones(len(known), bool)]),
        _deepest(hidden),
    )
    share = np.minimum(found.risk, 1 - 1e-9)
    odds = (law.relevant - 1.0) * share / (1.0 - share)
    return dataclasses.replace(found, risk=np.minimum(odds, 1.0))


def _entries(hidden: Hidden):
    """Of each candidate that could be a negative: score, anchor, rank, whether it is false."""
    lists = hidden.candidates.passage_rows
    free = hidden.ranks.values > 0
    positives = hidden.candidates.positive_scores.values.astype(np.float64)
    return (
        hidden.candidates.scores.values.astype(np.float64)[free],
        positives[lists.row_of][free],
        hidden.ranks.values[free],
        hidden.is_hidden[free],
    )


def _deepest(hidden: Hidden) -> int:
    return 1 + int(hidden.ranks.values.max(initial=0))


def _fit(
    method: str, scores: np.ndarray, ranks: np.ndarray, false: np.ndarray, deepest: int
) -> RiskModel:
    from scipy.optimize import isotonic_regression

    of_score, of_rank = _index_weights(scores, -np.log(ranks), false)
    index = of_score * scores - of_rank * np.log(ranks)
    order = np.argsort(index, kind="stable")
    index, values = index[order], false[order].astype(np.float64)
    ends, size = [len(index)], float(_LEAST)
    while ends[-1] > 2 * size:
        ends.append(ends[-1] - int(size))
        size *= _GROWTH
    edges = np.array([0, *ends[::-1]] if ends[-1] else ends[::-1])
    counts = np.diff(edges)
    means = np.add.reduceat(values, edges[:-1]) / counts
    places = np.add.reduceat(index, edges[:-1]) / counts
    risk = isotonic_regression(means, weights=counts.astype(np.float64)).x
    return RiskModel(method, of_score, of_rank, places, risk, deepest)


def _index_weights(a: np.ndarray, b: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Weights of two features, at least 0, by logistic regression; (1, 0) where neither helps."""
    from scipy.optimize import minimize
    from scipy.special import expit

    size = np.maximum([a.std(), b.std()], 1e-12)
    x = np.stack([(a - a.mean()) / size[0], (b - b.mean()) / size[1]])
    sign = np.where(y, 1.0, -1.0)
    base = np.log(max(y.mean(), 1e-9) / max(1 - y.mean(), 1e-9))

    def loss(w):
        margin = sign * (w[0] + w[1:] @ x)
        slope = -sign * expit(-margin) / len(y)
        return np.logaddexp(0, -margin).mean(), np.array([slope.sum(), *(x @ slope)])

    start = np.array([base, 0.5, 0.5])
    bounds = [(None, None), (0, None), (0, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x[1:] / size
    return (float(found[0]), float(found[1])) if found.any() else (1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Candidates with a predicted risk in some range, and how many of them are false.

    Attributes:
        dataset, teacher, method: names.
        low, high: the range; the last one includes its end.
        candidates: in it.
        predicted: their mean risk.
        counted: the share of hidden positives among them.
        counted_low, counted_high: its 95 % bootstrap interval over queries.
    """

    dataset: str
    teacher: str
    method: str
    low: float
    high: float
    candidates: int
    predicted: float
    counted: float
    counted_low: float
    counted_high: float


def reliability(
    model: RiskModel,
    hidden: Hidden,
    *,
    dataset: str = "",
    teacher: str = "",
    resamples: int = 2000,
    seed: int = 0,
) -> list[Reliability]:
    """Predicted against counted risk on queries with hidden positives, a row per range of `EDGES`.

    Args:
        model: fitted on other queries.
        hidden: what is counted.
        dataset, teacher: names for the rows.
        resamples, seed: of the bootstrap.
    """
    scores, positives, ranks, false = _entries(hidden)
    query = hidden.candidates.passage_rows.row_of[hidden.ranks.values > 0]
    risk = model(scores, positives, ranks)
    bins = len(EDGES) - 1
    bin_of = np.clip(np.searchsorted(EDGES, risk, side="right") - 1, 0, bins - 1)
    queries = len(hidden.query_ids)
    counts_qb, false_qb = np.zeros((2, queries, bins))
    np.add.at(counts_qb, (query, bin_of), 1.0)
    np.add.at(false_qb, (query, bin_of), false.astype(np.float64))
    order = np.argsort(stable_hash(hidden.query_ids), kind="stable")
    counts_qb, false_qb = counts_qb[order], false_qb[order]
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = [(w @ false_qb) / (w @ counts_qb) for w in weights(queries, resamples, seed)]
    shares_sb = np.concatenate(drawn)
    rows = []
    for b in range(bins):
        here = bin_of == b
        if here.any():
            low, high = interval(shares_sb[:, b])
            rows.append(
                Reliability(
                    dataset,
                    teacher,
                    model.method,
                    EDGES[b],
                    EDGES[b + 1],
                    int(here.sum()),
                    float(risk[here].mean()),
                    float(false[here].mean()),
                    low,
                    high,
                )
            )
    return rows
