"""Calibration in worlds whose false negatives are known: what is chosen holds, and barely."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mining_reference import MatrixRanker, table

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.audit import calibrate as calibrate_lib
from nvret_jax.mining.audit import holdout as hidden_lib
from nvret_jax.mining.audit import rank_estimate
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import Rule


class FastRanker(MatrixRanker):
    """As MatrixRanker, sorting all queries at once."""

    def rank(self, numbers, k, *, ceiling_q=None, exclude=None):
        self.calls.append(len(numbers))
        scores = self.scores_qn[numbers].copy()
        if ceiling_q is not None:
            scores[scores >= np.asarray(ceiling_q)[:, None]] = -np.inf
        for row, out in zip(scores, exclude or [], strict=False):
            row[np.asarray(out, int)] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        values = np.take_along_axis(scores, order, axis=1)
        return values, np.where(np.isfinite(values), order, -1).astype(np.int32)


def world(seed=0, queries=200, passages=300, relevant=5, known=None, lift=0.35, spread=0.13):
    """Cosines of about .3 for what is not relevant and `lift` more for what is.

    Returns scores, all relevant rows, and those known: the first `known` of each, all if None.
    """
    rng = np.random.default_rng(seed)
    scores_qn = (0.3 + 0.1 * rng.normal(size=(queries, passages))).astype(np.float32)
    rows = np.stack([rng.permutation(passages)[:relevant] for _ in range(queries)])
    lifted = np.take_along_axis(scores_qn, rows, 1) + lift + spread * rng.normal(size=rows.shape)
    np.put_along_axis(scores_qn, rows, lifted.astype(np.float32), 1)
    return np.clip(scores_qn, -1, 1), rows, rows[:, :known]


def choose(scores_qn, known, *, rule="perc_pos", options=None, order=None, seen=None, **how):
    order = np.arange(len(scores_qn)) if order is None else order
    scores_qn, known = scores_qn[order], [known[i] for i in order]

    def excluded(numbers, shown):
        if seen is not None:
            seen.append((numbers, shown))
        return Ragged.from_rows([[]] * len(numbers), np.int32)

    return calibrate_lib.calibrate(
        table(scores_qn, known, 50),
        FastRanker(scores_qn),
        options or Options(rule=Rule(rule)),
        rule,
        excluded=excluded,
        query_ids=[f"q{i}" for i in order],
        passage_ids=[f"p{i}" for i in range(scores_qn.shape[1])],
        **{"target": 0.1, "max_queries": 0, "resamples": 200, **how},
    )


def share_at(scores_qn, relevant, known, percent):
    """False negatives of PercPos by loops: what is mined and relevant, but not known."""
    hits = slots = 0
    for row, true, seen in zip(scores_qn, relevant, known, strict=True):
        anchor = row[seen[0]]
        mined = [r for r in np.argsort(-row) if r != seen[0] and row[r] < percent * anchor][:4]
        hits += len(set(mined) & set(true.tolist()))
        slots += len(mined)
    return hits / slots


def test_the_value_chosen_holds_where_it_was_not_chosen_and_the_next_laxer_does_not():
    scores_qn, _, known = world(0)
    choice = choose(scores_qn, known)
    record = choice.record
    assert record["method"] == "labels"
    assert record["queries"] == 200
    tried = {entry["value"]: entry for entry in record["tried"]}
    assert tried[choice.value]["upper"] <= 0.1 < tried[round(choice.value + 0.01, 2)]["upper"]
    assert record["share"] < record["upper"]
    fresh = [share_at(*world(seed, queries=100), choice.value) for seed in range(10, 20)]
    assert 0.05 < np.mean(fresh) < 0.1
    laxer = [share_at(*world(seed, queries=100), 0.95) for seed in range(10, 20)]
    assert np.mean(laxer) > 0.12


def test_shares_in_the_record_are_counted_with_one_positive_visible():
    scores_qn, _, known = world(1)
    seen = []
    record = choose(scores_qn, known, seen=seen).record
    ((numbers, shown),) = seen  # exclusions are asked for once
    assert (numbers == np.arange(200)).all()
    assert (shown.counts == 1).all()
    assert all(shown.values[i] in known[i] for i in range(200))
    visible_first = [shown[i].tolist() for i in range(200)]
    for entry in record["tried"]:
        expected = share_at(scores_qn, known, visible_first, entry["value"])
        assert entry["share"] == pytest.approx(expected, abs=2e-3), entry["value"]


def test_a_smaller_target_or_sample_is_stricter():
    scores_qn, _, known = world(2, queries=600)
    values = [choose(scores_qn, known, target=target).value for target in (0.2, 0.1, 0.05)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[2]
    few = choose(scores_qn, known, max_queries=100)
    assert few.record["queries"] == 100
    assert few.record["upper"] - few.record["share"] > 0.02


def test_the_order_of_queries_changes_nothing_and_the_record_is_json():
    scores_qn, _, known = world(3)
    order = np.random.default_rng(0).permutation(200)
    first = choose(scores_qn, known, max_queries=150)
    again = choose(scores_qn, known, max_queries=150, order=order)
    assert json.dumps(first.record) == json.dumps(again.record)
    assert json.loads(json.dumps(first.record))["value"] == first.value
    assert f"{first.value:g}" in first.record["why"]


def test_where_nothing_is_relevant_but_the_positive_the_laxest_value_is_chosen():
    scores_qn, _, known = world(4, relevant=2, lift=0.65, spread=0.0)
    scores_qn[np.arange(200), known[:, 1]] = 0.01  # never reached
    seen = []
    choice = choose(scores_qn, known, target=0.05, seen=seen)
    ((_, shown),) = seen
    anchors = scores_qn[np.arange(200), shown.values]
    mined = int((scores_qn < anchors[:, None]).any(axis=1).sum())  # queries that have a negative
    assert 100 < mined < 200
    assert choice.value == 1.0
    assert choice.record["share"] == 0
    assert choice.record["upper"] == pytest.approx(3 / mined, abs=1e-6)  # the rule of three
    assert len(choice.record["tried"]) == 1


def test_a_value_that_mines_nothing_is_not_chosen():
    scores_qn, _, known = world(12)
    with pytest.raises(InputError, match=r"from 1 on, where 0.0% of the wanted negatives are left"):
        choose(scores_qn, known, options=Options(rule=Rule(min_score=2.0)))
    # All of the first five ranks are hidden positives: only what keeps none of them has no hits.
    scores_qn, _, known = world(13, relevant=6, lift=0.55, spread=0.02)
    with pytest.raises(
        InputError, match=r"of the wanted negatives are left, with 200 queries; at l"
    ):
        choose(scores_qn, known, options=Options(rule=Rule(max_rank=5)))


def test_nothing_found_in_few_negatives_is_little_evidence():
    """A query without a negative says nothing about false ones."""
    scores_qn, _, known = world(4, relevant=2, lift=0.65, spread=0.0)
    scores_qn[np.arange(200), known[:, 1]] = 0.01
    scores_qn[40:, :] = np.where(scores_qn[40:] > 0.7, scores_qn[40:], -1)  # these are left short
    options = Options(rule=Rule(min_score=0.0))
    with pytest.raises(InputError, match=r"misses .*0.0% false negatives, upper end 1\d.\d%"):
        choose(scores_qn, known, options=options, target=0.05)


def test_a_target_that_cannot_be_met_is_an_error_that_says_what_came():
    scores_qn, _, known = world(5, relevant=40, lift=0.05)
    with pytest.raises(InputError, match=r"misses mining\.calibration\.target=0\.01 even at 0\.5"):
        choose(scores_qn, known, target=0.01, teacher="t")


def test_too_few_queries_and_rules_without_the_value_are_errors():
    scores_qn, _, known = world(6, queries=99)
    with pytest.raises(InputError, match=r"percent='auto': needs at least 100 .* there are 99"):
        choose(scores_qn, known)
    scores_qn, _, known = world(6)
    with pytest.raises(InputError, match=r"'perc_pos' is not calibrated for mining.rule='abs'"):
        choose(scores_qn, known, options=Options(rule=Rule("abs")))
    with pytest.raises(InputError, match="'abs' is not calibrated"):
        choose(scores_qn, known, rule="abs")


def test_a_combined_rule_is_mined_with_as_a_whole():
    scores_qn, _, known = world(7)
    alone = choose(scores_qn, known)
    both = Options(rule=Rule("perc_pos+abs", threshold=0.45))
    combined = choose(scores_qn, known, options=both)
    assert combined.value > alone.value  # the threshold keeps some out already
    assert combined.record["mined_with"] == "perc_pos+abs"


def test_margins_are_measured_in_cosines_or_in_what_positives_score():
    scores_qn, _, known = world(8)
    choice = choose(scores_qn, known, rule="margin_pos")
    assert round(choice.value * 100) == pytest.approx(choice.value * 100)
    tall = choose(40 * scores_qn, known, rule="margin_pos")
    scale = 40 * np.median(np.take_along_axis(scores_qn, known, 1))
    assert 0.5 * choice.value * 40 < tall.value < 1.5 * choice.value * 40
    assert tall.record["upper"] <= 0.1
    assert max(entry["value"] for entry in tall.record["tried"]) <= 0.6 * scale


@given(st.integers(2, 60), st.data())
def test_halving_finds_the_first_place_that_holds(count, data):
    first = data.draw(st.integers(0, count))
    asked = []

    def holds(place):
        asked.append(place)
        return place >= first

    found = calibrate_lib._least_strict(holds, count)
    assert found == (first if first < count else None)
    assert len(asked) == len(set(asked)) <= 2 + int(np.ceil(np.log2(count)))


# --- without labels ------------------------------------------------------------------------------


def _estimates(scores_qn, rows, known, percents):
    """(percent, estimate, upper, truth) with only the first relevant passage known."""
    candidates = table(scores_qn, known, scores_qn.shape[1])
    count = len(scores_qn)
    hidden = hidden_lib.hide(
        candidates,
        None,
        np.arange(count),
        np.arange(count),
        excluded=Ragged.from_rows([[]] * count, np.int32),
        query_ids=[f"q{i}" for i in range(count)],
    )
    law = rank_estimate.rank_law(hidden)
    passage_ids = [f"p{i}" for i in range(scores_qn.shape[1])]
    for percent in percents:
        trial = hidden_lib.try_rule(hidden, Options(), Rule(percent=percent), passage_ids)
        share, drawn = rank_estimate.estimate(trial, hidden, law, resamples=300, seed=0)
        upper = hidden_lib.interval(drawn)[1]
        yield percent, share, upper, share_at(scores_qn, rows, known, percent)


@pytest.mark.parametrize("relevant", [2, 5, 20])
def test_without_labels_the_estimate_and_its_upper_end_are_near_the_truth(relevant):
    made = world(relevant, queries=800, relevant=relevant, known=1)
    for percent, share, upper, truth in _estimates(*made, (0.6, 0.8, 0.9, 1.0)):
        assert upper >= 0.85 * truth - 0.005, percent
        assert 0.75 * truth - 0.005 < share < 1.7 * truth + 0.03, percent


def test_without_labels_nothing_laxer_than_the_papers_value_is_chosen():
    scores_qn, _, known = world(9, relevant=1, lift=0.65, spread=0.0)
    scores_qn = np.minimum(scores_qn, 0.9)
    scores_qn[np.arange(200), known[:, 0]] = 0.95
    choice = choose(scores_qn, known, target=0.02)
    assert choice.record["method"] == "ranks"
    assert choice.record["relevant_per_query"] == 1
    assert (choice.value, choice.record["share"]) == (0.95, 0)
    assert choose(scores_qn, known, target=0.02, rule="margin_pos").value == 0.05


def test_without_labels_what_is_chosen_meets_the_target():
    scores_qn, rows, known = world(11, queries=400, relevant=10, known=1)
    choice = choose(scores_qn, known, target=0.1)
    assert choice.record["method"] == "ranks"
    assert 5 < choice.record["relevant_per_query"] < 20
    assert share_at(scores_qn, rows, known, choice.value) <= 0.1
    assert share_at(scores_qn, rows, known, min(1.0, choice.value + 0.2)) > 0.1


def test_ranks_are_counted_among_what_could_be_a_negative():
    scores_qn = np.float32([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]] * 2)
    hidden = hidden_lib.hide(
        table(scores_qn, [[3, 0], [2]], 5),
        None,
        np.arange(2),
        np.array([0, 2]),
        excluded=Ragged.from_rows([[1], [4]], np.int32),
        query_ids=["a", "b"],
    )
    assert hidden.visible_ranks.tolist() == [3, 3]  # behind 0 and 2; behind 0 and 1
    assert hidden.ranks.padded(0).tolist() == [[1, 0, 2, 0, 3], [1, 2, 0, 3, 0]]
    trial = hidden_lib.try_rule(hidden, Options(), Rule("naive"), [f"p{i}" for i in range(6)])
    # Ranks of negatives count the visible positive too where it stands ahead.
    assert trial.ranks.tolist() == [1, 2, 4, 1, 2, 4]
    alone = dataclasses.replace(hidden, excluded=Ragged.from_rows([[0, 1], [4]], np.int32))
    assert alone.visible_ranks.tolist() == [2, 3]


def test_without_labels_the_estimate_is_the_formula():
    # 40 queries over 12 passages; the positive ranks first 20 times, second 10, tenth 10.
    places = [0] * 20 + [1] * 10 + [9] * 10
    scores_qn = np.tile(np.linspace(0.9, 0.1, 12, dtype=np.float32), (40, 1))
    hidden = hidden_lib.hide(
        table(scores_qn, [[place] for place in places], 12),
        None,
        np.arange(40),
        np.arange(40),
        excluded=Ragged.from_rows([[]] * 40, np.int32),
        query_ids=[f"q{i}" for i in range(40)],
    )
    law = rank_estimate.rank_law(hidden)
    assert (law.first, law.relevant) == (1, 2)
    one = Options(num_negatives=1)
    trial = hidden_lib.try_rule(hidden, one, Rule("naive"), [f"p{i}" for i in range(12)])
    share, drawn = rank_estimate.estimate(trial, hidden, law, resamples=100, seed=0)
    # Behind a positive that is first stands rank 2: (2 - 1) 0.25 / 0.75; elsewhere rank 1:
    # (2 - 1) 0.5 / 0.5.
    assert share == pytest.approx(0.5 * (1 / 3) + 0.5 * 1)
    assert drawn.min() < share < drawn.max()
