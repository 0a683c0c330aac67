"""Candidates for distillation alone: the teacher's best that are in no other list of a row."""

import numpy as np
import pytest
from mining_reference import MatrixRanker, full_order, table

from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.mining import distilled
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import Rule

QUERIES, PASSAGES, DEPTH, MOST = 9, 50, 20, 6
NAMES = tuple(f"id{i}" for i in range(PASSAGES))


@pytest.fixture(params=["min", "own"])
def mined(request):
    """(scores, positives, excluded, candidates, the mined table)."""
    rng = np.random.default_rng(3)
    scores_qn = rng.normal(size=(QUERIES, PASSAGES)).astype(np.float32)
    positives = [sorted(rng.choice(PASSAGES, 1 + q % 3, replace=False)) for q in range(QUERIES)]
    excluded = [sorted(rng.choice(PASSAGES, 4, replace=False)) for _ in range(QUERIES)]
    rule = Rule("perc_pos", percent=0.9, anchor=request.param)
    candidates = table(scores_qn, positives, DEPTH)
    negatives, _ = mine(
        [Teacher("t", candidates, MatrixRanker(scores_qn), rule)],
        Options(rule=rule, num_negatives=3),
        excluded=Ragged.from_rows(excluded, np.int32),
        query_ids=NAMES[:QUERIES],
        passage_ids=NAMES,
    )
    return scores_qn, positives, excluded, candidates, negatives


def test_the_best_that_are_nothing_else(mined):
    scores_qn, positives, excluded, candidates, negatives = mined
    # A table may have lost rows, or have another order.
    negatives = negatives.take(np.arange(len(negatives))[::-2])
    found = distilled.add(negatives, candidates, Ragged.from_rows(excluded, np.int32), MOST)
    above = 0
    for r, q in enumerate(negatives.query_rows):
        others = {*positives[q], *excluded[q], *negatives.negative_rows[r].tolist()}
        expected = [n for n in full_order(scores_qn[q])[:DEPTH] if n not in others][:MOST]
        assert found.distilled_rows[r].tolist() == expected
        np.testing.assert_array_equal(found.distilled_scores[r], scores_qn[q][expected])
        above += (found.distilled_scores[r] >= negatives.ceilings[r]).sum()
    assert above > 0
    np.testing.assert_array_equal(found.negative_rows.values, negatives.negative_rows.values)


def test_a_table_keeps_them(mined, tmp_path):
    _, _, excluded, candidates, negatives = mined
    queries = TextTable(NAMES[:QUERIES], [""] * QUERIES)
    corpus = TextTable(NAMES, [""] * PASSAGES)
    negatives.write(tmp_path / "without.parquet", queries, corpus)
    assert Negatives.read(tmp_path / "without.parquet", queries, corpus).distilled_rows is None
    found = distilled.add(negatives, candidates, Ragged.from_rows(excluded, np.int32), MOST)
    found.write(tmp_path / "with.parquet", queries, corpus)
    again = Negatives.read(tmp_path / "with.parquet", queries, corpus)
    for name in ("distilled_rows", "distilled_scores", "negative_rows"):
        one, other = getattr(found, name), getattr(again, name)
        np.testing.assert_array_equal(one.offsets, other.offsets)
        np.testing.assert_array_equal(one.values, other.values)
