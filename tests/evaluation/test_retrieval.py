"""Metrics against a brute force written from their definitions; evaluate against fakes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from nvret_jax.errors import InputError
from nvret_jax.evaluation import retrieval


def brute_force(ranked: list[str], judged: dict[str, int]) -> dict[str, float]:
    """Every measure of one query from its definition, in float64."""
    relevant = {p for p, r in judged.items() if r >= 1}

    def ndcg(cut):
        def dcg(gains):
            return sum(max(g, 0) / math.log2(i + 2) for i, g in enumerate(gains[:cut]))

        ideal = dcg(sorted(judged.values(), reverse=True))
        return dcg([judged.get(p, 0) for p in ranked]) / ideal

    first = next((i + 1 for i, p in enumerate(ranked) if p in relevant), math.inf)
    found, precisions = 0, 0.0
    for i, passage in enumerate(ranked):
        if passage in relevant:
            found += 1
            precisions += found / (i + 1)
    return {
        "ndcg_cut_10": ndcg(10),
        "ndcg_cut_100": ndcg(100),
        "recip_rank_10": 1 / first if first <= 10 else 0.0,
        "map": precisions / len(relevant),
        "recall_10": len(relevant & set(ranked[:10])) / len(relevant),
        "recall_100": len(relevant & set(ranked[:100])) / len(relevant),
    }


@pytest.fixture(scope="module")
def ranking():
    """60 queries over 150 passages with graded judgments, few distinct scores, 120 hits each."""
    rng = np.random.default_rng(7)
    query_ids = [f"q{i}" for i in range(60)]
    passage_ids = [f"p{i}" for i in range(150)]
    order_qn = np.argsort(rng.random((60, 150)), axis=1)
    scores_qk = -np.sort(-rng.integers(-20, 20, (60, 120)).astype(np.float32) / 8, axis=1)
    # (score descending, row ascending), as search orders ties
    rows_qk = np.stack(
        [
            rows[np.lexsort((rows, -scores))]
            for rows, scores in zip(order_qn[:, :120], scores_qk, strict=True)
        ]
    ).astype(np.int32)
    qrels = {
        q: {passage_ids[j]: int(rng.integers(-1, 5)) for j in rng.choice(150, 12, replace=False)}
        for q in query_ids
    }
    for judged in qrels.values():
        judged[passage_ids[int(rng.integers(150))]] = 3
    return query_ids, passage_ids, scores_qk, rows_qk, qrels


def test_metrics_equal_brute_force_in_our_tie_order(ranking):
    query_ids, passage_ids, scores_qk, rows_qk, qrels = ranking
    means, per_query = retrieval.metrics((query_ids, passage_ids, scores_qk, rows_qk), qrels)
    wanted = {
        q: brute_force([passage_ids[j] for j in rows_qk[i]], qrels[q])
        for i, q in enumerate(query_ids)
    }
    assert len(set(scores_qk[0].tolist())) < 120  # the data has ties, or this proves little
    for q in query_ids:
        assert per_query[q] == pytest.approx(wanted[q], abs=1e-9)
    for name in retrieval.MEASURES:
        assert means[name] == pytest.approx(np.mean([w[name] for w in wanted.values()]), abs=1e-9)
    assert 0 < means["recip_rank_10"] < 1


def test_reciprocal_rank_is_cut_at_ten():
    def value(rank):
        run = {"q": {f"p{i}": float(-i) for i in range(1, 20)}}
        return retrieval.metrics(run, {"q": {f"p{rank}": 1}})[0]["recip_rank_10"]

    assert value(10) == pytest.approx(0.1)
    assert value(11) == 0.0


def test_queries_without_hits_count_and_queries_without_positives_do_not():
    qrels = {"hit": {"p": 1}, "missed": {"p": 2}, "zero": {"p": 0}, "negative": {"p": -1}}
    means, per_query = retrieval.metrics({"hit": {"p": 1.0}, "zero": {"p": 1.0}}, qrels)
    assert set(per_query) == {"hit", "missed"}
    assert set(per_query["missed"].values()) == {0.0}
    assert means == pytest.approx(dict.fromkeys(retrieval.MEASURES, 0.5))


def test_min_relevance_zeroes_lower_judgments_everywhere():
    qrels = {"a": {"x": 1, "y": 2}, "b": {"x": 1}}
    means, per_query = retrieval.metrics({"a": {"x": 2.0, "y": 1.0}}, qrels, min_relevance=2)
    assert set(per_query) == {"a"}
    assert means["map"] == means["recip_rank_10"] == 0.5
    assert means["ndcg_cut_10"] == pytest.approx(1 / math.log2(3))


def test_strict_scores_keep_order_and_stay_within_steps_of_the_original():
    scores = np.array([[1.0, 1.0, 1.0, 0.5, 0.0, 0.0, -np.inf, -np.inf]], np.float32)
    strict = retrieval.strict_scores(scores)
    assert (np.diff(strict[0, :6]) < 0).all()
    assert np.isneginf(strict[0, 6:]).all()
    assert strict[0, 3] == 0.5
    assert np.abs(strict[0, :6] - scores[0, :6]).max() < 3e-7


@pytest.mark.parametrize(
    ("scores", "ids", "message"),
    [
        ([[1.0, 2.0]], [[0, 1]], "rise at rank 2"),
        ([[np.nan, 0.0]], [[0, 1]], "NaN score at rank 1"),
        ([[1.0, 0.5]], [[1, 1]], "more than once"),
        ([[1.0]], [[1, 1]], "must both be"),
    ],
)
def test_bad_arrays_are_refused(scores, ids, message):
    with pytest.raises(InputError, match=message):
        retrieval.metrics((["q"], ["a", "b"], np.array(scores), np.array(ids)), {"q": {"a": 1}})


def test_no_relevant_judgment_and_infinite_score_are_refused():
    with pytest.raises(InputError, match="nothing to score"):
        retrieval.metrics({}, {"q": {"p": 0}})
    with pytest.raises(InputError, match="'q', passage 'p' has the score inf"):
        retrieval.metrics({"q": {"p": math.inf}}, {"q": {"p": 1}})


class Table(SimpleNamespace):
    """What evaluate needs of a TextTable."""

    @property
    def row(self):
        return {name: i for i, name in enumerate(self.ids)}

    def __len__(self):
        return len(self.ids)


def tiny_dataset(passages=300):
    corpus = Table(ids=tuple(f"p{i}" for i in range(passages)), texts=[str(i) for i in range(300)])
    queries = Table(ids=("p3", "q1", "q2"), texts=["3", "7", "9"])
    qrels = {"test": {"p3": {"p4": 1, "p2": 1}, "q1": {"p7": 2, "p0": 0}, "q2": {"p9": 0}}}
    return SimpleNamespace(
        name="tiny",
        corpus=corpus,
        queries=queries,
        qrels=qrels,
        split_queries=lambda split: Table(ids=("p3", "q1"), texts=["3", "7"]),
    )


class FakeEncoder:
    """Text "i" becomes a unit vector at angle i / 300, so neighbours in number are neighbours."""

    width = 2
    mesh = None

    def encode(self, texts, *, kind, max_length=None, progress=False):
        angle = np.array([int(t) / 300 for t in texts])
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_a_passage_judged_relevant_stays_whatever_its_id():
    data = tiny_dataset()
    data.qrels["test"]["p3"] = {"p3": 1}
    found = retrieval.evaluate(FakeEncoder(), data, "test")
    assert found.rows_qk[0, 0] == 3
    assert found.per_query["p3"]["ndcg_cut_10"] == 1.0


def test_evaluate_ranks_scores_and_leaves_the_query_itself_out():
    kept = retrieval.evaluate(FakeEncoder(), tiny_dataset(), "test", exclude_self=False)
    found = retrieval.evaluate(FakeEncoder(), tiny_dataset(), "test")
    assert kept.rows_qk[0, 0] == 3
    assert 3 not in found.rows_qk[0]
    assert set(found.rows_qk[0, :2]) == {2, 4}
    assert found.rows_qk[1, 0] == 7
    assert found.per_query["q1"]["ndcg_cut_10"] == pytest.approx(1.0)
    assert kept.per_query["p3"]["recip_rank_10"] == 0.5
    assert found.per_query["p3"]["recip_rank_10"] == 1.0
    assert found.counts == {
        "queries": 2,
        "unscored_queries": 1,
        "passages": 300,
        "judgments": 4,
        "positives": 3,
        "k": 100,
        "min_relevance": 1,
    }
    wanted = {q: tiny_dataset().qrels["test"][q] for q in found.query_ids}
    assert retrieval.metrics(found.run(), wanted)[0] == found.metrics


def test_evaluate_ranks_a_small_corpus_whole_and_takes_embeddings():
    dataset = tiny_dataset(20)
    dataset.corpus.texts = dataset.corpus.texts[:20]
    encoder = FakeEncoder()
    given = encoder.encode(dataset.corpus.texts, kind="passage")
    found = retrieval.evaluate(encoder, dataset, "test", passage_embeddings=given)
    assert found.counts["k"] == 20
    assert found.metrics == retrieval.evaluate(encoder, dataset, "test").metrics
    with pytest.raises(InputError, match=r"passage embeddings have the shape \(19, 2\)"):
        retrieval.evaluate(encoder, dataset, "test", passage_embeddings=given[1:])
    with pytest.raises(InputError, match="k=50"):
        retrieval.evaluate(encoder, dataset, "test", k=50)
    with pytest.raises(InputError, match="none of 2 queries"):
        retrieval.evaluate(encoder, dataset, "test", min_relevance=5)
