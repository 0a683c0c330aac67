"""What distillation fits where several teachers have scored: their mean, once they are calibrated.

Scores of two teachers have no common scale: a cosine, a sum of BM25 and a logit cannot be averaged.
Each teacher therefore gets one factor a, its inverse temperature: the one with which
softmax(a · scores) over a known positive and random passages gives the positive the highest
likelihood (temperature scaling, Guo et al. 2017, arXiv 1706.04599, with a list in the place of
classes). A teacher whose scores separate positives well gets a large factor for their spread,
another a small one; one that prefers random passages gets 0 and is left out. The target is the mean
of the scaled scores, which are log-probabilities up to a constant per row: the teachers'
distributions are pooled geometrically, and a temperature of 1 is the right one.

Random passages, because they are chosen by no teacher and hardly ever relevant. The candidates that
distillation compares are neither: the first teacher chose them for their scores, and where labels
are few, most of those above a positive are relevant as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nvret_jax.data.hashing import stable_hash, uniform01
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.negatives import Negatives

ROWS = 500  # of the table, the most that a calibration uses
RANDOM_PASSAGES = 32  # beside each positive
POOL = 4096  # passages that they are drawn from
MOST_LOGITS = 30.0  # of a positive above random passages, on average: the largest factor
BLOCK = 4096  # rows scored at a time
_HALVINGS = 60
_DRAW = np.uint64(0x7461726765747321)  # separates this draw from others

# Numbers of rows of the table, a list of passage rows for each -> their scores, float32.
Score = Callable[[np.ndarray, Ragged], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How one teacher was calibrated.

    Attributes:
        teacher: its name.
        factor: its scores are multiplied by this.
        log_likelihood: of a known positive among random passages, the mean over rows.
        uniform: the same if all passages of a list were equally likely.
    """

    teacher: str
    factor: float
    log_likelihood: float
    uniform: float


def add(
    negatives: Negatives,
    teachers: Mapping[str, Score],
    *,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    seed: int,
    texts: SameText | None = None,
) -> tuple[Negatives, list[Calibration]]:
    """The table with targets of its positives, negatives and, if it has any, further candidates.

    Args:
        negatives: the finished table, of R rows.
        teachers: by name, at least one.
        query_ids: of the rows' queries, [R].
        passage_ids: of the corpus.
        seed: of the draw of random passages.
        texts: which passages have equal texts; None: every id is a distinct text.

    Raises:
        InputError: a score is not finite, or there is not one for each passage; the corpus has
            nothing but positives; no teacher scores them above random passages.
    """
    chosen, random = lists(negatives, query_ids, passage_ids, seed, texts)
    sides = {"positive": negatives.positive_rows, "negative": negatives.negative_rows}
    if negatives.distilled_rows is not None:
        sides["distilled"] = negatives.distilled_rows
    sums = {side: np.zeros(len(rows.values)) for side, rows in sides.items()}
    made = []
    for name, score in teachers.items():
        scores = {side: _scored(name, score, rows) for side, rows in sides.items()}
        made.append(
            calibrate(
                name,
                sides["positive"].like(scores["positive"]).take(chosen),
                random.like(_checked(name, score(chosen, random), len(random.values))),
            )
        )
        for side, total in sums.items():
            total += made[-1].factor * scores[side].astype(np.float64)
    counting = sum(one.factor > 0 for one in made)
    if not counting:
        raise InputError(
            "mining.targets: no teacher scores the positives above random passages; there is "
            "nothing to distil"
        )
    # Only differences within a row count; large scores would leave float32 few digits for them.
    positive = negatives.positive_rows
    count_r = np.maximum(positive.counts, 1)
    mean_r = np.bincount(positive.row_of, sums["positive"], len(positive)) / count_r
    found = {
        f"{side}_targets": rows.like(
            ((sums[side] - mean_r[rows.row_of]) / counting).astype(np.float32)
        )
        for side, rows in sides.items()
    }
    return dataclasses.replace(negatives, **found), made


def _scored(name: str, score: Score, rows: Ragged) -> np.ndarray:
    """A teacher's scores of all lists, some rows at a time: an encoder gathers their vectors."""
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(rows), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(rows)))
        own = rows.take(block)
        parts.append(_checked(name, score(block, own), len(own.values)))
    return np.concatenate(parts)


def _checked(name: str, scores: np.ndarray, count: int) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.shape != (count,):
        raise InputError(
            f"{name}: scores of shape {scores.shape} for {count} passages; expected one for each"
        )
    if not np.isfinite(scores).all():
        bad = scores[np.argmin(np.isfinite(scores))]
        raise InputError(f"{name}: the score of a passage is {bad}; expected a finite number")
    return scores


def lists(
    negatives: Negatives,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    seed: int,
    texts: SameText | None = None,
) -> tuple[np.ndarray, Ragged]:
    """Some rows of the table, and random passages for each that are not judged positive.

    Which depends on the seed and the ids alone, not on their order.

    Returns:
        int64 [M], at most `ROWS`; int32 rows of passages, at most `RANDOM_PASSAGES` for each.
    """
    hashes = stable_hash(query_ids)
    of_all = uniform01(seed, stable_hash(passage_ids), _DRAW)
    pool = np.argsort(of_all, kind="stable")[:POOL].astype(np.int32)
    chosen = np.sort(np.argsort(uniform01(seed, hashes, _DRAW), kind="stable")[:ROWS])
    slots = np.arange(1, RANDOM_PASSAGES + 1, dtype=np.uint64)
    draw = uniform01(seed, hashes[chosen, None], _DRAW + slots[None, :])
    drawn = pool[np.minimum((draw * len(pool)).astype(np.int64), len(pool) - 1)]
    row_of = np.repeat(np.arange(len(chosen)), RANDOM_PASSAGES)
    random = Ragged.distinct(row_of, drawn.ravel(), len(chosen))
    judged = negatives.judged_rows.take(chosen)
    return chosen, random.minus(judged if texts is None else texts.copies(judged))


def of_queries(score: Score, numbers: np.ndarray) -> Score:
    """The scores of a table's rows, from those of queries by number.

    Args:
        score: of numbers of queries, as `Ranker.score`.
        numbers: int [R], the query of each row.
    """
    return lambda rows, pairs: score(numbers[rows], pairs)


def calibrate(teacher: str, positives: Ragged, others: Ragged) -> Calibration:
    """The factor of one teacher.

    Args:
        teacher: its name.
        positives: scores of each row's positives; each is compared with `others` alone.
        others: scores of random passages. A row without any does not count.

    Raises:
        InputError: no row counts.
    """
    row = np.flatnonzero((others.counts > 0) & (positives.counts > 0))
    if not len(row):
        raise InputError("mining.targets: the corpus has no passage to compare the positives with")
    fit = _Lists.of(positives.take(row), others.take(row))
    factor = fit.best()
    return Calibration(teacher, factor, fit.log_likelihood(factor), fit.log_likelihood(0.0))


@dataclasses.dataclass(frozen=True)
class _Lists:
    """Lists of one positive and other passages: P of them, in R rows.

    Attributes:
        positive_p: float64, above the highest of the other scores.
        row_p: the row of each.
        weight_p: one over the positives of the row.
        others: float64, below the highest of each row.
    """

    positive_p: np.ndarray
    row_p: np.ndarray
    weight_p: np.ndarray
    others: Ragged

    @classmethod
    def of(cls, positives: Ragged, others: Ragged) -> _Lists:
        top_r = others.reduce(np.maximum, 0.0).astype(np.float64)
        row_p, row = positives.row_of, others.row_of
        positive_p = positives.values.astype(np.float64) - top_r[row_p]
        values = others.values.astype(np.float64) - top_r[row]
        return cls(positive_p, row_p, 1.0 / positives.counts[row_p], others.like(values))

    def best(self) -> float:
        """The factor of the highest likelihood, which is concave in it; at most `MOST_LOGITS`."""
        slope = self._slope(0.0)
        if slope <= 0:
            return 0.0
        count_p = self.others.counts[self.row_p]
        gap = slope / np.sum(self.weight_p * count_p / (count_p + 1))
        low, high = 0.0, float(MOST_LOGITS / gap)
        if self._slope(high) >= 0:
            return high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._slope(middle) > 0 else (low, middle)
        return (low + high) / 2

    def log_likelihood(self, factor: float) -> float:
        """The mean over rows of log softmax of the positive."""
        exp_r, _ = self._sums(factor)
        own_p = factor * self.positive_p
        log_p = own_p - np.logaddexp(own_p, np.log(exp_r)[self.row_p])
        return float(np.sum(self.weight_p * log_p) / len(self.others))

    def _slope(self, factor: float) -> float:
        """The derivative of the log-likelihood by the factor, up to a positive constant."""
        exp_r, moment_r = self._sums(factor)
        # The share of the others' exponentials in a list, without an overflow.
        odds_p = np.log(exp_r)[self.row_p] - factor * self.positive_p
        share_p = 1.0 / (1.0 + np.exp(-np.clip(odds_p, -700, 700)))
        mean_p = (moment_r / exp_r)[self.row_p]
        return float(np.sum(self.weight_p * share_p * (self.positive_p - mean_p)))

    def _sums(self, factor: float) -> tuple[np.ndarray, np.ndarray]:
        """Σ exp(a s) and Σ s exp(a s) over the others of each row."""
        values, row = self.others.values, self.others.row_of
        exp = np.exp(factor * values)
        return np.bincount(row, exp), np.bincount(row, values * exp)
