"""`pairs:` tables: what is recognised and folded, and one line for what cannot be meant."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import logging

from nvret_jax.data.interchange.rows import content_id
from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError

TEXTS = [
    ("How do I reset it?", "Hold the button for ten seconds."),
    ("What does it cost?", "Nine euros, with tax."),
    ("Is it waterproof?", "Down to a metre, for half an hour."),
    ("Where is it made?", "In a small town by the sea."),
]


def csv_bytes(rows, sep=",", end="\r\n"):
    return end.join(sep.join(f'"{cell}"' for cell in row) for row in rows).encode()


def pairs_of(data):
    """(split, query text, passage text, grade) of every judgment."""
    q, p = data.queries, data.corpus
    return {
        (split, q.texts[q.row[query]], p.texts[p.row[passage]], grade)
        for split, qrels in data.qrels.items()
        for query, judged in qrels.items()
        for passage, grade in judged.items()
    }


def given_of(data, split="train"):
    q, p = data.queries, data.corpus
    return {
        q.texts[q.row[query]]: [p.texts[p.row[passage]] for passage in passages]
        for query, passages in data.given.get(split, {}).items()
    }


WANTED = {("train", query, passage, 1) for query, passage in TEXTS}
HEAD = ("question", "answer")
EXCEL = csv_bytes([("Frage", "Antwort", "", "")], ";") + b"\r\n"
EXCEL += b"\r\n".join(f'"{q}";"{p}";;'.encode() for q, p in TEXTS) + b"\r\n;;;\r\n"
FILES = {
    "plain.csv": csv_bytes([HEAD, *TEXTS]),
    "bom_semicolons.csv": b"\xef\xbb\xbf" + csv_bytes([HEAD, *TEXTS], ";"),
    "excel.csv": EXCEL,
    "excel_sep.csv": b"sep=;\r\n" + csv_bytes([HEAD, *TEXTS], ";"),
    "excel_unicode.txt": "\ufeff".encode("utf-16-le")
    + csv_bytes([HEAD, *TEXTS], "\t").decode().encode("utf-16-le"),
    "old_mac.csv": csv_bytes([("Question Text", "Answer_Text"), *TEXTS], end="\r"),
    "bars.csv": csv_bytes([HEAD, *TEXTS], "|"),
    "plain.tsv": "\n".join("\t".join(row) for row in [("query", "passage"), *TEXTS]).encode(),
    "lines.jsonl": "".join(
        json.dumps({"anchor": q, "positive": p}) + "\n" for q, p in TEXTS
    ).encode(),
    "arrays.jsonl.gz": gzip.compress("".join(json.dumps(row) + "\n" for row in TEXTS).encode()),
    "array.json": json.dumps([{"input": q, "output": p} for q, p in TEXTS], indent=1).encode(),
    "nested.json": json.dumps({"data": [{"query": q, "doc": p} for q, p in TEXTS]}).encode(),
    "labels.csv": csv_bytes([("text", "label"), *TEXTS]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_as_people_have_them_are_the_same_data(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    data = load_dataset(f"pairs:{tmp_path / name}?split=train")
    assert pairs_of(data) == WANTED
    assert data.corpus.ids == tuple(content_id("p", passage) for _, passage in TEXTS)


def test_parquet_arrow_and_zst_are_the_same_data(tmp_path):
    table = pa.table({"Query": [q for q, _ in TEXTS], "Response": [p for _, p in TEXTS]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "b.arrow", table.schema) as sink:
        sink.write_table(table)
    with pa.ipc.new_file(tmp_path / "c.feather", table.schema) as sink:
        sink.write_table(table)
    with pa.CompressedOutputStream(str(tmp_path / "d.csv.zst"), "zstd") as file:
        file.write(FILES["plain.csv"])
    found = {
        load_dataset(f"pairs:{tmp_path / name}?split=train").fingerprint
        for name in ("a.parquet", "b.arrow", "c.feather", "d.csv.zst")
    }
    assert len(found) == 1


def test_columns_can_be_named_and_encodings_too(tmp_path):
    rows = [
        ("ask", "reply to it", "note", "score"),
        ("é?", "à.", "x", "57"),
        ("ö?", "ü.", "y", "0"),
    ]
    path = tmp_path / "a.csv"
    path.write_bytes(csv_bytes(rows).decode().encode("cp1252"))
    with pytest.raises(InputError, match=r"a.csv:2: byte 0xe9 is not UTF-8; .*\?encoding=cp1252"):
        load_dataset(f"pairs:{path}?query=ask&passage=reply to it")
    data = load_dataset(
        f"pairs:{path}?query=ask&passage=reply to it&score=&encoding=cp1252&split=fit"
    )
    assert pairs_of(data) == {("fit", "é?", "à.", 1), ("fit", "ö?", "ü.", 1)}


def test_a_table_without_names_goes_by_place(tmp_path):
    (tmp_path / "triples.tsv").write_text("q1\tp1\tn1\nq2\tp2\tn2\n")
    data = load_dataset(f"pairs:{tmp_path}/triples.tsv?header=no&split=train")
    assert pairs_of(data) == {("train", "q1", "p1", 1), ("train", "q2", "p2", 1)}
    assert given_of(data) == {"q1": ["n1"], "q2": ["n2"]}


def test_triplets_and_tuples_keep_their_negatives_in_order(tmp_path):
    rows = [
        {"anchor": "a", "positive": "b", "negative_2": "d", "negative_1": "c", "negative_10": "e"},
        {"anchor": "a", "positive": "b", "negative_2": "f", "negative_1": None, "negative_10": ""},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    data = load_dataset(f"pairs:{tmp_path}/t.parquet?split=train")
    assert given_of(data) == {"a": ["c", "d", "e", "f"]}
    assert pairs_of(data) == {("train", "a", "b", 1)}


def test_a_key_that_comes_up_later_in_json_lines_counts(tmp_path):
    rows = [{"query": "a", "pos": ["b"]}, {"query": "c", "pos": ["d", "e"], "neg": ["b"]}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_dataset(f"pairs:{tmp_path}/t.jsonl?split=train")
    assert given_of(data) == {"c": ["b"]}
    assert len(pairs_of(data)) == 3


def test_grades_and_scores(tmp_path):
    path = tmp_path / "j.csv"
    path.write_text("query,passage,label\na,b,1\na,c,0\nd,c,2\n")
    data = load_dataset(f"pairs:{path}?split=train")
    wanted = {("train", "a", "b", 1), ("train", "a", "c", 0), ("train", "d", "c", 2)}
    assert pairs_of(data) == wanted
    assert given_of(data) == {"a": ["c"]}
    path.write_text("query,passage,score\na,b,0.9\na,c,0.2\n")
    with pytest.raises(InputError, match=r"j.csv:2: column 'score' must be a whole number"):
        load_dataset(f"pairs:{path}?split=train")
    data = load_dataset(f"pairs:{path}?split=train&min_score=0.9")
    assert pairs_of(data) == {("train", "a", "b", 1)}


def test_votes_are_no_grades(tmp_path):
    (tmp_path / "v.csv").write_text("question,answer,score\na,b,57\n")
    with pytest.raises(InputError, match=r"v.csv:2: .* a grade from -1 to 10, got 57; .*\?score="):
        load_dataset(f"pairs:{tmp_path}/v.csv")


def test_equal_judgments_fold_with_a_count_and_others_are_an_error(tmp_path, caplog):
    path = tmp_path / "a.csv"
    path.write_text("query,passage,label\nq,p,1\n q ,p,1\nr,p,1\nq,p,1\n")
    with caplog.at_level("WARNING", logger=logging.get_absl_logger().name):
        data = load_dataset(f"pairs:{path}?split=train")
    assert "judgments that repeat an earlier one, counted once: 2" in caplog.text
    assert pairs_of(data) == {("train", "q", "p", 1), ("train", "r", "p", 1)}
    path.write_text("query,passage,label\nq,p,1\nr,p,1\nq,p,0\nr,p,2\n")
    with pytest.raises(InputError, match=r"a.csv:4: .* judged 0 .* judged 1 at .*a.csv:2; .*:5:"):
        load_dataset(f"pairs:{path}?split=train")
    path.write_text("query,positive,negative\nq,p,n\nq,n,m\n")
    with pytest.raises(InputError, match=r"a.csv:3: .* judged 1 .* a negative at .*a.csv:2"):
        load_dataset(f"pairs:{path}?split=train")


def test_splits_by_column_and_by_file(tmp_path):
    (tmp_path / "train.csv").write_text("query,passage\na,b\n")
    (tmp_path / "my-validation.csv").write_text("query,passage\nc,d\n")
    (tmp_path / "more.jsonl").write_text('{"question": "e", "answer": "f"}\n')
    wanted = {("train", "a", "b", 1), ("dev", "c", "d", 1), ("train", "e", "f", 1)}
    assert pairs_of(load_dataset(f"pairs:{tmp_path}")) == wanted
    assert pairs_of(load_dataset(f"pairs:{tmp_path}/*")) == wanted
    path = tmp_path / "s.csv"
    path.write_text("query,passage,split\na,b,train\nc,d,validation\ne,f,held-out\n")
    wanted = {("train", "a", "b", 1), ("dev", "c", "d", 1), ("held-out", "e", "f", 1)}
    assert pairs_of(load_dataset(f"pairs:{path}")) == wanted
    assert list(load_dataset(f"pairs:{path}", splits="dev").qrels) == ["dev"]
    with pytest.raises(InputError, match=r"no split 'test'; splits there: train, dev, held-out"):
        load_dataset(f"pairs:{path}", splits=["test"])


def test_files_for_training_alone_have_no_test_unless_it_is_drawn(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("query,passage\n" + "".join(f"q{i} x,p{i} y\n" for i in range(20)))
    data = load_dataset(f"pairs:{path}")
    assert list(data.qrels) == ["train"]
    with pytest.raises(InputError, match=r"no split 'test'; .*'\?test=0.1' draws one"):
        data.split_qrels("test")
    drawn = load_dataset(f"pairs:{path}?test=0.25")
    assert {split: len(qrels) for split, qrels in drawn.qrels.items()} == {"train": 15, "test": 5}


def test_further_passages_and_titles(tmp_path):
    (tmp_path / "faq.csv").write_text("question,answer\na,b\nc,d\n")
    (tmp_path / "docs.csv").write_text("id,title,body\n1,T,b\n2,,b\n3,,e\n")
    data = load_dataset(f"pairs:{tmp_path}/faq.csv?split=train&corpus={tmp_path}/docs.csv")
    assert list(data.corpus.texts) == ["b", "d", "T b", "e"]
    (tmp_path / "t.csv").write_text("question,title,text\na,T,b\n")
    data = load_dataset(f"pairs:{tmp_path}/t.csv?split=train")
    assert list(data.corpus.texts) == ["T b"]


def test_blank_texts_are_refused_or_left_out(tmp_path, caplog):
    path = tmp_path / "a.csv"
    path.write_text("question,answer\na,b\nc,\n ,d\n")
    with pytest.raises(
        InputError, match=r"a.csv:3: the passage is missing or blank; .*:4: the query is"
    ):
        load_dataset(f"pairs:{path}?split=train")
    with caplog.at_level("WARNING", logger=logging.get_absl_logger().name):
        data = load_dataset(f"pairs:{path}?split=train", missing="drop")
    assert pairs_of(data) == {("train", "a", "b", 1)}
    assert "blank texts, left out: 2" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "a,b\n1,2\n",
            r"a.csv: no column has a usual name of a query; columns: a, b; name",
        ),
        (
            "a.csv",
            "question,context,answer\n1,2,3\n",
            r"'context' and 'answer' could each be the pas",
        ),
        ("a.csv", "question,notes\n1,2\n", r"no column has a usual name of a passage"),
        ("a.csv", "", r"a.csv: empty"),
        ("a.csv", "question,answer\n", r"has column names and no rows"),
        ("a.csv", "question,answer\na,b,c\n", r"a.csv:2: expected 2 columns .*, got 3"),
        ("a.csv", "question,answer,\na,b,c\n", r"a.csv:2: has a value in a column without a name"),
        (
            "a.csv",
            "question,,answer\na,b,c\n",
            r"a.csv:2: has a value in a column without a name",
        ),
        ("a.csv", "question;question\na;b\n", r"column name 'question' occurs twice"),
        ("a.csv", "question\na\n", r"no column is left for the passage; columns: question$"),
        ("a.csv", "what is it,it is\na,b\n", r"\?query=what is it; if the first .*\?header=no$"),
        ("a.csv", "q\0u\0,a\0\n\0a\0,\0b\0\n", r"a.csv:1: .*\?encoding=utf-16-le"),
        ("a.csv", "PK\x03\x04rest", r"a.csv: is a workbook or another zip archive"),
        ("a.csv", "query,passage,split\na,b,train\nc,d,\n", r":3: column 'split' is empty"),
        ("a.csv", "query,passage,label\na,b,0\nc,d,0\n", r"a.csv: no query has a positive"),
        ("a", "", r"this name has no suffix"),
        (
            "a.jsonl",
            '{"query": "a", "passage": 7}\n',
            r":1: column 'passage' must be text or a list",
        ),
        (
            "a.jsonl",
            '{"query": 7, "passage": "a"}\n',
            r":1: column 'query' must be text, got the num",
        ),
        ("a.jsonl", '{"query": "a", "passage": [{"text": "b"}]}\n', r"'passage' holds objects"),
        ("a.jsonl", '{"query": "a", "passage": "\\ud800"}\n', r"half of a surrogate pair"),
        (
            "a.jsonl",
            '["a", "b"]\n{"1": "a", "2": "b"}\n',
            r":2: expected a JSON array, got an object",
        ),
        ("a.xlsx", "PK", r"a.xlsx: is a workbook; save the sheet as 'CSV UTF-8'"),
        ("a.parquet", "PAR1", r"a.parquet: cannot be read as parquet"),
        ("a.csv.gz", "x", r"a.csv.gz: cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_dataset(f"pairs:{tmp_path / name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("query=question&passage=question", r"column 'question' is named as query= and as"),
        ("querry=a", r"no option 'querry'; options: query, passage"),
        ("query=b", r"a.csv: no column 'b' \(query=\); columns: question, answer"),
        ("test=1", r"option test='1': expected a share"),
        ("test=0.5&dev=0.5", r"leave no query to train on"),
        ("test=0.1&test=0.2", r"option 'test' is given twice"),
        ("seed=-1", r"option seed='-1': expected a whole number, 0 or more"),
        ("near=maybe", r"option near='maybe': expected 'yes' or 'no'"),
        ("encoding=klingon", r"encoding='klingon': expected an encoding that Python"),
        ("delimiter=xx", r"option delimiter='xx': expected one character"),
        ("min_score=0.5", r"min_score is given, but no column has scores"),
        ("corpus=none.csv", r"none.csv: no such file"),
        ("split=a/b", r"option split: expected a name of at most 100 bytes"),
    ],
)
def test_options_that_cannot_be(tmp_path, option, message):
    (tmp_path / "a.csv").write_bytes(FILES["plain.csv"])
    with pytest.raises(InputError, match=message):
        load_dataset(f"pairs:{tmp_path}/a.csv?{option}")


def test_the_index_that_pandas_writes_is_ignored(tmp_path):
    (tmp_path / "a.csv").write_text(",question,answer\n0,a,b\n1,c,d\n")
    data = load_dataset(f"pairs:{tmp_path}/a.csv?split=train")
    assert pairs_of(data) == {("train", "a", "b", 1), ("train", "c", "d", 1)}


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="'pairs:': name the file"):
        load_dataset("pairs:")
    with pytest.raises(InputError, match=r"\*.csv: no file matches"):
        load_dataset(f"pairs:{tmp_path}/*.csv")
    with pytest.raises(InputError, match=r"no file with pairs .* in this folder"):
        load_dataset(f"pairs:{tmp_path}")
    with pytest.raises(InputError, match=r"a.csv: no such file"):
        load_dataset(f"pairs:{tmp_path}/a.csv")


def test_a_path_to_a_file_is_a_table_of_pairs(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(FILES["plain.csv"])
    assert pairs_of(load_dataset(path)) == WANTED
