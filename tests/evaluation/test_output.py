"""Run files and evaluation files: round trip, trec_eval's order, bad lines."""

import json

import ir_measures
import numpy as np
import pytest

from nvret_jax.data import interchange
from nvret_jax.errors import InputError
from nvret_jax.evaluation import comparison, output, retrieval


@pytest.fixture
def tied():
    """Two queries with ties, which trec_eval on its own would order backwards by id."""
    passage_ids = ["a", "b", "c", "d"]
    scores_qk = np.array([[0.5, 0.5, 0.5, 0.1], [0.3, 0.3, -np.inf, -np.inf]], np.float32)
    rows_qk = np.array([[0, 1, 2, 3], [1, 2, -1, -1]], np.int32)
    return ["q0", "q1"], passage_ids, scores_qk, rows_qk


def test_run_file_has_six_columns_and_our_order(tied, tmp_path):
    output.write_trec_run(tmp_path / "x" / "run.trec", *tied, tag="t")
    rows = [line.split() for line in (tmp_path / "x" / "run.trec").read_text().splitlines()]
    assert [row[:4] for row in rows] == [
        ["q0", "Q0", "a", "1"],
        ["q0", "Q0", "b", "2"],
        ["q0", "Q0", "c", "3"],
        ["q0", "Q0", "d", "4"],
        ["q1", "Q0", "b", "1"],
        ["q1", "Q0", "c", "2"],
    ]
    assert {row[5] for row in rows} == {"t"}
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["run.trec"]


def test_trec_eval_on_the_file_sees_our_order(tied, tmp_path):
    path = tmp_path / "run.trec"
    output.write_trec_run(path, *tied)
    qrels = {"q0": {"c": 1}, "q1": {"c": 1}}
    # An independent reader, then trec_eval's sort: "c" is third and second in our order.
    found = ir_measures.pytrec_eval.iter_calc(
        [ir_measures.RR], qrels, ir_measures.read_trec_run(str(path))
    )
    assert {m.query_id: m.value for m in found} == pytest.approx({"q0": 1 / 3, "q1": 1 / 2})
    ours = retrieval.metrics(tied, qrels)
    assert retrieval.metrics(interchange.read_run(path), qrels) == ours


def test_written_scores_come_back_as_the_same_float32(tmp_path):
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.normal(size=(20, 50)).astype(np.float32), axis=1)
    ids = np.tile(np.arange(50, dtype=np.int32), (20, 1))
    names = [f"q{i}" for i in range(20)]
    output.write_trec_run(tmp_path / "r", names, [f"p{i}" for i in range(50)], scores, ids)
    back = interchange.read_run(tmp_path / "r")
    found = np.array([[back[q][f"p{i}"] for i in range(50)] for q in names], np.float32)
    np.testing.assert_array_equal(found, retrieval.strict_scores(scores))


def test_ids_with_spaces_are_refused(tied, tmp_path):
    _, passage_ids, scores, ids = tied
    with pytest.raises(InputError, match="'a b'"):
        output.write_trec_run(tmp_path / "r", ["a b", "q1"], passage_ids, scores, ids)
    with pytest.raises(InputError, match="tag ''"):
        output.write_trec_run(tmp_path / "r", *tied, tag="")
    assert not list(tmp_path.iterdir())


def make_evaluation(tied, qrels, split="test"):
    means, per_query = retrieval.metrics(tied, qrels)
    return retrieval.Evaluation(
        "tiny", split, means, per_query, tuple(tied[0]), tied[1], tied[2], tied[3], {"queries": 2}
    )


def test_evaluation_json_is_flat_and_refuses_clashes(tied, tmp_path):
    found = make_evaluation(tied, {"q0": {"c": 1}, "q1": {"b": 1}})
    output.write_evaluation_json(tmp_path / "e.json", found, {"encoder": "é"})
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["map"] == pytest.approx((1 / 3 + 1) / 2)
    assert record["dataset"] == "tiny"
    assert record["encoder"] == "é"
    assert record["per_query"]["q0"]["map"] == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="extra key 'map'"):
        output.write_evaluation_json(tmp_path / "f.json", found, {"map": 1})
    assert not (tmp_path / "f.json").exists()


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        delta = rng.normal(0.02, 0.2, 150)
        before = {str(i): {"m": 0.0} for i in range(150)}
        after = {str(i): {"m": d} for i, d in enumerate(delta)}
        low, high = comparison.bootstrap_interval(before, after, "m", resamples=1_000, seed=trial)
        covered += low <= 0.02 <= high
        width = 2 * 1.96 * delta.std() / np.sqrt(150)
        assert high - low == pytest.approx(width, rel=0.15)
    assert 0.90 <= covered / 200 <= 0.99


def test_bootstrap_is_paired_seeded_and_free_of_query_order():
    before = {str(i): {"m": i / 10} for i in range(10)}
    after = {str(i): {"m": i / 10 + 0.05} for i in range(10)}
    assert comparison.bootstrap_interval(before, after, "m") == pytest.approx((0.05, 0.05))
    after = {q: {"m": v["m"] + 0.01 * i**2} for i, (q, v) in enumerate(after.items())}
    one = comparison.bootstrap_interval(before, after, "m", seed=1)
    shuffled = {q: before[q] for q in reversed(before)}
    assert comparison.bootstrap_interval(shuffled, after, "m", seed=1) == one
    assert comparison.bootstrap_interval(before, after, "m", seed=2) != one


def test_comparison_table_shows_every_number(tied):
    before = make_evaluation(tied, {"q0": {"c": 1}, "q1": {"c": 1}})
    after = make_evaluation(tied, {"q0": {"a": 1}, "q1": {"b": 1}})
    found = comparison.compare(before, after)
    text = comparison.table_text(comparison.comparison_table([found]))
    assert max(map(len, text.splitlines())) <= 80
    for shown in (
        "tiny test, 2 queries",
        "nDCG@10",
        "0.5655",
        "1.0000",
        "+0.4345",
        "+0.3691 … +0.5000",
    ):
        assert shown in text, text
    assert "\x1b" not in text
    assert "1.0000" in comparison.table_text(comparison.evaluation_table([after]))
    with pytest.raises(InputError, match="cannot compare tiny test with tiny dev"):
        comparison.compare(before, make_evaluation(tied, {"q0": {"a": 1}}, "dev"))
    with pytest.raises(InputError, match="query 'q1' was scored only once"):
        comparison.compare(before, make_evaluation(tied, {"q0": {"a": 1}}))
