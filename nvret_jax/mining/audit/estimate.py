"""How many of the negatives that a run mined are relevant after all, as far as labels or ranks say.

The same two ways as calibration has (calibrate.py), for the one rule that is mined with: counted
where enough queries have several positives, and estimated from the ranks of the known positives
otherwise. Both use only the stored candidates, so there is no further search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nvret_jax.data.same_text import SameText
from nvret_jax.mining.audit import rank_estimate
from nvret_jax.mining.audit.calibrate import ENOUGH, Exclude, one_visible
from nvret_jax.mining.audit.holdout import (
    interval,
    queries_to_audit,
    resampled_shares,
    sample,
    try_rule,
)
from nvret_jax.mining.options import Options
from nvret_jax.search.candidates import Candidates

LEAST = 20  # queries; fewer are meaningless
MOST = 2000  # queries used
_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A share of false negatives among mined negatives.

    Attributes:
        share: of the negatives.
        low, high: its 95 % interval, by a bootstrap over queries.
        method: 'labels' (counted) or 'ranks' (estimated).
        queries: used.
    """

    share: float
    low: float
    high: float
    method: str
    queries: int

    def __str__(self) -> str:
        how = {
            "labels": f"counted on {self.queries:,} queries with several positives, all but one "
            "hidden",
            "ranks": f"estimated from the ranks of the positives of {self.queries:,} queries",
        }[self.method]
        share, low, high = (f"{100 * x:.1f} %" for x in (self.share, self.low, self.high))
        return f"{share} of the negatives may be relevant (95 % interval {low} to {high}), {how}"


def estimate(
    candidates: Candidates,
    options: Options,
    *,
    excluded: Exclude,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    seed: int = 0,
    texts: SameText | None = None,
) -> Estimate | None:
    """The share of false negatives among what a rule mines from candidates.

    Args:
        candidates: of Q training queries, computed with all positives.
        options: how to mine.
        excluded: see `calibrate.calibrate`.
        query_ids, passage_ids: of all queries and passages.
        seed: of the draws.
        texts: see `calibrate.calibrate`.

    Returns:
        None where there are fewer than `LEAST` queries, or where nothing is mined.
    """
    numbers = queries_to_audit(candidates.positive_rows, query_ids, MOST, seed)
    labelled = len(numbers) >= ENOUGH
    if not labelled:
        numbers = sample(np.arange(len(candidates)), query_ids, MOST, seed)
    if len(numbers) < LEAST:
        return None
    hidden = one_visible(
        candidates,
        None,
        numbers,
        excluded,
        query_ids,
        passage_ids,
        seed,
        alone=not labelled,
        texts=texts,
    )
    trial = try_rule(hidden, options, options.rule, passage_ids)
    if not trial.slots_q.any():
        return None
    if labelled:
        share = trial.share
        shares = resampled_shares([trial], hidden.query_ids, resamples=_RESAMPLES, seed=seed)[0]
    else:
        law = rank_estimate.rank_law(hidden)
        share, shares = rank_estimate.estimate(trial, hidden, law, resamples=_RESAMPLES, seed=seed)
    low, high = interval(shares)
    if labelled and not trial.hits_q.any():  # a bootstrap of zeros knows no doubt
        high = min(1.0, 3.0 / int((trial.slots_q > 0).sum()))
    method = "labels" if labelled else "ranks"
    return Estimate(float(share), low, high, method, len(numbers))
