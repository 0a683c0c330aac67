"""Where mining differs from sentence-transformers' on purpose, unless its preset is asked for.

Each test runs both and shows the two results side by side.
"""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("datasets")
pytest.importorskip("sentence_transformers")

import st_reference as st
from mining_reference import MatrixRanker, table

from nvret_jax.data.ragged import Ragged
from nvret_jax.mining.exclude.exclusion import own_text
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import Rule
from nvret_jax.search.candidates import find

pytestmark = pytest.mark.parity
POSITIVE = "p0"


def one_query(*scores, passages=None):
    """One query, whose positive is the first passage."""
    passages = passages or [f"p{i}" for i in range(len(scores))]
    return st.world([("q", POSITIVE)], passages, lambda q, n: np.array([scores]))


def by_default(given, rule, count, *, depth=100, excluded=()):
    """Our negatives of the one query, as passages."""
    rows = st.inputs(given.pairs, given.corpus)
    teacher = Teacher(
        "teacher",
        table(given.scores_qn, list(rows.positive_rows), depth),
        MatrixRanker(given.scores_qn),
    )
    negatives, _ = mine(
        [teacher],
        Options(rule=rule, num_negatives=count),
        excluded=Ragged.from_rows([excluded], np.int32),
        query_ids=rows.queries.ids,
        passage_ids=rows.corpus.ids,
    )
    return [given.passages[row] for row in negatives.negative_rows[0]]


def with_preset(given, **settings):
    rows = st.inputs(given.pairs, given.corpus)
    negatives = st.ours(rows, MatrixRanker(given.scores_qn), settings)
    return [given.passages[row] for row in negatives.negative_rows[0]]


def by_them(given, **settings):
    rows = st.theirs(st.Stub(given), given.pairs, given.corpus, **settings)
    return [row["negative"] for row in rows]


@pytest.mark.parametrize("backend", ["device", "faiss"])
def test_a_tie_goes_to_the_earlier_passage_where_theirs_goes_anywhere(backend):
    given = one_query(0.9, *[0.5] * 9)
    number = np.zeros(1, np.int32)
    positives = Ragged.from_rows([[0]], np.int32)
    found = find(number, number, st.dense_ranker(given, backend), positives, 10)
    assert found.passage_rows[0].tolist() == list(range(10))
    assert by_default(given, Rule("naive"), 4) == ["p1", "p2", "p3", "p4"]
    theirs = by_them(given, num_negatives=4)  # four of the nine; which, nobody says
    assert len(set(theirs)) == 4
    assert set(theirs) <= set(given.passages[1:])


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (Rule("margin_pos", margin=0.25), {"absolute_margin": 0.25}),
        (Rule("perc_pos", percent=0.5), {"relative_margin": 0.5}),
    ],
)
def test_a_score_equal_to_a_margins_ceiling_is_dropped_where_theirs_is_kept(rule, settings):
    given = one_query(0.5, 0.26, 0.25, 0.24, 0.23)
    assert by_default(given, rule, 2) == ["p3", "p4"]
    assert by_them(given, num_negatives=2, **settings) == ["p2", "p3"]
    assert with_preset(given, num_negatives=2, **settings) == ["p2", "p3"]


def test_a_score_equal_to_the_absolute_threshold_is_kept_on_both_sides():
    given = one_query(0.9, 0.51, 0.5, 0.49)
    assert by_default(given, Rule("abs", threshold=0.5), 2) == ["p2", "p3"]
    assert by_them(given, num_negatives=2, max_score=0.5) == ["p2", "p3"]


def test_shift_skips_ranks_of_the_teacher_where_theirs_skips_survivors():
    given = one_query(0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    rule = Rule("shifted+abs", shift=2, threshold=0.65)
    settings = {"num_negatives": 2, "range_min": 2, "max_score": 0.65}
    assert by_default(given, rule, 2) == ["p3", "p4"]
    assert by_them(given, **settings) == ["p5"]
    assert with_preset(given, **settings) == ["p5"]


def test_without_a_filter_in_front_shift_and_range_min_are_the_same():
    given = one_query(0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    assert by_default(given, Rule("shifted", shift=2), 2) == ["p3", "p4"]
    assert by_them(given, num_negatives=2, range_min=2) == ["p3", "p4"]


def test_a_query_left_short_is_searched_again_where_theirs_stays_short():
    # One negative is asked for, so their window is 12 passages; all of them score too high.
    high, low = np.linspace(0.89, 0.6, 20), np.linspace(0.3, 0.1, 5)
    given = one_query(0.9, *high, *low)
    settings = {"num_negatives": 1, "relative_margin": 0.5}
    assert by_default(given, Rule("perc_pos", percent=0.5), 3, depth=12) == ["p21", "p22", "p23"]
    assert by_them(given, **settings) == []
    assert with_preset(given, **settings) == []


def test_the_querys_own_text_is_no_negative_where_theirs_takes_it_first():
    given = one_query(0.9, 1.0, 0.5, 0.4, passages=[POSITIVE, "q", "p2", "p3"])
    excluded = own_text(given.queries, given.passages)[0]
    assert by_default(given, Rule("naive"), 2, excluded=excluded) == ["p2", "p3"]
    assert by_them(given, num_negatives=2) == ["q", "p2"]
    assert with_preset(given, num_negatives=2) == ["q", "p2"]


def test_filters_that_leave_nothing_give_no_rows_where_theirs_divides_by_zero():
    given = one_query(-2.0, *np.linspace(0.9, 0.1, 40))
    settings = {"num_negatives": 2, "absolute_margin": 0.1, "min_score": 0.5}
    assert with_preset(given, **settings) == []
    with pytest.raises(ZeroDivisionError):
        by_them(given, **settings)


def test_several_positives_are_measured_from_the_lowest_on_both_sides():
    scores = np.array([[0.9, 0.5, 0.6, 0.45, 0.4, 0.3]])
    passages = [f"p{i}" for i in range(6)]
    given = st.world([("q", "p0"), ("q", "p1")], passages, lambda q, n: scores)
    rule = Rule("margin_pos", margin=0.08)
    assert by_default(given, rule, 2) == ["p4", "p5"]
    settings = {"num_negatives": 2, "absolute_margin": 0.08}
    assert by_them(given, **settings) == ["p4", "p5"] * 2  # once for each positive
    assert with_preset(given, **settings) == ["p4", "p5"]
