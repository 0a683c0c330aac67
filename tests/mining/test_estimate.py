"""The share of false negatives that a run states, in worlds where it is known."""

import numpy as np
import pytest
from mining_reference import table
from test_calibrate import share_at, world

from nvret_jax.data.ragged import Ragged
from nvret_jax.mining.audit.estimate import MOST, estimate
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import Rule


def stated(scores_qn, known, rule=None, seen=None, depth=300):
    def excluded(numbers, shown):
        if seen is not None:
            seen.append((numbers, shown))
        return Ragged.from_rows([[]] * len(numbers), np.int32)

    return estimate(
        table(scores_qn, known, depth),
        Options(rule=rule or Rule("perc_pos", percent=0.95)),
        excluded=excluded,
        query_ids=[f"q{i}" for i in range(len(scores_qn))],
        passage_ids=[f"p{i}" for i in range(scores_qn.shape[1])],
    )


def test_with_several_positives_the_hidden_ones_are_counted():
    scores_qn, _, known = world(0)
    seen = []
    found = stated(scores_qn, known, seen=seen)
    assert (found.method, found.queries) == ("labels", 200)
    ((_, shown),) = seen
    expected = share_at(scores_qn, known, [shown[i].tolist() for i in range(200)], 0.95)
    assert found.share == pytest.approx(expected, abs=2e-3)
    assert 0 < found.low < found.share < found.high < 1
    assert f"{100 * found.share:.1f} % of the negatives may be relevant" in str(found)
    strict = stated(scores_qn, known, Rule("perc_pos", percent=0.6))
    assert strict.share < found.share / 2


def test_with_one_known_positive_it_is_estimated_from_ranks():
    scores_qn, relevant, known = world(1, relevant=4, known=1)
    found = stated(scores_qn, known)
    assert (found.method, found.queries) == ("ranks", 200)
    truth = share_at(scores_qn, relevant, known, 0.95)
    assert truth / 3 < found.share < 3 * truth  # what the estimate is for
    assert found.low <= found.share <= found.high
    assert "estimated from the ranks of the positives of 200 queries" in str(found)


def test_nothing_is_said_of_few_queries_or_of_no_negatives():
    scores_qn, _, known = world(2, queries=19)
    assert stated(scores_qn, known) is None
    scores_qn, _, known = world(2, queries=40)
    assert stated(scores_qn, known, Rule("naive", min_score=2.0)) is None


def test_zero_hits_are_not_certainty():
    scores_qn, _, known = world(4, relevant=2, lift=0.65, spread=0.0)
    scores_qn[np.arange(200), known[:, 1]] = 0.01  # never reached
    found = stated(scores_qn, known)
    assert found.share == found.low == 0
    assert 0.01 < found.high < 0.05


def test_large_sets_are_sampled():
    scores_qn, _, known = world(5, queries=MOST + 100, passages=60)
    assert stated(scores_qn, known, depth=20).queries == MOST
