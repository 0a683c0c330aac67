"""The five rules against the paper's inequalities, and the places where they are easily wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.rules import Rule, anchors

SCORE = st.floats(-1, 1, width=32)


# What a rule keeps: scores below (abs: up to) this limit, compared as exactly as float64 can.
LIMITS = {
    "abs": lambda anchor, value: value,
    "margin_pos": lambda anchor, value: anchor - value,
    "perc_pos": lambda anchor, value: anchor - abs(anchor) * (1.0 - value),
}


def near(limit, steps):
    """The float32 that many steps from the one nearest to `limit`."""
    score = np.float32(limit)
    for _ in range(abs(steps)):
        score = np.nextafter(score, np.float32(np.sign(steps) * 9))
    return score


@given(
    anchor=SCORE,
    free=SCORE,
    steps=st.none() | st.integers(-2, 2),
    value=st.floats(0, 1),
    name=st.sampled_from(list(LIMITS)),
)
def test_each_rule_keeps_what_the_paper_keeps(anchor, free, steps, value, name):
    """Any score, and those next to the limit, where rounding would decide."""
    anchor = np.float64(anchor)
    limit = LIMITS[name](anchor, np.float32(value) if name == "abs" else value)
    score = np.float32(free) if steps is None else near(limit, steps)
    rule = Rule(name, threshold=value, margin=value, percent=value)
    kept = bool(score < rule.ceilings(np.array([anchor]))[0])
    exact = np.float64(score)
    assert kept == bool(exact <= limit if name == "abs" else exact < limit)


@given(anchor=SCORE, score=SCORE)
def test_rules_without_a_ceiling_keep_every_score(anchor, score):
    for name in ("naive", "shifted"):
        assert np.float32(score) < Rule(name).ceilings(np.array([anchor]))[0]


@given(anchor=SCORE, percent=st.floats(0.01, 1))
def test_percent_never_lets_in_what_beats_the_positive(anchor, percent):
    ceiling = Rule("perc_pos", percent=percent).ceilings(np.array([anchor]))[0]
    assert ceiling <= np.float32(anchor)


def test_percent_of_a_negative_anchor_lies_below_it():
    # The plain product would give -0.19, above the positive itself.
    ceiling = Rule("perc_pos", percent=0.95).ceilings(np.array([-0.2]))[0]
    assert ceiling == pytest.approx(-0.21)


def test_defaults_are_the_papers_values():
    rule = Rule()
    assert (rule.name, rule.percent, rule.margin, rule.threshold, rule.shift) == (
        "perc_pos",
        0.95,
        0.05,
        0.70,
        10,
    )


def test_only_the_shifted_rule_skips_ranks():
    assert Rule("shifted", shift=7).ranks_to_skip == 7
    assert Rule("naive", shift=7).ranks_to_skip == 0


def test_anchor_of_several_positives():
    scores = Ragged.from_rows([[0.5, 0.9], [0.3], [-0.2, 0.1, 0.4]], np.float32)
    np.testing.assert_allclose(anchors(scores, "min"), [0.5, 0.3, -0.2], rtol=1e-6)
    np.testing.assert_allclose(anchors(scores, "max"), [0.9, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(anchors(scores, "mean"), [0.7, 0.3, 0.1], rtol=1e-6)


def test_a_query_without_positive_has_no_anchor():
    with pytest.raises(InputError, match="query number 1"):
        anchors(Ragged.from_rows([[0.5], []], np.float32), "min")


def test_an_unknown_rule_or_anchor_is_refused():
    with pytest.raises(InputError, match="perc_pos"):
        Rule("percpos").ceilings(np.array([0.5]))
    with pytest.raises(InputError, match="median"):
        anchors(Ragged.from_rows([[0.5]], np.float32), "median")
