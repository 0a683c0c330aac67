"""Draws: their distribution, and what they depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax.data.hashing import stable_hash
from nvret_jax.data.ragged import Ragged
from nvret_jax.mining.options import Options
from nvret_jax.mining.sampling import priorities, random_rows
from nvret_jax.mining.survivors import Pool

SCORES = np.array([0.9, 0.7, 0.6, 0.3, 0.1], np.float32)


def pool(tasks, scores=SCORES):
    rows = Ragged.from_rows([np.arange(len(scores))] * tasks, np.int32)
    return Pool(rows, rows.like(np.tile(scores, tasks)), rows, rows, rows)


def draws(tasks, how, n, *, sample_from=4, temperature=0.2, seed=0):
    """The n passages drawn for each of many tasks, int [tasks, n]."""
    turn = priorities(
        pool(tasks),
        how,
        sample_from=sample_from,
        temperature=temperature,
        seed=seed,
        task_hash=stable_hash([f"q{i}" for i in range(tasks)]),
        passage_hash=stable_hash([f"p{i}" for i in range(len(SCORES))]),
    ).reshape(tasks, -1)
    assert (np.sort(turn, axis=1) == np.arange(len(SCORES))).all()
    return np.argsort(turn, axis=1)[:, :n]


def test_softmax_draws_each_passage_with_its_share():
    first = draws(40_000, "softmax", 1)[:, 0]
    weights = np.exp(SCORES[:4].astype(np.float64) / 0.2)
    shares = np.bincount(first, minlength=5) / len(first)
    np.testing.assert_allclose(shares[:4], weights / weights.sum(), atol=0.01)
    assert shares[4] == 0  # outside the four it draws from


def test_softmax_goes_on_without_the_passages_already_drawn():
    pairs = draws(40_000, "softmax", 2)
    weights = np.exp(SCORES[:4].astype(np.float64) / 0.2)
    after_first = pairs[pairs[:, 0] == 0][:, 1]
    shares = np.bincount(after_first, minlength=5)[1:4] / len(after_first)
    np.testing.assert_allclose(shares, weights[1:] / weights[1:].sum(), atol=0.02)


def test_uniform_draws_every_pair_alike():
    pairs = np.sort(draws(40_000, "uniform", 2), axis=1)
    _, counts = np.unique(pairs @ [10, 1], return_counts=True)
    assert len(counts) == 6
    np.testing.assert_allclose(counts / len(pairs), 1 / 6, atol=0.01)


def test_top1_softmax_always_has_the_best():
    drawn = draws(5_000, "top1_softmax", 2)
    assert (drawn[:, 0] == 0).all()
    shares = np.bincount(drawn[:, 1], minlength=5)[1:4] / len(drawn)
    weights = np.exp(SCORES[1:4].astype(np.float64) / 0.2)
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.03)


def test_a_cold_softmax_is_top_and_a_hot_one_uniform():
    cold = draws(500, "softmax", 2, temperature=1e-4)
    assert (np.sort(cold, axis=1) == [0, 1]).all()
    hot = draws(40_000, "softmax", 1, temperature=1e4)[:, 0]
    np.testing.assert_allclose(np.bincount(hot)[:4] / len(hot), 0.25, atol=0.01)


def test_another_seed_is_another_draw():
    assert (draws(200, "uniform", 1) != draws(200, "uniform", 1, seed=1)).any()


@pytest.mark.parametrize(
    ("how", "n", "sample_from", "size"),
    [("top", 4, 10, 4), ("uniform", 4, 10, 10), ("softmax", 4, 2, 4), ("top1_softmax", 1, 10, 10)],
)
def test_a_draw_asks_for_as_many_survivors_as_it_chooses_from(how, n, sample_from, size):
    options = Options(num_negatives=n, sampling=how, sample_from=sample_from)
    assert options.pool_size == size


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 5), st.data())
def test_random_rows_are_distinct_allowed_and_as_many_as_there_are(n, count, seed, data):
    forbidden = data.draw(st.sets(st.integers(0, n - 1)))
    rows = random_rows(n, count, forbidden, seed, stable_hash(["q"])[0])
    assert len(rows) == len(set(rows)) == min(count, n - len(forbidden))
    assert not set(rows) & forbidden
    assert all(0 <= row < n for row in rows)
    assert rows == random_rows(n, count, forbidden, seed, stable_hash(["q"])[0])
