"""The random baseline: reproducible, independent of everything but ids and seed, and uniform."""

import hashlib

import numpy as np
import pytest
from rank_reference import all_scores, assert_ranks_as_its_scores_say

from nvret_jax.data import hashing
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.search.rankers.random_ranker import RandomRanker

QUERIES = [f"q{i}" for i in range(7)]
PASSAGES = [f"p{i}" for i in range(41)]
POSITIVES = Ragged.from_rows([[0, 5], [], [40], [1], [2, 3, 4], [6], [7]], np.int32)
PINNED = [0.5991926142319416, 0.5984372205354836]


def splitmix(x):
    """One word of SplitMix64's finaliser in plain Python integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def mix(a, b):
    return splitmix((splitmix((a + 0x9E3779B97F4A7C15) % 2**64) + b) % 2**64)


def blake(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def test_hashes_and_numbers_are_what_plain_integers_give():
    assert hashing.stable_hash(["q1", "é"]).tolist() == [blake("q1"), blake("é")]
    for seed in (0, 7, -3, 2**70 + 1):
        word = mix(mix(seed % 2**64, blake("q1")), blake("p2"))
        got = hashing.uniform01(seed, hashing.stable_hash(["q1"]), hashing.stable_hash(["p2"]))
        assert got.tolist() == [((word >> 12) + 0.5) / 2**52]


def test_these_numbers_never_change():
    # Written down once: another machine, version or process must give them too.
    got = hashing.uniform01(0, hashing.stable_hash(["q0"]), hashing.stable_hash(["p0", "p1"]))
    np.testing.assert_array_equal(got, PINNED)


def test_numbers_are_uniform_and_not_correlated_between_queries_passages_or_seeds():
    q, p = hashing.stable_hash(QUERIES), hashing.stable_hash([str(i) for i in range(40000)])
    u = hashing.uniform01(3, q[:, None], p[None, :])
    assert 0 < u.min() < u.max() < 1
    for row in u:
        counts, _ = np.histogram(row, 50, (0, 1))
        assert ((counts - 800) ** 2 / 800).sum() < 100  # chi-square, 49 degrees: p < 1e-4
    again = hashing.uniform01(4, q[:, None], p[None, :])
    for a in np.concatenate([u, again]):
        for b in (*u, *again, np.roll(a, 1)):
            if a is not b and not np.array_equal(a, b):
                assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(40000)
    assert mix(1, 2) != mix(2, 1)


def test_order_is_exact_with_ceilings_and_exclusions():
    assert_ranks_as_its_scores_say(RandomRanker(QUERIES, PASSAGES, POSITIVES, seed=1))


def test_positives_score_one_and_everything_else_less():
    scores = all_scores(RandomRanker(QUERIES, PASSAGES, POSITIVES))
    for query, row in enumerate(scores):
        assert np.flatnonzero(row == 1.0).tolist() == sorted(POSITIVES[query].tolist())
        assert (row[row != 1.0] < 1.0).all()
        assert (row >= 0.0).all()


def test_scores_are_the_numbers_of_hashing_cut_to_24_bits():
    scores = all_scores(RandomRanker(QUERIES, PASSAGES, POSITIVES, seed=9))
    q, p = hashing.stable_hash(QUERIES), hashing.stable_hash(PASSAGES)
    want = np.floor(hashing.uniform01(9, q[:, None], p) * 2**24) / 2**24
    np.testing.assert_array_equal(scores[scores < 1], want[scores < 1])


def test_scores_do_not_depend_on_the_order_or_on_what_else_is_there():
    whole = all_scores(RandomRanker(QUERIES, PASSAGES, POSITIVES, seed=5))
    turned = all_scores(
        RandomRanker(
            QUERIES[::-1],
            PASSAGES[::-1],
            Ragged.from_rows([40 - POSITIVES[i] for i in range(7)][::-1], np.int32),
            seed=5,
        )
    )
    np.testing.assert_array_equal(turned[::-1, ::-1], whole)
    few = RandomRanker(QUERIES[2:3], PASSAGES[30:], Ragged.from_rows([[10]], np.int32), seed=5)
    np.testing.assert_array_equal(all_scores(few), whole[2:3, 30:])


def test_another_seed_is_another_draw():
    a, b = (
        RandomRanker(QUERIES, PASSAGES, POSITIVES, seed=s).rank(np.arange(7), 9) for s in (0, 1)
    )
    assert (a[1] != b[1]).any(axis=1).all()


def test_ranks_do_not_change_at_tile_borders(monkeypatch):
    want = RandomRanker(QUERIES, PASSAGES, POSITIVES).rank(np.arange(7), 41)
    monkeypatch.setattr("nvret_jax.search.rankers.random_ranker._TILE", 8)
    got = RandomRanker(QUERIES, PASSAGES, POSITIVES).rank(np.arange(7), 41)
    np.testing.assert_array_equal(got[1], want[1])


def test_a_relative_margin_removes_its_share_of_the_corpus():
    ranker = RandomRanker(["q"], [str(i) for i in range(20000)], Ragged.from_rows([[3]], np.int32))
    _, rows = ranker.rank(np.array([0]), 20000, ceiling_q=np.array([0.95]))
    assert abs((rows >= 0).sum() - 19000) < 5 * np.sqrt(20000 * 0.05 * 0.95)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="no passage"):
        RandomRanker(["q"], [], Ragged.from_rows([[]], np.int32))
    with pytest.raises(InputError, match="row 41"):
        RandomRanker(["q"], PASSAGES, Ragged.from_rows([[41]], np.int32))
    with pytest.raises(InputError, match="1 lists for 7 queries"):
        RandomRanker(QUERIES, PASSAGES, Ragged.from_rows([[1]], np.int32))
