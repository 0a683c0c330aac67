"""Which passages of a pool are taken: the best, or a draw among the best (paper section 4.3.2).

    top            the n best
    uniform        n of the `sample_from` best, all equally likely
    softmax        n of the `sample_from` best, sequentially and without replacement, each with
                   probability proportional to exp(score / temperature)
    top1_softmax   the best, and n - 1 of the others as in softmax

A draw uses keys: every passage gets score / temperature plus Gumbel noise, and the n largest keys
are taken, which has the same distribution as drawing sequentially. The noise is a hash of (seed,
query id, passage id), so a draw does not depend on the mesh, the order of queries, or the other
queries that are mined. The paper does not state the temperature, or whether it replaces.
"""

from __future__ import annotations

import numpy as np

from nvret_jax.data.hashing import uniform01
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.options import SAMPLINGS
from nvret_jax.mining.survivors import Pool
from nvret_jax.options import choice, mistake


def priorities(
    pool: Pool,
    how: str,
    *,
    sample_from: int,
    temperature: float,
    seed: int,
    task_hash: np.ndarray,
    passage_hash: np.ndarray,
) -> np.ndarray:
    """The order in which a draw takes the passages of each task.

    Args:
        pool: survivors, best first.
        how: one of `SAMPLINGS`.
        sample_from: passages past this position are taken last, in their order.
        temperature: divides the scores.
        seed: of the noise.
        task_hash: uint64 [R].
        passage_hash: uint64 [N], of all passages of the corpus.

    Returns:
        int64, for each entry of the pool its turn, from 0: the first n turns are the draw.

    Raises:
        InputError: an unknown `how`.
    """
    wrong = mistake("mining.sampling", how, choice(*SAMPLINGS))
    if wrong:
        raise InputError(wrong)
    place = pool.rows.position
    if how == "top":
        return place
    row_of = pool.rows.row_of
    noise = uniform01(seed, task_hash[row_of], passage_hash[pool.rows.values])
    key = -np.log(-np.log(noise))
    if how != "uniform":
        key = key + pool.scores.values.astype(np.float64) / temperature
    if how == "top1_softmax":
        key[place == 0] = np.inf
    key = np.where(place < sample_from, key, -np.inf)
    order = np.lexsort((place, -key, row_of))
    turns = np.empty_like(place)
    turns[order] = place  # rows stay contiguous, so the turns of sorted entries are their positions
    return turns


def random_rows(
    passages: int,
    count: int,
    forbidden: set[int],
    seed: int,
    task_hash: np.uint64,
    texts: SameText | None = None,
) -> list[int]:
    """`count` distinct passages at random, or fewer if the corpus has no more.

    Args:
        passages: N.
        count: how many.
        forbidden: rows that must not be drawn; not changed.
        seed, task_hash: what the draw depends on.
        texts: of the corpus; no text is drawn twice, or at all if a forbidden row has it.
    """
    out: list[int] = []
    text_of = None if texts is None or not texts.any_equal else texts.first_n
    taken = set(forbidden) if text_of is None else set(text_of[list(forbidden)].tolist())
    count = min(count, (passages if text_of is None else texts.count) - len(taken))
    start, size = 0, max(16, 4 * count)
    while len(out) < count and start < 64 * passages:
        turn = np.arange(start, start + size, dtype=np.uint64)
        for row in (uniform01(seed, task_hash, turn) * passages).astype(np.int64).tolist():
            text = row if text_of is None else int(text_of[row])
            if text not in taken and len(out) < count:
                taken.add(text)
                out.append(row)
        start, size = start + size, 2 * size
    return out
