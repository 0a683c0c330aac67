"""evaluate, embed, search and mine: what a model is used for without a config."""

from __future__ import annotations

import json

import command
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_project

from nvret_jax.commands import models
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.load import load_dataset
from nvret_jax.data.texts import read_texts
from nvret_jax.errors import InputError
from nvret_jax.models.encoder import Encoder
from nvret_jax.search import vector_file
from nvret_jax.search.rankers import vectors


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a model and another model."""
    folder = tmp_path_factory.mktemp("use")
    tiny_project.make(folder)
    tiny_project.make_model(folder / "other", 1)
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def use(*argv: str) -> command.Result:
    """A command that ends well."""
    result = command.inside(*argv)
    assert result.status == 0, result.stderr
    return result


# --- evaluate ---


def test_evaluate_equals_the_run_of_a_config(place):
    """The scores of `configs/evaluate.py`, by which a run measures "before"."""
    use("evaluate", "model", "beir:data", "--output=scores")
    config = tiny_project.ROOT / "configs/evaluate.py"
    use(
        f"--config={config}",
        "--workdir=run",
        "--config.data.test=beir:data",
        "--config.student.model=model",
        "--config.distributed.mode=off",
    )
    found = [
        json.loads((place / f).read_text())
        for f in ("scores/data.json", "run/evaluation/data.json")
    ]
    assert found[0]["ndcg_cut_10"] > 0
    for name in ("ndcg_cut_10", "map", "recall_100", "queries"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-6), name
    assert (place / "scores/data.trec").read_text() == (
        place / "run/evaluation/data.trec"
    ).read_text()


def test_evaluate_with_another_model_shows_both_and_the_difference(place):
    result = use("evaluate", "model", "data", "--before=other", "--output=both", "--quiet")
    assert max(map(len, result.stdout.splitlines())) <= 80
    lines = [line.split() for line in result.stdout.splitlines() if "nDCG@10 " in line]
    said = json.loads((place / "both/data.json").read_text())
    ((_, _, _, before, _, after, _, _, *_),) = lines
    assert float(before) == pytest.approx(said["before"]["ndcg_cut_10"], abs=5e-5)
    assert float(after) == pytest.approx(said["ndcg_cut_10"], abs=5e-5)
    low, high = said["ndcg_cut_10_difference_interval"]
    assert low <= said["ndcg_cut_10"] - said["before"]["ndcg_cut_10"] <= high
    # Nothing but the table: no line of progress.
    assert result.stdout.startswith("Retrieval before and after")


def test_lengths_reach_the_encoder(place):
    use("evaluate", "model", "data", "--output=long", "--quiet")
    use("evaluate", "model", "data", "--output=short", "--quiet", "--passage_length=4")
    long, short = (json.loads((place / f / "data.json").read_text()) for f in ("long", "short"))
    assert long["map"] != short["map"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("evaluate", "none", "data"), "none"),
        (
            ("evaluate", "model", "nowhere"),
            "dataset 'nowhere': no such file or folder; give a path, or a scheme",
        ),
        (("evaluate", "model", "data", "--split=none"), "none.tsv: no such file; splits"),
        (("evaluate", "model", "data", "--depth=5"), "--depth=5: expected a whole number from 100"),
        (("evaluate", "model", "data", "--query_length=41"), "--query_length=41: model takes at m"),
        (
            ("evaluate", "model", "data", "beir:data", "--output=x"),
            "two data sets are named 'data'",
        ),
        (("embed", "model", "data/corpus.jsonl", "x.csv"), "ends in .npy or .parquet"),
        (("embed", "model", "data/corpus.jsonl", "x.npy", "--texts"), "only a parquet file"),
        (("embed", "model", "data/corpus.jsonl", "x.npy", "--column=z"), "no column 'z' (text)"),
        (("embed", "model", "data/corpus.jsonl", "x.npy", "--split=test"), "--kind=query"),
        (("embed", "model", "none.txt", "x.npy"), "none.txt"),
        (("search", "model", "data", "--output=x.jsonl"), "needs --queries=FILE"),
        (("search", "model", "data", "--queries=q.txt", "--web"), "choose one of them"),
        (("search", "model", "data", "--queries=q.txt", "--output=x.csv"), ".jsonl or .trec"),
        (("search", "model", "data", "--vectors=none.npy"), "none.npy: no such file"),
        (("mine", "beir:data", "trec:x"), "trec holds ids without texts"),
        (("mine", "beir:data", "x.jsonl"), "expected format:path"),
        (("mine", "beir:data", "flagembedding:x.jsonl", "--percent=95"), "--percent=95"),
        (("mine", "beir:data", "flagembedding:x.jsonl", "--split=none"), "no split 'none'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(place, argv, said):
    before = sorted(place.rglob("*"))
    assert said in command.inside(*argv).error
    assert sorted(place.rglob("*")) == before


# --- embed ---


def test_embed_writes_what_the_encoder_gives_and_vectors_read(place):
    use("embed", "model", "beir:data", "v/passages.npy")
    use("embed", "model", "beir:data", "v/queries.parquet", "--kind=query", "--split=test")
    data = load_dataset("beir:data")
    encoder = Encoder.from_pretrained("model", normalize=True)
    expected = encoder.encode(data.corpus.texts)
    found = np.load(place / "v/passages.npy")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (place / "v/passages.ids.txt").read_text().split() == list(data.corpus.ids)
    queries = data.split_queries("test")
    passages, read = vectors.open_pair("v", data.corpus.ids, queries.ids)
    np.testing.assert_allclose(passages[:], expected, atol=1e-6)
    np.testing.assert_allclose(read[:], encoder.encode(queries.texts, kind="query"), atol=1e-6)


def test_embed_a_file_with_its_texts_in_half_precision(place):
    use("embed", "model", "data/corpus.jsonl", "t.parquet", "--texts", "--store=float16")
    table = pq.read_table(place / "t.parquet")
    assert table.column_names == ["id", "embedding", "text"]
    data = load_dataset("beir:data")
    assert table["id"].to_pylist() == list(data.corpus.ids)
    assert table["text"].to_pylist() == list(data.corpus.texts)
    assert str(table.schema.field("embedding").type.value_type) == "halffloat"


def test_an_interrupted_embed_leaves_the_earlier_file(place):
    target = place / "keep.npy"
    table = TextTable(("a", "b"), ["x", "y"])
    rows = np.arange(2)
    vector_file.write_vectors(target, table, [(rows, np.ones((2, 3), np.float32))], 3)

    def fails():
        yield rows[:1], np.zeros((1, 3), np.float32)
        raise InputError("stop")

    with pytest.raises(InputError, match="stop"):
        vector_file.write_vectors(target, table, fails(), 3)
    assert (np.load(target) == 1).all()
    assert (place / "keep.ids.txt").read_text() == "a\nb\n"
    assert not list(place.glob("*.partial"))


@pytest.mark.parametrize("suffix", vector_file.SUFFIXES)
def test_rows_may_come_in_any_order_and_are_written_as_they_come(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(vector_file, "CHUNK", 4)
    count, width = 23, 3
    expected = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    order = np.random.default_rng(1).permutation(count)
    parts = [(rows, expected[rows]) for rows in np.array_split(order, 5)]
    table = TextTable(tuple(f"i{n}" for n in range(count)), ["t"] * count)
    target = tmp_path / f"passages{suffix}"
    vector_file.write_vectors(target, table, parts, width)
    read = vectors.open_file(target, table.ids)
    np.testing.assert_array_equal(read[:], expected)
    # Rows in order leave nothing waiting.
    seen = []
    stream = (
        (np.arange(n, n + 1), expected[n : n + 1]) for n in range(count) if not seen.append(n)
    )
    first = next(vector_file.in_order(stream, count, width))
    assert (len(first), len(seen)) == (4, 4)


def test_a_number_beyond_half_precision_is_named(tmp_path):
    table = TextTable(("a", "b"), ["x", "y"])
    values = np.array([[1.0], [1e6]], np.float32)
    with pytest.raises(InputError, match="row 1 has a number beyond float16"):
        vector_file.write_vectors(
            tmp_path / "x.npy", table, [(np.arange(2), values)], 1, dtype="float16"
        )
    assert not list(tmp_path.iterdir())


# --- texts ---


@pytest.mark.parametrize(
    ("name", "content", "kind", "ids", "texts"),
    [
        ("a.txt", "one\n\n two \n", "query", ("0", "1"), ["one", "two"]),
        ("a.csv", "id,text\n7,x y\n08,z\n", "passage", ("7", "08"), ["x y", "z"]),
        ("a.csv", "question,answer\nq,a\n", "query", ("0",), ["q"]),
        ("a.csv", "question,answer\nq,a\n", "passage", ("0",), ["a"]),
        ("a.jsonl", '{"_id": 3, "title": "T", "text": "x"}\n', "passage", ("3",), ["T x"]),
        ("a.jsonl", '{"_id": 3, "title": "T", "text": "x"}\n', "query", ("3",), ["x"]),
        ("a.tsv", 'text\nx "y\n', "query", ("0",), ['x "y']),
    ],
)
def test_texts_of_files(tmp_path, name, content, kind, ids, texts):
    (tmp_path / name).write_text(content)
    table = read_texts(tmp_path / name, kind=kind)
    assert (tuple(table.ids), list(table.texts)) == (ids, texts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,text\n1,x\n1,y\n", "id '1' is in rows 1 and 2"),
        ("id,text\n1, \n", ":2: a blank text"),
        ("text,body\nx,y\n", "choose one, as in --column=text"),
        ("foo\nx\n", "name one, as in --column=foo"),
    ],
)
def test_texts_that_are_refused(tmp_path, content, said):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError) as caught:
        read_texts(tmp_path / "a.csv")
    assert said in str(caught.value)


# --- search ---


def test_search_a_file_of_queries(place):
    (place / "q.txt").write_text("speed plate\nheat\n")
    use("search", "model", "data", "--queries=q.txt", "--output=found.jsonl", "--k=3")
    use("search", "model", "beir:data", "--queries=q.txt", "--output=found.trec", "--k=3")
    use("embed", "model", "beir:data", "v2/passages.npy")
    use(
        "search",
        "model",
        "data",
        "--queries=q.txt",
        "--output=again.jsonl",
        "--k=3",
        "--vectors=v2/passages.npy",
    )
    data = load_dataset("beir:data")
    encoder = Encoder.from_pretrained("model", normalize=True)
    scores = (
        encoder.encode(["speed plate", "heat"], kind="query") @ encoder.encode(data.corpus.texts).T
    )
    lines = [json.loads(line) for line in (place / "found.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == ["speed plate", "heat"]
    for line, row in zip(lines, scores, strict=True):
        best = np.argsort(-row, kind="stable")[:3]
        assert [hit["id"] for hit in line["hits"]] == [data.corpus.ids[i] for i in best]
        assert [hit["text"] for hit in line["hits"]] == [data.corpus.texts[i] for i in best]
        np.testing.assert_allclose([hit["score"] for hit in line["hits"]], row[best], atol=1e-6)
    assert (place / "again.jsonl").read_text() == (place / "found.jsonl").read_text()
    run = [line.split() for line in (place / "found.trec").read_text().splitlines()]
    assert [(r[0], r[2]) for r in run] == [
        (str(n), hit["id"]) for n, line in enumerate(lines) for hit in line["hits"]
    ]


def test_search_what_is_typed(place, monkeypatch):
    typed = iter(["speed plate", "heat", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    result = use("search", "model", "data", "--before=other", "--k=2")
    shown = result.stdout.split("speed plate\n")[1]
    assert shown.lstrip().startswith("1  ")
    assert "new" in shown or "was" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert next(typed, None) is None


def test_the_workdir_of_a_run_names_its_export(place, monkeypatch):
    workdir = place / "workdir"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"student": {"model": "other"}}))
    with pytest.raises(InputError, match="without export/"):
        models.named(str(workdir))
    (workdir / "export").symlink_to(place / "model")
    assert models.named(str(workdir)) == str(workdir / "export")
    assert models.start_of(str(workdir)) == "other"
    assert (models.named("model"), models.start_of("model")) == ("model", "")
    monkeypatch.setattr("builtins.input", lambda prompt: "")
    for more, models_read in (((), 2), (("--before=",), 1), (("--before=model",), 2)):
        result = use("search", str(workdir), "data", *more)
        assert result.stdout.count("model     Encoder(") == models_read, more


# --- mine ---


def test_mine_writes_the_negatives_of_a_run(place):
    result = use(
        "mine", "beir:data", "flagembedding:neg.jsonl", "--teacher=model", "--num_negatives=2"
    )
    assert "everything is in" not in result.stdout  # there is no workdir to speak of
    assert "--config.data.train=flagembedding:neg.jsonl --config.mining.given=only" in result.stdout
    rows = [json.loads(line) for line in (place / "neg.jsonl").read_text().splitlines()]
    data = load_dataset("beir:data")
    positives = data.positives("train")
    assert len(rows) == len(positives)
    encoder = Encoder.from_pretrained("model", normalize=True)
    passages_nd = encoder.encode(data.corpus.texts)
    for row, (query, relevant) in zip(rows, positives.items(), strict=True):
        assert row["query"] == data.queries.texts[data.queries.row[query]]
        assert len(row["neg"]) == 2
        scores = passages_nd @ encoder.encode([row["query"]], kind="query")[0]
        anchor = min(scores[data.corpus.row[p]] for p in relevant)
        for text in row["neg"]:
            assert scores[list(data.corpus.texts).index(text)] < 0.95 * anchor + 1e-6


def test_mine_with_words_and_a_workdir(place):
    use(
        "mine",
        "beir:data",
        "st-triplet:neg.parquet",
        "--teacher=bm25:",
        "--rule=naive",
        "--workdir=mined",
        "--exclude.same_text=false",
    )
    config = json.loads((place / "mined/config.json").read_text())
    assert config["mining"]["exclude"]["same_text"] is False
    assert config["mining"]["rule"] == "naive"
    assert set(pq.read_table(place / "neg.parquet").column_names) == {
        "anchor",
        "positive",
        "negative",
    }
    again = use(
        "mine",
        "beir:data",
        "st-triplet:neg.parquet",
        "--teacher=bm25:",
        "--rule=naive",
        "--workdir=mined",
        "--exclude.same_text=false",
    )
    assert "mine      up to date" in again.stdout
