"""BM25 beside an evaluation: the formula by hand, the same queries, passages and order."""

import math

import pytest

from nvret_jax.data.dataset import Dataset, TextTable
from nvret_jax.errors import InputError
from nvret_jax.evaluation import comparison
from nvret_jax.evaluation.baseline import CHEAP, evaluate_bm25, is_wanted
from nvret_jax.evaluation.options import EvaluationOptions

PASSAGES = {
    "p0": "wing flow over a wing at high speed",
    "p1": "heat of the wing",
    "p2": "gene cell body",
    "q1": "heat heat shock layer",  # a query's own id
    "p4": "shock layer heat at speed in flow",
}
QUERIES = {"q0": "wing speed", "q1": "heat shock layer", "q2": "nothing known", "q3": "unjudged"}
QRELS = {"q0": {"p0": 1, "p1": 2}, "q1": {"p4": 1}, "q2": {"p2": 1}, "q3": {"p0": 0}}


def table(rows):
    return TextTable(tuple(rows), list(rows.values()))


@pytest.fixture
def data():
    return Dataset("tiny", table(PASSAGES), table(QUERIES), {"test": QRELS}, "")


def by_hand(query, left_out):
    """Passage ids by Lucene's BM25 (k1 1.5, b 0.75), best first, ties in corpus order."""
    texts = {name: [w for w in text.split() if len(w) > 1] for name, text in PASSAGES.items()}
    mean = sum(map(len, texts.values())) / len(texts)
    scores = {}
    for name, words in texts.items():
        scores[name] = 0.0
        for word in query.split():
            df = sum(word in other for other in texts.values())
            tf = words.count(word)
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            scores[name] += idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(words) / mean))
    order = sorted(scores, key=lambda name: -round(scores[name], 6))
    return [name for name in order if name != left_out]


def ndcg(ranking, judged):
    gains = [judged.get(name, 0) for name in ranking[:10]]
    best = sorted(judged.values(), reverse=True)

    def total(values):
        return sum(v / math.log2(rank + 2) for rank, v in enumerate(values))

    return total(gains) / total(best)


@pytest.mark.parametrize("exclude_self", [True, False])
def test_scores_are_those_of_the_formula(data, exclude_self):
    found = evaluate_bm25(data, "test", EvaluationOptions(exclude_self=exclude_self))
    assert found.query_ids == ("q0", "q1", "q2")
    for query in found.query_ids:
        ranking = by_hand(QUERIES[query], query if exclude_self else None)
        assert list(found.run()[query]) == ranking
        expected = ndcg(ranking, QRELS[query])
        assert found.per_query[query]["ndcg_cut_10"] == pytest.approx(expected, abs=1e-6)
    mean = sum(values["ndcg_cut_10"] for values in found.per_query.values()) / 3
    assert found.metrics["ndcg_cut_10"] == pytest.approx(mean)


def test_judgments_count_from_the_grade_asked_for(data):
    found = evaluate_bm25(data, "test", EvaluationOptions(min_relevance=2))
    assert found.query_ids == ("q0",)
    assert found.counts["positives"] == 1


def test_queries_without_any_word_of_the_corpus_are_an_error(data):
    only = Dataset("tiny", data.corpus, data.queries, {"test": {"q2": {"p2": 1}}}, "")
    with pytest.raises(InputError, match="none of the 1 queries shares a word"):
        evaluate_bm25(only, "test", EvaluationOptions())


def test_auto_ends_where_the_corpus_is_large():
    wanted = {
        (mode, size): is_wanted(EvaluationOptions(bm25=mode), size)
        for mode in ("auto", "on", "off")
        for size in (CHEAP, CHEAP + 1)
    }
    assert wanted == {
        ("auto", CHEAP): True,
        ("auto", CHEAP + 1): False,
        ("on", CHEAP): True,
        ("on", CHEAP + 1): True,
        ("off", CHEAP): False,
        ("off", CHEAP + 1): False,
    }


def test_tables_have_a_column_for_it_and_fit_80_columns(data):
    found = evaluate_bm25(data, "test", EvaluationOptions())
    compared = comparison.compare(found, found)
    lower = {name: value / 2 for name, value in found.metrics.items()}
    half = f"{lower['ndcg_cut_10']:.4f}"
    text = comparison.table_text(comparison.comparison_table([compared], bm25=[lower]))
    alone = comparison.table_text(comparison.evaluation_table([found], bm25=[lower]))
    for shown in (text, alone):
        assert max(map(len, shown.splitlines())) <= 80
        assert "BM25" in shown
        line = next(line for line in shown.splitlines() if "nDCG@10 " in line)
        assert line.index(half) < line.index(f"{found.metrics['ndcg_cut_10']:.4f}")
        assert "…" not in shown.replace(" … ", "")  # nothing is cut
    without = comparison.table_text(comparison.comparison_table([compared], bm25=[None]))
    assert "BM25" not in without


def test_tables_have_a_column_for_a_teachers_passages(data):
    found = evaluate_bm25(data, "test", EvaluationOptions())
    compared = comparison.compare(found, found)
    lower = {name: value / 2 for name, value in found.metrics.items()}
    half = f"{lower['ndcg_cut_10']:.4f}"
    how = {"bm25": [found.metrics], "asymmetric": [lower]}
    text = comparison.table_text(comparison.comparison_table([compared], **how), 96)
    alone = comparison.table_text(comparison.evaluation_table([found], **how), 96)
    for shown in (text, alone):
        assert max(map(len, shown.splitlines())) <= 96
        assert "teacher's" in shown
        assert "passages" in shown
        line = next(line for line in shown.splitlines() if "nDCG@10 " in line)
        assert line.rstrip(" │").endswith(half)
