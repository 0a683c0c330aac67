"""What can be wrong with somebody else's files: one line each, and nothing on the target."""

import json

import pytest
from interchange_samples import example, jsonl, parquet

from nvret_jax.commands import convert
from nvret_jax.data import interchange
from nvret_jax.errors import InputError

GOOD = {"query": "q", "pos": ["a"], "neg": ["b"]}
PASSAGE = {"docid": "1", "text": "a"}
TEVATRON = {"query_id": "1", "query": "q", "positive_passages": [PASSAGE], "negative_passages": []}


def without(record, *keys):
    return {key: value for key, value in record.items() if key not in keys}


# format, lines of the file, what the message says besides the file's name
LINES = [
    ("flagembedding", ["{"], ":1: not valid JSON"),
    ("flagembedding", [GOOD, "[1]"], ":2: expected a JSON object, got an array"),
    ("flagembedding", [GOOD, "", "null"], ":3: expected a JSON object, got null"),
    ("flagembedding", [], "empty"),
    ("flagembedding", [without(GOOD, "query")], ":1: key 'query' is missing"),
    ("flagembedding", [without(GOOD, "pos")], ":1: key 'pos' is missing"),
    ("flagembedding", [GOOD | {"query": 3}], ":1: key 'query' must be a string, got the number 3"),
    ("flagembedding", [GOOD | {"pos": None}], ":1: key 'pos' must be a list of strings, got null"),
    ("flagembedding", [GOOD | {"pos": {"a": 1}}], "'pos' must be a list, got an object"),
    ("flagembedding", [GOOD | {"neg": ["a", 2]}], "item 2 of 'neg' must be a string"),
    ("flagembedding", [GOOD | {"pos_scores": [1, 2]}], "'pos_scores' has 2 numbers for 1 in 'pos'"),
    ("flagembedding", [GOOD | {"neg_scores": ["1"]}], "'neg_scores' must hold numbers, got a str"),
    ("flagembedding", [GOOD | {"neg_scores": [True]}], "'neg_scores' must hold numbers, got a bo"),
    ("flagembedding", [GOOD | {"neg_scores": 1}], "'neg_scores' must be a list, got the number 1"),
    ("flagembedding", ['{"query": "q", "pos": [], "neg_scores": [1e999], "neg": ["b"]}'], "finite"),
    ("flagembedding", ['{"query": "q", "pos": [], "x": NaN}'], ":1: not valid JSON (NaN"),
    ("flagembedding", ['{"query": "q", "pos": [], "x": 1e999}'], "under x is not plain finite"),
    ("flagembedding", ['{"query": "\\ud800", "pos": []}'], ":1: half of a surrogate pair"),
    ("flagembedding", ["[" * 100_000], "nested too deeply"),
    ("flagembedding", ['{"query": "q", "pos": [], "x": ' + "1" * 5000 + "}"], ":1: not valid JSON"),
    ("tevatron", [without(TEVATRON, "positive_passages")], "'positive_passages' is missing"),
    ("tevatron", [TEVATRON | {"positive_passages": ["a"]}], "positive_passages 1: expected an obj"),
    ("tevatron", [TEVATRON | {"positive_passages": PASSAGE}], "must be a list, got an object"),
    (
        "tevatron",
        [TEVATRON | {"negative_passages": [PASSAGE, {"docid": "2"}]}],
        ":1, negative_passages 2: key 'text' is missing",
    ),
    ("tevatron", [TEVATRON | {"query_id": ""}], "must be an id (a string or a whole number), got"),
    ("tevatron", [TEVATRON | {"query_id": 1.5}], "must be an id"),
    ("tevatron", [TEVATRON | {"positive_passages": [PASSAGE | {"title": 1}]}], "key 'title' must"),
    (
        "tevatron",
        [TEVATRON | {"positive_passages": [PASSAGE | {"score": "x"}]}],
        "key 'score' mus",
    ),
    (
        "tevatron",
        [TEVATRON | {"negative_passages": [PASSAGE | {"text": "z"}]}],
        "passage id '1' had another text before",
    ),
    (
        "tevatron",
        [TEVATRON | {"negative_passages": [PASSAGE | {"title": "z"}]}],
        "passage id '1' had another title before",
    ),
    (
        "tevatron",
        [TEVATRON, TEVATRON | {"query": "z"}],
        ":2: query id '1' had another text before",
    ),
    ("nemo-inline", [{"query": "q", "neg_doc": []}], "'pos_doc' is missing"),
    ("nemo-inline", [{"query": "q", "pos_doc": 3}], "'pos_doc' must be a list"),
    ("nemo-inline", [{"query": "q", "pos_doc": [3]}], "pos_doc 1: expected a string"),
    (
        "nemo-inline",
        [{"query": "q", "pos_doc": [{"text": "a", "image": "b"}]}],
        "key 'image' is",
    ),
    ("nemo-inline", [{"pos_doc": "a"}], "'query' is missing"),
    ("st-triplet", [{"anchor": "q", "positive": "p"}], "expected the columns of triplet"),
    ("st-triplet", [{"anchor": "q", "positive": "p", "label": 1}], "the form labeled-pair"),
    (
        "st-triplet",
        [{"anchor": "q", "positive": "p", "negative": 1}],
        "'negative' must be a",
    ),
    ("st-triplet", [{"a": "q", "b": "p", "c": "n", "scores": [1]}], "'scores' has 1 numbers for 2"),
    (
        "st-triplet",
        [{"a": "q", "b": "p", "c": "n"}, {"a": "q", "b": "p"}],
        ":2: key 'c' is in",
    ),
    ("st-n-tuple", [{"negative_1": "a", "negative_2": "b", "q": "c"}], "expected an anchor and a"),
    ("st-n-tuple", [{"a": "a", "b": "b", "label": 1, "score": 1}], "has both columns 'label'"),
    ("st-labeled-pair", [{"anchor": "q", "positive": "p", "label": 2}], "'label' must be 1 or 0"),
    ("st-labeled-pair", [{"anchor": "q", "positive": "p", "label": True}], "must be 1 or 0, got a"),
    ("st-labeled-pair", [{"anchor": "q", "positive": "p", "score": "1"}], "must hold numbers"),
    ("st-labeled-list", [{"anchor": "q", "positive": ["p"], "labels": [1, 0]}], "2 labels for 1"),
    ("st-labeled-list", [{"anchor": "q", "positive": [], "labels": []}], "is an empty list"),
    ("st-labeled-list", [{"anchor": "q", "positive": ["p"], "labels": [0.5]}], "must be 1 or 0"),
    ("trec", ["q Q0 p 1 0.5"], ":1: 5 columns, expected 6"),
    ("trec", ["q Q0 p one 0.5 t"], "rank 'one' is not a whole number"),
    ("trec", ["q Q0 p 1 high t"], "score 'high' is not a number"),
    ("trec", ["q Q0 p 1 nan t"], "is not a finite float32 number"),
    ("trec", ["q Q0 p 1 1 t", "q Q0 p 2 1 t"], ":2: passage 'p' again for query 'q'"),
    ("trec", [], "empty"),
    ("msmarco", ["q\tp\t0"], "rank '0' is not a whole number from 1"),
    ("msmarco", ["q\tp\t1", "q\tr\t1"], ":2: rank 1 again for query 'q'"),
    ("msmarco", ["q\tp\t1\t0.5"], "4 columns, expected 3"),
    ("tevatron-run", ["q\t\t1"], "an id is empty"),
]


def message(run):
    with pytest.raises(InputError) as caught:
        run()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize(("name", "lines", "expected"), LINES)
def test_a_bad_line_is_named_and_nothing_is_written(name, lines, expected, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", *lines)
    goal = "tevatron-run" if interchange.FORMATS[name].kind == "run" else "flagembedding"
    text = message(lambda: convert.convert(f"{name}:{source}", f"{goal}:{tmp_path / 'out'}"))
    assert text.startswith(f"{source}")
    assert expected in text
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def written(name, tmp_path):
    folder = tmp_path / "in"
    interchange.write(example(), name, folder, [].append)
    return folder


def change_json(path, change):
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


def edit(name):
    """A line added to a file of the folder."""
    file, line = name
    return lambda f: (f / file).write_text((f / file).read_text() + json.dumps(line) + "\n")


def table(file, **columns):
    return lambda f: parquet(f / file, columns)


def remove(file):
    return lambda f: (f / file).unlink()


def cut(file):
    return lambda f: (f / file).write_bytes((f / file).read_bytes()[:-20])


def nemo(change):
    return lambda f: change_json(f / "train.json", change)


TEXTS = {"document_id": ["p1"], "document": ["a"]}
ARCTIC = {"QUERY_ID": [1], "DOCUMENT_ID": [1]}
FOLDERS = [
    ("tevatron-ids", remove("corpus.jsonl"), "corpus.jsonl: no such file"),
    ("tevatron-ids", edit(("corpus.jsonl", {"docid": "p1", "text": "a"})), "was already used at"),
    ("tevatron-ids", edit(("corpus.jsonl", {"text": "a"})), "corpus.jsonl:5: key 'docid' is miss"),
    (
        "tevatron-ids",
        edit(("train.jsonl", {"query_text": "a", "positive_document_ids": ["no"]})),
        "train.jsonl:3, key 'positive_document_ids': passage id 'no' is not among the texts",
    ),
    ("tevatron-ids", edit(("train.jsonl", {"query_text": "a"})), "'positive_document_ids' is miss"),
    ("nemo", remove("train.json"), "train.json: no such file"),
    ("nemo", remove("corpus/merlin_metadata.json"), "merlin_metadata.json: no such file"),
    ("nemo", remove("corpus/train.parquet"), "no parquet file"),
    ("nemo", cut("train.json"), "train.json: not valid JSON"),
    ("nemo", cut("corpus/train.parquet"), "cannot be read as parquet"),
    ("nemo", nemo(lambda w: w.pop("corpus")), "key 'corpus' is missing"),
    ("nemo", nemo(lambda w: w.update(corpus=[])), "key 'corpus' is empty"),
    ("nemo", nemo(lambda w: w.update(corpus=["x"])), "expected {'path': …}, got a string"),
    ("nemo", nemo(lambda w: w.update(corpus={"path": "hf://x"})), "is not a folder next to"),
    ("nemo", nemo(lambda w: w.update(corpus={"path": "no"})), "merlin_metadata.json: no such file"),
    ("nemo", nemo(lambda w: w.update(corpus=w["corpus"] * 2)), "is used by two corpora"),
    ("nemo", nemo(lambda w: w.update(data=[])), "'data' is empty"),
    ("nemo", nemo(lambda w: w.update(data=[1])), "data 1: expected an object"),
    ("nemo", nemo(lambda w: w["data"][1].update(corpus_id="z")), "data 2: corpus_id 'z' is not"),
    ("nemo", nemo(lambda w: w["data"][0].pop("pos_doc")), "data 1: key 'pos_doc' is missing"),
    ("nemo", nemo(lambda w: w["data"][0]["neg_doc"].append({"id": "z"})), "neg_doc 3: passage id"),
    ("nemo", nemo(lambda w: w["data"][0]["neg_doc"].append({})), "neg_doc 3: key 'id' is missing"),
    ("nemo", table("corpus/train.parquet", id=["1"]), "lacks the column 'text'"),
    ("nemo", table("corpus/train.parquet", id=["1", "1"], text=["a", "b"]), "row 2: id '1' was al"),
    ("nemo", table("corpus/train.parquet", id=["1"], text=[None]), "'text' must be a string, got"),
    ("three-table", remove("queries.parquet"), "queries.parquet: no such file"),
    ("three-table", table("documents.parquet", id=["p1"], text=["a"]), "lacks the column 'docume"),
    ("three-table", table("documents.parquet", **TEXTS), "row 1: passage id 'p2' is"),
    ("three-table", table("train.parquet", query_id=["q1"], document_ids=[[]]), "is empty; the p"),
    ("three-table", table("train.parquet", query_id=["z"], document_ids=[["p1"]]), "query id 'z'"),
    ("three-table", table("train.parquet", query_id=["q1"], document_ids=["(1"]), "must be a list"),
    (
        "three-table",
        table("train.parquet", query_id=["q1"], document_ids=[["p1"]], scores=[[1.0, 2.0]]),
        "'scores' has 2 numbers for 1",
    ),
    (
        "three-table",
        table("train.parquet", query_id=["q1"], document_ids=[["p1"]], scores=[[float("inf")]]),
        "row 1: key 'scores' must hold finite",
    ),
    (
        "three-table",
        table("train.parquet", query_id=["q1"], document_ids=[["p1"]], extra=["{"]),
        "column 'extra': not valid JSON",
    ),
    ("arctic", cut("relations.parquet"), "cannot be read as parquet"),
    ("arctic", table("relations.parquet", **ARCTIC), "lacks the column 'RELEVANCE'"),
    ("arctic", table("relations.parquet", **ARCTIC, RELEVANCE=[0]), "must be 1 or -1, got the num"),
    ("arctic", table("relations.parquet", **ARCTIC, RELEVANCE=[1]), "QUERY_ID 1 has no QUERY_TEXT"),
    ("arctic", table("queries.parquet", QUERY_ID=["a"], QUERY_TEXT=["b"]), "must be whole numbers"),
    ("arctic", table("queries.parquet", QUERY_ID=[1, 1], QUERY_TEXT=["b", "c"]), "1 was used befo"),
    ("arctic", table("queries.parquet", QUERY_ID=[None, 1], QUERY_TEXT=["b", "c"]), "is null"),
    ("beir", remove("corpus.jsonl"), "corpus.jsonl: no such file"),
    ("beir", remove("qrels/train.tsv"), "no judgments; expected files"),
    ("beir", edit(("corpus.jsonl", {"_id": "p1", "text": "a"})), "_id 'p1' was already used"),
    (
        "beir",
        edit(("negatives/train.jsonl", {"query_id": "q1", "negative_ids": ["z"]})),
        "train.jsonl:3, negative_ids: passage id 'z' is not among the texts",
    ),
    (
        "beir",
        edit(("negatives/train.jsonl", {"query_id": "q1", "positive_ids": ["p4"]})),
        "is a positive of 'q1' but not judged 1 or more",
    ),
    ("beir", edit(("negatives/train.jsonl", {"query_id": "q1", "note": 1})), "key 'note' is not"),
    ("beir", edit(("negatives/train.jsonl", {"query_id": "q1", "extra": [1]})), "'extra' must be"),
]


@pytest.mark.parametrize(("name", "damage", "expected"), FOLDERS)
def test_a_damaged_folder_is_named_and_nothing_is_written(name, damage, expected, tmp_path):
    folder = written(name, tmp_path)
    damage(folder)
    text = message(lambda: convert.convert(f"{name}:{folder}", f"tevatron:{tmp_path / 'out'}"))
    assert text.startswith(str(tmp_path))
    assert expected in text
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


PARQUET = [
    (
        "st-triplet",
        {"anchor": ["q"], "positive": ["p"], "negative": [None]},
        "1: key 'negative'",
    ),
    ("st-triplet", {"anchor": [], "positive": [], "negative": []}, "has no rows"),
    ("st-triplet", {"anchor": [1], "positive": ["p"], "negative": ["n"]}, "'anchor' must be a str"),
    ("st-labeled-list", {"anchor": ["q"], "positive": ["p"], "labels": [[1, 0]]}, "2 labels for 1"),
    (
        "st-labeled-list",
        {"anchor": ["q"], "positive": [["p"]], "scores": [[None, 1.0]]},
        "'scores' has 2 numbers for 1",
    ),
]


@pytest.mark.parametrize(("name", "columns", "expected"), PARQUET)
def test_a_bad_row_of_parquet_is_named(name, columns, expected, tmp_path):
    path = parquet(tmp_path / "a.parquet", columns)
    assert expected in message(lambda: interchange.read(name, path))


def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"query": "\xff"}\n')
    text = message(lambda: interchange.read("flagembedding", tmp_path / "a.jsonl"))
    assert text == f"{tmp_path}/a.jsonl:2: byte 0xff is not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize("name", interchange.FORMATS)
def test_a_source_that_is_not_there_or_of_the_wrong_kind_is_named(name, tmp_path):
    path = tmp_path / "none.parquet" if name.startswith("st-") else tmp_path / "none"
    assert str(tmp_path) in message(lambda: interchange.read(name, path))
    path.mkdir()
    assert str(tmp_path) in message(lambda: interchange.read(name, path))


@pytest.mark.parametrize("name", interchange.FORMATS)
def test_a_target_that_cannot_be_written_is_named(name, tmp_path):
    form = interchange.FORMATS[name]
    content = example() if form.kind == "rows" else {"q": {"p": 1.0}}
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "out.parquet"
    assert "cannot be written" in message(lambda: interchange.write(content, name, path, print))
    (tmp_path / "full.parquet").mkdir()
    (tmp_path / "full.parquet" / "mine").write_text("x")
    path = tmp_path / "full.parquet"
    assert "folder" in message(lambda: interchange.write(content, name, path, print))
    assert (tmp_path / "full.parquet" / "mine").read_text() == "x"


def unscored():
    rows = example()
    rows.negative_scores.values[0] = float("nan")
    return rows


def renamed(name):
    rows = example()
    rows.passages.ids[0] = name
    return rows


UNWRITABLE = [
    ("st-triplet-scores", unscored, "query 'q1' has a passage without a score; write 'st-triplet'"),
    ("beir", lambda: renamed("a b"), "passage id 'a b' is empty or has white space"),
    ("flagembedding", lambda: interchange.Builder().build(), "there are no rows to write"),
    ("trec", lambda: {"a b": {"p": 1.0}}, "query id 'a b' cannot stand in a column of trec"),
    ("msmarco", lambda: {"q": {"p\t": 1.0}}, "passage id 'p\\t' cannot stand in a column"),
    ("trec", lambda: {"q": {"p": float("nan")}}, "score nan"),
    ("trec", lambda: {"q": {}}, "the run is empty"),
    ("trec", example, "format 'trec' holds a run"),
    ("beir", lambda: {"q": {"p": 1.0}}, "format 'beir' holds training rows; the source is a run"),
    ("st-triple", example, "unknown format 'st-triple'; known formats: flagembedding, "),
]


@pytest.mark.parametrize(("name", "make", "expected"), UNWRITABLE)
def test_what_a_format_cannot_take_is_refused(name, make, expected, tmp_path):
    path = tmp_path / "out.parquet"
    assert expected in message(lambda: interchange.write(make(), name, path, print))
    assert list(tmp_path.iterdir()) == []


def test_arctic_refuses_a_passage_on_both_sides_and_ids_that_share_their_bits(tmp_path):
    builder = interchange.Builder()
    passage = builder.passage("", "a")
    builder.add(builder.query("", "q"), [passage], [passage])
    text = message(lambda: interchange.write(builder.build(), "arctic", tmp_path / "o", print))
    assert "is both positive and negative for query" in text
    rows = renamed(str(0xC97550CE8213EF5C))
    rows.passages.ids[1] = "05"
    assert "the same 64 bits" in message(
        lambda: interchange.write(rows, "arctic", tmp_path / "o", print)
    )


def test_the_name_of_a_file_says_whether_it_is_parquet(tmp_path):
    text = message(lambda: interchange.write(example(), "st-triplet", tmp_path / "a.csv", print))
    assert "must end in .parquet or .jsonl" in text
