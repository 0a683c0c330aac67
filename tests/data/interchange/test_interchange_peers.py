"""The other tools' own readers and writers on our files and theirs."""

import json

import numpy as np
import pytest
from interchange_samples import content, example, jsonl

from nvret_jax.data import interchange

datasets = pytest.importorskip("datasets", reason="pip install datasets, to read with it")
pytestmark = pytest.mark.parity
FORMS = [name for name in interchange.FORMATS if name.startswith("st-")]


def load(path, tmp_path, kind="parquet"):
    return datasets.load_dataset(
        kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )


@pytest.mark.parametrize("name", FORMS)
def test_datasets_reads_the_forms_of_sentence_transformers(name, tmp_path):
    for suffix, kind in ((".parquet", "parquet"), (".jsonl", "json")):
        path = tmp_path / f"out{suffix}"
        interchange.write(example(), name, path, [].append)
        found = load(path, tmp_path, kind)
        assert "__index_level_0__" not in found.column_names
        columns = found.column_names
        last = {"scores", "score", "label", "labels"} & set(columns)
        assert columns[:2] == ["anchor", "positive"]
        assert len(last) == (0 if name in ("st-triplet", "st-n-tuple") else 1)
        assert found[0]["anchor"] == "what lifts a wing"


class _Model:
    """Vectors for texts, by table, with what `mine_hard_negatives` asks of a model."""

    def __init__(self, vectors):
        import torch

        self._vectors, self._torch = vectors, torch
        self.device = torch.device("cpu")
        self.model_card_data = type("Card", (), {"base_model": None})()
        self.similarity_fn_name = "dot"

    def encode(self, texts, **_):
        return np.stack([self._vectors[text] for text in texts])

    encode_query = encode_document = encode

    def similarity(self, a, b):
        return self._torch.as_tensor(a) @ self._torch.as_tensor(b).T

    def similarity_pairwise(self, a, b):
        return (self._torch.as_tensor(a) * self._torch.as_tensor(b)).sum(dim=1)


@pytest.mark.parametrize("name", FORMS)
def test_what_mine_hard_negatives_makes_is_read(name, tmp_path):
    util = pytest.importorskip("sentence_transformers.util")
    rng = np.random.default_rng(0)
    queries, documents = [f"q{i}" for i in range(4)], [f"d{i}" for i in range(12)]
    vectors = {
        text: vector / np.linalg.norm(vector)
        for text, vector in (
            (text, rng.normal(size=8).astype(np.float32)) for text in queries + documents
        )
    }
    pairs = datasets.Dataset.from_dict({"query": queries, "answer": documents[:4]})
    form = name.removeprefix("st-").removesuffix("-scores")
    mined = util.mine_hard_negatives(
        pairs,
        _Model(vectors),
        corpus=documents,
        num_negatives=3,
        range_max=6,
        verbose=False,
        output_format=form,
        output_scores=name.endswith("-scores"),
    )
    path = tmp_path / "mined.parquet"
    mined.to_parquet(str(path))
    rows = interchange.read(name, path, [].append)
    texts, query_texts = rows.passages.texts, rows.queries.texts
    assert [query_texts[row.query] for row in rows] == queries
    for number, row in enumerate(rows):
        query = vectors[query_texts[row.query]]
        assert [texts[p] for p in row.positives] == [documents[number]]
        others = [d for i, d in enumerate(documents) if i != number]
        best = sorted(others, key=lambda d, q=query: -float(vectors[d] @ q))[:3]
        assert [texts[n] for n in row.negatives] == best
        if name.endswith("-scores"):
            np.testing.assert_allclose(
                row.negative_scores, [vectors[d] @ query for d in best], rtol=1e-5
            )
    interchange.write(rows, name, tmp_path / "again.parquet", [].append)
    again = load(tmp_path / "again.parquet", tmp_path)
    assert again.column_names == mined.column_names
    assert again.to_list() == load(path, tmp_path).to_list()


def test_resolve_ids_joins_the_three_tables(tmp_path):
    util = pytest.importorskip("sentence_transformers.util")
    interchange.write(example(), "three-table", tmp_path / "t", [].append)
    train, queries, documents = (
        load(tmp_path / "t" / f"{name}.parquet", tmp_path)
        for name in ("train", "queries", "documents")
    )
    resolve = util.resolve_ids(
        {"query_id": queries, "document_ids": documents}, output_format="lists"
    )
    train.set_transform(resolve)
    assert train[0] == {
        "query": "what lifts a wing",
        "documents": ["Wings lift and drag", "no title here", "third"],
        "scores": [0.9, 0.5, 0.25],
    }


@pytest.mark.parametrize("name", ["flagembedding", "tevatron", "nemo-inline"])
def test_datasets_reads_the_files_of_json_lines(name, tmp_path):
    path = tmp_path / "out.jsonl"
    interchange.write(example(), name, path, [].append)
    found = load(path, tmp_path, "json")
    assert len(found) == 2
    if name == "flagembedding":
        assert found[0]["pos"] == ["Wings lift and drag"]
        assert found[1]["neg_scores"] == [0.5]
    elif name == "tevatron":
        assert found[0]["positive_passages"][0]["title"] == "Wings"


def test_datasets_reads_the_corpus_folder_of_nemo(tmp_path):
    """NeMo opens a corpus by load_dataset(folder)["train"]."""
    interchange.write(example(), "nemo", tmp_path / "n", [].append)
    corpus = datasets.load_dataset(
        str(tmp_path / "n" / "corpus"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert corpus["id"][:] == ["p1", "p2", "p3", "p4"]
    assert corpus[0]["text"] == "Wings lift and drag"


def test_what_datasets_writes_as_json_lines_is_read(tmp_path):
    path = jsonl(
        tmp_path / "in.jsonl", {"query": "q", "pos": ["a"], "neg": ["b\u2028"], "prompt": None}
    )
    load(path, tmp_path, "json").to_json(str(tmp_path / "out.jsonl"))
    rows = interchange.read("flagembedding", tmp_path / "out.jsonl")
    assert content(rows, ids=False)[0][2:4] == ([("", "", "a", None)], [("", "", "b\u2028", None)])
    assert json.loads((tmp_path / "out.jsonl").read_text())["prompt"] is None
