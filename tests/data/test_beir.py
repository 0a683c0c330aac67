"""BEIR folders: what is read, and one line for each thing that can be wrong with them."""

import gzip
import json
import time

import pyarrow as pa
import pytest

from nvret_jax.data import beir, mapped
from nvret_jax.data.beir import read_beir
from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError

CORPUS = [
    {"_id": "p1", "title": "Wings", "text": "lift and drag "},
    {"_id": "p2", "title": "", "text": " no title here"},
    {"_id": "p3", "text": "a third passage"},
]
QUERIES = [{"_id": "q1", "text": "what lifts a wing"}, {"_id": "q2", "text": "third"}]
QRELS = "query-id\tcorpus-id\tscore\nq2\tp3\t1\nq1\tp2\t1\nq1\tp1\t2\nq1\tp3\t0\n"


def _jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "My Set"
    (root / "qrels").mkdir(parents=True)
    (root / "corpus.jsonl").write_text(_jsonl(CORPUS))
    (root / "queries.jsonl").write_text(_jsonl(QUERIES))
    (root / "qrels" / "test.tsv").write_text(QRELS)
    return root


def test_reads_text_judgments_and_orders(folder):
    data = load_dataset(f"beir:{folder}")
    assert data.name == "my-set"
    assert data.corpus.ids == ("p1", "p2", "p3")
    assert list(data.corpus.texts) == ["Wings lift and drag", "no title here", "a third passage"]
    assert data.corpus.row == {"p1": 0, "p2": 1, "p3": 2}
    assert data.qrels == {"test": {"q2": {"p3": 1}, "q1": {"p2": 1, "p1": 2, "p3": 0}}}
    assert data.split_queries("test").ids == ("q1", "q2")  # file order, not the qrels' order
    assert list(data.positives("test").items()) == [("q1", ["p1", "p2"]), ("q2", ["p3"])]
    assert data.positives("test", min_relevance=2) == {"q1": ["p1"]}


def test_positives_of_equal_relevance_come_in_corpus_order(folder):
    (folder / "corpus.jsonl").write_text(_jsonl(CORPUS[::-1]))
    (folder / "qrels" / "test.tsv").write_text("q1\tp1\t1\nq1\tp3\t1\nq1\tp2\t5\n")
    assert read_beir(folder).positives("test") == {"q1": ["p2", "p3", "p1"]}


def test_only_the_asked_splits_must_exist(folder):
    (folder / "qrels" / "broken.tsv").write_text("nonsense")
    data = read_beir(folder, ["test"])
    assert list(data.qrels) == ["test"]
    with pytest.raises(InputError, match=r"no split 'train'; loaded splits: test"):
        data.split_queries("train")
    with pytest.raises(InputError, match=r"relevance >= 3"):
        data.positives("test", min_relevance=3)


@pytest.mark.parametrize(
    "text",
    [
        "q2 0 p3 1\nq1 Q0 p2 1\nq1 0 p1 2\nq1 0 p3 0\n",  # TREC
        QRELS.split("\n", 1)[1],  # no header
        QRELS.replace("\n", "\r\n"),
        "\ufeff" + QRELS,
    ],
)
def test_other_forms_of_judgments(folder, text):
    expected = read_beir(folder).qrels
    (folder / "qrels" / "test.tsv").write_bytes(text.encode())
    assert read_beir(folder).qrels == expected


def test_unusual_but_valid_text(folder):
    lines = _jsonl(CORPUS) + '{"_id": "é\u00ad4", "text": "one\u2028text \u0085 still"}\n\n'
    (folder / "corpus.jsonl").write_text(lines, encoding="utf-8")
    corpus = read_beir(folder).corpus
    assert corpus.ids[-1] == "é\u00ad4"
    assert corpus.texts[-1] == "one\u2028text \u0085 still"


def test_fingerprint_follows_content_alone(folder, tmp_path):
    first = read_beir(folder).fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    assert read_beir(moved).fingerprint == first
    qrels = moved / "qrels" / "test.tsv"
    head, *body = QRELS.splitlines()
    qrels.write_text("\n".join([head, *reversed(body)]))
    assert read_beir(moved).fingerprint == first  # the order of judgments means nothing
    seen = {first, read_beir(moved, allow_empty=True).fingerprint}
    for path, text in [
        (moved / "corpus.jsonl", _jsonl(CORPUS[::-1])),
        (moved / "queries.jsonl", _jsonl([QUERIES[0], {"_id": "q2", "text": "3rd"}])),
        (qrels, QRELS.replace("\t0\n", "\t1\n")),
    ]:
        before = path.read_text()
        path.write_text(text)
        seen.add(read_beir(moved).fingerprint)
        path.write_text(before)
    assert len(seen) == 5


def test_empty_text_can_be_allowed(folder):
    (folder / "corpus.jsonl").write_text(_jsonl([*CORPUS, {"_id": "p4", "title": "", "text": " "}]))
    assert read_beir(folder, allow_empty=True).corpus.texts[3] == ""


# (file, its new content or None to remove it, what the one line must say)
BAD = {
    "no corpus": ("corpus.jsonl", None, "corpus.jsonl: no such file"),
    "no queries": ("queries.jsonl", None, "queries.jsonl: no such file"),
    "no qrels": ("qrels/test.tsv", None, "qrels/test.tsv: no such file"),
    "bad JSON": (
        "corpus.jsonl",
        _jsonl(CORPUS) + '{"_id": "p4", "text"\n',
        "corpus.jsonl:4: not valid JSON",
    ),
    "deep JSON": ("corpus.jsonl", "[" * 200_000, "corpus.jsonl:1: not valid JSON"),
    "array": ("queries.jsonl", "[1, 2]\n", "queries.jsonl:1: expected a JSON object, got an array"),
    "no _id": ("corpus.jsonl", '{"text": "x"}\n', "corpus.jsonl:1: key '_id' must be a string"),
    "float as _id": (
        "corpus.jsonl",
        '{"_id": 7.0, "text": "x"}\n',
        "key '_id' must be a string or a whole number, got the number 7.0",
    ),
    "boolean as _id": ("queries.jsonl", '{"_id": true, "text": "x"}\n', "got a boolean"),
    "huge number as _id": (
        "corpus.jsonl",
        '{"_id": 1' + "0" * 40 + ', "text": "x"}\n',
        "got a number of 41 digits",
    ),
    "endless number": (
        "corpus.jsonl",
        '{"_id": 1' + "0" * 10_000 + ', "text": "x"}\n',
        "corpus.jsonl:1: not valid JSON (a number of thousands of digits)",
    ),
    "an id as number and as text": (
        "corpus.jsonl",
        _jsonl(CORPUS) + '{"_id": 7, "text": "x"}\n{"_id": "7", "text": "x"}\n',
        "corpus.jsonl:5: _id '7' is a number here or on line 4, and text on the other",
    ),
    "half surrogate in id": (
        "corpus.jsonl",
        '{"_id": "p\\ud800", "text": "x"}\n',
        "_id 'p\\ud800', with the invisible character U+D800 is empty or has white space",
    ),
    "invisible mark in a judgment": (
        "qrels/test.tsv",
        QRELS + "\ufeffq1\tp3\t1\n",
        "query id '\\ufeffq1', with the invisible character U+FEFF is not in queries.jsonl",
    ),
    "no text": ("queries.jsonl", '{"_id": "q1"}\n', "queries.jsonl:1: key 'text' must be a string"),
    "null text": (
        "corpus.jsonl",
        '{"_id": "p1", "text": null}\n',
        "'text' must be a string, got nu",
    ),
    "list as title": (
        "corpus.jsonl",
        '{"_id": "p1", "title": [], "text": "x"}\n',
        "key 'title' must be a string, got an array",
    ),
    "duplicate id": (
        "corpus.jsonl",
        _jsonl([*CORPUS, CORPUS[1] | {"text": "another"}]),
        "corpus.jsonl:4: _id 'p2' was already used on line 2, with another text",
    ),
    "empty corpus": ("corpus.jsonl", "\n \n", "corpus.jsonl: empty"),
    "empty queries": ("queries.jsonl", "", "queries.jsonl: empty"),
    "blank passage": (
        "corpus.jsonl",
        _jsonl([{"_id": "p1", "title": " ", "text": "\t"}]),
        "corpus.jsonl:1: passage 'p1' is empty",
    ),
    "blank query": ("queries.jsonl", '{"_id": "q1", "text": ""}\n', "query 'q1' is empty"),
    "space in id": ("corpus.jsonl", '{"_id": "p 1", "text": "x"}\n', "_id 'p 1' is empty or has"),
    "wide space in id": ("corpus.jsonl", '{"_id": "p\u20001", "text": "x"}\n', "white space"),
    "control in id": ("corpus.jsonl", '{"_id": "p\\u0007", "text": "x"}\n', "control characters"),
    "empty id": ("corpus.jsonl", '{"_id": "", "text": "x"}\n', "_id '' is empty"),
    "half surrogate": ("corpus.jsonl", '{"_id": "p1", "text": "\\ud800"}\n', "surrogate pair"),
    "not UTF-8": ("corpus.jsonl", b'{"_id": "a"}\n{"\xff"}\n', "corpus.jsonl:2: byte 0xff is not"),
    "two columns": ("qrels/test.tsv", "q1\tp1\n", "test.tsv:1: expected 3 columns"),
    "columns change": ("qrels/test.tsv", QRELS + "q1 0 p1 1\n", "test.tsv:6: expected 3 columns"),
    "score a word": (
        "qrels/test.tsv",
        QRELS + "q2\tp1\tyes\n",
        "test.tsv:6: score must be a whole",
    ),
    "score a float": ("qrels/test.tsv", "q2\tp1\t0.5\n", "whole number, got '0.5'"),
    "score with a bar": ("qrels/test.tsv", "q2\tp1\t1_0\n", "whole number, got '1_0'"),
    "score in other digits": ("qrels/test.tsv", "q2\tp1\t１\n", "whole number, got '１'"),
    "endless score": ("qrels/test.tsv", f"q2\tp1\t{'9' * 5000}\n", "score must be a whole number"),
    "unknown query": ("qrels/test.tsv", QRELS + "q9\tp1\t1\n", "test.tsv:6: query id 'q9'"),
    "unknown passage": ("qrels/test.tsv", QRELS + "q1\tp9\t1\n", "test.tsv:6: passage id 'p9'"),
    "judged twice": (
        "qrels/test.tsv",
        QRELS + "q1\tp2\t0\n",
        "test.tsv:6: query 'q1' and passage 'p2' were already judged 1 on line 3, and 0 here",
    ),
    "no positive": ("qrels/test.tsv", "q1\tp1\t0\nq2\tp1\t-1\n", "test.tsv: no judgment has a sc"),
    "only a header": ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "no judgment has a score"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(folder, case):
    name, content, expected = BAD[case]
    (folder / "qrels" / "dev.tsv").write_text(QRELS)
    if content is None:
        (folder / name).unlink()
    elif isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        (folder / name).write_text(content)
    with pytest.raises(InputError) as caught:
        read_beir(folder, ["test"])
    message = str(caught.value)
    assert expected in message
    assert str(folder) in message
    assert "\n" not in message


@pytest.fixture
def warnings(monkeypatch):
    """What is logged while a folder is read, one line each."""
    said = []
    monkeypatch.setattr(beir.logging, "warning", lambda text, *values: said.append(text % values))
    return said


def test_whole_floats_are_whole_numbers(folder):
    expected = read_beir(folder).qrels
    (folder / "qrels" / "test.tsv").write_text(
        QRELS.replace("\t1\n", "\t1.0\n").replace("\t2\n", "\t2.\n").replace("\t0\n", "\t0.00\n")
    )
    assert read_beir(folder).qrels == expected


def test_what_is_said_twice_counts_once(folder, warnings):
    expected = read_beir(folder)
    (folder / "corpus.jsonl").write_text(_jsonl([*CORPUS, CORPUS[1], CORPUS[0]]))
    (folder / "queries.jsonl").write_text(_jsonl([QUERIES[0], *QUERIES]))
    (folder / "qrels" / "test.tsv").write_text(QRELS + "q1\tp2\t1.0\n")
    data = read_beir(folder)
    assert data == expected
    assert [line.partition(": ")[2] for line in warnings] == [
        "lines that repeat an earlier one, counted once: 2",
        "lines that repeat an earlier one, counted once: 1",
        "judgments that repeat an earlier one, counted once: 1",
    ]


def test_ids_that_are_numbers_are_read_as_their_digits(folder, warnings):
    (folder / "corpus.jsonl").write_text(_jsonl([*CORPUS, {"_id": 12, "text": "twelve"}]))
    (folder / "qrels" / "test.tsv").write_text(QRELS + "q2\t12\t1\n")
    data = read_beir(folder)
    assert data.corpus.ids[-1] == "12"
    assert data.qrels["test"]["q2"] == {"p3": 1, "12": 1}
    assert warnings == [f"{folder}/corpus.jsonl: ids that are JSON numbers, read as text: 1"]


def test_judgments_of_what_is_not_there_can_be_left_out(folder, warnings):
    expected = read_beir(folder)
    (folder / "qrels" / "test.tsv").write_text(QRELS + "q1\tp9\t1\nq9\tp1\t1\nq2\tp8\t0\n")
    with pytest.raises(InputError, match=r"'p9' is not in corpus.jsonl; data.missing='drop'"):
        read_beir(folder)
    assert load_dataset(f"beir:{folder}", missing="drop") == expected
    assert warnings[0].endswith(
        "missing queries or passages, left out: 1 for queries, 2 for passages"
    )
    (folder / "qrels" / "test.tsv").write_text("q1\tp9\t1\n")
    with pytest.raises(InputError, match="no query has a positive; judgments of missing"):
        read_beir(folder, missing="drop")
    with pytest.raises(InputError, match=r"missing='skip': choose one of error, drop"):
        read_beir(folder, missing="skip")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_read(folder, suffix):
    expected = read_beir(folder)
    names = ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"]
    for name in names:
        data = (folder / name).read_bytes()
        packed = gzip.compress(data) if suffix == ".gz" else pa.compress(data, "zstd", asbytes=True)
        (folder / f"{name}{suffix}").write_bytes(packed)
        (folder / name).unlink()
    assert read_beir(folder) == expected
    (folder / "corpus.jsonl").write_text(_jsonl(CORPUS))
    with pytest.raises(InputError, match=f"corpus.jsonl: corpus.jsonl{suffix} exists, too"):
        read_beir(folder)
    (folder / "corpus.jsonl").unlink()
    damaged = folder / f"corpus.jsonl{suffix}"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"corpus.jsonl{suffix}: cannot be read"):
        read_beir(folder)


def test_a_split_that_no_file_can_be_named_by(folder):
    for split in ("x" * 300, "x\0", "../x"):
        with pytest.raises(InputError, match=r"a split must be a name of at most 100 bytes"):
            read_beir(folder, [split])
    with pytest.raises(InputError, match=r"is not a file name|no such file"):
        read_beir(folder, ["x\ud800"])


def test_a_missing_split_names_those_there_are(folder):
    with pytest.raises(InputError, match=r"train.tsv: no such file; splits in this folder: test"):
        read_beir(folder, ["train"])


def test_missing_folder_and_missing_judgments(folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_beir(tmp_path / "nowhere")
    (folder / "qrels" / "test.tsv").unlink()
    with pytest.raises(InputError, match="no judgments"):
        read_beir(folder)


def test_several_mistakes_come_together(folder):
    broken = [{"_id": f"x{i}", "text": 1} for i in range(5)]
    (folder / "corpus.jsonl").write_text(_jsonl([*CORPUS, *broken]))
    (folder / "queries.jsonl").write_text("{\n")
    with pytest.raises(InputError) as caught:
        read_beir(folder)
    message = str(caught.value)
    assert [f"corpus.jsonl:{line}:" in message for line in (4, 5, 6, 7)] == [True] * 3 + [False]
    assert message.endswith("… and 3 more")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("csv:x", "unknown scheme 'csv'; known are 'beir:', .*read as 'pairs:FILE'"),
        ("data/x", "no such file or folder; .* as in 'beir:data/x' for a folder; known are"),
        ("data/x.csv", "no such file or folder; .* as in 'pairs:data/x.csv' for a table"),
        ("beir:", "name the folder"),
        ("pydocs:x", "nothing after the colon"),
    ],
)
def test_specs_that_name_no_dataset(spec, expected):
    with pytest.raises(InputError, match=expected):
        load_dataset(spec)


def test_reading_is_fast(folder):
    count = 30_000
    (folder / "corpus.jsonl").write_text(
        _jsonl({"_id": f"p{i}", "title": "t", "text": f"some words {i}"} for i in range(count))
    )
    start = time.process_time()
    json_only = [json.loads(line) for line in (folder / "corpus.jsonl").open()]
    baseline = time.process_time() - start
    start = time.process_time()
    read_beir(folder)
    taken = time.process_time() - start
    assert len(json_only) == count
    assert taken < 8 * baseline + 0.2  # the checks cost a small multiple of the parsing


def test_given_negatives_beside_the_judgments(folder):
    plain = load_dataset(f"beir:{folder}")
    assert plain.given == {}
    (folder / "negatives").mkdir()
    path = folder / "negatives" / "test.jsonl"
    rows = [{"query_id": "q2", "negative_ids": ["p1", "p2"]}, {"query_id": "q1"}]
    path.write_text(_jsonl([*rows, {"query_id": "q2", "negative_ids": ["p1"]}]))
    data = load_dataset(f"beir:{folder}")
    assert data.given == {"test": {"q2": ("p1", "p2")}}
    assert data.fingerprint != plain.fingerprint
    for rows, message in (
        ([{"query_id": "q2", "negative_ids": ["p9"]}], r"test.jsonl:1: passage id 'p9' is not in"),
        ([{"query_id": "q2", "negative_ids": ["p3"]}], r":1: passage 'p3' is a negative of query"),
        ([{"negative_ids": ["p1"]}], r":1: expected 'query_id' and 'negative_ids'"),
        ([{"query_id": "q2", "negative_ids": [True]}], r":1: expected 'query_id' and"),
    ):
        path.write_text(_jsonl(rows))
        with pytest.raises(InputError, match=message):
            load_dataset(f"beir:{folder}")


def test_a_folder_larger_than_memory_is_the_same_data(folder, monkeypatch):
    small = load_dataset(f"beir:{folder}")
    monkeypatch.setattr(mapped, "IN_MEMORY", 10)
    monkeypatch.setattr(mapped, "_BLOCK", 10)
    large = load_dataset(f"beir:{folder}")
    assert isinstance(large.corpus.texts, mapped.MappedTexts)
    assert large.fingerprint == small.fingerprint
    assert large.positives("test") == small.positives("test")


def test_a_path_without_a_scheme_is_a_folder_or_a_table(folder, tmp_path):
    plain = load_dataset(str(folder))
    assert list(plain.corpus.ids) == list(read_beir(folder).corpus.ids)
    table = tmp_path / "faq.csv"
    table.write_text("ask,reply,other\na b,c d,x\n")
    options = "?query=ask&passage=reply&test=0&dev=0"
    for spec in (f"{table}{options}", f"pairs:{table}{options}"):
        data = load_dataset(spec)
        assert list(data.corpus.texts) == ["c d"]
        assert data.name == load_dataset(f"pairs:{table}{options}").name
