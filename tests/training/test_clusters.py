"""Batches by clusters: every row once per epoch, similar rows together, the same everywhere."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax import config as config_lib
from nvret_jax.config import checks
from nvret_jax.data.ragged import Ragged
from nvret_jax.mining.negatives import Negatives
from nvret_jax.training.batches.clusters import Clusters


def grouped(groups, size, width=24, noise=0.05, rest=0, seed=0):
    """Rows in groups that have little in common, shuffled: their clusters, and the group of each.

    The `rest` is in groups with one row each.
    """
    rng = np.random.default_rng(seed)
    group_r = rng.permutation([*np.repeat(np.arange(groups), size), *range(groups, groups + rest)])
    centre_gd = rng.normal(size=(groups + rest, width))
    rows_rd = centre_gd[group_r] + noise * rng.normal(size=(len(group_r), width))
    return of(rows_rd, size), group_r


def table(positives, queries=None):
    """A table with these positives per row."""
    count = len(positives)
    rows = Ragged.from_rows(positives, np.int32)
    none = Ragged.from_rows([[] for _ in positives], np.int32)
    return Negatives(
        query_rows=np.arange(count, dtype=np.int32) if queries is None else np.asarray(queries),
        positive_rows=rows,
        positive_scores=rows.like(np.ones(len(rows.values), np.float32)),
        judged_rows=rows,
        negative_rows=none,
        negative_scores=none,
        negative_ranks=none,
        teachers=("t",),
        negative_teachers=none,
        negative_ceilings=none,
        ceilings=np.ones(count, np.float32),
    )


def of(rows_rd, size):
    """Clusters of rows whose query and positive have the same vector."""
    rows_rd = np.asarray(rows_rd, np.float32)
    return Clusters.of(table([[r] for r in range(len(rows_rd))]), rows_rd, rows_rd, size)


sizes = st.integers(1, 7).flatmap(
    lambda part: st.tuples(st.just(part), st.integers(1, 5), st.booleans())
)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 70), sizes=sizes, seed=st.integers(0, 2**31), epoch=st.integers(0, 9))
def test_every_row_comes_once_per_epoch(rows, sizes, seed, epoch):
    part, times, many = sizes
    size, batch = (part * times, part) if many else (part, part * times)
    rng = np.random.default_rng(rows)
    made = of(rng.integers(-2, 3, size=(rows, 3)), size)  # with equal rows, and rows of zeros
    order = made.order(seed, epoch, batch)
    assert sorted(order.tolist()) == list(range(rows))
    again = dataclasses.replace(made)  # another process, or a resumed one
    again.order(seed + 1, 0, batch)
    assert np.array_equal(again.order(seed, epoch, batch), order)


def test_orders_differ_by_seed_and_epoch():
    made, group_r = grouped(16, 8)
    orders = [made.order(seed, epoch, 8) for seed in range(3) for epoch in range(3)]
    assert len({order.tobytes() for order in orders}) == 9
    batches = [{frozenset(batch) for batch in order.reshape(-1, 8).tolist()} for order in orders]
    wanted = {frozenset(np.flatnonzero(group_r == g).tolist()) for g in range(16)}
    assert np.mean([len(one & wanted) for one in batches]) > 9  # most groups are found whole
    loose, _ = grouped(16, 8, noise=10.0)
    one, other = (
        {frozenset(batch) for batch in loose.order(0, epoch, 8).reshape(-1, 8).tolist()}
        for epoch in (0, 1)
    )
    assert len(one & other) < 4  # rows meet others


def test_one_cluster_is_a_permutation_at_random():
    rng = np.random.default_rng(0)
    made = of(rng.normal(size=(9, 4)), 12)
    places = np.zeros((9, 9))
    for seed in range(600):
        places[made.order(seed, 0, 4), np.arange(9)] += 1
    expected = 600 / 9
    assert ((places - expected) ** 2 / expected).sum() < 110  # chi² with 64 degrees of freedom


def likeness(rows_rd, order, size):
    """The mean cosine of two rows of a batch, one by one."""
    unit_rd = rows_rd / np.linalg.norm(rows_rd, axis=1, keepdims=True)
    found = []
    for start in range(0, len(order) - size + 1, size):
        batch = order[start : start + size]
        found += [unit_rd[a] @ unit_rd[b] for a in batch for b in batch if a != b]
    return float(np.mean(found))


def test_rows_of_a_batch_are_more_similar_than_at_random():
    made, _ = grouped(24, 16, noise=0.5)
    rows_rd = made.vectors_rd.astype(float)
    shuffled = np.random.default_rng(1).permutation(len(rows_rd))
    at_random = likeness(rows_rd, shuffled, 16)
    found = {}
    for size in (2, 4, 8, 16, 32, 384):
        order = dataclasses.replace(made, size=size).order(0, 0, 16)
        found[size] = likeness(rows_rd, order, 16)
        assert made.likeness(order, 16) == pytest.approx(found[size], abs=1e-9)
    assert abs(at_random) < 0.03
    assert found[16] > 0.5  # of 0.8 within a group
    assert found[16] > found[8] > found[4] > found[2] > at_random + 0.02
    assert found[16] > found[32] > found[384]
    assert abs(found[384] - at_random) < 0.03  # a single cluster is no clustering


@pytest.mark.parametrize("size", [4, 8])
def test_clusters_begin_where_batches_do(size):
    """Epochs of 323 rows do not end with a batch of 8."""
    made, _ = grouped(80, 4, rest=3, noise=0.01)
    rows_rd, count = made.vectors_rd.astype(float), len(made.vectors_rd)
    made = dataclasses.replace(made, size=size)
    orders = np.concatenate([made.order(0, epoch, 8) for epoch in range(5)])
    likes = []
    for epoch in range(5):
        first = -(-epoch * count // 8) * 8
        stretch = orders[first : (epoch + 1) * count]
        likes.append(likeness(rows_rd, stretch, size))
    assert max(likes) - min(likes) < 0.1 * max(likes), likes


@pytest.mark.parametrize("width", [40, 1500])
def test_sums_in_another_order_give_the_same_order(width):
    """Columns change places: exact sums do not differ, rounded ones would."""
    rng = np.random.default_rng(width)
    rows_rd = rng.normal(size=(1100, width)) + 3 * rng.normal(size=width)
    columns = rng.permutation(width)
    one, other = of(rows_rd, 8), of(rows_rd[:, columns], 8)
    assert np.array_equal(one.vectors_rd[:, columns], other.vectors_rd)
    assert np.array_equal(one.order(3, 1, 8), other.order(3, 1, 8))
    direction_d = one._direction(rng.choice([-(10**9), 10**9], width))
    assert np.abs(direction_d).max() >= 32
    assert 127 * np.abs(direction_d).sum() < 2**24  # whatever the row


class Slices:
    """Vectors that are read by slices alone, as those of a store."""

    def __init__(self, vectors_nd):
        self.vectors_nd, self.shape = vectors_nd, vectors_nd.shape

    def __len__(self):
        return len(self.vectors_nd)

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return self.vectors_nd[rows]


def test_a_row_is_its_query_and_its_positives(monkeypatch):
    monkeypatch.setattr("nvret_jax.training.batches.clusters._BLOCK", 7)
    rng = np.random.default_rng(0)
    queries_qd, passages_nd = rng.normal(size=(20, 64)), rng.normal(size=(50, 64))
    queries_qd[:, 0] += 5  # an entry that is cut off
    queries = rng.permutation(20)[:15]
    positives = [rng.choice(50, 1 + r % 3, replace=False) for r in range(15)]
    # Lengths do not count: of an inner product's vectors either.
    scaled = Slices((passages_nd * rng.uniform(0.1, 9, (50, 1))).astype(np.float16))
    made = Clusters.of(table(positives, queries), Slices(queries_qd), scaled, 4)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    for r in range(15):
        wanted = unit(queries_qd[queries[r]]) + unit(passages_nd[positives[r]]).mean(axis=0)
        assert unit(wanted) @ unit(made.vectors_rd[r].astype(float)) > 0.98, r


def test_sizes_that_fill_no_batch_are_refused():
    config = config_lib.base()
    config.train.batch_size = 32
    for size in (2, 16, 32, 96):
        config.train.cluster_size = size
        assert checks.mistakes(config) == [], size
    for size, words in (
        (24, "train.cluster_size=24: expected a divisor or a multiple of batch_size=32"),
        (1, "train.cluster_size=1: expected"),
    ):
        config.train.cluster_size = size
        (wrong,) = checks.mistakes(config)
        assert words in wrong
    config.train.cluster_size, config.train.in_batch_negatives = 32, False
    (wrong,) = checks.mistakes(config)
    assert "train.cluster_size=32: makes in-batch negatives harder" in wrong
