"""The risk of negatives: fitted monotonically, true on other queries, and a budget that is kept."""

import dataclasses
import itertools

import numpy as np
import pytest

import nvret_jax.api as nv
from nvret_jax import config as config_lib
from nvret_jax.config import checks
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining import risk
from nvret_jax.mining.audit import risk_fit
from nvret_jax.mining.audit.holdout import hide, queries_to_audit, visible_positives
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import Rule
from nvret_jax.search.candidates import Candidates

DEPTH, PASSAGES = 30, 4000


def world(queries, seed, positives=4):
    """Candidates of a teacher whose relevant passages score higher, by a known law.

    The relevant passages of a query, all judged, score as N(0.6, 0.1), the others as N(0.3, 0.1).
    """
    rng = np.random.default_rng(seed)
    lists, scores, judged, judged_scores = [], [], [], []
    for _ in range(queries):
        rows = rng.choice(PASSAGES, 200, replace=False).astype(np.int32)
        score = rng.normal(0.3, 0.1, 200)
        score[:positives] = rng.normal(0.6, 0.1, positives)
        order = np.argsort(-score)[:DEPTH]
        lists.append(rows[order])
        scores.append(score[order].astype(np.float32))
        judged.append(rows[:positives])
        judged_scores.append(score[:positives].astype(np.float32))
    return Candidates(
        query_rows=np.arange(queries, dtype=np.int32),
        passage_rows=Ragged.from_rows(lists, np.int32),
        scores=Ragged.from_rows(scores, np.float32),
        positive_rows=Ragged.from_rows(judged, np.int32),
        positive_scores=Ragged.from_rows(judged_scores, np.float32),
    )


def hidden_of(candidates):
    ids = [f"q{i}" for i in range(len(candidates))]
    visible = visible_positives(candidates.positive_rows, ids, passage_ids(), 0)
    numbers = queries_to_audit(candidates.positive_rows, ids, 0, 0)
    nothing = Ragged.from_rows([[]] * len(candidates), np.int32)
    return hide(candidates, None, numbers, visible, excluded=nothing, query_ids=ids)


def passage_ids():
    return [f"p{i}" for i in range(PASSAGES)]


def nothing_excluded(numbers, positives):
    return Ragged.from_rows([[]] * len(numbers), np.int32)


def fitted(how, candidates):
    return risk_fit.estimate(
        candidates,
        how,
        max_queries=0,
        excluded=nothing_excluded,
        query_ids=[f"q{i}" for i in range(len(candidates))],
        passage_ids=passage_ids(),
    )


def test_predicted_risks_are_counted_on_other_queries():
    """Within 3 points wherever there is enough to count."""
    model, queries = fitted("auto", world(600, 0))
    assert (model.method, queries) == ("labels", 600)
    rows = risk_fit.reliability(model, hidden_of(world(600, 1)), resamples=200)
    enough = [row for row in rows if row.candidates >= 400]
    assert len(enough) >= 3
    assert max(abs(row.predicted - row.counted) for row in enough) < 0.03
    assert max(row.counted for row in rows) > 0.8
    assert all(row.counted_low <= row.counted <= row.counted_high for row in rows)


def test_a_risk_rises_with_the_score_and_falls_with_the_rank():
    for how in ("labels", "ranks"):
        model, _ = fitted(how, world(300, 0))
        scores = np.linspace(-1, 1.2, 400)
        by_score = model(scores, np.full(400, 0.6), np.full(400, 5))
        by_rank = model(np.full(30, 0.5), np.full(30, 0.6), np.arange(1, 31))
        assert (np.diff(by_score) >= 0).all(), how
        assert (np.diff(by_rank) <= 0).all(), how
        assert model(-1.0, 0.6, 30) < 0.05, how
        assert model(1.2, 0.6, 1) > 0.5, how
        assert ((by_score >= 0) & (by_score <= 1)).all()
        # What lies beyond the stored candidates is no riskier than their last.
        assert model(0.5, 0.6, 0) <= model(0.5, 0.6, 29)


def test_the_isotonic_fit_is_the_one_of_pooled_neighbours():
    """Against pool-adjacent-violators, written out, on the same groups."""
    rng = np.random.default_rng(0)
    n = 5000
    scores = rng.random(n)
    false = rng.random(n) < np.clip(scores, 0.1, 0.9) ** 2
    model = risk_fit._fit("labels", scores, np.ones(n, np.int64), false, 10)
    order = np.argsort(scores * model.score_weight, kind="stable")
    values = false[order].astype(float)
    edges, size = [n], 50.0
    while edges[-1] > 2 * size:
        edges.append(edges[-1] - int(size))
        size *= 1.1
    edges = [0, *edges[::-1]]
    blocks = []
    for start, stop in itertools.pairwise(edges):
        blocks.append([values[start:stop].sum(), stop - start, 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    expected = np.concatenate([[total / count] * groups for total, count, groups in blocks])
    np.testing.assert_allclose(model.risk, expected, atol=1e-12)


def brute_ceiling(risks, scores, budget, count):
    """The first stretch within the budget, entry by entry."""
    for first in range(len(risks)):
        if np.mean(risks[first : first + count]) <= budget:
            return np.inf if first == 0 else scores[first - 1]
    return scores[-1] if len(scores) else np.inf


@pytest.mark.parametrize("budget", [0.02, 0.1, 0.3])
def test_a_budget_takes_the_hardest_stretch_within_it(budget):
    candidates = world(150, 2)
    hidden = hidden_of(candidates)
    model, _ = fitted("labels", world(600, 0))
    options = Options(Rule("naive"), num_negatives=3, risk="labels", risk_budget=budget)
    teacher = Teacher("t", hidden.candidates, risk=model)
    ids = list(hidden.query_ids)
    negatives, _ = mine(
        [teacher], options, excluded=hidden.excluded, query_ids=ids, passage_ids=passage_ids()
    )
    risks = risk.of_negatives(negatives, {"t": (hidden.candidates, model)}, options.rule)
    for row in range(len(ids)):
        rows, scores = hidden.candidates.passage_rows[row], hidden.candidates.scores[row]
        anchor = hidden.candidates.positive_scores[row]
        known = hidden.candidates.positive_rows[row]
        free = ~np.isin(rows, known)
        each = model(scores[free], anchor, np.arange(1, free.sum() + 1))
        ceiling = brute_ceiling(each, scores[free], budget, 3)
        expected = rows[free][scores[free] < ceiling][:3]
        assert negatives.negative_rows[row].tolist() == expected.tolist()
        at = np.flatnonzero(np.isin(rows[free], expected))
        np.testing.assert_allclose(risks[row], each[at], rtol=1e-6)
        if len(risks[row]) and ceiling > scores[free][-1]:
            assert np.mean(risks[row]) <= budget + 1e-6
    # Counted on these queries, which the model has not seen, the budget holds on the whole.
    false = [
        np.isin(negatives.negative_rows[row], hidden.hidden_rows[row]) for row in range(len(ids))
    ]
    assert np.concatenate(false).mean() < budget + 0.04


def test_a_budget_is_harder_than_one_percent_for_all():
    """At the same counted share of false negatives, the negatives score higher."""
    hidden = hidden_of(world(800, 3))
    model, _ = fitted("labels", world(800, 0))
    ids = list(hidden.query_ids)

    def mined(options):
        negatives, _ = mine(
            [Teacher("t", hidden.candidates, risk=model)],
            options,
            excluded=hidden.excluded,
            query_ids=ids,
            passage_ids=passage_ids(),
        )
        false = np.concatenate(
            [np.isin(negatives.negative_rows[r], hidden.hidden_rows[r]) for r in range(len(ids))]
        )
        if not len(false):
            return 0.0, -np.inf
        return false.mean(), negatives.negative_scores.values.mean()

    share, hardness = mined(Options(Rule("naive"), risk="labels", risk_budget=0.05))
    percents = [mined(Options(Rule("perc_pos", percent=p))) for p in np.arange(0.3, 1.0, 0.02)]
    as_safe = max(score for other, score in percents if other <= share)
    assert hardness > as_safe


def test_a_table_keeps_risks_and_weights(tmp_path):
    candidates = world(5, 4)
    negatives, _ = mine(
        [Teacher("t", candidates)],
        Options(Rule("naive")),
        excluded=nothing_excluded(range(5), None),
        query_ids=[f"q{i}" for i in range(5)],
        passage_ids=passage_ids(),
    )
    assert negatives.negative_risks is None
    queries = TextTable(tuple(f"q{i}" for i in range(5)), ["x"] * 5)
    corpus = TextTable(tuple(passage_ids()), ["x"] * PASSAGES)
    path = tmp_path / "table.parquet"
    negatives.write(path, queries, corpus)
    assert Negatives.read(path, queries, corpus).negative_risks is None
    rng = np.random.default_rng(0)
    entries, positives = negatives.negative_rows, negatives.positive_rows
    kept = dataclasses.replace(
        negatives,
        negative_risks=entries.like(rng.random(len(entries.values)).astype(np.float32)),
        positive_weights=positives.like(rng.random(len(positives.values)).astype(np.float32)),
    )
    kept.write(path, queries, corpus)
    found = Negatives.read(path, queries, corpus)
    for name in ("negative_risks", "positive_weights"):
        assert np.array_equal(getattr(found, name).values, getattr(kept, name).values)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(InputError, match="needs at least 100 training queries with several"):
        fitted("labels", world(120, 0, positives=1))
    with pytest.raises(InputError, match="needs at least 100 training queries to fit"):
        fitted("auto", world(90, 0))
    assert fitted("auto", world(120, 0, positives=1))[0].method == "ranks"
    config = config_lib.base()
    config.mining.risk_budget = 0.1
    assert any("risk_budget" in one for one in checks.mistakes(config))
    config.mining.risk = "auto"
    assert checks.mistakes(config) == []
    config.mining.risk, config.mining.risk_budget = "", 0.0
    config.train.loss.weights = True
    assert any("train.loss.weights" in one for one in checks.mistakes(config))
    config.mining.positives.max_rank = 200
    assert any("search.depth=100" in one for one in checks.mistakes(config))


def test_the_python_face_estimates_too():
    """Equal scores, so equal risks: `api.mine` and the parts it is made of."""
    rng = np.random.default_rng(0)
    queries_qd = rng.normal(size=(120, 8)).astype(np.float32)
    queries_qd /= np.linalg.norm(queries_qd, axis=1, keepdims=True)
    near = np.repeat(queries_qd, 3, axis=0) + 0.4 * rng.normal(size=(360, 8)).astype(np.float32)
    passages_nd = near / np.linalg.norm(near, axis=1, keepdims=True)
    given = {
        "queries": [f"query {i}" for i in range(120)],
        "passages": [f"passage {i}" for i in range(360)],
        "positives": [[3 * i, 3 * i + 1] for i in range(120)],
        "query_embeddings": queries_qd,
        "passage_embeddings": passages_nd,
        "rule": "naive",
    }
    plain = nv.mine(**given)
    found = nv.mine(**given, risk="labels")
    assert plain.negative_risks is None
    assert np.array_equal(found.negative_rows.values, plain.negative_rows.values)
    risks, scores = found.negative_risks, found.negative_scores
    assert all((np.diff(r) <= 0).all() for r in risks)  # the best first
    assert np.corrcoef(risks.values, scores.values)[0, 1] > 0.3
    within = nv.mine(**given, risk="labels", risk_budget=0.05)
    assert within.negative_risks.values.mean() <= 0.05 < risks.values.mean()
