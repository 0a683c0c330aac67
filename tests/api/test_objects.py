"""Data sets out of Python objects: the same as out of a file of them, or one line."""

from __future__ import annotations

import csv
import pathlib

import numpy as np
import pytest

import nvret_jax as nv

ROWS = [(f"question {i}", f"answer {i} in words") for i in range(40)]
TRIPLES = [(q, p, f"wrong {i}") for i, (q, p) in enumerate(ROWS)]
DICTS = [{"question": q, "answer": p} for q, p in ROWS]
COLUMNS = {"question": [q for q, _ in ROWS], "answer": [p for _, p in ROWS]}


def pandas():
    return pytest.importorskip("pandas")


def datasets():
    return pytest.importorskip("datasets")


def arrow():
    return pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def from_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "faq.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *ROWS])
    return nv.load_dataset(f"pairs:{path}")


FORMS = {
    "pairs": lambda: ROWS,
    "lists": lambda: [list(row) for row in ROWS],
    "a generator": lambda: (row for row in ROWS),
    "dicts": lambda: DICTS,
    "columns": lambda: COLUMNS,
    "columns of generators": lambda: {k: (one for one in v) for k, v in COLUMNS.items()},
    "columns of arrays": lambda: {k: np.array(v) for k, v in COLUMNS.items()},
    "an array": lambda: np.array(ROWS),
    "pandas": lambda: pandas().DataFrame(DICTS),
    "datasets": lambda: datasets().Dataset.from_list(DICTS),
    "pyarrow": lambda: arrow().Table.from_pylist(DICTS),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_data_set(from_file, name):
    found = nv.load_dataset(FORMS[name]())
    assert found.fingerprint == from_file.fingerprint
    assert list(found.qrels) == ["train", "dev", "test"]


def test_negatives_scores_and_named_columns_come_along():
    found = nv.load_dataset(TRIPLES, split="train")
    assert len(found.given["train"]) == 40
    named = nv.load_dataset(
        [{"ask": q, "reply": p, "answer": "x"} for q, p in ROWS], query="ask", passage="reply"
    )
    assert named.corpus.texts[0] == "answer 0 in words"
    scored = [{"query": q, "passage": p, "score": i / 40} for i, (q, p) in enumerate(ROWS)]
    kept = nv.load_dataset(scored, min_score=0.5, split="train")
    assert len(kept.qrels["train"]) == 20


def test_an_empty_cell_of_a_table_is_nothing():
    rows = [dict(row, negative=f"wrong {i}") if i < 3 else row for i, row in enumerate(DICTS)]
    found = nv.load_dataset(pandas().DataFrame(rows), split="train")  # NaN in the other rows
    assert len(found.given["train"]) == 3


def test_splits():
    frame = pandas().DataFrame(DICTS)
    for given in (
        {"train": ROWS[:30], "test": ROWS[30:]},
        {"train": DICTS[:30], "test": DICTS[30:]},
        {"train": frame[:30], "test": frame[30:]},
        datasets().DatasetDict(
            {
                "train": datasets().Dataset.from_list(DICTS[:30]),
                "test": datasets().Dataset.from_list(DICTS[30:]),
            }
        ),
    ):
        found = nv.load_dataset(given)
        assert {split: len(judged) for split, judged in found.qrels.items()} == {
            "train": 30,
            "test": 10,
        }
    drawn = nv.load_dataset(ROWS, dev=0, test=0.25, seed=3)
    assert {split: len(judged) for split, judged in drawn.qrels.items()} == {
        "train": 30,
        "test": 10,
    }


def test_the_three_tables_of_beir():
    corpus = {"p1": {"title": "A", "text": "one"}, "p2": {"title": "", "text": "two"}}
    given = {"corpus": corpus, "queries": {"q1": "ask"}, "qrels": {"q1": {"p2": 1}}}
    found = nv.load_dataset(given)
    assert found.corpus.ids == ("p1", "p2")
    assert found.corpus.texts[0].startswith("A")
    assert found.qrels == {"test": {"q1": {"p2": 1}}}
    by_split = nv.load_dataset(given | {"qrels": {"dev": {"q1": {"p1": 2}}}})
    assert by_split.qrels == {"dev": {"q1": {"p1": 2}}}
    for judged in ({"p2"}, ["p2"], frozenset({"p2"})):  # as sentence-transformers' evaluators
        assert nv.load_dataset(given | {"qrels": {"q1": judged}}).qrels == found.qrels
    for judged in ("p2", None, 3):
        with pytest.raises(nv.InputError, match=r"query 'q1': .*a set of passage ids"):
            nv.load_dataset(given | {"qrels": {"q1": judged, "q2": {"p2": 1}}})
    with pytest.raises(nv.InputError, match="'qrels' is missing"):
        nv.load_dataset({"corpus": corpus, "queries": {"q1": "ask"}})
    with pytest.raises(nv.InputError, match="p9"):
        nv.load_dataset(given | {"qrels": {"q1": {"p9": 1}}})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "there are no rows"),
        ({}, "an empty dict; give rows or columns"),
        (["a text", "another"], "row 1 is 'a text' (str); expected a pair of texts, or a dict"),
        ([("a",)], "has one column; expected a query and its passage"),
        ([("a", 3)], "row 1: column '2' must be text or a list of texts"),
        ([("a", None)], "row 1"),
        ([{"x": "a", "y": "b"}], "no column has a usual name of a query"),
        (
            {"query": ["a", "b"], "answer": ["c"]},
            "columns of different lengths: 'query' 2, 'answer' 1",
        ),
        ({"train": 3}, "3 (int): expected a source"),
        ({"train": "pairs:x.csv"}, "train: 'pairs:x.csv': expected rows or a table; a file is"),
        ({1: [("a", "b")]}, "1: expected the name of a split"),
        ({("a", "b")}, "(set): expected a source"),
        (b"pairs:x", "(bytes): expected a source"),
        ({"corpus": [], "queries": {}, "qrels": {}}, "corpus is list; expected a dict by id"),
    ],
)
def test_what_is_no_data_set_is_one_line(value, words):
    with pytest.raises(nv.InputError) as error:
        nv.load_dataset(value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_two_columns_of_one_name():
    frame = pandas().DataFrame([("a", "b")], columns=["question", "question"])
    with pytest.raises(nv.InputError, match="two columns are named 'question'"):
        nv.load_dataset(frame)


def test_a_path_is_a_path_and_a_folder_may_hold_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "question,answer\n" + "".join(f"q {i},p {i}\n" for i in range(40))
    for place in ("pairs:in", "tables"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "one.csv").write_text(text)
        assert len(nv.load_dataset(pathlib.Path(place), seed=np.int64(3)).queries) == 40
    with pytest.raises(nv.InputError, match=r"^in: "):
        nv.load_dataset("pairs:in")


def test_a_data_set_is_no_source():
    with pytest.raises(nv.InputError, match="already a Dataset"):
        nv.load_dataset(nv.load_dataset(ROWS))
    with pytest.raises(nv.InputError, match="colour"):
        nv.load_dataset(ROWS, colour="red")
    with pytest.raises(nv.InputError, match=r"query=\{\}: expected a name"):
        nv.load_dataset(ROWS, query={})


def test_options_of_a_source_may_be_arguments(tmp_path):
    (tmp_path / "x.csv").write_text("ask,reply\n" + "".join(f"q {i},p {i}\n" for i in range(40)))
    told = nv.load_dataset(f"pairs:{tmp_path}/x.csv?query=ask&passage=reply&test=0.2")
    assert (
        nv.load_dataset(tmp_path / "x.csv", query="ask", passage="reply", test=0.2).qrels
        == told.qrels
    )
    with pytest.raises(nv.InputError, match="option 'query' is given twice"):
        nv.load_dataset(f"pairs:{tmp_path}/x.csv?query=ask", query="reply")
