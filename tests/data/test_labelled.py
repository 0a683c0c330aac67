"""Classification and similarity sets as retrieval data sets, against plain loops over the rows."""

import csv
import io
import json
import os
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax.data import labelled
from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError
from nvret_jax.files.source import Source, parse

ROWS = [
    {"text": "where is my card", "label": 0, "label_text": "Card arrival", "split": "train"},
    {"text": 'my refund, "lost"?', "label": 1, "label_text": "Refund", "split": "train"},
    {"text": "no card yet", "label": 0, "label_text": "Card arrival", "split": "train"},
    {"text": "why a fee", "label": 2, "label_text": "fee", "split": "train"},
    {"text": "the card never came", "label": 0, "label_text": "Card arrival", "split": "test"},
    {"text": "refund please", "label": 1, "label_text": "Refund", "split": "train"},
    {"text": "é un rimborso", "label": 1, "label_text": "Refund", "split": "test"},
    {"text": "my card came", "label": 0, "label_text": "Card arrival", "split": "train"},
]
PAIRS = [
    {"sentence1": "a man plays", "sentence2": "a man is playing", "score": 5.0},
    {"sentence1": "a dog runs", "sentence2": "a man plays", "score": 0.5},
    {"sentence1": "a hound runs", "sentence2": "a dog runs", "score": 4},
    {"sentence1": "it rains", "sentence2": "it pours", "score": 3.99},
    {"sentence1": "it snows", "sentence2": "it snows", "score": 5},
]


def write(path, rows):
    """Writes rows by the suffix of the path; returns it as a string."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = io.StringIO()
        if path.suffix == ".csv":
            made = csv.DictWriter(lines, list(rows[0]))
            made.writeheader()
            made.writerows(rows)
        else:
            for row in [list(rows[0]), *(row.values() for row in rows)]:
                lines.write("\t".join(map(str, row)) + "\n")
        path.write_text(lines.getvalue(), encoding="utf-8")
    return str(path)


def without(rows, *names):
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


@pytest.fixture(params=[".jsonl", ".csv", ".tsv", ".parquet"])
def suffix(request):
    return request.param


def test_labels_are_passages_and_texts_are_queries(tmp_path, suffix):
    data = load_dataset("labels:" + write(tmp_path / f"Bank 3{suffix}", ROWS))
    assert data.name == "bank-3"
    assert data.corpus.ids == ("card-arrival", "refund", "fee")
    assert list(data.corpus.texts) == ["Card arrival", "Refund", "fee"]
    assert list(data.queries.texts) == [row["text"] for row in ROWS]
    assert data.queries.ids == tuple(f"text-{n}" for n in range(1, 9))
    assert data.qrels == {
        "train": {
            "text-1": {"card-arrival": 1},
            "text-2": {"refund": 1},
            "text-3": {"card-arrival": 1},
            "text-4": {"fee": 1},
            "text-6": {"refund": 1},
            "text-8": {"card-arrival": 1},
        },
        "test": {"text-5": {"card-arrival": 1}, "text-7": {"refund": 1}},
    }


def test_examples_of_a_class_are_positives_of_one_another(tmp_path, suffix, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    path = write(tmp_path / f"bank{suffix}", ROWS)
    data = load_dataset(f"examples:{path}")
    assert data.corpus.ids == ("text-1", "text-2", "text-3", "text-4", "text-6", "text-8")
    assert len(data.queries) == 8
    assert data.qrels == {
        "train": {
            "text-1": {"text-3": 1, "text-8": 1},
            "text-2": {"text-6": 1},
            "text-3": {"text-1": 1, "text-8": 1},
            "text-6": {"text-2": 1},
            "text-8": {"text-1": 1, "text-3": 1},
        },
        # A test text finds its class among the training texts, never the other way round.
        "test": {
            "text-5": {"text-1": 1, "text-3": 1, "text-8": 1},
            "text-7": {"text-2": 1, "text-6": 1},
        },
    }
    assert said == [
        f"{path}, split 'train': 1 of 6 texts are alone in their class and are not queries"
    ]


def test_pairs_that_score_enough_are_positives_both_ways(tmp_path, suffix):
    path = write(tmp_path / f"sts{suffix}", PAIRS)
    data = load_dataset(f"sts:{path}")
    assert data.corpus == data.queries
    assert dict(zip(data.corpus.ids, data.corpus.texts, strict=True)) == {
        "text-1-1": "a man plays",
        "text-1-2": "a man is playing",
        "text-2-1": "a dog runs",
        "text-3-1": "a hound runs",
        "text-4-1": "it rains",
        "text-4-2": "it pours",
        "text-5-1": "it snows",
    }
    strict = {
        "text-1-1": {"text-1-2": 1},
        "text-1-2": {"text-1-1": 1},
        "text-2-1": {"text-3-1": 1},
        "text-3-1": {"text-2-1": 1},
    }
    assert data.qrels == {"train": strict}
    loose = load_dataset(f"sts:{path}?min_score=3.9")
    rain = {"text-4-1": {"text-4-2": 1}, "text-4-2": {"text-4-1": 1}}
    assert loose.qrels == {"train": strict | rain}
    assert loose.fingerprint != data.fingerprint


def test_a_files_format_does_not_change_the_data_set(tmp_path):
    for scheme, rows in (("labels", ROWS), ("examples", ROWS), ("sts", PAIRS)):
        prints = {
            load_dataset(f"{scheme}:" + write(tmp_path / f"x{suffix}", rows)).fingerprint
            for suffix in (".jsonl", ".csv", ".tsv", ".parquet")
        }
        assert len(prints) == 1
    changed = [*ROWS[:-1], ROWS[-1] | {"label_text": "fee"}]
    prints = {
        load_dataset("labels:" + write(tmp_path / "y.csv", rows)).fingerprint
        for rows in (ROWS, changed)
    }
    assert len(prints) == 2


def test_without_a_split_column_everything_is_train(tmp_path):
    path = write(tmp_path / "x.jsonl", without(ROWS, "split", "label_text"))
    data = load_dataset(f"examples:{path}")
    assert list(data.qrels) == ["train"]
    assert data.qrels["train"]["text-5"] == {"text-1": 1, "text-3": 1, "text-8": 1}
    assert data.corpus == data.queries


def test_sentence_and_label_are_read_where_text_and_label_text_are_missing(tmp_path):
    rows = [{"sentence": row["text"], "label": row["label_text"]} for row in ROWS]
    data = load_dataset("labels:" + write(tmp_path / "x.csv", rows))
    assert list(data.corpus.texts) == ["Card arrival", "Refund", "fee"]
    assert list(data.queries.texts) == [row["text"] for row in ROWS]


def test_a_quote_in_a_tsv_file_is_a_character(tmp_path):
    lines = ["text\tlabel", '"open\tx', 'said "so"\tx', '"both"\ty', 'close"\ty']
    (tmp_path / "x.tsv").write_text("\n".join(lines))
    data = load_dataset(f"labels:{tmp_path / 'x.tsv'}")
    assert list(data.queries.texts) == ['"open', 'said "so"', '"both"', 'close"']


def test_splits_are_chosen_and_tables_stay_the_same(tmp_path):
    for scheme in ("labels", "examples"):
        spec = f"{scheme}:" + write(tmp_path / "x.csv", ROWS)
        whole = load_dataset(spec)
        for splits in (["test"], ["test", "train"], []):
            part = load_dataset(spec, splits=splits)
            assert (part.corpus, part.queries) == (whole.corpus, whole.queries)
            assert part.qrels == {split: whole.qrels[split] for split in splits}
            assert list(part.qrels) == splits
        with pytest.raises(InputError, match=r"x.csv: no split 'dev'; splits there: train, test"):
            load_dataset(spec, splits=["dev"])


def test_equal_texts_are_one_text_with_all_its_labels(tmp_path):
    rows = [
        {"text": "a", "label": "x"},
        {"text": "b", "label": "x"},
        {"text": " a ", "label": "y"},
        {"text": "c", "label": "y"},
        {"text": "a", "label": "x"},
    ]
    path = write(tmp_path / "x.csv", rows)
    data = load_dataset(f"labels:{path}")
    assert data.queries.ids == ("text-1", "text-2", "text-4")
    assert data.qrels["train"] == {
        "text-1": {"x": 1, "y": 1},
        "text-2": {"x": 1},
        "text-4": {"y": 1},
    }
    assert load_dataset(f"examples:{path}").qrels["train"] == {
        "text-1": {"text-2": 1, "text-4": 1},
        "text-2": {"text-1": 1},
        "text-4": {"text-1": 1},
    }


def test_labels_that_look_alike_have_ids_of_their_own(tmp_path):
    labels = ["A b", "a-b", "a b-2", "¿?", "退款", "a/b", "x" * 100, "x" * 90]
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]
    data = load_dataset("labels:" + write(tmp_path / "x.jsonl", rows))
    assert data.corpus.ids[:6] == ("a-b", "a-b-2", "a-b-2-2", "label", "退款", "a-b-3")
    assert data.corpus.ids[6:] == ("x" * 80, "x" * 80 + "-2")
    assert list(data.corpus.texts) == labels


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 9).map(str), st.sampled_from("abcde"), st.sampled_from(["train", "test"])
        ),
        min_size=1,
        max_size=25,
    )
)
def test_examples_agree_with_all_pairs_of_rows(tmp_path_factory, rows):
    table = [{"text": t, "label": c, "split": s} for t, c, s in rows]
    path = write(tmp_path_factory.mktemp("x") / "x.csv", table)
    expected = {}
    for text, label, split in rows:
        for other, its_label, its_split in rows:
            if its_split == "train" and label == its_label and text != other:
                expected.setdefault(split, set()).add((text, other))
    if set(expected) != {split for *_, split in rows}:
        with pytest.raises(InputError, match=r"so there is no positive|retrieved from the split"):
            load_dataset(f"examples:{path}")
        return
    data = load_dataset(f"examples:{path}")
    text_of = dict(zip(data.queries.ids, data.queries.texts, strict=True))
    passage = dict(zip(data.corpus.ids, data.corpus.texts, strict=True))
    assert set(passage.values()) == {text for text, _, split in rows if split == "train"}
    assert {
        split: {(text_of[q], passage[p]) for q, judged in qrels.items() for p in judged}
        for split, qrels in data.qrels.items()
    } == expected


def test_banking77_comes_out_as_its_judgments_have_it(tmp_path):
    if "NVRET_DATA" not in os.environ:
        pytest.skip("NVRET_DATA is not set; it holds banking77")
    beir = load_dataset(f"beir:{pathlib.Path(os.environ['NVRET_DATA']) / 'banking77'}")
    test = beir.qrels["test"]
    classes = {
        frozenset(judged): number for number, judged in enumerate(map(frozenset, test.values()))
    }
    of_passage = {p: f"class {number}" for judged, number in classes.items() for p in judged}
    rows = [
        {"sentence": text, "label": of_passage[p], "split": "train"}
        for p, text in zip(beir.corpus.ids, beir.corpus.texts, strict=True)
        if p in of_passage
    ]
    queries = dict(zip(beir.queries.ids, beir.queries.texts, strict=True))
    rows += [
        {"sentence": queries[q], "label": f"class {classes[frozenset(judged)]}", "split": "test"}
        for q, judged in test.items()
    ]
    data = load_dataset("examples:" + write(tmp_path / "x.parquet", rows), splits=["test"])

    def by_text(dataset):
        texts = dict(zip(dataset.queries.ids, dataset.queries.texts, strict=True))
        passages = dict(zip(dataset.corpus.ids, dataset.corpus.texts, strict=True))
        return {
            texts[q]: {passages[p] for p in judged} for q, judged in dataset.qrels["test"].items()
        }

    found, expected = by_text(data), by_text(beir)
    assert len(expected) > 3000
    # Its texts are not all distinct: a text is not retrieved for itself.
    assert found == {text: passages - {text} for text, passages in expected.items()}


def test_too_many_judgments_are_refused_with_advice(tmp_path, monkeypatch):
    rows = [{"text": f"t{i}", "label": "ab"[i % 3 == 0]} for i in range(2500)]
    path = write(tmp_path / "x.csv", rows)
    monkeypatch.setattr(labelled, "MAX_JUDGMENTS", 100_000)
    match = r"are 3,471,112 pairs \(label 'a' has 1,666 texts\), .*'labels:'"
    with pytest.raises(InputError, match=match):
        load_dataset(f"examples:{path}")
    assert len(load_dataset(f"labels:{path}").queries) == 2500
    assert load_dataset(f"examples:{path}", splits=[]).qrels == {}


def test_numbers_are_no_label_texts(tmp_path):
    path = write(tmp_path / "x.parquet", without(ROWS, "label_text"))
    with pytest.raises(InputError, match=r"all 3 labels are numbers \('0'\).*'label_text'"):
        load_dataset(f"labels:{path}")
    assert load_dataset(f"examples:{path}").qrels["train"]["text-2"] == {"text-6": 1}


GOOD, SCORED = '{"text": "a", "label": "x"}', '{"sentence1": "a", "sentence2": "b", "score": 5}'


@pytest.mark.parametrize(
    ("scheme", "name", "content", "message"),
    [
        ("labels", "x.doc", "", r"x.doc: expected a file with texts .*\.jsonl.*; got '.doc'"),
        ("labels", "x.csv", None, r"x.csv: no such file"),
        ("labels", "x.jsonl", None, r"x.jsonl: no such file"),
        ("labels", "x.parquet", None, r"x.parquet: no such file"),
        ("labels", "x.parquet", "PAR1", r"x.parquet: cannot be read as parquet"),
        ("labels", "x.jsonl", "\n", r"x.jsonl: empty"),
        ("labels", "x.csv", "", r"x.csv: empty; expected a line of column names"),
        ("labels", "x.csv", "text,label\n", r"x.csv: has column names and no rows"),
        ("labels", "x.csv", "text,label,text\na,b,c\n", r"x.csv:1: .* 'text' occurs twice"),
        (
            "labels",
            "x.csv",
            "title,label\na,b\n",
            r"lacks the column 'text' or 'sentence'; .*title",
        ),
        ("labels", "x.tsv", "text\ta\na\tb\n", r"lacks the column 'label_text' or 'label'"),
        ("labels", "x.csv", 'text,label\n"a\nb",x\nc\n', r"x.csv:4: expected 2 columns .*, got 1"),
        ("labels", "x.csv", 'text,label\n"a,x\n', r"x.csv:2: cannot be read as a table"),
        ("labels", "x.csv", "text,label\na,x\n ,x\n", r"x.csv:3: column 'text' must be a text"),
        ("labels", "x.csv", "text,label\na,\n", r"x.csv:2: column 'label' must be a text"),
        ("labels", "x.csv", "text,label\na,x\n\xff,x\n", r"x.csv:3: byte 0xff is not UTF-8"),
        ("labels", "x.jsonl", GOOD + "\n{\n", r"x.jsonl:2: not valid JSON"),
        ("labels", "x.jsonl", GOOD + "\n[]\n", r"x.jsonl:2: expected a JSON object, got an array"),
        ("labels", "x.jsonl", GOOD + '\n{"text": "b"}', r"x.jsonl:2: column 'label' is missing"),
        ("labels", "x.jsonl", '{"text": 7, "label": "x"}', r":1: column 'text' .* the number 7"),
        ("labels", "x.jsonl", '{"text": "a", "label": null}', r":1: column 'label' .* got null"),
        ("labels", "x.jsonl", '{"text": "a", "label": true}', r":1: column 'label' .* a boolean"),
        (
            "labels",
            "x.jsonl",
            GOOD + '\n{"text": "b", "label": "x", "split": "test"}',
            r":2: has a column 'split', but the first line has none",
        ),
        ("examples", "x.csv", "text,label\na,x\nb,y\n", r"none of 2 texts shares its label"),
        ("examples", "x.csv", "text,label,split\na,x,dev\n", r"its splits are dev"),
        ("sts", "x.jsonl", GOOD, r"lacks the column 'sentence1'; columns there: text, label"),
        ("sts", "x.tsv", "sentence1\tsentence2\tscore\na\tb\tc\n", r":2: .*'score' .* got 'c'"),
        ("sts", "x.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\n", r":2: .*a finite number"),
        ("sts", "x.jsonl", SCORED.replace("5", '"x"'), r":1: column 'score' must be a number"),
        ("sts", "x.jsonl", SCORED.replace("5", "true"), r":1: column 'score' .* got a boolean"),
        ("sts", "x.jsonl", SCORED.replace("5", "1"), r"no pair .* scores 4 .* highest .* is 1;"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path, scheme, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message) as error:
        load_dataset(f"{scheme}:{tmp_path / name}")
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_several_mistakes_are_told_together(tmp_path):
    rows = [{"text": "a" * (i % 2), "label": "x"} for i in range(1, 12)]
    path = write(tmp_path / "x.parquet", rows)
    with pytest.raises(InputError, match=r"x.parquet, row 2: .*; .*row 4: .*row 6: .* 2 more"):
        load_dataset(f"labels:{path}")
    assert len(load_dataset(f"labels:{path}", allow_empty=True).queries) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("labels:", r"'labels:': name the file"),
        ("examples:", r"'examples:': name the file"),
        ("sts:", r"'sts:': name the file"),
        ("sts:x.csv?min_score=high", r"option min_score='high': expected a finite number"),
        ("sts:x.csv?top=4", r"no option 'top'; options: min_score"),
        ("sts:x.csv?min_score=nan", r"min_score='nan': expected a finite number"),
    ],
)
def test_bad_specs_are_told(spec, message):
    with pytest.raises(InputError, match=message):
        load_dataset(spec)


def test_a_question_mark_may_be_part_of_the_name(tmp_path):
    for name in ("what?.csv", "a?b=c.csv", "a?min_score=4.csv"):
        path = write(tmp_path / name, PAIRS)
        assert parse(f"sts:{path}") == Source("sts", path, {})
        assert len(load_dataset(f"sts:{path}").queries) == 7
    with_option = parse(f"sts:{tmp_path}/what?.csv?min_score=3")
    assert with_option == Source("sts", f"{tmp_path}/what?.csv", {"min_score": "3"})


def test_fields_of_any_length(tmp_path):
    rows = [{"text": "x" * 200_000, "label": "a"}, {"text": "y", "label": "b"}]
    data = load_dataset(f"labels:{write(tmp_path / 'a.csv', rows)}")
    assert [len(text) for text in data.queries.texts] == [200_000, 1]


@pytest.mark.parametrize("split", ["x" * 101, "a/b"])
def test_a_split_is_a_name_that_a_file_can_have(tmp_path, split):
    path = write(tmp_path / "a.jsonl", [{"text": "t", "label": "a", "split": split}])
    with pytest.raises(InputError, match="column 'split' must be a name of at most"):
        load_dataset(f"labels:{path}")


@pytest.mark.parametrize("score", ["4_0", "４", "1" * 5000])
def test_scores_of_other_spellings_are_refused(tmp_path, score):
    path = write(tmp_path / "a.csv", [{"sentence1": "a", "sentence2": "b", "score": score}])
    with pytest.raises(InputError, match="column 'score' must be a number"):
        load_dataset(f"sts:{path}")
