"""Each stage makes its values from values: no run, no workdir."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

import nvret_jax.api as nv
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.evaluation import retrieval
from nvret_jax.evaluation.options import EvaluationOptions
from nvret_jax.export.model_card import ModelCard
from nvret_jax.export.options import Export
from nvret_jax.mining.miner import Teacher
from nvret_jax.mining.options import Audit, Exclude, Mining, Options
from nvret_jax.mining.options import Rescorer as RescorerOptions
from nvret_jax.pipeline import audit, embed, evaluate, export, mine, report, search, train
from nvret_jax.pipeline.exclusions import Excluder
from nvret_jax.report.mined import MinedSet
from nvret_jax.report.options import Report
from nvret_jax.search.index.backend import make_index
from nvret_jax.search.options import Embed, Search
from nvret_jax.search.rankers.ranker import DenseRanker
from nvret_jax.training import loop
from nvret_jax.training.options import Training

DEPTH = 30
LENGTHS = {"query": 16, "passage": 24}


@pytest.fixture(scope="module")
def tiny(pristine):
    """Data, encoder, vectors, and a teacher over the training queries."""
    data = nv.load_dataset(f"beir:{pristine / 'data'}")
    encoder = nv.Encoder.from_pretrained(str(pristine / "model"))
    positives = data.positives("train", 1)
    queries = data.queries.select(positives)
    passages_nd = encoder.encode(data.corpus.texts, max_length=24)
    queries_qd = encoder.encode(queries.texts, kind="query", max_length=16)
    rows = Ragged.from_rows([[data.corpus.row[p] for p in r] for r in positives.values()], np.int32)
    query_rows = np.array([data.queries.row[i] for i in queries.ids], np.int32)
    ranker = DenseRanker(queries_qd, passages_nd, functools.partial(make_index, mesh=encoder.mesh))
    inputs = search.Inputs(data, "teacher", query_rows, rows, ranker)
    return SimpleNamespace(
        data=data,
        encoder=encoder,
        queries=queries,
        passages_nd=passages_nd,
        queries_qd=queries_qd,
        positive_rows=rows,
        ranker=ranker,
        search=inputs,
        candidates=search.make(inputs, Search(depth=DEPTH, query_block=7)),
        excluder=Excluder(
            data.queries, data.corpus, Exclude(), texts=SameText.of(data.corpus.texts)
        ),
    )


@pytest.fixture(scope="module")
def mined(tiny):
    inputs = mine.Inputs(
        tiny.data,
        tiny.queries.ids,
        [Teacher("teacher", tiny.candidates, tiny.ranker)],
        tiny.excluder,
    )
    return mine.make(inputs, Mining(options=Options(num_negatives=3)))


def test_embed(tiny):
    inputs = embed.Inputs(tiny.encoder, tiny.data.corpus, "passage", 24)
    made = embed.make(inputs, Embed(token_budget=200))
    wanted = np.ones(len(tiny.data.corpus), bool)
    found = np.full((len(wanted), made.width), np.nan, np.float32)
    for rows, vectors in made.encoded(tiny.data.corpus.texts, wanted):
        found[rows] = vectors
    np.testing.assert_allclose(found, tiny.passages_nd, atol=1e-6)


def test_search(tiny):
    scores = tiny.queries_qd @ tiny.passages_nd.T
    best = -np.sort(-scores, axis=1)[:, :DEPTH]
    assert len(tiny.candidates) == len(tiny.queries)
    for found, expected in zip(tiny.candidates.scores, best, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for found, rows, expected in zip(
        tiny.candidates.positive_scores, tiny.positive_rows, scores, strict=True
    ):
        np.testing.assert_allclose(found, expected[rows], rtol=1e-6)


class Kept(dict):
    """Pieces in memory."""

    def load(self, number):
        return self.get(number)

    def save(self, number, piece):
        self[number] = piece


def test_a_search_goes_on_from_the_pieces_that_were_kept(tiny):
    pieces = Kept()
    inputs = search.Inputs(
        tiny.data,
        "teacher",
        tiny.search.query_rows,
        tiny.positive_rows,
        tiny.ranker,
        pieces,
    )
    whole = search.make(inputs, Search(depth=DEPTH, query_block=7))
    assert sorted(pieces) == [0, 1, 2, 3]
    del pieces[2]
    kept = dict(pieces)
    again = search.make(inputs, Search(depth=DEPTH, query_block=7))
    assert all(pieces[number] is piece for number, piece in kept.items())
    np.testing.assert_array_equal(again.passage_rows.values, whole.passage_rows.values)


def test_search_with_a_cross_encoder(tiny):
    inputs = search.Rescoring(
        tiny.data, tiny.candidates, lambda pairs: -pairs[:, 1].astype(np.float32), Options()
    )
    found = search.make(inputs, RescorerOptions(order="rescored", depth=5))
    for rows in found.passage_rows:
        assert rows.tolist() == sorted(rows.tolist())


def test_audit(tiny):
    inputs = audit.Inputs(
        tiny.data,
        tuple(tiny.queries.ids),
        [Teacher("teacher", tiny.candidates, tiny.ranker)],
        tiny.excluder,
        Options(),
    )
    made = audit.make(inputs, Audit(percents=(0.9,), margins=(), thresholds=(), shifts=()))
    rows = made.rows
    assert made.reliability == []  # too few queries to fit and to count
    assert {row.teacher for row in rows} == {"teacher"}
    assert {row.dataset for row in rows} == {tiny.data.name}
    assert len(rows) >= 3  # naive, the one to try, and that of the options


def test_mine(tiny, mined):
    expected = nv.mine(
        tiny.queries.texts,
        tiny.data.corpus.texts,
        list(tiny.positive_rows),
        query_embeddings=tiny.queries_qd,
        passage_embeddings=tiny.passages_nd,
        num_negatives=3,
        depth=DEPTH,
        progress=False,
    )
    np.testing.assert_array_equal(
        mined.negatives.negative_rows.values, expected.negative_rows.values
    )
    assert mined.counts["queries"] == len(tiny.queries)
    json.dumps(mined.counts, allow_nan=False)


def test_train(tiny, mined, tmp_path):
    one = train.MinedSet(
        tiny.data, "digest", lambda: mined.negatives, 3, True, LENGTHS, lambda: tiny.encoder
    )
    dev = train.Dev(tiny.data, "dev", 1, 40, 0, LENGTHS, "device", lambda ids, depth: range(30))
    places = loop.Places(
        *(epath.Path(tmp_path / n) for n in ("checkpoints", "metrics.jsonl", "tensorboard"))
    )
    block = Training(batch_size=8, num_negatives=3, steps=2, learning_rate=1e-3)
    inputs = train.Inputs(tiny.encoder, {"only": one}, 0, places, dev)
    folder = train.make(inputs, {"first": block})
    trained = loop.load_trained(tiny.encoder, folder)
    text = tiny.data.corpus.texts[:1]
    assert np.abs(trained.encode(text) - tiny.encoder.encode(text)).max() > 1e-4
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert any("dev_ndcg_cut_10" in line for line in lines)


def test_evaluate(tiny):
    _, texts = retrieval.scored_queries(tiny.data, "test", 1)
    queries_qd = tiny.encoder.encode(texts, kind="query", max_length=16)
    before = evaluate.Vectors(tiny.passages_nd, queries_qd, tiny.encoder.width)
    worse = evaluate.Vectors(tiny.passages_nd[::-1], queries_qd, tiny.encoder.width)
    inputs = evaluate.Inputs(
        tiny.data, "test", before, worse, tiny.encoder.mesh, said={"measured": "by a test"}
    )
    made = evaluate.make(inputs, EvaluationOptions())
    expected = nv.evaluate(
        tiny.encoder,
        tiny.data,
        "test",
        passage_embeddings=tiny.passages_nd,
        query_embeddings=queries_qd,
    )
    assert made.before.metrics == expected.metrics == made.said["before"]
    assert made.after.metrics != expected.metrics
    assert made.said["measured"] == "by a test"
    alone = evaluate.make(
        evaluate.Inputs(tiny.data, "test", before, None, tiny.encoder.mesh), EvaluationOptions()
    )
    assert alone.after is None
    assert "before" not in alone.said


def test_export(tiny, tmp_path):
    inputs = export.Inputs(
        tiny.encoder, ModelCard(name="A tiny one"), epath.Path(tmp_path / "model")
    )
    folder = export.make(inputs, Export(dtype="float16"))
    assert "A tiny one" in (folder / "README.md").read_text()
    text = tiny.data.corpus.texts[:2]
    again = nv.Encoder.from_pretrained(str(folder)).encode(text, max_length=24)
    np.testing.assert_allclose(again, tiny.passages_nd[:2], atol=1e-2)


def test_report(tiny, mined):
    one = MinedSet(
        "tiny",
        tiny.data,
        tiny.candidates,
        mined.negatives,
        tiny.excluder.of_candidates(tiny.candidates),
        Options(num_negatives=3),
        "a rule",
        "a teacher",
        has_one_scale=True,
        wanted=3,
    )
    lines = [
        {"step": 0, "stage": "a", "dev_ndcg_cut_10": 0.5},
        {"step": 1, "stage": "a", "loss": 2.0, "learning_rate": 0.1, "odd_one": 7.0},
        {"step": 2, "stage": "b", "examples_per_second": 8.0},
        {"step": 2, "stage": "b", "loss": 1.0, "learning_rate": 0.2},
    ]
    inputs = report.Inputs("title", "lead", sets=1, mined=iter([one]), metrics=lines)
    page = report.make(inputs, Report(examples=9))
    assert (page.title, page.training.loss.values) == ("title", [2.0, 1.0])
    assert (page.training.dev.steps, page.training.dev.values) == ([0], [0.5])
    others = {curve.name: (curve.steps, curve.values) for curve in page.training.others}
    assert others == {"learning rate": ([1, 2], [0.1, 0.2]), "odd_one": ([1], [7.0])}
    assert page.training.bounds == [1]
    assert page.mined[0].mining.negatives == len(mined.negatives.negative_rows.values)
    # What is most likely to be false comes first: the smallest gap between positive and negative.
    examples = page.mined[0].examples
    assert len({example.query_id for example in examples}) == 9
    table = mined.negatives
    gaps = {
        tiny.data.queries.ids[row]: float(min(table.positive_scores[i]))
        - float(max(table.negative_scores[i]))
        for i, row in enumerate(table.query_rows)
        if len(table.negative_scores[i])
    }
    reason = "a negative scores close to its positive"
    close = [one.query_id for one in examples if one.chosen == reason]
    assert close == sorted(gaps, key=gaps.get)[:5]
    easy = [one.query_id for one in examples if one.chosen == "easiest negatives"]
    assert easy == [q for q in sorted(gaps, key=gaps.get, reverse=True) if q in easy]
    assert {one.chosen for one in examples} >= {"easiest negatives", "most candidates rejected"}
