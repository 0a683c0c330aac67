"""How many mined negatives are relevant, estimated when each query has one known positive.

Labels do not show it, but the ranks of the known positives do. Let a query have m relevant
passages, of which the known one is a random one, and let the known one be at rank r with frequency
rho(r). Then another relevant passage is there with frequency (m - 1) rho(r), and the passage there,
given that the known one is elsewhere, is relevant with probability

    (m - 1) rho(r) / (1 - rho(r))

The share of false negatives is the mean of that over the ranks of the mined negatives. rho is
counted; m is not known, but bounded: no more than all of the k best can be relevant, so
m <= k / P(rank of the positive <= k). The bound is used, at the smallest k for which P is based on
`_INSIDE` positives. A teacher that ranks the known positive first in most queries thus indicates
that there is little else to find; one whose positives are scattered over the first hundred ranks
indicates that a hundred passages may be as good.

Assumptions: the known positive is a random one of the relevant passages (if annotators judged what
some engine ranked high, m is underestimated), and the queries have similar m and rho. The bound on
m errs towards strictness where even the best ranks hold passages that are not relevant.
docs/audit.md compares estimates with labels.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from nvret_jax.data.hashing import stable_hash
from nvret_jax.mining.audit.holdout import Hidden, Trial, weights

_INSIDE = 20  # known positives needed to estimate how many relevant passages there are
_GROWTH = 1.6  # each bin of ranks is wider than the previous one by this factor


@dataclasses.dataclass(frozen=True)
class RankLaw:
    """The ranks of the known positives among the possible negatives.

    Attributes:
        edges: int64 [bins + 1], bin b holds the ranks edges[b] to edges[b + 1] - 1.
        bin_q: int64 [Q], the bin of each query's positive; `bins` for one beyond the last.
        first: k, the ranks assumed to be all relevant.
        inside_q: bool [Q], whether the positive is among the k best.
        relevant: m, the largest possible mean number of relevant passages per query.
    """

    edges: np.ndarray
    bin_q: np.ndarray
    first: int
    inside_q: np.ndarray
    relevant: float


def rank_law(hidden: Hidden) -> RankLaw:
    """Counts the ranks of the known positives.

    Args:
        hidden: queries with one visible positive; the deeper their candidates, the better.
    """
    depth = int(hidden.candidates.passage_rows.counts.max(initial=1))
    rank_q = hidden.visible_ranks
    edges = [1]
    while edges[-1] <= depth:
        edges.append(min(depth + 1, max(edges[-1] + 1, round(edges[-1] * _GROWTH))))
    edges = np.array(edges, np.int64)
    ordered = np.sort(rank_q)
    first = int(min(ordered[min(_INSIDE, len(ordered)) - 1], depth))
    inside_q = rank_q <= first
    return RankLaw(
        edges=edges,
        bin_q=np.searchsorted(edges, rank_q, side="right") - 1,
        first=first,
        inside_q=inside_q,
        relevant=max(1.0, first / max(inside_q.mean(), 1 / len(rank_q))),
    )


def estimate(
    trial: Trial, hidden: Hidden, law: RankLaw, *, resamples: int, seed: int
) -> tuple[float, np.ndarray]:
    """The share of false negatives among the mined negatives.

    Args:
        trial: what a rule mined from `hidden`.
        law: of `hidden`.
        resamples, seed: of the bootstrap over queries, which recomputes all counts.

    Returns:
        The estimate, and float64 [resamples] of it.
    """
    bins, queries = len(law.edges) - 1, len(law.bin_q)
    # A negative past the stored candidates counts as if it were at their end: rho decreases.
    bin_of = np.searchsorted(law.edges, np.maximum(trial.ranks, 1), side="right") - 1
    bin_of = np.where(trial.ranks == 0, bins - 1, np.minimum(bin_of, bins - 1))
    slots_qb = np.zeros((queries, bins))
    np.add.at(slots_qb, (trial.query, bin_of), 1.0)
    found_qb = (law.bin_q[:, None] == np.arange(bins)).astype(np.float64)
    inside_q = law.inside_q.astype(np.float64)

    def shares(weights_sq):
        rho_sb = weights_sq @ found_qb / queries / np.diff(law.edges)
        slots_sb = weights_sq @ slots_qb
        within = np.maximum(weights_sq @ inside_q / queries, 1 / queries)
        most = np.maximum(1.0, law.first / within)
        with np.errstate(divide="ignore", invalid="ignore"):
            odds_sb = np.nan_to_num(rho_sb / (1.0 - rho_sb))
            false_sb = np.minimum((most[:, None] - 1.0) * odds_sb, 1.0)
            return (false_sb * slots_sb).sum(axis=1) / slots_sb.sum(axis=1)

    order = np.argsort(stable_hash(hidden.query_ids), kind="stable")
    slots_qb, found_qb, inside_q = slots_qb[order], found_qb[order], inside_q[order]
    drawn = [shares(part) for part in weights(queries, resamples, seed)]
    return float(shares(np.ones((1, queries)))[0]), np.concatenate(drawn)
