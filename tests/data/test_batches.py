"""Length buckets and batches: nothing lost, few shapes, within the budget."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax.data.batches import (
    batch_size,
    bucket,
    choose_buckets,
    length_buckets,
    pad_batch,
    plan_batches,
)
from nvret_jax.errors import InputError


def test_buckets_are_what_the_docstring_says():
    assert length_buckets(256) == (
        *range(4, 32, 2),
        *range(32, 64, 4),
        *range(64, 128, 8),
        *range(128, 257, 16),
    )
    assert length_buckets(300)[-3:] == (256, 288, 300)
    assert length_buckets(7) == (4, 6, 7)
    assert length_buckets(4) == (4,)
    assert length_buckets(1) == (1,)
    with pytest.raises(InputError, match="max_length=0"):
        length_buckets(0)


@given(st.integers(4, 9000))
def test_the_grid_wastes_at_most_an_eighth_of_a_text(n):
    found = bucket(n, length_buckets(9000))
    assert n <= found
    assert found - n < max(2, n / 8)


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_no_other_choice_of_buckets_costs_less(lengths, price):
    grid = (2, 3, 5, 8, 10, 12)

    def cost(chosen):
        places = [bucket(n, chosen) for n in lengths]
        return sum(places) + price * len(set(places))

    chosen = choose_buckets(np.array(lengths, np.int64), grid, price)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(grid)
    assert {bucket(n, chosen) for n in lengths} == set(chosen)  # none that is not used
    every = itertools.chain.from_iterable(itertools.combinations(grid[:-1], r) for r in range(6))
    assert cost(chosen) == min(cost((*some, grid[-1])) for some in every)


def test_few_texts_get_few_shapes_and_many_get_many():
    lengths = np.random.default_rng(0).integers(8, 60, 60_000)

    def shapes(count):
        plan = plan_batches(lengths[:count], max_length=256, token_budget=1024)
        return len({length for _, length in plan})

    assert shapes(30) == 1
    assert 2 <= shapes(1000) <= 6
    assert shapes(60_000) >= 18


def test_bucket_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="65 tokens"):
        bucket(65, length_buckets(64))


cases = st.integers(1, 300).flatmap(
    lambda max_length: st.tuples(
        st.just(max_length),
        st.lists(st.integers(0, max_length), max_size=200),
        st.integers(1, 3000),
        st.sampled_from([1, 2, 3, 8]),
    )
)


@given(cases)
@settings(max_examples=150, deadline=None)
def test_every_row_once_one_size_per_bucket_within_budget(case):
    max_length, lengths, budget, multiple = case
    plan = plan_batches(lengths, max_length=max_length, token_budget=budget, multiple_of=multiple)
    rows = [row for batch, _ in plan for row in batch.tolist() if row >= 0]
    assert sorted(rows) == list(range(len(lengths)))
    sizes = {}
    for batch, length in plan:
        assert batch.dtype == np.int32
        assert length in length_buckets(max_length)
        assert sizes.setdefault(length, len(batch)) == len(batch)
        assert len(batch) % multiple == 0
        assert len(batch) * length <= budget or len(batch) == multiple
        assert (batch + 1).any()  # no batch of padding alone
        assert all(lengths[row] <= length for row in batch.tolist() if row >= 0)
        # padding lines come last
        assert (np.diff((batch < 0).astype(int)) >= 0).all()
    assert [length for _, length in plan] == sorted((n for _, n in plan), reverse=True)
    # only the last batch of a bucket may lack rows
    assert sum((batch < 0).any() for batch, _ in plan) <= len(sizes)


def test_leftovers_go_up_only_where_that_is_cheaper():
    # 3 rows left of a batch of 10 at 16: as rows of 24 they cost 72 of 160 positions.
    plan = plan_batches([16] * 53 + [24] * 21, max_length=64, token_budget=160)
    assert [(len(rows), length) for rows, length in plan] == [(6, 24)] * 4 + [(10, 16)] * 5
    # 3 rows of 16 beside one of 256: a batch of their own is cheaper than rows of 256.
    plan = plan_batches([16] * 3 + [256], max_length=256, token_budget=256)
    assert [(len(rows), length) for rows, length in plan] == [(1, 256), (16, 16)]


def test_padding_is_little_on_spread_lengths():
    lengths = np.random.default_rng(0).integers(16, 257, 5000)
    plan = plan_batches(lengths, max_length=256, token_budget=1024)
    computed = sum(len(rows) * length for rows, length in plan)
    assert 1 - lengths.sum() / computed < 0.055
    powers = sum(2 ** int(np.ceil(np.log2(n))) for n in lengths)
    assert computed < 0.85 * powers


def test_plan_is_deterministic_and_stable():
    lengths = [6, 6, 6, 6, 28, 28]
    first = plan_batches(lengths, max_length=32, token_budget=24)
    again = plan_batches(np.array(lengths), max_length=32, token_budget=24)
    assert [(r.tolist(), n) for r, n in first] == [(r.tolist(), n) for r, n in again]
    assert [r.tolist() for r, _ in first] == [[5], [4], [0, 1, 2, 3]]
    mixed = np.tile([20, 3, 20, 7], 50)  # equal lengths keep their order, whatever the sort
    (rows, _), *_ = plan_batches(mixed, max_length=32, token_budget=10_000)
    assert rows[rows >= 0].tolist() == [
        *np.flatnonzero(mixed == 3),
        *np.flatnonzero(mixed == 7),
        *np.flatnonzero(mixed == 20),
    ]


def test_plan_refuses_bad_arguments():
    assert plan_batches([], max_length=8, token_budget=8) == []
    with pytest.raises(ValueError, match="9 tokens"):
        plan_batches([9], max_length=8, token_budget=8)
    with pytest.raises(InputError, match="token_budget=0"):
        plan_batches([1], max_length=8, token_budget=0)
    assert batch_size(512, 100, 4) == 4


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(-1, 99))
@settings(deadline=None)
def test_padded_batches_hold_the_tokens(lengths, pad_id):
    rng = np.random.default_rng(1)
    tokens = [rng.integers(100, 200, n).astype(np.int32) for n in lengths]
    seen = set()
    for rows, length in plan_batches(lengths, max_length=20, token_budget=50, multiple_of=2):
        batch = pad_batch(tokens, rows, length, pad_id)
        assert batch.tokens_bt.shape == (len(rows), length)
        assert {a.dtype.name for a in (batch.rows, batch.tokens_bt, batch.lengths_b)} == {"int32"}
        for line, row in enumerate(rows.tolist()):
            count = len(tokens[row]) if row >= 0 else 0
            assert batch.lengths_b[line] == max(1, count)
            assert (batch.tokens_bt[line, count:] == pad_id).all()
            if row >= 0:
                assert (batch.tokens_bt[line, :count] == tokens[row]).all()
                seen.add(row)
    assert seen == set(range(len(lengths)))


def test_pad_batch_refuses_a_text_that_is_too_long():
    with pytest.raises(ValueError, match="row 0 has 3 tokens"):
        pad_batch([np.arange(3)], np.array([0]), 2, 0)
