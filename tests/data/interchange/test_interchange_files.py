"""Files as the other tools have them: what is read from each, and what is written, key by key."""

import json

import pyarrow.parquet as pq
import pytest
from interchange_samples import content, example, jsonl, parquet, read, records, simple, written

from nvret_jax.data import interchange
from nvret_jax.files import records as records_lib

# --- FlagEmbedding


def test_flagembedding_is_read_with_scores_prompt_type_and_unknown_keys(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {
            "query": "q",
            "pos": ["a"],
            "neg": ["b", "c"],
            "pos_scores": [1],
            "neg_scores": [0.5, 0],
            "prompt": "P",
            "type": "normal",
            "my": {"own": [1]},
        },
    )
    rows, said = read("flagembedding", path)
    assert simple(rows) == [("q", ["a"], ["b", "c"])]
    assert rows.positive_scores[0].tolist() == [1.0]
    assert rows.negative_scores[0].tolist() == [0.5, 0.0]
    assert rows.extra[0] == {"prompt": "P", "type": "normal", "my": {"own": [1]}}
    assert said == []


def test_a_bare_string_becomes_a_list_of_one_and_is_told_once(tmp_path):
    line = {"query": "q", "pos": "whole text", "neg": "another"}
    rows, said = read("flagembedding", jsonl(tmp_path / "a.jsonl", line, line, line))
    assert simple(rows)[0] == ("q", ["whole text"], ["another"])
    assert said == [
        f"{tmp_path}/a.jsonl:1: 'pos' is a bare string, read as a list of one (and 2 times more)",
        f"{tmp_path}/a.jsonl:1: 'neg' is a bare string, read as a list of one (and 2 times more)",
    ]


def test_flagembedding_is_written_with_titles_in_front_and_says_what_is_lost(tmp_path):
    path, said = written("flagembedding", tmp_path)
    assert records(path) == [
        {
            "query": "what lifts a wing",
            "pos": ["Wings lift and drag"],
            "neg": ["no title here", "third"],
            "pos_scores": [0.9],
            "neg_scores": [0.5, 0.25],
            "prompt": "Find: ",
        },
        {
            "query": "count",
            "pos": ["third", "no title here"],
            "neg": ["Wings lift and drag"],
            "pos_scores": [0.75, 0.7],
            "neg_scores": [0.5],
        },
    ]
    assert said == [
        f"{path}: this format has no place for query ids (2); passage ids (4); titles, now put "
        "before their texts (1); passages in no row (1)"
    ]


def test_a_key_of_the_format_is_not_overwritten_by_one_carried_along(tmp_path):
    source = jsonl(
        tmp_path / "a.jsonl",
        {
            "query_id": "1",
            "query": "q",
            "pos": "mine",
            "positive_passages": [{"docid": "d", "text": "a"}],
        },
    )
    rows, _ = read("tevatron", source)
    path, said = written("flagembedding", tmp_path, rows)
    assert records(path)[0]["pos"] == ["a"]
    assert any("'pos' is a key of this format" in line for line in said)


# --- Tevatron


def test_tevatron_is_read_with_titles_and_scores_and_ids(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {
            "query_id": "7",
            "query": "q",
            "answers": ["x"],
            "positive_passages": [{"docid": "1", "title": "T", "text": "a", "score": 2.5}],
            "negative_passages": [{"docid": "2", "title": "", "text": "b"}],
        },
    )
    rows, _ = read("tevatron", path)
    assert content(rows) == [
        ("7", "q", [("1", "T", "a", 2.5)], [("2", "", "b", None)], {"answers": ["x"]})
    ]


def test_tevatron_gets_a_title_for_every_passage_or_for_none(tmp_path):
    path, said = written("tevatron", tmp_path)
    first = records(path)[0]
    assert first["query_id"] == "q1"
    assert first["positive_passages"] == [
        {"docid": "p1", "title": "Wings", "text": "lift and drag", "score": 0.9}
    ]
    assert first["negative_passages"][0] == {
        "docid": "p2",
        "title": "",
        "text": "no title here",
        "score": 0.5,
    }
    assert said == [f"{path}: this format has no place for passages in no row (1)"]
    source = jsonl(tmp_path / "f.jsonl", {"query": "q", "pos": ["a"], "neg": []})
    path, _ = written("tevatron", tmp_path, read("flagembedding", source)[0])
    assert "title" not in records(path)[0]["positive_passages"][0]


def test_tevatron_keeps_what_single_rows_say_of_a_passage(tmp_path):
    passages = [{"docid": "d", "text": "a", "rank": rank} for rank in (1, 2)]
    lines = [
        {"query_id": f"{i}", "query": f"q{i}", "positive_passages": [p], "negative_passages": []}
        for i, p in enumerate(passages)
    ]
    rows, _ = read("tevatron", jsonl(tmp_path / "a.jsonl", *lines))
    assert records(written("tevatron", tmp_path, rows)[0]) == lines


def test_tevatron_by_id_is_two_files(tmp_path):
    path, said = written("tevatron-ids", tmp_path)
    assert sorted(p.name for p in path.iterdir()) == ["corpus.jsonl", "train.jsonl"]
    assert records(path / "train.jsonl")[1] == {
        "query_id": "q2",
        "query_text": "count",
        "positive_document_ids": ["p3", "p2"],
        "negative_document_ids": ["p1"],
        "positive_scores": [0.75, 0.7],
        "negative_scores": [0.5],
    }
    assert records(path / "corpus.jsonl")[0] == {
        "docid": "p1",
        "title": "Wings",
        "text": "lift and drag",
    }
    assert said == []


def test_numbers_for_ids_are_read_as_their_digits_and_told(tmp_path):
    jsonl(tmp_path / "s" / "corpus.jsonl", {"docid": 12, "text": "a"})
    jsonl(
        tmp_path / "s" / "train.jsonl",
        {"query_id": 3, "query_text": "q", "positive_document_ids": [12]},
    )
    rows, said = read("tevatron-ids", tmp_path / "s")
    assert (rows.queries.ids, rows.passages.ids) == (["3"], ["12"])
    assert len(said) == 3
    assert all("is a number" in line for line in said)


# --- NeMo


def nemo(tmp_path, **more):
    folder = tmp_path / "n"
    parquet(folder / "corpus" / "x.parquet", {"id": ["1", "2"], "text": ["a", "b"]})
    metadata = {"corpus_id": "wiki", "class": "TextQADataset", "query_instruction": "Q: "}
    jsonl(folder / "corpus" / "merlin_metadata.json", metadata)
    data = [
        {
            "question_id": "q0",
            "question": "q",
            "corpus_id": "wiki",
            "lang": "en",
            "pos_doc": [{"id": "1", "score": 0.5}],
            "neg_doc": [{"id": "2", "score": -1}],
        }
    ]
    whole = {"corpus": {"path": "./corpus"}, "data": data, "mining": {"margin": 0.95}} | more
    jsonl(folder / "train.json", json.dumps(whole, indent=1))
    return folder


def test_nemo_reads_minus_one_as_unknown_and_keeps_what_surrounds_the_rows(tmp_path):
    rows, _ = read("nemo", nemo(tmp_path))
    assert content(rows) == [
        ("q0", "q", [("1", "", "a", 0.5)], [("2", "", "b", None)], {"lang": "en"})
    ]
    path, said = written("nemo", tmp_path, rows)
    whole = json.loads((path / "train.json").read_text())
    assert whole["corpus"] == [{"path": "./corpus"}]
    assert whole["mining"] == {"margin": 0.95}
    assert whole["data"] == [
        {
            "question_id": "q0",
            "question": "q",
            "corpus_id": "wiki",
            "lang": "en",
            "pos_doc": [{"id": "1", "score": 0.5}],
            "neg_doc": [{"id": "2", "score": -1}],
        }
    ]
    metadata = json.loads((path / "corpus" / "merlin_metadata.json").read_text())
    assert metadata["query_instruction"] == "Q: "
    assert pq.read_table(path / "corpus" / "train.parquet").to_pylist() == [
        {"id": "1", "text": "a"},
        {"id": "2", "text": "b"},
    ]
    assert said == []


def test_nemo_documents_may_be_bare_ids(tmp_path):
    row = {"question": "q", "corpus_id": "wiki", "pos_doc": ["1"], "neg_doc": [2]}
    rows, _ = read("nemo", nemo(tmp_path, data=[row]) / "train.json")
    assert simple(rows) == [("q", ["a"], ["b"])]


def test_nemo_writes_several_corpora_apart_again(tmp_path):
    folder = nemo(tmp_path)
    parquet(folder / "other" / "x.parquet", {"id": ["9"], "text": ["z"]})
    jsonl(folder / "other" / "merlin_metadata.json", {"corpus_id": "o", "class": "TextQADataset"})
    whole = json.loads((folder / "train.json").read_text())
    whole["corpus"] = [{"path": "./corpus"}, {"path": "./other"}]
    whole["data"].append(
        {"question_id": "q1", "question": "r", "corpus_id": "o", "pos_doc": ["9"], "neg_doc": []}
    )
    jsonl(folder / "train.json", whole)
    rows, _ = read("nemo", folder)
    path, _ = written("nemo", tmp_path, rows)
    again = json.loads((path / "train.json").read_text())
    assert [row["corpus_id"] for row in again["data"]] == ["wiki", "o"]
    assert content(read("nemo", path)[0]) == content(rows)
    assert pq.read_table(path / "corpus-2" / "train.parquet").to_pylist() == [
        {"id": "9", "text": "z"}
    ]


def test_nemo_tells_of_a_real_score_of_minus_one(tmp_path):
    line = {"query": "q", "pos": ["a"], "neg": ["b"], "neg_scores": [-1.0]}
    rows, _ = read("flagembedding", jsonl(tmp_path / "a.jsonl", line))
    assert any("exactly -1" in line for line in written("nemo", tmp_path, rows)[1])


def test_nemo_inline_takes_strings_lists_and_objects(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"query": "q", "pos_doc": "a", "neg_doc": ["b"]},
        {"question": "r", "pos_doc": [{"text": "c"}], "neg_doc": [{"text": "d"}, "e"]},
    )
    assert simple(read("nemo-inline", path)[0]) == [("q", ["a"], ["b"]), ("r", ["c"], ["d", "e"])]


# --- sentence-transformers


ST_WRITTEN = {
    "st-triplet-scores": [
        {
            "anchor": "what lifts a wing",
            "positive": "Wings lift and drag",
            "negative": "no title here",
            "scores": [0.9, 0.5],
        },
        {
            "anchor": "what lifts a wing",
            "positive": "Wings lift and drag",
            "negative": "third",
            "scores": [0.9, 0.25],
        },
        {
            "anchor": "count",
            "positive": "third",
            "negative": "Wings lift and drag",
            "scores": [0.75, 0.5],
        },
        {
            "anchor": "count",
            "positive": "no title here",
            "negative": "Wings lift and drag",
            "scores": [0.7, 0.5],
        },
    ],
    "st-n-tuple": [
        {
            "anchor": "what lifts a wing",
            "positive": "Wings lift and drag",
            "negative_1": "no title here",
        },
        {"anchor": "count", "positive": "third", "negative_1": "Wings lift and drag"},
        {"anchor": "count", "positive": "no title here", "negative_1": "Wings lift and drag"},
    ],
    "st-labeled-pair": [
        {"anchor": "what lifts a wing", "positive": "Wings lift and drag", "label": 1},
        {"anchor": "what lifts a wing", "positive": "no title here", "label": 0},
        {"anchor": "what lifts a wing", "positive": "third", "label": 0},
        {"anchor": "count", "positive": "third", "label": 1},
        {"anchor": "count", "positive": "no title here", "label": 1},
        {"anchor": "count", "positive": "Wings lift and drag", "label": 0},
    ],
    "st-labeled-pair-scores": [
        {"anchor": "what lifts a wing", "positive": "Wings lift and drag", "score": 0.9},
        {"anchor": "what lifts a wing", "positive": "no title here", "score": 0.5},
        {"anchor": "what lifts a wing", "positive": "third", "score": 0.25},
        {"anchor": "count", "positive": "third", "score": 0.75},
        {"anchor": "count", "positive": "no title here", "score": 0.7},
        {"anchor": "count", "positive": "Wings lift and drag", "score": 0.5},
    ],
    "st-labeled-list": [
        {
            "anchor": "what lifts a wing",
            "positive": ["Wings lift and drag", "no title here", "third"],
            "labels": [1, 0, 0],
        },
        {
            "anchor": "count",
            "positive": ["third", "no title here", "Wings lift and drag"],
            "labels": [1, 1, 0],
        },
    ],
    "st-labeled-list-scores": [
        {
            "anchor": "what lifts a wing",
            "positive": ["Wings lift and drag", "no title here", "third"],
            "scores": [0.9, 0.5, 0.25],
        },
        {"anchor": "count", "positive": ["third", "Wings lift and drag"], "scores": [0.75, 0.5]},
        {
            "anchor": "count",
            "positive": ["no title here", "Wings lift and drag"],
            "scores": [0.7, 0.5],
        },
    ],
}


@pytest.mark.parametrize("name", ST_WRITTEN)
def test_the_forms_of_sentence_transformers_are_written_column_by_column(name, tmp_path):
    path, _ = written(name, tmp_path)
    assert pq.read_table(path).to_pylist() == ST_WRITTEN[name]
    interchange.write(example(), name, tmp_path / "o.jsonl", [].append)
    assert records(tmp_path / "o.jsonl") == ST_WRITTEN[name]


def test_an_n_tuple_is_as_wide_as_keeps_most_negatives_and_tells_the_rest(tmp_path):
    counts = [5, 3, 3, 1]  # 1 × 4, 2 × 3, 3 × 3 is the most, 4 × 1, 5 × 1
    lines = [
        {"query": f"q{i}", "pos": ["p"], "neg": [f"{i}n{j}" for j in range(count)]}
        for i, count in enumerate(counts)
    ]
    rows, _ = read("flagembedding", jsonl(tmp_path / "a.jsonl", *lines))
    path, said = written("st-n-tuple", tmp_path, rows)
    assert pq.read_table(path).column_names == [
        "anchor",
        "positive",
        "negative_1",
        "negative_2",
        "negative_3",
    ]
    assert pq.read_table(path).num_rows == 3
    assert said == [
        f"{path}: n-tuple of 3 negatives: rows with fewer are left out (1)",
        f"{path}: n-tuple of 3 negatives: negatives beyond are left out (2)",
    ]


def test_columns_are_taken_by_name_where_they_have_one_and_by_place_otherwise(tmp_path):
    line = {"anchor": "q", "negative_10": "c", "negative_2": "b", "positive": "p"}
    rows, _ = read("st-n-tuple", jsonl(tmp_path / "a.jsonl", line))
    assert simple(rows) == [("q", ["p"], ["b", "c"])]
    line = {"question": "q", "answer": "p", "hard": "n"}
    rows, _ = read("st-triplet", jsonl(tmp_path / "b.jsonl", line))
    assert simple(rows) == [("q", ["p"], ["n"])]
    path, _ = written("st-triplet", tmp_path, rows)
    assert pq.read_table(path).column_names == ["question", "answer", "negative"]
    line = {"query": "q", "negative": "n", "positive": "p"}
    rows, _ = read("st-triplet", jsonl(tmp_path / "c.jsonl", line))
    assert simple(rows) == [("q", ["p"], ["n"])]


def test_pairs_with_scores_say_what_was_assumed(tmp_path):
    path, said = written("st-labeled-pair-scores", tmp_path)
    assert any("cannot distinguish positives" in line for line in said)
    _, said = read("st-labeled-pair-scores", path)
    assert any("the first pair of a query is taken as its positive" in line for line in said)


def test_parquet_goes_over_several_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(records_lib, "BATCH", 2)
    path, _ = written("st-labeled-pair", tmp_path)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert pq.read_table(path).to_pylist() == ST_WRITTEN["st-labeled-pair"]
    assert len(read("st-labeled-pair", path)[0]) == 2
