"""Length buckets and batches: nothing lost, few shapes, within the budget."""

import functools
import json
import os
import pathlib

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.models.batched import block_rows
from nvret_jax.models.buckets import batch_size, bucket, length_buckets, pad_batch, plan_batches


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
    for platform in ("gpu", "tpu"):
        assert length_buckets(300, platform) == (
            *range(16, 32, 8),
            *range(32, 64, 8),
            *range(64, 128, 16),
            *range(128, 256, 32),
            256,
            300,
        )


@given(st.integers(4, 9000))
def test_the_grid_wastes_at_most_an_eighth_of_a_text(n):
    found = bucket(n, length_buckets(9000))
    assert n <= found
    assert found - n < max(2, n / 8)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=60),
    st.integers(40, 4000),
    st.sampled_from([1, 4]),
)
@settings(max_examples=60, deadline=None)
def test_no_other_plan_costs_much_less(lengths, budget, multiple):
    grid, count, price = length_buckets(60), len(lengths), min(budget, 1024)
    padded = sorted((bucket(n, grid) for n in lengths), reverse=True)

    @functools.cache
    def least(start):
        """Of all plans that begin a run anywhere: positions, and the price of their shapes."""
        if start >= count:
            return 0
        most = batch_size(padded[start], budget, multiple)
        return min(
            rows * padded[start] + price * (1 + (rows % most > 0)) + least(start + rows)
            for rows in range(multiple, count - start + most + multiple, multiple)
        )

    plan = plan_batches(lengths, max_length=60, token_budget=budget, multiple_of=multiple)
    shapes = {(len(rows), length) for rows, length in plan}
    rest = {length for rows, length in shapes if rows != batch_size(length, budget, multiple)}
    cost = sum(len(rows) * length for rows, length in plan)
    cost += price * (len({length for _, length in plan}) + len(rest))
    assert cost <= 1.05 * least(0)


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


@given(cases, st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_row_once_in_sizes_that_are_few_within_budget(case, few_sizes):
    max_length, lengths, budget, multiple = case
    plan = plan_batches(
        lengths,
        max_length=max_length,
        token_budget=budget,
        multiple_of=multiple,
        few_sizes=few_sizes,
    )
    rows = [row for batch, _ in plan for row in batch.tolist() if row >= 0]
    assert sorted(rows) == list(range(len(lengths)))
    for batch, length in plan:
        assert batch.dtype == np.int32
        assert length in length_buckets(max_length)
        most = batch_size(length, budget, multiple)
        assert len(batch) <= most
        assert len(batch) % multiple == 0
        if few_sizes and len(batch) < most:
            assert (len(batch) // multiple).bit_count() == 1
        assert len(batch) * length <= budget or len(batch) == multiple
        assert (batch + 1).any()  # no batch of padding alone
        assert all(lengths[row] <= length for row in batch.tolist() if row >= 0)
        # padding lines come last
        assert (np.diff((batch < 0).astype(int)) >= 0).all()
    assert [length for _, length in plan] == sorted((n for _, n in plan), reverse=True)
    # only the last batch may lack rows
    assert not any((batch < 0).any() for batch, _ in plan[:-1])


def test_a_batch_is_filled_up_with_shorter_texts():
    # 21 texts of 24 in batches of 6: three of 16 fill up the last one.
    plan = plan_batches([16] * 53 + [24] * 21, max_length=64, token_budget=160)
    assert [(len(rows), length) for rows, length in plan] == [(6, 24)] * 4 + [(10, 16)] * 5
    assert [int((rows >= 0).sum()) for rows, _ in plan] == [6] * 4 + [10] * 5
    plan = plan_batches([16] * 3 + [256], max_length=256, token_budget=256)
    assert [(len(rows), length) for rows, length in plan] == [(1, 256), (16, 16)]


def test_a_step_is_no_larger_than_what_there_is_to_encode():
    # One device's step has room for 4,096 texts of 16 tokens; 64 devices would compute 262,144.
    def sizes(texts, **how):
        plan = plan_batches(
            [16] * texts, max_length=256, token_budget=65_536 * 64, multiple_of=64, **how
        )
        return [len(rows) for rows, _ in plan]

    assert sizes(1) == [64]
    assert sizes(5000) == [5056]
    assert sizes(5000, few_sizes=True) == [8192]
    # Where a whole batch costs no more than a shape, it is taken.
    (small,) = plan_batches([16] * 3, max_length=256, token_budget=1024)
    assert len(small[0]) == 64


@pytest.mark.parametrize("name", ["squad", "medquad", "scifact"])
def test_most_tokens_that_an_accelerator_computes_are_text_whatever_the_devices(name):
    """Prints the rows of the table in docs/scaling.md."""
    counts = json.loads((pathlib.Path(__file__).parent / "text_lengths.json").read_text())[name]
    lengths = np.repeat(np.arange(len(counts)), counts)
    line = [f"{name}, {len(lengths):,} texts of {lengths.mean():.0f} tokens"]
    for devices in (1, 8, 64, 256):
        budget = platforms.step_tokens("tpu", "float32") * devices
        assert len(lengths) <= block_rows(budget, 256)  # so one block is all of it
        plan = plan_batches(
            lengths, max_length=256, token_budget=budget, multiple_of=devices, platform="tpu"
        )
        useful = lengths.sum() / sum(len(rows) * length for rows, length in plan)
        shapes = len({(len(rows), length) for rows, length in plan})
        line.append(f"{useful:.3f} ({shapes})")
        # 256 devices have 52 texts of SQuAD each, and the 256 longest, of 84 to 256 tokens, go
        # together: with every batch as small as can be .882 of all positions would be text.
        longest = np.sort(lengths)[::-1][::devices]
        bound = sum(bucket(int(n), length_buckets(256, "tpu")) for n in longest) * devices
        assert useful >= 0.92 * lengths.sum() / bound, (devices, useful)
        assert useful >= 0.78
        assert shapes <= 12
    print("|", " | ".join(line), "|")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squad", "medquad", "scifact"])
def test_the_lengths_are_those_of_the_data_sets(name):
    """`text_lengths.json`: how many passages have 0, 1, 2, … tokens, cut at 256."""
    data = os.environ.get("NVRET_DATA")
    if not data:
        pytest.skip(f"needs NVRET_DATA (a folder with {name} in BEIR layout)")
    model = pathlib.Path(data).parent / "models" / "paraphrase-MiniLM-L3-v2"
    if not model.is_dir():
        pytest.skip("needs paraphrase-MiniLM-L3-v2 in ../models beside NVRET_DATA")
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    lines = (pathlib.Path(data) / name / "corpus.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [f"{row.get('title', '')} {row['text']}".strip() for row in rows]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]
    counts = json.loads((pathlib.Path(__file__).parent / "text_lengths.json").read_text())[name]
    assert np.bincount(lengths, minlength=257).tolist() == counts


def test_small_steps_have_small_blocks_so_that_a_kill_costs_little():
    assert block_rows(1024, 256) == 4096  # a CPU
    assert block_rows(65_536, 256) == 16_384
    assert block_rows(256 * 65_536, 256) == 8 * 256 * 256


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
    assert [r.tolist() for r, _ in first] == [[4], [5], [0, 1, 2, 3]]
    mixed = np.tile([20, 3, 20, 7], 50)  # equal lengths keep their order, whatever the sort
    (rows, _), *_ = plan_batches(mixed, max_length=32, token_budget=10_000)
    assert rows[rows >= 0].tolist() == [
        *np.flatnonzero(mixed == 20),
        *np.flatnonzero(mixed == 7),
        *np.flatnonzero(mixed == 3),
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
