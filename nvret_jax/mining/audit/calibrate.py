"""percent='auto' and margin='auto': the least strict value that meets a target of false negatives.

The value depends on the teacher and on the data (0.90 to 0.99 in practice), so it is measured, on
at most `max_queries` training queries, in one of two ways:

    labels   at least `ENOUGH` queries have two positives or more: one stays visible, and the share
             of the hidden ones among the mined negatives is counted (`mining.audit.holdout`)
    ranks    otherwise: the share is estimated from the teacher's rank of the one known positive
             (`mining.audit.rank_estimate`)

Choices:

- The upper end of the 95 % bootstrap interval must stay under the target, not the share itself: a
  small sample then errs towards strictness. If no false negative was found, the upper end is 3 /
  queries with a negative (the rule of three), because a bootstrap of zeros has no spread.
- Values are a hundredth apart, from the positive's own score down to half of it: so no value
  prefers passages that score above the positive, and none gives only trivial negatives.
- Without labels values begin at the paper's 0.95 (a margin of 0.05): an estimate based on an
  assumption may justify a stricter value than usual, but not a laxer one.
- The value is found by bisection, which assumes that the share rises with the value. Each value
  tried costs one pass of mining, and there are at most eight.
- A target that even the strictest value misses is an error. So is one that is met only where less
  than `LEAST_FILL` of the wanted negatives are left: a rule that mines almost nothing leaves no
  false negatives, but also nothing to train on.
- Development and test splits are never used: only the given queries are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nvret_jax.data.ragged import Ragged, join_rows
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.audit import rank_estimate
from nvret_jax.mining.audit.holdout import (
    Hidden,
    Trial,
    hide,
    interval,
    queries_to_audit,
    resampled_shares,
    sample,
    try_rule,
    visible_positives,
    visible_rows,
)
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import CALIBRATED, KINDS, VALUES
from nvret_jax.search import candidates as candidates_lib
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers.ranker import Ranker

ENOUGH = 100  # queries: with fewer, zero false negatives would not show a share under 3 %
LEAST_FILL = 0.1  # of the negatives wanted, at the value chosen
_STEPS = 50  # values are hundredths below the positive's score; their largest number
_PAPER = 5  # steps of the paper's values, percent 0.95 and margin 0.05
# Candidates considered: one deeper search instead of a second search for every value.
_DEPTH = 1000

# (numbers [R], positives of these queries) -> passages excluded for each of them, int32
Exclude = Callable[[np.ndarray, Ragged], Ragged]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A value and how it was chosen.

    Attributes:
        value: of percent or margin.
        record: for a JSON file: teacher, rule, value, target, method ('labels' or 'ranks'),
            queries, share and upper end at the value, the values tried, and the reason in words.
    """

    value: float
    record: dict[str, Any]


def calibrate(
    candidates: Candidates,
    ranker: Ranker | None,
    options: Options,
    rule_name: str,
    *,
    target: float,
    max_queries: int,
    excluded: Exclude,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    seed: int = 0,
    resamples: int = 2000,
    teacher: str = "teacher",
    texts: SameText | None = None,
) -> Choice:
    """Chooses the value of one rule for one teacher.

    Args:
        candidates: of Q training queries, computed with all positives.
        ranker: of the same queries; None: only the stored candidates are used.
        options: how to mine; its rule is `rule_name`, alone or combined with others.
        rule_name: one of `rules.CALIBRATED`.
        target: share of false negatives among the negatives, in (0, 1).
        max_queries: queries used; 0: all.
        excluded: called once, with the queries used and the visible positive of each; returns what
            mining would exclude if it knew only that positive.
        query_ids, passage_ids: of all queries and passages.
        seed: of the draws: queries, visible positives, bootstrap.
        resamples: per interval.
        teacher: its name, for the record.
        texts: of the corpus, with candidates and ranker over its distinct texts; see
            `search.rankers.distinct`.

    Raises:
        InputError: the rule has no such value, there are too few queries, or even the strictest
            value misses the target, or only values that mine next to nothing meet it.
    """
    if rule_name not in CALIBRATED or rule_name not in options.rule.names:
        needs = ", ".join(f"{value}='auto' needs {name}" for name, value in CALIBRATED.items())
        raise InputError(
            f"calibrate: rule {rule_name!r} is not calibrated for mining.rule="
            f"{options.rule.name!r}; {needs}"
        )
    numbers = queries_to_audit(candidates.positive_rows, query_ids, max_queries, seed)
    labelled = len(numbers) >= ENOUGH
    if not labelled:
        numbers = sample(np.arange(len(candidates)), query_ids, max_queries, seed)
    check_enough(rule_name, len(numbers))
    hidden = one_visible(
        candidates,
        ranker,
        numbers,
        excluded,
        query_ids,
        passage_ids,
        seed,
        alone=not labelled,
        texts=texts,
    )
    if labelled:
        measure = _labels(hidden, resamples, seed)
        found: dict[str, Any] = {"method": "labels"}
    else:
        law = rank_estimate.rank_law(hidden)
        measure = _ranks(hidden, law, resamples, seed)
        found = {"method": "ranks", "relevant_per_query": round(law.relevant, 3)}
    values = _values(rule_name, hidden, 0 if labelled else _PAPER)
    tried: dict[int, dict[str, float | None]] = {}

    def holds(place: int) -> bool:
        rule = dataclasses.replace(options.rule, **{VALUES[rule_name]: values[place]})
        trial = try_rule(hidden, options, rule, passage_ids)
        slots = int(trial.slots_q.sum())
        # A value that mines nothing leaves no false negatives; `fill` decides whether it is
        # acceptable.
        share, upper = measure(trial) if slots else (0.0, 0.0)
        tried[place] = {
            "value": values[place],
            "share": round(share, 6),
            "upper": round(upper, 6),
            "hardness": round(trial.hardness, 6) if np.isfinite(trial.hardness) else None,
            "fill": round(slots / (options.num_negatives * len(numbers)), 6),
        }
        return upper <= target

    place = _least_strict(holds, len(values))
    if place is None:
        last = tried[len(values) - 1]
        raise InputError(
            f"mining.{VALUES[rule_name]}='auto': teacher {teacher!r} misses mining.calibration."
            f"target={target} even at {last['value']:g}: {last['share']:.1%} false negatives, "
            f"upper end {last['upper']:.1%}, {len(numbers)} queries; raise the target or "
            "mining.calibration.queries, or give a number"
        )
    best = tried[place]
    if best["fill"] < LEAST_FILL:
        raise InputError(
            f"mining.{VALUES[rule_name]}='auto': teacher {teacher!r} meets mining.calibration."
            f"target={target} from {best['value']:g} on, where {best['fill']:.1%} of the wanted "
            f"negatives are left, with {len(numbers)} queries; at least {LEAST_FILL:.0%} are "
            f"needed. "
            "Raise the target, give a number, or let the teacher list more candidates"
        )
    record = {
        "teacher": teacher,
        "rule": rule_name,
        "mined_with": options.rule.name,
        "value": best["value"],
        "target": target,
        **found,
        "queries": len(numbers),
        "negatives": options.num_negatives,
        "seed": seed,
        "share": best["share"],
        "upper": best["upper"],
        "tried": [tried[i] for i in sorted(tried)],
        "why": _why(rule_name, best, target, tried.get(place - 1), found, len(numbers)),
    }
    return Choice(best["value"], record)


def check_enough(rule_name: str, queries: int, at: str = "mining.", bound: str = "") -> None:
    """Raises InputError if there are too few queries to calibrate a rule on.

    Args:
        rule_name: one of `rules.VALUES`.
        queries: how many there are to calibrate on.
        at: prefix of the name of the rule's value in the message.
        bound: the key that limits their number, if there is one.
    """
    if queries < ENOUGH:
        raise InputError(
            f"{at}{VALUES[rule_name]}='auto': needs at least {ENOUGH} training queries to "
            f"calibrate on, and there are {queries}; give a number"
            + (f", or raise {bound}" if bound else "")
        )


def one_visible(
    candidates, ranker, numbers, excluded: Exclude, query_ids, passage_ids, seed, *, alone, texts
) -> Hidden:
    """The queries used, with one visible positive each and candidates of some depth.

    alone: other positives, if any, are removed from the corpus rather than hidden in it.
    """
    visible = visible_positives(candidates.positive_rows, query_ids, passage_ids, seed)
    shown = visible_rows(candidates.positive_rows, visible).take(numbers)
    barred = excluded(numbers, shown)
    hidden = hide(
        candidates, ranker, numbers, visible, excluded=barred, query_ids=query_ids, texts=texts
    )
    if alone:
        hidden = dataclasses.replace(
            hidden, excluded=join_rows(hidden.excluded, hidden.hidden_rows)
        )
    stored = int(hidden.candidates.passage_rows.counts.max(initial=0))
    if hidden.ranker is None or not hidden.ranker.deep or stored >= _DEPTH:
        return hidden
    parts = [
        candidates_lib.find(
            hidden.candidates.query_rows[block],
            block,
            hidden.ranker,
            hidden.candidates.positive_rows.take(block),
            _DEPTH,
        )
        for block in np.array_split(np.arange(len(numbers)), -(-len(numbers) // 1000))
    ]
    return dataclasses.replace(hidden, candidates=Candidates.concatenate(parts))


def _labels(hidden: Hidden, resamples: int, seed: int):
    """Share and upper end as counted."""

    def measure(trial: Trial) -> tuple[float, float]:
        shares = resampled_shares([trial], hidden.query_ids, resamples=resamples, seed=seed)
        upper = interval(shares[0])[1]
        if not trial.hits_q.any():
            upper = 3.0 / max(1, int((trial.slots_q > 0).sum()))
        return trial.share, upper

    return measure


def _ranks(hidden: Hidden, law: rank_estimate.RankLaw, resamples: int, seed: int):
    """Share and upper end as estimated."""

    def measure(trial: Trial) -> tuple[float, float]:
        estimate, shares = rank_estimate.estimate(
            trial, hidden, law, resamples=resamples, seed=seed
        )
        return estimate, interval(shares)[1]

    return measure


def _values(rule_name: str, hidden: Hidden, first: int) -> list[float]:
    """The possible values, the least strict first, from step `first` on."""
    steps = np.arange(first, _STEPS + 1) / 100
    # Cosines have a scale of 1; other scores have that of the positives.
    anchors = np.abs(hidden.candidates.positive_scores.values.astype(np.float64))
    scale = 1.0 if anchors.max() <= 1.0 + 1e-4 else float(np.median(anchors))
    return [KINDS[rule_name].calibrated(step, scale) for step in steps.tolist()]


def _least_strict(holds: Callable[[int], bool], count: int) -> int | None:
    """The first position that holds, if none before it does and all after it do; None: none."""
    if holds(0):
        return 0
    if not holds(count - 1):
        return None
    fails, good = 0, count - 1
    while good - fails > 1:
        middle = (fails + good) // 2
        if holds(middle):
            good = middle
        else:
            fails = middle
    return good


def _why(rule_name, best, target, laxer, found, queries) -> str:
    name = VALUES[rule_name]
    how = (
        f"one positive visible and the others hidden in {queries:,} queries with several"
        if found["method"] == "labels"
        else f"estimated from the ranks of the known positives of {queries:,} queries, as too few "
        f"have several; at most {found['relevant_per_query']:.1f} relevant passages per query"
    )
    said = (
        f"{how}: {name} {best['value']:g} leaves {best['share']:.1%} false negatives, upper end of "
        f"the 95 % interval {best['upper']:.1%}, target {target:.1%}"
    )
    if laxer is None:
        return f"{said}; nothing less strict is tried"
    return (
        f"{said}; {laxer['value']:g} would leave {laxer['share']:.1%}, upper {laxer['upper']:.1%}"
    )
