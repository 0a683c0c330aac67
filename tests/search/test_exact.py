"""exact.search against brute force: order among ties, tiles, groups, masks, errors."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import (
    assert_same,
    assert_same_up_to_rounding,
    brute_force,
    exclusions,
    integers,
)

from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.mesh import make_mesh
from nvret_jax.search.index import exact, grouped, memory, steps

ONE = make_mesh(devices=jax.devices()[:1])


@settings(max_examples=14, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([1, 7, 64, 200, 1000]),
    queries=st.sampled_from([1, 9, 40]),
    k=st.sampled_from([1, 3, 20]),
    tile=st.sampled_from([None, 1, 8, 96, 256, 5000]),
    with_ceiling=st.booleans(),
    with_exclude=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_any_mask(n, queries, k, tile, with_ceiling, with_exclude, seed):
    if tile is not None and n / tile > 64:
        tile = 64
    k = min(k, n)
    rng = np.random.default_rng(seed)
    queries_qd, passages_nd = integers(rng, queries), integers(rng, n)
    ceiling_q = rng.integers(-4, 9, queries).astype(np.float64) if with_ceiling else None
    exclude = exclusions(rng, queries, n) if with_exclude else None
    got = exact.search(
        queries_qd, passages_nd, k, ceiling_q=ceiling_q, exclude=exclude, mesh=ONE, tile=tile
    )
    assert_same(got, brute_force(queries_qd, passages_nd, k, ceiling_q, exclude))


@pytest.mark.parametrize(("n", "k", "tile"), [(4096, 10, 4096), (4096, 50, 1024), (3000, 10, 512)])
def test_groups_find_ties_in_other_groups(n, k, tile):
    """Sizes at which groups of passages are used; all scores equal but for a few."""
    assert grouped.group_size(tile, k, "cpu") > 1
    passages_nd = np.ones((n, 2), np.float32)
    passages_nd[[5, n - 1, n // 2]] = 2
    passages_nd[::3] *= -1
    queries_qd = np.array([[1, 0], [0, -1], [0, 0]], np.float32)
    got = exact.search(queries_qd, passages_nd, k, mesh=ONE, tile=tile)
    assert_same(got, brute_force(queries_qd, passages_nd, k))


def test_clustered_vectors_and_many_query_blocks(monkeypatch):
    """With the sizes set so low that blocks, pieces and masked pieces are all in use."""
    few = dataclasses.replace(platforms.limits("cpu"), tile_scores=2048 * 16)
    monkeypatch.setitem(platforms.PLATFORMS, "cpu", few)
    monkeypatch.setattr(steps, "SPLIT", 0)
    monkeypatch.setattr(grouped, "MASKED", 2048 * 4)
    steps.fold.cache_clear()
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((6, 24))
    passages_nd = centres[rng.integers(0, 6, 4000)] + 0.1 * rng.standard_normal((4000, 24))
    queries_qd = centres[rng.integers(0, 6, 45)] + 0.1 * rng.standard_normal((45, 24))
    passages_nd, queries_qd = passages_nd.astype(np.float32), queries_qd.astype(np.float32)
    reference = brute_force(queries_qd, passages_nd, 30)
    ceiling_q = reference[0][:, 10:12].mean(axis=1, dtype=np.float64)
    exclude = [list(rows[[12, 15]]) for rows in reference[1]]
    index = exact.ExactIndex(passages_nd, mesh=ONE, tile=2048)
    for masks in ({}, {"ceiling_q": ceiling_q}, {"exclude": exclude}):
        want = brute_force(queries_qd, passages_nd, 30, **masks)
        got = index.search(queries_qd, 30, **masks)
        assert (index.plan.query_block, index.plan.query_blocks) == (16, 3)
        assert_same_up_to_rounding(got, want, passages_nd, queries_qd)


def test_equal_vectors_score_equal_wherever_they_stand():
    """Real-valued copies of one vector, spread over tiles, come back in row order."""
    rng = np.random.default_rng(4)
    distinct = rng.standard_normal((50, 96)).astype(np.float32)
    which = rng.integers(0, 50, 3000)
    queries_qd = rng.standard_normal((20, 96)).astype(np.float32)
    _, rows = exact.search(queries_qd, distinct[which], 40, mesh=ONE, tile=512)
    for query in range(20):
        copies = which[rows[query]]
        for one in np.unique(copies):
            found = rows[query][copies == one]
            assert (np.diff(found) > 0).all()
            assert (found == np.flatnonzero(which == one)[: len(found)]).all()


@pytest.mark.parametrize("tile", [None, 8])
def test_zeros_of_either_sign_are_equal(tile):
    passages_nd = np.array([[-1.0], [1.0], [-2.0], [0.0], [-0.0]] * 8, np.float32)
    queries_qd = np.array([[0.0], [-0.0]], np.float32)
    _, rows = exact.search(queries_qd, passages_nd, 12, mesh=ONE, tile=tile)
    assert rows.tolist() == [list(range(12))] * 2


def test_ceiling_is_strict_in_full_precision():
    passages_nd = np.array([[0.1], [0.2], [0.3]], np.float32)
    query = np.ones((1, 1), np.float32)
    at = float(np.float32(0.2))
    for ceiling, first in ((at, 0), (at + 1e-12, 1), (np.inf, 2), (-np.inf, -1)):
        _, rows = exact.search(query, passages_nd, 1, ceiling_q=[ceiling], mesh=ONE)
        assert rows[0, 0] == first, ceiling


def test_fewer_left_than_asked_for():
    scores, rows = exact.search(
        np.ones((1, 1), np.float32),
        np.array([[3.0], [1.0], [2.0]], np.float32),
        3,
        exclude=[[0, 0]],
        mesh=ONE,
    )
    assert rows.tolist() == [[2, 1, -1]]
    assert scores.tolist() == [[2.0, 1.0, -np.inf]]


class Rows:
    """Only what search may rely on: shape, dtype, and slices of rows."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, []

    def __getitem__(self, rows):
        self.read.append((rows.start, rows.stop))
        return self.array[rows]


def test_passages_are_read_once_in_slices(monkeypatch):
    monkeypatch.setattr(memory, "READ_ROWS", 100)
    rng = np.random.default_rng(5)
    passages, queries_qd = Rows(integers(rng, 777).astype(np.float16)), integers(rng, 4)
    got = exact.search(queries_qd, passages, 5, mesh=ONE, tile=256)
    assert_same(got, brute_force(queries_qd, passages.array, 5))
    assert max(b - a for a, b in passages.read) <= 100
    assert sorted(r for a, b in passages.read for r in range(a, b)) == list(range(777))


def test_no_queries():
    scores, rows = exact.search(np.empty((0, 3), np.float32), np.ones((4, 3), np.float32), 2)
    assert scores.shape == rows.shape == (0, 2)


def _bad(rows, row, value):
    array = np.ones((rows, 3), np.float32)
    array[row, 1] = value
    return array


@pytest.mark.parametrize("search", ["exact", "faiss"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 11}, ["k=11", "10"]),
        ({"k": 0}, ["k=0"]),
        ({"queries_qd": np.ones((2, 4), np.float32)}, ["4 wide", "passages 3"]),
        ({"queries_qd": np.ones(3, np.float32)}, ["shape (3,)"]),
        ({"queries_qd": np.ones((2, 3), np.int32)}, ["int32"]),
        ({"queries_qd": _bad(2, 1, np.nan)}, ["queries row 1", "nan"]),
        ({"queries_qd": _bad(2, 0, np.inf)}, ["queries row 0", "inf"]),
        ({"passages_nd": _bad(10, 7, np.nan)}, ["passages row 7", "nan"]),
        ({"passages_nd": _bad(10, 9, -np.inf)}, ["passages row 9", "-inf"]),
        ({"passages_nd": _bad(10, 3, 1e30)}, ["passages row 3", "1e+30"]),
        ({"passages_nd": np.ones((0, 3), np.float32)}, ["(0, 3)", "nothing to search"]),
        ({"passages_nd": np.ones((10,), np.float32)}, ["shape (10,)"]),
        ({"ceiling_q": np.ones(3)}, ["ceiling_q", "(3,)", "(2,)"]),
        ({"ceiling_q": np.array([1, np.nan])}, ["ceiling_q", "query 1"]),
        ({"exclude": [[1]]}, ["exclude", "1 lists for 2 queries"]),
        ({"exclude": [[1], [10]]}, ["row 10", "query 1", "10 passages"]),
        ({"exclude": [[-1], []]}, ["row -1", "query 0"]),
    ],
)
def test_bad_input(search, change, words):
    from nvret_jax.search.index import faiss_index

    arguments = {
        "queries_qd": np.ones((2, 3), np.float32),
        "passages_nd": np.ones((10, 3), np.float32),
        "k": 2,
        "mesh": ONE,
    } | change
    with pytest.raises(InputError) as error:
        {"exact": exact.search, "faiss": faiss_index.search}[search](**arguments)
    for word in words:
        assert word in str(error.value)


def test_group_size_divides_and_leaves_enough_groups():
    for n in (1, 8, 100, 4096, 5184, 131072):
        for k in (1, 10, 100, 1000):
            for platform in ("cpu", "gpu", "tpu"):
                group = grouped.group_size(n, k, platform)
                assert n % group == 0
                assert group == 1 or n // group > k
    assert grouped.group_size(131072, 100, "gpu") == 32
    assert grouped.group_size(131072, 100, "tpu") == grouped.LANES


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([1, 40, 1001, 4099, 30_011]),
    k=st.sampled_from([1, 7, 100]),
    few=st.integers(1, 400),
    seed=st.integers(0, 99),
)
def test_a_gpu_s_top_k_is_the_first_of_a_stable_sort(n, k, few, seed):
    """With many ties, minus infinity in most places of some rows, and any number of levels."""
    k, rng = min(k, n), np.random.default_rng(seed)
    values_qn = rng.integers(0, few, (3, n)).astype(np.float32)
    values_qn[0, rng.random(n) < 0.999] = -np.inf
    values, position = jax.jit(steps.top_k, static_argnums=(1, 2))(values_qn, k, "gpu")
    expected = np.argsort(-values_qn, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(position, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(values_qn, expected, axis=1))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_steps_of_an_accelerator_give_the_same_answers(monkeypatch, platform):
    """Ties, ceilings, exclusions that empty a group, a tile with padding: as on a CPU."""
    monkeypatch.setattr(platforms, "of", lambda mesh: platform)
    steps.fold.cache_clear()
    rng = np.random.default_rng(11)
    passages_nd, queries_qd = integers(rng, 9000), integers(rng, 24)
    exclude = exclusions(rng, 24, 9000)
    exclude[3] = np.arange(128, 256)  # a whole group
    exclude[5] = np.argsort(-(passages_nd @ queries_qd[5]), kind="stable")[:50]
    given = {"ceiling_q": rng.integers(0, 9, 24).astype(np.float64), "exclude": exclude}
    seen = []
    multiply = steps.multiply
    monkeypatch.setattr(steps, "multiply", lambda *a: seen.append(multiply(*a)) or seen[-1])
    for masks in ({}, given, {"exclude": exclude}):
        got = exact.search(queries_qd, passages_nd, 12, mesh=ONE, tile=4096, **masks)
        assert_same(got, brute_force(queries_qd, passages_nd, 12, **masks))
    steps.fold.cache_clear()
    assert {scores.group_major for scores in seen} == {platform == "tpu"}
    assert {scores.group for scores in seen} == {128 if platform == "tpu" else 16}


@pytest.mark.parametrize("ceiling", [1e-320, 1e-45, 1e-38, 2e-38])
def test_a_score_of_zero_lies_below_any_positive_ceiling(ceiling):
    """Also below one that is subnormal in float32, which XLA takes for zero."""
    found = exact.search(
        np.ones((1, 2), np.float32), np.zeros((3, 2), np.float32), 2, ceiling_q=[ceiling], mesh=ONE
    )
    assert found[1].tolist() == [[0, 1]]


@pytest.mark.parametrize("width", [1, 2, 5, 16])
@pytest.mark.parametrize("n", [6, 6000])
def test_zeros_of_both_signs_are_ties(width, n):
    """Products that underflow are -0: rows come in their order all the same."""
    passages_nd = np.full((n, width), -1e-30, np.float32)
    passages_nd[n // 2 :] = 0
    queries_qd = np.full((1, width), 1e-30, np.float32)
    scores, rows = exact.search(queries_qd, passages_nd, 5, mesh=ONE)
    assert rows.tolist() == [list(range(5))]
    assert not np.signbit(scores).any()
