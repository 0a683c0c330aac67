"""Positives that the teacher ranks low are counted, listed, and left out or weighed down."""

import dataclasses

import numpy as np
import pytest

from nvret_jax.data.ragged import Ragged
from nvret_jax.mining import positives
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.options import Options, Positives
from nvret_jax.mining.rules import Rule
from nvret_jax.search.candidates import Candidates


@pytest.fixture
def table():
    """Three queries; ranks of their positives: [1, 3], [5] (behind all four), [2]."""
    candidates = Candidates(
        query_rows=np.array([4, 2, 7], np.int32),
        passage_rows=Ragged.from_rows([[0, 1, 2, 3, 9], [4, 5, 6, 7], [8, 9, 1, 2]], np.int32),
        scores=Ragged.from_rows(
            [[0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6]], np.float32
        ),
        positive_rows=Ragged.from_rows([[0, 3], [20], [1]], np.int32),
        positive_scores=Ragged.from_rows([[0.9, 0.6], [0.1], [0.7]], np.float32),
    )
    excluded = Ragged.from_rows([[], [], [9]], np.int32)
    negatives, _ = mine(
        [Teacher("t", candidates)],
        Options(Rule("naive"), num_negatives=2),
        excluded=excluded,
        query_ids=["a", "b", "c"],
        passage_ids=[f"p{i}" for i in range(21)],
    )
    return candidates, excluded, negatives


def plain_ranks(candidates, excluded):
    """Query by query, without what is no negative."""
    out = []
    for q in range(len(candidates)):
        never = {*candidates.positive_rows[q].tolist(), *excluded[q].tolist()}
        pairs = zip(candidates.passage_rows[q], candidates.scores[q], strict=True)
        free = [s for p, s in pairs if int(p) not in never]
        out += [1 + sum(s > own for s in free) for own in candidates.positive_scores[q]]
    return out


def test_ranks_leave_out_other_positives_and_what_is_excluded(table):
    candidates, excluded, _ = table
    found = positives.ranks(candidates, excluded)
    assert found.values.tolist() == plain_ranks(candidates, excluded) == [1, 3, 5, 2]


def test_doubtful_pairs_are_dropped_and_listed(table):
    candidates, excluded, negatives = table
    ranks = positives.ranks(candidates, excluded)
    made, counts = positives.apply(negatives, candidates, ranks, Positives(max_rank=2))
    assert made.query_rows.tolist() == [4, 7]
    assert [row.tolist() for row in made.positive_rows] == [[0], [1]]
    assert [row.tolist() for row in made.judged_rows] == [[0, 3], [1]]  # known all the same
    assert counts == positives.DoubtfulCounts(4, 2, 1, [(2, 20, 5), (4, 3, 3)])
    assert np.array_equal(made.negative_rows[0], negatives.negative_rows[0])


def test_doubtful_pairs_are_weighed(table):
    candidates, excluded, negatives = table
    ranks = positives.ranks(candidates, excluded)
    options = Positives(max_rank=2, doubtful="weigh", weight=0.25)
    made, counts = positives.apply(negatives, candidates, ranks, options)
    assert len(made) == 3
    assert [row.tolist() for row in made.positive_weights] == [[1, 0.25], [0.25], [1]]
    assert (counts.doubtful, counts.rows_dropped) == (2, 0)


def test_rows_of_single_positives_and_promoted_passages(table):
    candidates, excluded, negatives = table
    own, _ = mine(
        [Teacher("t", candidates)],
        Options(Rule("naive", anchor="own"), num_negatives=2),
        excluded=excluded,
        query_ids=["a", "b", "c"],
        passage_ids=[f"p{i}" for i in range(21)],
    )
    ranks = positives.ranks(candidates, excluded)
    made, counts = positives.apply(own, candidates, ranks, Positives(max_rank=2))
    assert [row.tolist() for row in made.positive_rows] == [[0], [1]]
    assert counts.pairs == 4
    # A passage that a judge has promoted is no positive of the candidates, and not doubtful.
    promoted = dataclasses.replace(
        negatives,
        positive_rows=Ragged.from_rows([[0, 3], [20, 6], [1]], np.int32),
        positive_scores=Ragged.from_rows([[0.9, 0.6], [0.1, 0.7], [0.7]], np.float32),
    )
    made, _ = positives.apply(promoted, candidates, ranks, Positives(max_rank=2))
    assert [row.tolist() for row in made.positive_rows] == [[0], [6], [1]]
