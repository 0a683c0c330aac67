"""The answer every ranker must give, from a full matrix of its scores; nothing clever."""

import numpy as np

from nvret_jax.data.ragged import Ragged


def rank_by_hand(scores_qn, numbers, k, ceiling_q=None, exclude=None):
    """Sorts (−score, row) tuples of what may be returned."""
    scores = np.full((len(numbers), k), -np.inf, np.float32)
    rows = np.full((len(numbers), k), -1, np.int32)
    for at, number in enumerate(numbers):
        left_out = set() if exclude is None else {int(row) for row in exclude[at]}
        allowed = [
            (-float(score), row)
            for row, score in enumerate(scores_qn[number])
            if row not in left_out and (ceiling_q is None or float(score) < ceiling_q[at])
        ]
        for place, (score, row) in enumerate(sorted(allowed)[:k]):
            scores[at, place], rows[at, place] = -score, row
    return scores, rows


def all_scores(ranker):
    """Every pair's score by the ranker's own `score`, [Q, N]."""
    q, n = ranker.queries, ranker.passages
    pairs = Ragged.from_rows([np.arange(n)] * q, np.int32)
    return ranker.score(np.arange(q), pairs).reshape(q, n)


def assert_ranks_as_its_scores_say(ranker, seed=0):
    """`rank` is exact for `score`, for any k, with and without ceilings and exclusions."""
    rng = np.random.default_rng(seed)
    scores_qn = all_scores(ranker)
    q, n = scores_qn.shape
    for k in sorted({1, 2, min(7, n), n - 1 or 1, n}):
        numbers = rng.permutation(q)[: rng.integers(1, q + 1)]
        some = scores_qn[numbers, rng.integers(0, n, len(numbers))].astype(np.float64)
        exclude = [rng.integers(0, n, rng.integers(0, 4)) for _ in numbers]
        for ceiling_q in (None, some, some + 1e-9, np.full(len(numbers), -np.inf)):
            for left_out in (None, exclude):
                got = ranker.rank(numbers, k, ceiling_q=ceiling_q, exclude=left_out)
                want = rank_by_hand(scores_qn, numbers, k, ceiling_q, left_out)
                np.testing.assert_array_equal(got[1], want[1])
                np.testing.assert_array_equal(got[0], want[0])
                assert got[0].dtype == np.float32
                assert got[1].dtype == np.int32
