"""mteb evaluates our encoders, and its numbers are ours."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tiny_project
import virtual_devices

import nvret_jax as nv
from nvret_jax.evaluation.mteb import Model

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import mteb_task

TASK = types.SimpleNamespace(name="NQ", type="Retrieval", prompt={"query": "Find it"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    tiny_project.make_model(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return nv.Encoder.from_pretrained(
        folder, normalize=True, query_prompt="the heat ", passage_prompt="a cell "
    )


class Rows(dict):
    """Columns with the names that a table of `datasets` has."""

    @property
    def column_names(self) -> list[str]:
        return list(self)


def rows(**columns) -> Rows:
    return Rows(columns)


CORPUS = rows(id=["a", "b", "c"], title=["the", None, ""], text=["wing", "heat", " body "])
QUERIES = rows(id=["q"], text=["wing"])


def test_the_prompt_of_a_task(encoder):
    def prompt(side, **how):
        return Model(encoder, **how).prompt(TASK, side)

    assert prompt("query") == "the heat "
    assert prompt("document") == "a cell "
    assert prompt(None) == ""
    known = {"NQ-query": "1", "NQ": "2", "Retrieval-query": "3", "Retrieval": "4", "query": "5"}
    for key in list(known):
        assert prompt("query", prompts=known) == known[key]
        del known[key]
    assert prompt("document", prompts={"NQ": "2"}) == "2"
    assert prompt("document", prompts={"NQ-query": "2"}) == "a cell "
    instruction = "Instruct: {instruction}\nQuery: "
    assert prompt("query", instruction=instruction) == "Instruct: Find it\nQuery: "
    assert prompt("document", instruction=instruction) == "a cell "


def test_texts_are_embedded_with_the_prompt_of_the_task(encoder):
    model = Model(encoder, prompts={"NQ-query": "of "})
    batches = [{"text": ["wing", "heat"]}, {"text": ["body"]}]
    plain = nv.Encoder.from_pretrained(encoder.folder, normalize=True)
    found = model.encode(batches, task_metadata=TASK, prompt_type="query")
    np.testing.assert_allclose(found, plain.encode(["of wing", "of heat", "of body"]), atol=2e-6)
    found = model.encode(batches, task_metadata=TASK, prompt_type=None)
    np.testing.assert_allclose(found, plain.encode(["wing", "heat", "body"]), atol=2e-6)


def test_search_is_by_the_corpus_last_indexed(encoder):
    model = Model(encoder)
    with pytest.raises(nv.InputError, match="search before index"):
        model.search(QUERIES, task_metadata=TASK, top_k=2)
    model.index(CORPUS, task_metadata=TASK)
    found = model.search(QUERIES, task_metadata=TASK, top_k=2)["q"]
    passages = encoder.encode(["the wing", "heat", "body"])
    scores = passages @ encoder.encode("wing", kind="query")
    order = np.argsort(-scores)[:2]
    assert list(found) == [["a", "b", "c"][row] for row in order]
    np.testing.assert_allclose(list(found.values()), scores[order], atol=2e-6)
    for allowed in (["c"], ["b", "c"]):  # scored by themselves; the corpus without one
        some = model.search(QUERIES, task_metadata=TASK, top_k=3, top_ranked={"q": allowed})["q"]
        assert set(some) == set(allowed)
        wanted = {p: scores["abc".index(p)] for p in allowed}
        assert some == pytest.approx(wanted, abs=2e-6)


def test_an_instruction_stands_behind_a_query(encoder):
    model = Model(encoder)
    model.index(CORPUS, task_metadata=TASK)
    one = rows(id=["q", "r"], text=["wing", "body"], instruction=["of heat", None])
    found = model.search(one, task_metadata=TASK, top_k=3)
    told = rows(id=["q", "r"], text=["wing of heat", "body"])
    assert found == model.search(told, task_metadata=TASK, top_k=3)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"encoder": "all-MiniLM-L6-v2"}, "expected an Encoder"),
        ({"instruction": "Query: "}, "lacks '{instruction}'"),
        ({"prompts": {"query": 3}}, "prompts: 'query': 3: expected two texts"),
        ({"backend": "gpu"}, "backend='gpu'"),
        ({"name": 3}, "name=3"),
    ],
)
def test_what_cannot_be_is_one_line(encoder, how, words):
    with pytest.raises(nv.InputError) as error:
        Model(**{"encoder": encoder, **how})
    assert words in str(error.value)


@pytest.fixture(scope="module")
def cranfield():
    folder = pathlib.Path(os.environ.get("NVRET_DATA", "/nowhere")) / "cranfield"
    if not folder.exists():
        pytest.skip("NVRET_DATA has no cranfield")
    return folder


@pytest.mark.parity
def test_the_scores_of_mteb_are_ours(encoder, cranfield):
    pytest.importorskip("mteb")
    data = mteb_task.small(str(cranfield))
    ours = nv.evaluate(encoder, data, "test").metrics
    theirs = mteb_task.score(Model(encoder), mteb_task.task(data))
    assert 0.01 < ours["ndcg_cut_10"] < 0.99
    assert theirs["ndcg_at_10"] == pytest.approx(ours["ndcg_cut_10"], abs=1e-4)
    assert theirs["recall_at_100"] == pytest.approx(ours["recall_100"], abs=1e-4)
    assert theirs["mrr_at_10"] == pytest.approx(ours["recip_rank_10"], abs=1e-4)


@pytest.mark.parity
def test_mtebs_own_search_agrees(encoder, cranfield):
    """The same model without our search: mteb embeds the corpus in chunks and ranks with torch."""
    pytest.importorskip("mteb")

    class OnlyEncodes(Model):
        index = search = None

    model = OnlyEncodes(encoder)
    for name in ("index", "search"):
        assert getattr(model, name) is None
    data = mteb_task.small(str(cranfield))
    from mteb.models import SearchEncoderWrapper

    ours = mteb_task.score(Model(encoder), mteb_task.task(data))
    theirs = mteb_task.score(SearchEncoderWrapper(model), mteb_task.task(data))
    assert theirs["ndcg_at_10"] == pytest.approx(ours["ndcg_at_10"], abs=1e-4)


@pytest.mark.parity
def test_a_task_with_exclusions(encoder, cranfield):
    """Some passages may not be found for a query, as in BRIGHT: mteb names those that may."""
    pytest.importorskip("mteb")
    data = mteb_task.small(str(cranfield))
    first = {q: next(iter(one)) for q, one in data.qrels["test"].items()}
    allowed = {q: [p for p in data.corpus.ids if p != first[q]] for q in first}
    model = Model(encoder)
    whole = mteb_task.score(model, mteb_task.task(data))
    part = mteb_task.score(model, mteb_task.task(data, top_ranked=allowed))
    assert part["recall_at_1000"] < whole["recall_at_1000"] == 1


@pytest.mark.parity
@pytest.mark.slow
def test_eight_devices_give_the_same(folder, cranfield):
    pytest.importorskip("mteb")
    encoder = nv.Encoder.from_pretrained(folder, normalize=True)
    here = mteb_task.score(Model(encoder), mteb_task.task(mteb_task.small(str(cranfield))))
    done = subprocess.run(
        [sys.executable, mteb_task.__file__, str(cranfield), str(folder)],
        env=virtual_devices.environment(8),
        cwd=tiny_project.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "devices 8" in done.stdout
    there = float(done.stdout.split("ndcg ")[1])
    assert there == pytest.approx(here["ndcg_at_10"], abs=1e-6)


@pytest.mark.parity
def test_the_card_that_mteb_keeps(encoder):
    pytest.importorskip("mteb")
    meta = Model(encoder, name="me/model", training_datasets=["NQ"]).mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("me/model", 32, 40)
    assert meta.framework == ["JAX"]
    assert meta.use_instructions
    assert meta.training_datasets == {"NQ"}
    assert meta.n_parameters > 1000
    assert Model(encoder).mteb_model_meta.name == "nvret_jax/m"
