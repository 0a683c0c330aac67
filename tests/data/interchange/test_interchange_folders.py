"""Folders, runs and what all formats share: BEIR, run files, ids, mined rows, failed writes."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from interchange_samples import (
    content,
    example,
    jsonl,
    parquet,
    read,
    records,
    simple,
    written,
)

from nvret_jax.data import interchange
from nvret_jax.data.load import load_dataset
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.files import runs
from nvret_jax.search.rankers.run_file import RunRanker

# --- three tables, Arctic, BEIR


def test_three_tables_put_the_positive_first(tmp_path):
    path, said = written("three-table", tmp_path)
    assert pq.read_table(path / "train.parquet").to_pylist() == [
        {
            "query_id": "q1",
            "document_ids": ["p1", "p2", "p3"],
            "scores": [0.9, 0.5, 0.25],
            "extra": '{"prompt": "Find: "}',
        },
        {"query_id": "q2", "document_ids": ["p3", "p1"], "scores": [0.75, 0.5], "extra": None},
        {"query_id": "q2", "document_ids": ["p2", "p1"], "scores": [0.7, 0.5], "extra": None},
    ]
    assert pq.read_table(path / "documents.parquet").column_names == ["document_id", "document"]
    assert pq.read_table(path / "queries.parquet").to_pylist()[0] == {
        "query_id": "q1",
        "query": "what lifts a wing",
    }
    assert said == [f"{path}: this format has no place for titles, now put before their texts (1)"]


def test_three_tables_may_have_numbers_text_columns_parts_and_lists_written_as_strings(tmp_path):
    folder = tmp_path / "t"
    parquet(
        folder / "train" / "0.parquet",
        {"query_id": [1], "document_ids": ["[10, 11]"], "scores": ["[0.5, 0.25]"], "lang": ["en"]},
    )
    parquet(folder / "queries.parquet", {"query_id": [1], "text": ["q"]})
    parquet(folder / "documents" / "0.parquet", {"document_id": [10], "text": ["a"]})
    parquet(folder / "documents" / "1.parquet", {"document_id": [11], "text": ["b"]})
    rows, said = read("three-table", folder)
    assert content(rows) == [
        ("1", "q", [("10", "", "a", 0.5)], [("11", "", "b", 0.25)], {"lang": "en"})
    ]
    assert len(said) == 3  # ids that are numbers, once a column


def test_arctic_writes_uint64_and_a_column_for_ids_that_are_not(tmp_path):
    lines = [
        {
            "query_id": "18446744073709551615",
            "query": "q",
            "positive_passages": [{"docid": "5", "text": "a"}],
            "negative_passages": [{"docid": "05", "text": "b"}],
        }
    ]
    rows, _ = read("tevatron", jsonl(tmp_path / "a.jsonl", *lines))
    path, said = written("arctic", tmp_path, rows)
    relations = pq.read_table(path / "relations.parquet")
    assert relations.schema == pa.schema(
        {"QUERY_ID": pa.uint64(), "DOCUMENT_ID": pa.uint64(), "RELEVANCE": pa.int8()}
    )
    assert relations["RELEVANCE"].to_pylist() == [1, -1]
    assert relations["QUERY_ID"].to_pylist() == [2**64 - 1] * 2
    queries = pq.read_table(path / "queries.parquet")
    assert queries.to_pylist() == [{"QUERY_ID": 2**64 - 1, "QUERY_TEXT": "q"}]
    documents = pq.read_table(path / "documents.parquet").to_pylist()
    assert documents[0] == {"DOCUMENT_ID": 5, "DOCUMENT_TEXT": "a", "ORIGINAL_ID": "5"}
    assert documents[1]["DOCUMENT_ID"] == 0xC97550CE8213EF5C  # printf 05 | sha256sum
    assert content(read("arctic", path)[0]) == content(rows)
    assert said == []


def test_arctic_labels_are_positives_and_a_file_can_be_named(tmp_path):
    folder = tmp_path / "a"
    parquet(folder / "queries.parquet", {"QUERY_ID": [1, 2], "QUERY_TEXT": ["q", "r"]})
    parquet(folder / "documents.parquet", {"DOCUMENT_ID": [7, 8], "DOCUMENT_TEXT": ["a", "b"]})
    parquet(folder / "labels.parquet", {"QUERY_ID": [1], "DOCUMENT_ID": [7]})
    assert simple(read("arctic", folder)[0]) == [("q", ["a"], [])]
    parquet(
        folder / "mined.parquet",
        {"QUERY_ID": [2, 1, 2], "DOCUMENT_ID": [8, 7, 7], "RELEVANCE": [1, 1, -1]},
    )
    rows, _ = read("arctic", folder / "mined.parquet")
    assert simple(rows) == [("r", ["b"], ["a"]), ("q", ["a"], [])]


def beir_folder(tmp_path):
    folder = tmp_path / "b"
    jsonl(
        folder / "corpus.jsonl",
        {"_id": "1", "title": "T", "text": " a", "metadata": {"u": 1}},
        {"_id": "2", "text": "b"},
        {"_id": "3", "title": "", "text": "c"},
    )
    jsonl(
        folder / "queries.jsonl",
        {"_id": "x", "text": "q", "metadata": {}},
        {"_id": "y", "text": "r"},
    )
    (folder / "qrels").mkdir()
    qrels = "query-id\tcorpus-id\tscore\ny\t1\t1\nx\t2\t2\nx\t3\t0\nx\t1\t1\n"
    (folder / "qrels" / "train.tsv").write_text(qrels)
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\ny\t3\t1\n")
    return folder


def test_beir_keeps_titles_grades_and_further_keys(tmp_path):
    rows, _ = read("beir", beir_folder(tmp_path))
    assert content(rows) == [
        ("y", "r", [("1", "T", " a", None)], [], {}),
        (
            "x",
            "q",
            [("2", "", "b", None), ("1", "T", " a", None)],
            [],
            {"judgments": {"2": 2, "3": 0}},
        ),
    ]
    path, said = written("beir", tmp_path, rows)
    judged = {
        tuple(line.split("\t"))
        for line in (path / "qrels" / "train.tsv").read_text().split("\n")[1:-1]
    }
    assert judged == {("y", "1", "1"), ("x", "2", "2"), ("x", "3", "0"), ("x", "1", "1")}
    assert records(path / "corpus.jsonl")[0] == {
        "_id": "1",
        "title": "T",
        "text": " a",
        "metadata": {"u": 1},
    }
    assert said == []
    again, _ = read("beir", path)
    assert content(again) == content(rows)
    assert again.queries.extra == rows.queries.extra == {0: {"metadata": {}}}


def test_a_split_of_beir_is_named_by_its_judgments(tmp_path):
    folder = beir_folder(tmp_path)
    assert simple(read("beir", folder / "qrels" / "dev.tsv")[0]) == [("r", ["c"], [])]
    interchange.write(example(), "beir", tmp_path / "o" / "qrels" / "dev.tsv")
    assert (tmp_path / "o" / "negatives" / "dev.jsonl").exists()
    assert content(read("beir", tmp_path / "o")[0]) == content(example())


def test_beir_as_written_is_read_by_the_data_room(tmp_path):
    path, _ = written("beir", tmp_path)
    dataset = load_dataset(f"beir:{path}")
    assert dataset.corpus.texts[0] == "Wings lift and drag"
    assert dataset.qrels == {"train": {"q1": {"p1": 1}, "q2": {"p3": 1, "p2": 1}}}


# --- runs


def test_runs_are_read_best_first(tmp_path):
    (tmp_path / "r").write_text("q Q0 b 1 0.5 t\nq Q0 a 2 0.75 t\n\nr Q0 a 1 -1e-3 t\n")
    run = interchange.read_run(tmp_path / "r")
    assert run == {"q": {"a": 0.75, "b": 0.5}, "r": {"a": -0.001}}
    assert list(run["q"]) == ["a", "b"]
    (tmp_path / "m").write_text("q\tb b\t2\nq\ta\t1\n")
    assert interchange.read_run(tmp_path / "m", "msmarco") == {"q": {"a": -1.0, "b b": -2.0}}


def test_runs_are_written_with_ranks_from_one_and_ties_in_their_order(tmp_path):
    run = {"q": {"b": 0.5, "a": 0.5, "c": 0.1 + 0.2}}
    interchange.write_run(run, tmp_path / "r", tag="mine")
    assert (tmp_path / "r").read_text() == (
        "q Q0 b 1 0.5 mine\nq Q0 a 2 0.5 mine\nq Q0 c 3 0.30000000000000004 mine\n"
    )
    interchange.write_run(run, tmp_path / "m", "msmarco")
    assert (tmp_path / "m").read_text() == "q\tb\t1\nq\ta\t2\nq\tc\t3\n"
    interchange.write_run(run, tmp_path / "t", "tevatron-run")
    assert (tmp_path / "t").read_text().split("\n")[2] == "q\tc\t0.30000000000000004"
    interchange.write_run(run, tmp_path / "c", "colbert")
    assert (tmp_path / "c").read_text().split("\n")[1] == "q\ta\t2\t0.5"


@pytest.mark.parametrize("form", list(runs.FORMS))
def test_a_teacher_and_a_conversion_read_the_same_from_every_form(form, tmp_path):
    run = {"r": {"a": -2.5, "c": -3.0}, "q": {"b": 0.5, "c": 0.25, "a": 0.125}}
    runs.write_run(run, tmp_path / "r", form)
    read = runs.read_run(tmp_path / "r", None)
    assert runs.read(tmp_path / "r").form == form
    ranker = RunRanker.read(
        tmp_path / "r", ["q", "r"], ["a", "b", "c"], Ragged.from_rows([[0], [0]], np.int32)
    )
    scores, rows = ranker.rank(np.arange(2), 3)
    for query, scores_k, rows_k in zip(["q", "r"], scores, rows, strict=True):
        listed = {"abc"[row]: float(s) for s, row in zip(scores_k, rows_k, strict=True) if row >= 0}
        assert list(listed.items()) == list(read[query].items())
    if form != "msmarco":
        assert read == run


# --- ids, tables, from_negatives


def test_an_id_made_of_a_text_never_changes():
    # Anything that stores such an id relies on it.
    assert interchange.content_id("p", "a") == "pca978112ca1bbdcafac2"
    assert interchange.content_id("p", "a", "T") == "p" + hashlib.sha256(b"1:Ta").hexdigest()[:20]
    assert interchange.content_id("p", "a", "") == interchange.content_id("p", "a")


def test_the_same_text_with_two_ids_stays_two_passages(tmp_path):
    line = {
        "query_id": "1",
        "query": "q",
        "positive_passages": [{"docid": "a", "text": "same"}],
        "negative_passages": [{"docid": "b", "text": "same"}],
    }
    rows, _ = read("tevatron", jsonl(tmp_path / "a.jsonl", line))
    assert rows.passages.ids == ["a", "b"]
    for name in ("three-table", "arctic", "nemo", "beir"):
        again, _ = read(name, written(name, tmp_path / name, rows)[0])
        assert content(again) == content(rows)


class _Table:
    def __init__(self, ids, texts):
        self.ids, self.texts = ids, texts


class _Negatives:
    query_rows = np.asarray([1, 0], np.int32)
    positive_rows = Ragged.from_rows([[2], [0, 1]], np.int32)
    positive_scores = Ragged.from_rows([[0.1], [0.7, 0.6]], np.float32)
    negative_rows = Ragged.from_rows([[0, 1], []], np.int32)
    negative_scores = Ragged.from_rows([[0.05, 1e-9], []], np.float32)


def test_mined_negatives_become_rows_with_short_scores():
    rows = interchange.from_negatives(
        _Negatives, _Table(("x", "y"), ["q", "r"]), _Table(("1", "2", "3"), ["a", "b", "c"])
    )
    assert content(rows) == [
        ("y", "r", [("3", "", "c", 0.1)], [("1", "", "a", 0.05), ("2", "", "b", 1e-9)], {}),
        ("x", "q", [("1", "", "a", 0.7), ("2", "", "b", 0.6)], [], {}),
    ]
    scores = np.concatenate([rows.positive_scores.values, rows.negative_scores.values])
    exact = np.concatenate([_Negatives.positive_scores.values, _Negatives.negative_scores.values])
    np.testing.assert_array_equal(scores.astype(np.float32), exact)


@pytest.mark.parametrize("name", ["st-triplet", "st-n-tuple", "three-table", "nemo-inline"])
def test_a_failed_write_leaves_what_was_there(name, tmp_path, monkeypatch):
    path, _ = written(name, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    rows = example()
    rows.passages.texts[2] = "\ud800"  # which no file takes
    goal = path if path.is_file() else tmp_path / "new"
    with pytest.raises(InputError, match="not Unicode"):
        interchange.write(rows, name, goal, [].append)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob("*.partial"))
