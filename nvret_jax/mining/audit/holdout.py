"""One positive per query stays visible, the others are hidden: which hidden ones get mined.

A hidden positive that is mined is a false negative for certain. The audit reports their share by
rule (audit.py), calibration searches for the value that keeps it small (calibrate.py). Choices:

- The visible positive is drawn by a hash of (seed, query id, passage id): the same on any machine,
  for any order of rows, and for every teacher.
- Mining goes through `mining.miner.mine`, on candidates that were computed once with all positives:
  hidden ones are ordinary candidates in the lists.
- Queries with too few passages stay short: nothing is dropped or filled up at random.
- A share is a ratio of sums, false negatives over mined negatives, so a query with fewer negatives
  counts less. It is resampled by whole queries, because the negatives of a query are not
  independent, and for all rules at once, so that differences between rules are paired.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from nvret_jax.data.hashing import stable_hash, uniform01
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import NAIVE, Rule
from nvret_jax.mining.survivors import CELLS, judge
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers.ranker import Ranker

_WEIGHTS_AT_ONCE = 4_000_000  # bootstrap weights in memory at a time (32 MB)


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Queries with one visible positive.

    Attributes:
        numbers: int64 [R], the queries' numbers in the full candidates.
        candidates: of these queries, with the visible positive as the only one.
        ranker: for numbers 0..R-1, or None.
        hidden_rows: int32, the positives that mining does not know.
        excluded: int32, passages that are never negatives.
        query_ids: of the R queries.
        texts: of the corpus; None: every id is a distinct text.
    """

    numbers: np.ndarray
    candidates: Candidates
    ranker: Ranker | None
    hidden_rows: Ragged
    excluded: Ragged
    query_ids: tuple[str, ...]
    texts: SameText | None = None

    @functools.cached_property
    def ranks(self) -> Ragged:
        """The rank of each candidate among possible negatives, int32 from 1; 0 for others."""
        lists = self.candidates.passage_rows
        out = np.zeros(len(lists.values), np.int32)
        step = max(1, CELLS // max(1, int(lists.counts.max(initial=0))))
        for start in range(0, len(lists), step):
            numbers = np.arange(start, min(start + step, len(lists)))
            no_ceiling = np.full(len(numbers), np.inf, np.float32)
            rule = Rule(NAIVE)
            _, ranks_rk = judge(self.candidates, numbers, no_ceiling, rule, self.excluded)
            there = np.arange(ranks_rk.shape[1]) < lists.counts[numbers][:, None]
            out[lists.offsets[start] : lists.offsets[numbers[-1] + 1]] = ranks_rk[there]
        return lists.like(out)

    @functools.cached_property
    def is_hidden(self) -> np.ndarray:
        """Whether each candidate is a hidden positive, bool."""
        lists = self.candidates.passage_rows
        return self.hidden_rows.contains(lists.row_of, lists.values)

    @functools.cached_property
    def visible_ranks(self) -> np.ndarray:
        """The rank of each visible positive among itself and the possible negatives, int64."""
        lists, scores = self.candidates.passage_rows, self.candidates.scores
        row_of = lists.row_of
        anchor = self.candidates.positive_scores.values[row_of]
        row = self.candidates.positive_rows.values[row_of]
        ahead = (scores.values > anchor) | ((scores.values == anchor) & (lists.values < row))
        ahead &= self.ranks.values > 0
        return 1 + np.bincount(row_of[ahead], minlength=len(lists))


@dataclasses.dataclass(frozen=True)
class Trial:
    """The negatives that one rule mined.

    Attributes:
        slots_q: int64 [R], negatives of each query.
        hits_q: int64 [R], hidden positives among them.
        query: int64, the query of each negative.
        ranks: int64, the rank of each among the visible positive and the possible negatives; 0 past
            the stored candidates.
        hardness, gap: means over all negatives, see `audit.Row`; nan where there is none.
        rejected_true, rejected_hidden: numbers of stored candidates rejected on the way to the
            negatives, ranked ahead of a query's last negative, that are or are not true negatives.
            If a query was left short or had to be searched for again, all stored candidates are
            ahead.
    """

    slots_q: np.ndarray
    hits_q: np.ndarray
    query: np.ndarray
    ranks: np.ndarray
    hardness: float
    gap: float
    rejected_true: int
    rejected_hidden: int

    @property
    def share(self) -> float:
        """False negatives / mined negatives; nan where nothing was mined."""
        return ratio(self.hits_q.sum(), self.slots_q.sum())


def visible_positives(
    positive_rows: Ragged, query_ids: Sequence[str], passage_ids: Sequence[str], seed: int = 0
) -> np.ndarray:
    """Draws the visible positive of each query.

    Args:
        positive_rows: int32, judged positives of Q queries, each with at least one.
        query_ids: of the Q queries.
        passage_ids: of all N passages.
        seed: of the draw.

    Returns:
        int64 [Q], positions in `positive_rows.values`. `Ragged(arange(Q + 1), values[places])` are
        the visible positives, from which the caller makes the exclusions.

    Raises:
        InputError: a query has no positive.
    """
    if (positive_rows.counts == 0).any():
        bad = int(np.argmin(positive_rows.counts))
        raise InputError(f"audit: query {query_ids[bad]!r} has no positive to keep visible")
    used, place = np.unique(positive_rows.values, return_inverse=True)
    passage_hash = stable_hash([passage_ids[row] for row in used])[place.reshape(-1)]
    row_of = positive_rows.row_of
    drawn = uniform01(seed, stable_hash(query_ids)[row_of], passage_hash)
    order = np.lexsort((drawn, row_of))  # rows stay contiguous: the first of each is the lowest
    return order[positive_rows.offsets[:-1]]


def visible_rows(positive_rows: Ragged, places: np.ndarray) -> Ragged:
    """The visible positive of each query as lists of one, from which exclusions are made."""
    offsets = np.arange(len(places) + 1, dtype=np.int64)
    return Ragged(offsets, positive_rows.values[places])


def queries_to_audit(
    positive_rows: Ragged, query_ids: Sequence[str], most: int = 0, seed: int = 0
) -> np.ndarray:
    """Numbers of the queries with at least two positives; other arguments as in `sample`."""
    return sample(np.flatnonzero(positive_rows.counts >= 2), query_ids, most, seed)


def sample(numbers: np.ndarray, query_ids: Sequence[str], most: int, seed: int) -> np.ndarray:
    """At most `most` of some queries, drawn by a hash of seed and query id; 0: all.

    Args:
        numbers: int [S], which of the Q queries; ascending.
        query_ids: of the Q queries.

    Returns:
        int64, ascending.
    """
    if most and len(numbers) > most:
        hashes = stable_hash([query_ids[number] for number in numbers])
        drawn = uniform01(seed, hashes, np.uint64(0))
        numbers = np.sort(numbers[np.argsort(drawn, kind="stable")[:most]])
    return numbers


def hide(
    candidates: Candidates,
    ranker: Ranker | None,
    numbers: np.ndarray,
    visible: np.ndarray,
    *,
    excluded: Ragged,
    query_ids: Sequence[str],
    texts: SameText | None = None,
) -> Hidden:
    """Some queries of a table, with all positives hidden but one.

    Args:
        candidates: of Q queries, computed with all positives.
        ranker: of the same Q queries.
        numbers: int [R], which queries.
        visible: int [Q], see `visible_positives`.
        excluded: int32, of the R queries.
        query_ids: of the Q queries.
        texts: of the corpus; a copy of a hidden positive is then one, too.
    """
    positives = candidates.positive_rows.take(numbers)
    scores = candidates.positive_scores.take(numbers)
    # A query's positives lie in one stretch, so its visible one is an offset into that stretch.
    at = positives.offsets[:-1] + visible[numbers] - candidates.positive_rows.offsets[numbers]
    shown = np.zeros(len(positives.values), bool)
    shown[at] = True
    seen = Candidates(
        query_rows=candidates.query_rows[numbers],
        passage_rows=candidates.passage_rows.take(numbers),
        scores=candidates.scores.take(numbers),
        positive_rows=positives.mask(shown),
        positive_scores=scores.mask(shown),
    )
    hidden = positives.mask(~shown)
    return Hidden(
        numbers=numbers,
        candidates=seen,
        ranker=None if ranker is None else _Some(ranker, numbers),
        hidden_rows=hidden if texts is None else texts.copies(hidden),
        excluded=excluded,
        query_ids=tuple(query_ids[number] for number in numbers),
        texts=texts,
    )


def try_rule(hidden: Hidden, options: Options, rule: Rule, passage_ids: Sequence[str]) -> Trial:
    """Mines with one rule and counts what should not have been mined.

    Args:
        hidden: the queries.
        options: how to mine, but for the rule; a query left short stays short.
        rule: the rule tried.
        passage_ids: of all N passages.
    """
    negatives, _ = mine(
        [Teacher("audited", hidden.candidates, hidden.ranker)],
        dataclasses.replace(options, rule=rule, short="ragged"),
        excluded=hidden.excluded,
        query_ids=hidden.query_ids,
        passage_ids=passage_ids,
        texts=hidden.texts,
    )
    return _trial(negatives, hidden, options.num_negatives, len(passage_ids))


def _trial(negatives: Negatives, hidden: Hidden, wanted: int, passages: int) -> Trial:
    rows, ranks = negatives.negative_rows, negatives.negative_ranks.values.astype(np.int64)
    query = rows.row_of
    hit = hidden.hidden_rows.contains(query, rows.values)
    anchor = hidden.candidates.positive_scores.values.astype(np.float64)[query]
    gap = anchor - negatives.negative_scores.values
    sized = anchor != 0  # nothing is relative to an anchor of 0
    hardness = 1.0 - gap[sized] / np.abs(anchor[sized])
    everything = np.iinfo(np.int64).max
    last_q = np.zeros(len(rows), np.int64)
    np.maximum.at(last_q, query, np.where(ranks > 0, ranks, everything))
    last_q[rows.counts < wanted] = everything
    standing = hidden.ranks
    ahead = (standing.values > 0) & (standing.values <= last_q[standing.row_of])
    passed = int(ahead.sum()) - int((ranks > 0).sum())
    rejected_hidden = int((ahead & hidden.is_hidden).sum()) - int((hit & (ranks > 0)).sum())
    return Trial(
        slots_q=rows.counts,
        hits_q=np.bincount(query[hit], minlength=len(rows)),
        query=query,
        ranks=np.where(ranks > 0, ranks + (ranks >= hidden.visible_ranks[query]), 0),
        hardness=float(hardness.mean()) if len(hardness) else math.nan,
        gap=float(gap.mean()) if len(gap) else math.nan,
        rejected_true=passed - rejected_hidden,
        rejected_hidden=rejected_hidden,
    )


def resampled_shares(
    trials: Sequence[Trial], query_ids: Sequence[str], *, resamples: int, seed: int
) -> np.ndarray:
    """Bootstrap: the share of each trial in samples of queries drawn with replacement.

    Args:
        trials: of the same R queries; each sample serves all of them.
        query_ids: of the R queries, which are sorted by a hash of them first, so that the order of
            the arguments changes nothing.
        resamples: samples drawn, as many queries each as there are.
        seed: of numpy's default generator.

    Returns:
        float64 [trials, resamples]; nan where a sample has no negative.
    """
    order = np.argsort(stable_hash(query_ids), kind="stable")
    hits_qt = np.stack([trial.hits_q[order] for trial in trials], 1).astype(np.float64)
    slots_qt = np.stack([trial.slots_q[order] for trial in trials], 1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        parts = [
            (weights_bq @ hits_qt) / (weights_bq @ slots_qt)
            for weights_bq in weights(len(order), resamples, seed)
        ]
    return np.concatenate(parts).T


def weights(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `count` queries is drawn in each sample, float64 [some, count] a time."""
    rng = np.random.default_rng(seed)
    step = max(1, _WEIGHTS_AT_ONCE // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


class _Some:
    """A ranker for some of the queries of another, numbered anew."""

    def __init__(self, ranker: Ranker, numbers: np.ndarray):
        self._ranker, self._numbers = ranker, np.asarray(numbers)
        self.queries, self.passages, self.deep = len(numbers), ranker.passages, ranker.deep

    def rank(self, numbers, k, **how):
        """See `Ranker.rank`."""
        return self._ranker.rank(self._numbers[numbers], k, **how)

    def score(self, numbers, pairs):
        """See `Ranker.score`."""
        return self._ranker.score(self._numbers[numbers], pairs)


def interval(values_b: np.ndarray) -> tuple[float, float]:
    """2.5th and 97.5th percentile of what is a number; nan where nothing is."""
    values_b = values_b[np.isfinite(values_b)]
    if not len(values_b):
        return math.nan, math.nan
    low, high = np.percentile(values_b, [2.5, 97.5])
    return float(low), float(high)


def ratio(a, b) -> float:
    """a / b; nan where b is 0."""
    return float(a) / float(b) if b else math.nan
