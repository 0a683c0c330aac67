"""Several teachers' lists into one, against plain loops over small cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_reference import MatrixRanker, table

from nvret_jax.data.hashing import stable_hash
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.ensemble import ENSEMBLES, chosen_teachers, combine, overlaps
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import Rule
from nvret_jax.mining.survivors import Pool


def pool(lists, teacher, ranks=None):
    """A teacher's survivors; scores fall with the place."""
    rows = Ragged.from_rows(lists, np.int32)
    ranks = rows.like(rows.position + 1) if ranks is None else Ragged.from_rows(ranks, np.int32)
    scores = rows.like((1 - 0.1 * rows.position - teacher).astype(np.float32))
    same = rows.like(np.full(len(rows.values), teacher, np.int32))
    return Pool(rows, scores, ranks, scores, same)


def combined(lists, mode, n, ranks=None):
    """Rows and teachers of each task; `lists[t]` are teacher t's, a list per task."""
    ranks = ranks or [None] * len(lists)
    pools = [pool(rows, t, r) for t, (rows, r) in enumerate(zip(lists, ranks, strict=True))]
    turns = [p.rows.position for p in pools]
    keys = stable_hash([f"q{i}" for i in range(len(lists[0]))])
    out = combine(pools, turns, mode, n, task_hash=keys)
    pairs = zip(out.rows, out.teachers, strict=True)
    return [list(zip(rows.tolist(), teachers.tolist(), strict=True)) for rows, teachers in pairs]


def test_intra_takes_the_best_of_each_in_turn_and_keeps_repeats():
    assert combined([[[5, 6]], [[5, 7]], [[8]]], "intra", 4) == [[(5, 0), (5, 1), (8, 2), (6, 0)]]


def test_intra_dedup_gives_each_teacher_its_best_that_is_new():
    # Teacher 1's best is taken, so it gives its next; teacher 0 has nothing new in its second turn.
    assert combined([[[5]], [[5, 7, 9]]], "intra_dedup", 3) == [[(5, 0), (7, 1), (9, 1)]]
    assert combined([[[1, 2]], [[1, 2]]], "intra_dedup", 4) == [[(1, 0), (2, 1)]]


def test_union_orders_by_the_best_rank_and_names_a_passage_once():
    lists, ranks = [[[5, 6]], [[7, 5]]], [[[3, 4]], [[1, 2]]]
    assert combined(lists, "union", 3, ranks) == [[(7, 1), (5, 1), (6, 0)]]


def test_rrf_rewards_agreement():
    # 6 is second with both: 2 / 62 beats 1 / 61.
    assert combined([[[5, 6]], [[7, 6]]], "rrf", 3) == [[(6, 0), (5, 0), (7, 1)]]


def test_what_was_found_beyond_the_candidates_comes_last():
    assert combined([[[5, 6]], [[7]]], "union", 3, [[[1, 0]], [[9]]]) == [[(5, 0), (7, 1), (6, 0)]]


def test_cross_takes_everything_from_one_teacher_and_all_teachers_get_their_share():
    tasks = 3000
    lists = [[[10 * t, 10 * t + 1, 10 * t + 2]] * tasks for t in range(3)]
    out = combined(lists, "cross", 2)
    chosen = chosen_teachers(3, 0, stable_hash([f"q{i}" for i in range(tasks)]))
    assert out == [[(10 * t, t), (10 * t + 1, t)] for t in chosen.tolist()]
    np.testing.assert_allclose(np.bincount(chosen) / tasks, 1 / 3, atol=0.03)


def in_turn(lists, n):
    """`intra_dedup` of one task in plain loops."""
    out, left, turn = [], [list(rows) for rows in lists], 0
    while len(out) < n and any(left):
        rows = left[turn % len(left)]
        while rows and rows[0] in out:
            rows.pop(0)
        if rows:
            out.append(rows.pop(0))
        turn += 1
    return out


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_intra_dedup_equals_plain_loops(data):
    tasks, teachers = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    some = st.lists(st.integers(0, 8), unique=True, max_size=6)
    lists = [[data.draw(some) for _ in range(tasks)] for _ in range(teachers)]
    n = data.draw(st.integers(1, 6))
    out = combined(lists, "intra_dedup", n)
    for i, found in enumerate(out):
        assert [row for row, _ in found] == in_turn([lists[t][i] for t in range(teachers)], n)
        assert all(row in lists[t][i] for row, t in found)


def test_overlap_is_the_mean_jaccard_of_the_first_negatives():
    a, b = pool([[1, 2, 3], [4], []], 0), pool([[2, 1, 9], [5], []], 1)
    found = overlaps([a, b], 2)
    # {1, 2} and {2, 1}: 1; {4} and {5}: 0; the third task has nothing to compare.
    np.testing.assert_allclose(found, [[1, 0.5], [0.5, 1]])


@pytest.mark.parametrize("mode", ENSEMBLES)
def test_each_negative_keeps_its_teacher_rank_score_and_ceiling(mode):
    rng = np.random.default_rng(0)
    matrices = [rng.random((6, 40)).astype(np.float32) for _ in range(3)]
    positives = [[int(rng.integers(40)), 39] for _ in range(6)]
    positives = [sorted(set(p)) for p in positives]
    teachers = [
        Teacher(f"t{i}", table(m, positives, 25), MatrixRanker(m)) for i, m in enumerate(matrices)
    ]
    negatives, counts = mine(
        teachers,
        Options(Rule("perc_pos", percent=0.9), num_negatives=4, ensemble=mode),
        excluded=Ragged.from_rows([[]] * 6, np.int32),
        query_ids=[f"q{i}" for i in range(6)],
        passage_ids=[f"p{i}" for i in range(40)],
    )
    assert sum(counts.given.values()) == len(negatives.negative_rows.values)
    assert np.shape(counts.overlap) == (3, 3)
    for q in range(6):
        entries = zip(
            negatives.negative_rows[q],
            negatives.negative_teachers[q],
            negatives.negative_scores[q],
            negatives.negative_ranks[q],
            negatives.negative_ceilings[q],
            strict=True,
        )
        for row, t, score, rank, ceiling in entries:
            scores_n = matrices[t][q]
            anchor = scores_n[positives[q]].min()
            assert score == scores_n[row] < 0.9 * anchor + 1e-6
            assert ceiling == pytest.approx(0.9 * anchor)
            better = [r for r in np.flatnonzero(scores_n > score) if r not in positives[q]]
            assert rank in (0, len(better) + 1)
        if mode != "cross":
            expected = matrices[0][q][positives[q]]
        else:
            expected = matrices[negatives.negative_teachers[q][0]][q][positives[q]]
        np.testing.assert_array_equal(negatives.positive_scores[q], expected)
        if mode != "intra":
            rows = negatives.negative_rows[q].tolist()
            assert len(set(rows)) == len(rows)


def test_an_unknown_ensemble_is_refused():
    with pytest.raises(InputError, match=r"mining\.ensemble='vote'"):
        combined([[[1]], [[2]]], "vote", 1)
