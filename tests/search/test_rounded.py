"""Vectors in another dtype: rounded once, and the same for a search and for a single score."""

import ml_dtypes
import numpy as np
import pytest

from nvret_jax.data.ragged import Ragged
from nvret_jax.search.index import backend, rounded
from nvret_jax.search.rankers.ranker import DenseRanker

BFLOAT16 = ml_dtypes.bfloat16


def unit(rows, seed):
    x = np.random.default_rng(seed).normal(size=(rows, 64)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


PASSAGES = unit(500, 0)
QUERIES = unit(20, 1) + PASSAGES[:20]


def test_what_is_in_the_dtype_already_is_not_wrapped():
    assert rounded.passages(PASSAGES, "auto") is PASSAGES
    assert rounded.passages(PASSAGES, "float32") is PASSAGES
    narrow = PASSAGES.astype(BFLOAT16)
    assert rounded.passages(narrow, "auto") is narrow
    assert rounded.passages(narrow, "float32")[3:5].dtype == np.float32
    np.testing.assert_array_equal(rounded.queries(QUERIES, "auto"), QUERIES)


@pytest.mark.parametrize("name", ["device", "faiss"])
def test_a_search_and_a_single_score_round_alike(name):
    passages = rounded.passages(PASSAGES, "bfloat16")
    assert (passages.shape, passages.dtype, len(passages)) == ((500, 64), BFLOAT16, 500)
    queries = rounded.queries(QUERIES, "bfloat16")
    ranker = DenseRanker(queries, passages, lambda p: backend.make_index(p, backend=name))
    numbers = np.arange(20)
    scores, rows = ranker.rank(numbers, 10)
    alone = ranker.score(numbers, Ragged.from_rows(rows.tolist(), np.int32))
    np.testing.assert_allclose(scores.ravel(), alone, atol=1e-6)
    exact = QUERIES.astype(BFLOAT16).astype(np.float64) @ PASSAGES.astype(BFLOAT16).T.astype(float)
    np.testing.assert_allclose(scores, -np.sort(-exact)[:, :10], atol=1e-6)


def test_ranks_are_nearly_those_of_float32():
    exact = backend.search(QUERIES, PASSAGES, 10, backend="device")[1]
    narrow = backend.search(
        rounded.queries(QUERIES, "bfloat16"),
        rounded.passages(PASSAGES, "bfloat16"),
        10,
        backend="device",
    )[1]
    shared = np.mean([len(set(a) & set(b)) for a, b in zip(exact, narrow, strict=True)])
    assert shared >= 9.5
    assert (exact[:, 0] == narrow[:, 0]).all()
    assert (exact != narrow).any()  # the rounding is there
