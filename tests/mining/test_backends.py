"""The device path and FAISS mine the same negatives, whatever the rule, scores full of ties."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax.data.ragged import Ragged
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import Rule
from nvret_jax.search import candidates
from nvret_jax.search.index.backend import make_index
from nvret_jax.search.rankers.ranker import DenseRanker


def mined(backend, queries_qd, passages_nd, positives, options, depth):
    ranker = DenseRanker(queries_qd, passages_nd, functools.partial(make_index, backend=backend))
    numbers = np.arange(len(queries_qd))
    found = candidates.find(numbers, numbers, ranker, Ragged.from_rows(positives, np.int32), depth)
    negatives, counts = mine(
        [Teacher("t", found, ranker)],
        options,
        excluded=Ragged.from_rows([[]] * len(numbers), np.int32),
        query_ids=[f"q{i}" for i in numbers],
        passage_ids=[f"p{i}" for i in range(len(passages_nd))],
    )
    return negatives, counts


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["naive", "shifted", "abs", "margin_pos", "perc_pos", "shifted+perc_pos"]),
    st.sampled_from(["own", "min", "max", "mean"]),
    st.sampled_from(["raw", "survivors"]),
    st.sampled_from(["top", "softmax"]),
    st.integers(3, 20),
)
def test_device_and_faiss_mine_the_same(seed, name, anchor, ranks, sampling, depth):
    rng = np.random.default_rng(seed)
    # Whole numbers: products are exact, and most scores are ties.
    queries_qd = rng.integers(-2, 3, (7, 5)).astype(np.float32)
    passages_nd = rng.integers(-2, 3, (61, 5)).astype(np.float32)
    positives = [sorted(rng.choice(61, rng.integers(1, 4), replace=False)) for _ in range(7)]
    rule = Rule(name, percent=0.8, margin=1.0, threshold=2.0, shift=3, anchor=anchor, ranks=ranks)
    options = Options(rule, num_negatives=4, sampling=sampling)
    one, one_counts = mined("device", queries_qd, passages_nd, positives, options, depth)
    other, other_counts = mined("faiss", queries_qd, passages_nd, positives, options, depth)
    for field in ("negative_rows", "negative_scores", "negative_ranks"):
        np.testing.assert_array_equal(getattr(one, field).values, getattr(other, field).values)
        np.testing.assert_array_equal(getattr(one, field).offsets, getattr(other, field).offsets)
    assert one_counts == other_counts


@pytest.mark.parametrize("backend", ["device", "faiss"])
def test_a_zero_vector_is_scored_zero_and_takes_nothing_with_it(backend):
    rng = np.random.default_rng(0)
    passages_nd = rng.normal(size=(30, 8)).astype(np.float32)
    passages_nd /= np.linalg.norm(passages_nd, axis=1, keepdims=True)
    passages_nd[3] = 0
    queries_qd = passages_nd[[3, 7]] + 0
    negatives, _ = mined(backend, queries_qd, passages_nd, [[3], [7]], Options(), 10)
    # Every score of the zero query is 0, and none lies strictly below 95 % of 0.
    assert negatives.ceilings[0] == 0
    assert negatives.negative_rows.counts.tolist() == [0, 4]
