"""The order of a stage's units: each once, in its source's order, however it is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax.training.batches.mixing_order import ROUND, MixingOrder

counts_of_sources = st.lists(st.integers(0, 2500), min_size=1, max_size=5).filter(sum)


@settings(max_examples=50, deadline=None)
@given(counts=counts_of_sources, seed=st.integers(0, 2**63), data=st.data())
def test_every_unit_of_every_source_has_one_place(counts, seed, data):
    order, total = MixingOrder(tuple(counts), seed), sum(counts)
    sources, units = order.stretch(0, total)
    for source, count in enumerate(counts):
        assert units[sources == source].tolist() == list(range(count))
    first = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(first + 1, total))
    part = order.stretch(first, stop)
    np.testing.assert_array_equal(part[0], sources[first:stop])
    np.testing.assert_array_equal(part[1], units[first:stop])


def test_any_stretch_of_the_stage_has_the_mix_of_the_whole():
    counts = (60_000, 30_000, 9_000, 1_000)
    sources, _ = MixingOrder(counts, 1).stretch(0, sum(counts))
    for first in range(0, len(sources), 10 * ROUND):
        part = sources[first : first + 10 * ROUND]
        for source, count in enumerate(counts):
            # Whole rounds are exact to one unit; the two that are cut hold at most their own.
            share = count / sum(counts)
            assert np.count_nonzero(part == source) == pytest.approx(len(part) * share, abs=90)


def test_order_is_shuffled_and_follows_the_seed():
    counts = (500, 500)
    sources, _ = MixingOrder(counts, 1).stretch(0, 1000)
    changes = np.count_nonzero(np.diff(sources))
    assert 430 < changes < 570  # 500 expected of a fair shuffle, with a deviation of 16
    assert sources.tolist() == MixingOrder(counts, 1).stretch(0, 1000)[0].tolist()
    assert sources.tolist() != MixingOrder(counts, 2).stretch(0, 1000)[0].tolist()


def test_no_two_rounds_have_the_same_order():
    sources, _ = MixingOrder((2 * ROUND, 2 * ROUND), 1).stretch(0, 4 * ROUND)
    assert len({tuple(part) for part in sources.reshape(4, ROUND).tolist()}) == 4


def test_the_order_is_the_same_in_every_version():
    assert MixingOrder((4, 3, 2), 0).stretch(0, 9)[0].tolist() == [0, 0, 0, 2, 1, 0, 2, 1, 1]
