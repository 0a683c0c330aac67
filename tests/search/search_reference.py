"""The answer every search must give, by brute force; and input that tempts it to give another."""

import numpy as np


def brute_force(queries_qd, passages_nd, k, ceiling_q=None, exclude=None):
    """Scores in float64, everything sorted by (score descending, row ascending)."""
    scores_qn = queries_qd.astype(np.float64) @ passages_nd.astype(np.float64).T
    scores_qn = scores_qn.astype(np.float32)
    out_scores = np.full((len(queries_qd), k), -np.inf, np.float32)
    out_rows = np.full((len(queries_qd), k), -1, np.int32)
    for query, scores_n in enumerate(scores_qn):
        allowed = np.ones(len(passages_nd), bool)
        if ceiling_q is not None:
            allowed &= scores_n.astype(np.float64) < ceiling_q[query]
        if exclude is not None:
            allowed[np.asarray(exclude[query], int)] = False
        rows = np.flatnonzero(allowed)
        best = rows[np.lexsort((rows, -scores_n[rows]))][:k]
        out_rows[query, : len(best)] = best
        out_scores[query, : len(best)] = scores_n[best]
    return out_scores, out_rows


def integers(rng, rows, width=5, most=2):
    """Small whole numbers: their products are exact and nearly every score is a tie."""
    return rng.integers(-most, most + 1, (rows, width)).astype(np.float32)


def exclusions(rng, queries, n, most=6):
    """Ragged rows to leave out, some empty, some naming a row twice."""
    sizes = rng.integers(0, most + 1, queries)
    return [rng.integers(0, n, size) for size in sizes]


def assert_same(got, want):
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])
    assert got[0].dtype == np.float32
    assert got[1].dtype == np.int32


def assert_same_up_to_rounding(got, want, passages_nd, queries_qd, within=1e-5):
    """Real-valued input: scores agree, and rows differ only where scores lie within rounding."""
    np.testing.assert_allclose(got[0], want[0], atol=within, rtol=0)
    for query, at in np.argwhere(got[1] != want[1]):
        a, b = got[1][query, at], want[1][query, at]
        gap = (passages_nd[a].astype(np.float64) - passages_nd[b]) @ queries_qd[query]
        assert abs(gap) < within, (query, at, a, b, gap)
