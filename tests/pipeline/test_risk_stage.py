"""Risks, weights and drawn negatives from mining to the training step."""

import json
import pathlib
import sys

import command
import numpy as np
import pytest
import tiny_project

from nvret_jax.data.dataset import Dataset, TextTable
from nvret_jax.errors import InputError
from nvret_jax.mining.miner import Teacher
from nvret_jax.mining.options import Audit, Exclude, Mining, Options, Positives
from nvret_jax.mining.rules import Rule
from nvret_jax.pipeline import audit, mine
from nvret_jax.pipeline.exclusions import Excluder

sys.path.append(str(pathlib.Path(__file__).parents[1] / "mining"))
import test_risk


def opened(candidates):
    """Values that stages get, around candidates of made-up passages."""
    count, passages = len(candidates), test_risk.passage_ids()
    queries = TextTable(tuple(f"q{i}" for i in range(count)), ["query"] * count)
    corpus = TextTable(tuple(passages), ["passage"] * len(passages))
    data = Dataset("world", corpus, queries, {}, "")
    exclude = Exclude(own_text="off", same_text=False)
    teacher = Teacher("teacher", candidates)
    return data, queries.ids, teacher, Excluder(queries, corpus, exclude)


def test_the_stage_stores_risks_and_keeps_a_budget():
    data, ids, teacher, excluder = opened(test_risk.world(300, 5))
    inputs = mine.Inputs(data, ids, [teacher], excluder)
    naive = mine.make(inputs, Mining(Options(Rule("naive"), risk="auto")))
    budget = mine.make(inputs, Mining(Options(Rule("naive"), risk="auto", risk_budget=0.02)))
    for made in (naive, budget):
        risks = made.negatives.negative_risks
        assert np.array_equal(risks.offsets, made.negatives.negative_rows.offsets)
        assert made.counts["expected_false"] == pytest.approx(risks.values.mean())
    assert budget.counts["expected_false"] <= 0.02
    assert naive.counts["expected_false"] > 0.05
    assert mine.make(inputs, Mining()).negatives.negative_risks is None
    data, ids, teacher, excluder = opened(test_risk.world(60, 5))
    few = mine.Inputs(data, ids, [teacher], excluder)
    with pytest.raises(InputError, match="needs at least 100 training queries"):
        mine.make(few, Mining(Options(risk="auto")))


def test_the_audit_counts_what_risks_predict():
    data, ids, teacher, excluder = opened(test_risk.world(600, 6))
    inputs = audit.Inputs(data, ids, [teacher], excluder, Options())
    options = Audit(percents=(0.9,), margins=(), thresholds=(), shifts=(), resamples=100)
    made = audit.make(inputs, options)
    labels = [row for row in made.reliability if row.method == "labels"]
    assert {row.method for row in made.reliability} == {"labels", "ranks"}
    enough = [row for row in labels if row.candidates >= 400]
    assert max(abs(row.predicted - row.counted) for row in enough) < 0.03


def test_doubtful_positives_are_left_out_and_named():
    candidates = test_risk.world(40, 7, positives=1)
    data, ids, teacher, excluder = opened(candidates)
    inputs = mine.Inputs(data, ids, [teacher], excluder)
    made = mine.make(inputs, Mining(Options(Rule("naive")), positives=Positives(max_rank=1)))
    told = made.counts["doubtful_positives"]
    best = np.array([scores[0] for scores in candidates.scores])
    low = np.flatnonzero(candidates.positive_scores.values < best)
    assert [query for query, _, _ in told["listed"]] == [f"q{i}" for i in low]
    assert told["doubtful"] == told["rows_dropped"] == len(low) > 0
    assert len(made.negatives) == 40 - len(low)
    json.dumps(made.counts, allow_nan=False)  # as the stage writes it


def test_draws_and_weights_reach_the_step(compiled, tmp_path):
    """The command: doubtful rows are weighed, and another draw is another training."""
    tiny_project.make(tmp_path)

    def run(*more):
        result = command.inside(
            command.CONFIG,
            f"--workdir={tmp_path / 'w'}",
            *command.flags_of(tmp_path),
            "--stages=embed,search,mine,train",
            "--config.data.dev_split=",
            "--config.mining.num_negatives=12",
            *(f"--config.{one}" for one in more),
        )
        assert result.status == 0, result.stderr[-2000:]
        return [line["loss"] for line in tiny_project.metrics(tmp_path / "w")], result.stdout

    top, _ = run()
    drawn, said = run("train.draw.how=softmax")
    assert "train.draw.how" in said
    assert drawn[0] != top[0]
    assert run("train.draw.how=softmax", "train.draw.temperature=0.2")[0][0] != drawn[0]
    weighed, said = run(
        "mining.positives.max_rank=1",
        "mining.positives.doubtful=weigh",
        "mining.positives.weight=0.01",
        "train.loss.weights=true",
    )
    assert "positives rank beyond 1 and weigh 0.01" in said
    assert weighed[0] != top[0]
