"""Which of a row's mined negatives a step trains on: the best, or a new draw.

    top       the n best
    uniform   n of the pool, all equally likely
    softmax   n of the pool, one after the other and without replacement, each with probability
              proportional to exp(score / temperature)
    simans    the same with probabilities proportional to exp(-a (score - positive - b)²): what
              scores about as high as the positive, shifted by b, is taken most often (SimANS, arXiv
              2210.11773). Much easier negatives teach little; much harder ones are often false.

A draw is made by keys: the logarithm of the weight plus Gumbel noise, of which the n largest are
taken. The noise is a hash of (seed, step, query, passage), so a draw depends on nothing else: not
on the batch, the mesh or the steps before.
"""

from __future__ import annotations

import numpy as np

from nvret_jax.data.hashing import mix, uniform01
from nvret_jax.data.ragged import Ragged
from nvret_jax.training.options import Draw

_LEAST = -1e30  # log of the weight of an unscored negative, which is taken last


def drawn_places(
    draw: Draw,
    count: int,
    *,
    seed: int,
    step: int,
    query_rows: np.ndarray,
    passages: Ragged,
    scores: Ragged,
    positives: np.ndarray,
) -> np.ndarray:
    """The places of the negatives that a step takes of each row's pool.

    Args:
        draw: how.
        count: n.
        seed, step: what a draw depends on, beside the texts.
        query_rows: int [B].
        passages: int32, B rows: the pool, best first.
        scores: float32, the teacher's, of the same shape.
        positives: float [B], the score of each row's positive; its lowest.

    Returns:
        int64 [B, n], places in the rows of the pool, ascending; -1: the row has fewer.
    """
    rows_bp = passages.padded(-1, max(1, int(passages.counts.max(initial=0))))
    there_bp = rows_bp >= 0
    if draw.how == "top":
        keys_bp = np.broadcast_to(-np.arange(rows_bp.shape[1], dtype=np.float64), rows_bp.shape)
    else:
        words = np.maximum(rows_bp, 0).astype(np.uint64)
        noise_bp = uniform01(int(mix(seed, step)), query_rows.astype(np.uint64)[:, None], words)
        scores_bp = scores.padded(-np.inf, rows_bp.shape[1]).astype(np.float64)
        keys_bp = log_weights(draw, scores_bp, positives) - np.log(-np.log(noise_bp))
    keys_bp = np.where(there_bp, keys_bp, -np.inf)
    order_bp = np.argsort(-keys_bp, axis=1, kind="stable")[:, :count]
    last = rows_bp.shape[1]
    taken = np.where(np.take_along_axis(there_bp, order_bp, axis=1), order_bp, last)
    taken = np.sort(taken, axis=1)
    out = np.full((len(rows_bp), count), -1, np.int64)
    out[:, : taken.shape[1]] = np.where(taken < last, taken, -1)
    return out


def log_weights(draw: Draw, scores_bp: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """The logarithm of how likely each is drawn first, up to a constant per row; float64 [B, P]."""
    if draw.how == "uniform":
        return np.zeros(scores_bp.shape)
    if draw.how == "softmax":
        weights_bp = scores_bp / draw.temperature
    else:
        with np.errstate(invalid="ignore"):
            distance_bp = scores_bp - np.asarray(positives, np.float64)[:, None] - draw.b
            weights_bp = -draw.a * distance_bp**2
    return np.where(np.isfinite(scores_bp), weights_bp, _LEAST)


def pool_of(draw: Draw, count: int, passages: Ragged) -> int:
    """How many of the best negatives of each row can be taken.

    Args:
        draw: how.
        count: negatives that a row of a batch has.
        passages: of the table.
    """
    if draw.how == "top":
        return count
    most = int(passages.counts.max(initial=0))
    return max(count, min(draw.pool or most, most))
