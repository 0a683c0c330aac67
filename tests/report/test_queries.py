"""Test queries: who won and lost, and which are worth reading."""

import numpy as np

from nvret_jax.data.dataset import Dataset, TextTable
from nvret_jax.report.queries import Ranked, compare

IDS = [f"q{i}" for i in range(8)]
BEFORE = dict(zip(IDS, [0.5, 0.2, 0.9, 0.0, 1.0, 0.4, 0.3, 0.6], strict=True))
AFTER = dict(zip(IDS, [0.7, 0.9, 0.4, 0.0, 1.0, 0.4, 0.2, 0.6], strict=True))
BM25 = dict(zip(IDS, [0.1, 0.2, 0.3, 0.8, 1.0, 0.9, 0.2, 0.6], strict=True))


def ranked(**changes):
    passages = TextTable(tuple(f"p{i}" for i in range(9)), [f"text {i}" for i in range(9)])
    queries = TextTable(tuple(IDS), [f"query {i}" for i in IDS])
    qrels = {"test": {query: {"p3": 1, "p4": 2} for query in IDS}}
    order = [f"p{i}" for i in (0, 4, 1, 3, 2, 5)]
    values = {
        "data": Dataset("some", passages, queries, qrels, ""),
        "split": "test",
        "min_relevance": 1,
        "after": AFTER,
        "ranking_after": dict.fromkeys(IDS, order),
        "before": BEFORE,
        "ranking_before": dict.fromkeys(IDS, order[::-1]),
    }
    return Ranked(**values | changes)


def groups(found):
    return {heading: [one.query_id for one in chosen] for heading, chosen in found.groups.items()}


def test_wins_and_losses_are_counted():
    found = compare(ranked(), 9)
    assert (found.better, found.same, found.worse) == (2, 4, 2)
    expected = [AFTER[query] - BEFORE[query] for query in IDS]
    np.testing.assert_allclose(found.differences, expected)


def test_queries_are_chosen_by_interest_and_each_is_shown_once():
    assert groups(compare(ranked(), 9)) == {
        "Largest gains": ["q1", "q0"],
        "Largest losses": ["q2", "q6"],
        "Still ranked worst": ["q3", "q5", "q7"],
    }
    assert groups(compare(ranked(), 3)) == {
        "Largest gains": ["q1"],
        "Largest losses": ["q2"],
        "Still ranked worst": ["q3"],
    }
    assert groups(compare(ranked(), 0)) == {}


def test_without_training_the_worst_and_those_that_bm25_ranks_better_are_shown():
    alone = ranked(before=None, ranking_before={}, bm25=BM25)
    found = compare(alone, 6)
    assert groups(found) == {
        "BM25 ranks them better": ["q3", "q5"],
        "Ranked worst": ["q6", "q2", "q7"],
    }
    assert not len(found.differences)
    (one, *_) = found.groups["Ranked worst"]
    assert one.before is None
    assert one.hits_before == []
    assert groups(compare(ranked(before=None, ranking_before={}), 2)) == {"Ranked worst": ["q3"]}


def test_hits_have_ranks_texts_and_judgments():
    found = compare(ranked(bm25=BM25, ranking_bm25={"q1": ["p8"]}, min_relevance=2), 9)
    one = found.groups["Largest gains"][0]
    assert (one.query, one.before, one.after) == ("query q1", 0.2, 0.9)
    assert one.first == {"before": 5, "after": 2, "BM25": None}
    assert [(hit.id, hit.rank, hit.relevant) for hit in one.hits_after] == [
        ("p0", 1, False),
        ("p4", 2, True),
        ("p1", 3, False),
        ("p3", 4, False),  # judged, below the grade that counts
        ("p2", 5, False),
    ]
    assert one.hits_before[0].text == "text 5"
