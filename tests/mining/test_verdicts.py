"""Verdict files: what they do against plain loops, and what is wrong with bad ones."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.exclude.verdicts import (
    WORDS,
    Answer,
    Verdicts,
    read_verdicts,
    write_questions,
)
from nvret_jax.mining.options import VERDICT_MODES

QUERIES = TextTable(tuple(f"q{i}" for i in range(6)), [f"query {i}" for i in range(6)])
CORPUS = TextTable(tuple(f"p{i}" for i in range(12)), [f"passage {i}" for i in range(12)])
PAIRS = [("q3", "p1", "yes"), ("q0", "p11", " Unsure"), ("q0", "p2", "NEGATIVE"), ("q5", "p1", "1")]


def rows(*values):
    return Ragged.from_rows(values, np.int32)


def lists(ragged):
    return [row.tolist() for row in (ragged[i] for i in range(len(ragged)))]


def write(path, pairs, names=("query_id", "passage_id", "verdict")):
    """A file of any of the formats, with a column nobody asked for."""
    header = [*names, "remark"]
    table = [[*pair, "x"] for pair in pairs]
    if path.suffix == ".jsonl":
        records = [dict(zip(header, row, strict=True)) for row in table]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".parquet":
        columns = list(zip(*table, strict=True)) or [()] * len(header)
        pq.write_table(pa.table(dict(zip(header, map(list, columns), strict=True))), path)
    else:
        mark = {".csv": ",", ".tsv": "\t"}[path.suffix]
        path.write_text("".join(mark.join(map(str, row)) + "\n" for row in [header, *table]))
    return path


def content(verdicts):
    columns = (verdicts.query_rows, verdicts.passage_rows, verdicts.answers)
    return list(zip(*(column.tolist() for column in columns), strict=True))


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_format_reads_the_same(tmp_path, suffix):
    found = read_verdicts(write(tmp_path / f"v{suffix}", PAIRS), QUERIES, CORPUS)
    assert content(found) == [
        (0, 2, Answer.KEEP),
        (0, 11, Answer.DROP),
        (3, 1, Answer.POSITIVE),
        (5, 1, Answer.POSITIVE),
    ]
    assert (found.repeated, found.unanswered) == (0, 0)
    assert found.query_rows.dtype == found.passage_rows.dtype == np.int32
    assert found.answers.dtype == np.int8


@pytest.mark.parametrize(("answer", "word"), [(a, w) for a, words in WORDS.items() for w in words])
def test_every_word_means_what_the_table_says(tmp_path, answer, word):
    path = write(tmp_path / "v.csv", [("q0", "p0", word), ("q0", "p1", word.upper())])
    assert read_verdicts(path, QUERIES, CORPUS).answers.tolist() == [answer, answer]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("yes", "no"), [(True, False), (1, 0), (1.0, 0.0), ("1.0", "0.0"), ("True", "False")]
)
def test_truth_values_and_numbers_are_words_too(tmp_path, suffix, yes, no):
    path = write(tmp_path / f"v{suffix}", [("q0", "p0", yes), ("q0", "p1", no)])
    assert read_verdicts(path, QUERIES, CORPUS).answers.tolist() == [Answer.POSITIVE, Answer.KEEP]


def test_empty_verdicts_are_counted_and_passed_over(tmp_path):
    for name, nothing in (("a.jsonl", None), ("b.jsonl", ""), ("c.csv", " "), ("d.parquet", None)):
        path = write(tmp_path / name, [("q0", "p0", nothing), ("q0", "p1", "drop")])
        found = read_verdicts(path, QUERIES, CORPUS)
        assert (content(found), found.unanswered) == ([(0, 1, Answer.DROP)], 1)
    path = write(tmp_path / "e.parquet", [("q0", "p0", float("nan")), ("q0", "p1", 1.0)])
    assert read_verdicts(path, QUERIES, CORPUS).unanswered == 1


def test_the_same_verdict_twice_counts_once(tmp_path):
    pairs = [("q0", "p1", "no"), ("q1", "p2", "yes"), ("q0", "p1", "keep"), ("q0", "p1", "")]
    found = read_verdicts(write(tmp_path / "v.tsv", pairs), QUERIES, CORPUS)
    assert content(found) == [(0, 1, Answer.KEEP), (1, 2, Answer.POSITIVE)]
    assert (found.repeated, found.unanswered) == (1, 1)


def test_ids_that_became_numbers_on_the_way_are_found(tmp_path):
    queries, corpus = TextTable(("7",), ["q"]), TextTable(("12", "13"), ["a", "b"])
    for suffix in (".jsonl", ".parquet"):
        path = write(tmp_path / f"v{suffix}", [(7, 13, "yes")])
        assert content(read_verdicts(path, queries, corpus)) == [(0, 1, Answer.POSITIVE)]


def test_a_csv_may_quote_and_a_tsv_may_not(tmp_path):
    path = tmp_path / "v.csv"
    text = '\ufeffremark,Verdict,query_id,passage_id\n"a, ""b""\u2028\nc",yes,q0,p0\n\nd,no,q0,p1\n'
    path.write_text(text, encoding="utf-8", newline="")
    assert content(read_verdicts(path, QUERIES, CORPUS)) == [(0, 0, 2), (0, 1, 0)]
    path = tmp_path / "v.tsv"
    path.write_text('query_id\tpassage_id\tverdict\tremark\r\nq0\tp0\tyes\t"open\r\nq0\tp1\tno\tx')
    assert content(read_verdicts(path, QUERIES, CORPUS)) == [(0, 0, 2), (0, 1, 0)]


GOOD_LINE = '{"query_id": "q0", "passage_id": "p0", "verdict": "yes"}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("v.jsonl", "", r"v\.jsonl: empty; expected one JSON object per line, with verdicts"),
        ("v.jsonl", "\n \n", r"v\.jsonl: empty"),
        ("v.jsonl", GOOD_LINE + "{oops\n", r"v\.jsonl:2: not valid JSON"),
        (
            "v.jsonl",
            GOOD_LINE + '["q0", "p0"]\n',
            r"v\.jsonl:2: expected a JSON object, got",
        ),
        (
            "v.jsonl",
            GOOD_LINE + '{"query_id": "q0", "passage_id": "p1"}',
            r"v\.jsonl:2: missing key 'verdict'; found \['query_id', 'passage_id'\]",
        ),
        ("v.jsonl", GOOD_LINE.replace("yes", "maybe"), r"v\.jsonl:1: unknown verdict 'maybe'"),
        ("v.jsonl", GOOD_LINE.replace('"yes"', "2"), r"v\.jsonl:1: unknown verdict 2"),
        ("v.jsonl", GOOD_LINE.replace('"yes"', "0.5"), r"v\.jsonl:1: unknown verdict 0.5"),
        ("v.jsonl", GOOD_LINE.replace('"yes"', '["yes"]'), r"unknown verdict \['yes'\]"),
        ("v.jsonl", GOOD_LINE.replace('"q0"', "null"), r"v\.jsonl:1: query_id must be a string"),
        ("v.jsonl", GOOD_LINE.replace('"p0"', "true"), r"v\.jsonl:1: passage_id must be a string"),
        ("v.jsonl", GOOD_LINE.replace("q0", "q9"), r"v\.jsonl:1: query id 'q9' is not in the data"),
        (
            "v.jsonl",
            GOOD_LINE.replace("p0", "q0"),
            r"v\.jsonl:1: passage id 'q0' is not in the dat",
        ),
        (
            "v.jsonl",
            GOOD_LINE + GOOD_LINE.replace("p0", "p1") + GOOD_LINE.replace("yes", "drop"),
            r"v\.jsonl:3: .*'q0' .*'p0' are judged drop here and positive in .*v\.jsonl:1",
        ),
        (
            "v.jsonl",
            GOOD_LINE.replace("yes", "no") + GOOD_LINE,
            r"v\.jsonl:2: .* are judged positive here and keep in .*v\.jsonl:1",
        ),
        ("v.jsonl", GOOD_LINE.replace("yes", ""), r"v\.jsonl: all 1 verdicts are still empty"),
        ("v.jsonl", GOOD_LINE + 5 * "x\n", r"v\.jsonl:4: not valid.*; … and 2 more"),
        ("v.jsonl", 5 * "x\n", r"v\.jsonl:1: not valid JSON"),
        (
            "v.csv",
            "query_id,passage_id,verdict\n" + 2 * "q0,p0\n" + "q9,p0,yes\n",
            r"v\.csv:2: expected 3 .*; .*v\.csv:3: expected 3 .*; .*v\.csv:4: query id 'q9'",
        ),
        ("v.jsonl", b"\n\xe9\n", r"v\.jsonl:2: byte 0xe9 is not UTF-8"),
        ("v.jsonl", None, r"v\.jsonl: no such file; it should hold the verdicts"),
        ("v.csv", "", r"v\.csv: empty"),
        ("v.csv", "query_id,passage_id,verdict\n", r"v\.csv: has column names and no rows"),
        (
            "v.csv",
            "q0,p0,yes\n",
            r"v\.csv: lacks the column 'query_id'; .*: q0, p0, yes",
        ),
        ("v.csv", "query_id,passage_id\nq0,p0\n", r"v\.csv: lacks the column 'verdict'"),
        (
            "v.csv",
            "query_id,verdict,passage_id,verdict\nq0,yes,p0,no\n",
            r"v\.csv:1: the column name 'verdict' occurs twice",
        ),
        (
            "v.csv",
            "query_id,passage_id,verdict\nq0,p0,yes\nq0,p1\n",
            r"v\.csv:3: expected 3 columns .*, got 2",
        ),
        ("v.csv", "query_id,passage_id,verdict\nq0,p0,ja\n", r"v\.csv:2: unknown verdict 'ja'"),
        ("v.tsv", "query_id,passage_id,verdict\nq0,p0,yes\n", r"v\.tsv: lacks the column"),
        ("v.tsv", "query_id\tpassage_id\tverdict\n\tp0\tyes\n", r"v\.tsv:2: query id '' is not in"),
        ("v.parquet", "not parquet", r"v\.parquet: cannot be read as parquet"),
        ("v.parquet", None, r"v\.parquet: no such file"),
        ("v.xml", GOOD_LINE, r"v\.xml: expected a file with verdicts, named \.jsonl, .*\.parquet"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_verdicts(path, QUERIES, CORPUS)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_a_column_or_without_rows_is_refused(tmp_path):
    names = ("query_id", "passage_id", "label")
    with pytest.raises(InputError, match="lacks the column 'verdict'"):
        read_verdicts(write(tmp_path / "a.parquet", PAIRS, names), QUERIES, CORPUS)
    with pytest.raises(InputError, match=r"b\.parquet: has no rows"):
        read_verdicts(write(tmp_path / "b.parquet", []), QUERIES, CORPUS)
    bad = write(tmp_path / "c.parquet", [*PAIRS, ("q0", "p3", "hm")])
    with pytest.raises(InputError, match=r"c\.parquet, row 5: unknown verdict 'hm'"):
        read_verdicts(bad, QUERIES, CORPUS)


# --- effects -------------------------------------------------------------------------------------

SOME = st.lists(st.integers(0, 7), unique=True, max_size=4)


@st.composite
def problems(draw):
    pairs = st.tuples(st.integers(0, 5), st.integers(0, 7))
    answers = draw(st.dictionaries(pairs, st.sampled_from(list(Answer)), max_size=20))
    query_rows = draw(st.permutations(range(6)))[: draw(st.integers(1, 6))]
    return {
        "answers": answers,
        "query_rows": query_rows,
        "positives": [draw(SOME) for _ in query_rows],
        "negatives": [draw(SOME) for _ in query_rows],
        "mode": draw(st.sampled_from(VERDICT_MODES)),
        "max_promoted": draw(st.integers(0, 3)),
    }


def effect_by_loop(p):
    """One query at a time, one verdict at a time."""
    promoted, dropped, gone = [], [], []
    counts = dict.fromkeys(
        ["promoted", "dropped", "kept", "already_positive", "contradicting", "with_query"], 0
    )
    touched = 0
    for query, positives in zip(p["query_rows"], p["positives"], strict=True):
        mine = {row: a for (q, row), a in sorted(p["answers"].items()) if q == query}
        hits = [row for row, a in mine.items() if a == Answer.POSITIVE and row not in positives]
        lost = p["mode"] == "remove_query" and bool(hits)
        lost |= p["max_promoted"] > 0 and len(hits) > p["max_promoted"]
        up, out = [], []
        for row, answer in mine.items():
            if lost:
                counts["with_query"] += 1
            elif row in positives:
                same = answer == Answer.POSITIVE
                counts["already_positive" if same else "contradicting"] += 1
            elif answer == Answer.KEEP:
                counts["kept"] += 1
            elif answer == Answer.POSITIVE and p["mode"] == "relabel":
                up.append(row)
            else:
                out.append(row)
        counts["promoted"] += len(up)
        counts["dropped"] += len(out)
        touched += bool(up or out or lost)
        promoted.append(up)
        dropped.append(out)
        gone.append(lost)
    counts["elsewhere"] = sum(query not in p["query_rows"] for query, _ in p["answers"])
    counts["queries_touched"], counts["queries_dropped"] = touched, sum(gone)
    counts["not_asked"] = sum(
        (query, row) not in p["answers"]
        for query, negatives in zip(p["query_rows"], p["negatives"], strict=True)
        for row in negatives
    )
    return promoted, dropped, gone, counts


@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_effect_is_that_of_a_loop_over_all_verdicts(p):
    ordered = sorted(p["answers"].items())
    verdicts = Verdicts(
        np.array([q for (q, _), _ in ordered], np.int32),
        np.array([row for (_, row), _ in ordered], np.int32),
        np.array([answer for _, answer in ordered], np.int8),
    )
    effect = verdicts.for_queries(
        np.array(p["query_rows"], np.int32),
        rows(*p["positives"]),
        mode=p["mode"],
        max_promoted=p["max_promoted"],
        negative_rows=rows(*p["negatives"]),
    )
    promoted, dropped, gone, counts = effect_by_loop(p)
    assert lists(effect.promoted) == promoted
    assert lists(effect.dropped) == dropped
    assert effect.dropped_queries.tolist() == gone
    assert effect.promoted.values.dtype == effect.dropped.values.dtype == np.int32
    found = dataclasses.asdict(effect.counts)
    assert found == counts
    for name in ("queries_touched", "queries_dropped", "not_asked"):
        del found[name]
    assert sum(found.values()) == len(verdicts)


def test_more_than_max_promoted_drops_the_query_and_as_many_do_not():
    verdicts = Verdicts(np.zeros(3, np.int32), np.arange(3, dtype=np.int32), np.full(3, 2, np.int8))
    for limit, gone in ((0, False), (2, True), (3, False)):
        effect = verdicts.for_queries(np.array([0]), rows([]), max_promoted=limit)
        assert effect.dropped_queries.tolist() == [gone]
        assert lists(effect.promoted) == [[] if gone else [0, 1, 2]]
    # One of the three is known already, so only two are new.
    effect = verdicts.for_queries(np.array([0]), rows([1]), max_promoted=2)
    assert lists(effect.promoted) == [[0, 2]]


def test_negatives_that_are_not_given_are_not_counted():
    verdicts = Verdicts(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int8))
    assert verdicts.for_queries(np.array([0]), rows([])).counts.not_asked is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"mode": "promote"},
            "unknown mode='promote'; choose one of relabel, remove, remove_query",
        ),
        ({"max_promoted": -1}, "max_promoted=-1; expected a whole number"),
        ({"max_promoted": 1.5}, "max_promoted=1.5"),
    ],
)
def test_options_that_cannot_be_are_refused(values, message):
    verdicts = Verdicts(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int8))
    with pytest.raises(InputError, match=message):
        verdicts.for_queries(np.array([0]), rows([]), **values)


def test_a_query_asked_for_twice_is_a_programming_error():
    verdicts = Verdicts(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int8))
    with pytest.raises(ValueError, match="unique"):
        verdicts.for_queries(np.array([2, 2]), rows([], []))


# --- questions -----------------------------------------------------------------------------------


def negatives(**changes):
    """Two queries; gaps to the lowest positive: 1/4 1/2 | -1/8 1/4."""
    table = {
        "query_rows": np.array([4, 1], np.int32),
        "positive_rows": rows([0], [2, 3]),
        "positive_scores": Ragged.from_rows([[0.75], [0.875, 0.5]], np.float32),
        "negative_rows": rows([5, 6], [7, 5]),
        "negative_scores": Ragged.from_rows([[0.5, 0.25], [0.625, 0.25]], np.float32),
    }
    return types.SimpleNamespace(**{**table, **changes})


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_questions_hold_what_a_judge_needs_most_suspicious_first(tmp_path):
    path = tmp_path / "ask.jsonl"
    assert write_questions(path, negatives(), QUERIES, CORPUS) == 4
    found = read_lines(path)
    assert found[0] == {
        "query_id": "q1",
        "passage_id": "p7",
        "query": "query 1",
        "passage": "passage 7",
        "positives": ["passage 2", "passage 3"],
        "score": 0.625,
        "positive_score": 0.5,
        "verdict": "",
    }
    pairs = [(line["query_id"], line["passage_id"]) for line in found]
    # A tie goes to the earlier row.
    assert pairs == [("q1", "p7"), ("q4", "p5"), ("q1", "p5"), ("q4", "p6")]
    assert [path.name for path in tmp_path.iterdir()] == ["ask.jsonl"]


def test_a_limit_takes_the_first_of_them(tmp_path):
    every, some = tmp_path / "all.jsonl", tmp_path / "some.jsonl"
    write_questions(every, negatives(), QUERIES, CORPUS)
    assert write_questions(some, negatives(), QUERIES, CORPUS, limit=2) == 2
    assert read_lines(some) == read_lines(every)[:2]


def test_questions_are_read_back_as_verdicts_once_filled_in(tmp_path):
    path = tmp_path / "ask.jsonl"
    write_questions(path, negatives(), QUERIES, CORPUS)
    with pytest.raises(InputError, match="all 4 verdicts are still empty"):
        read_verdicts(path, QUERIES, CORPUS)
    lines, words = read_lines(path), itertools.cycle(["yes", "", "drop", "no"])
    answered = [{**line, "verdict": next(words)} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in answered))
    verdicts = read_verdicts(path, QUERIES, CORPUS)
    assert (len(verdicts), verdicts.unanswered) == (3, 1)
    # The next round asks only what is still open.
    assert write_questions(tmp_path / "b.jsonl", negatives(), QUERIES, CORPUS, verdicts=verdicts)
    (open_pair,) = read_lines(tmp_path / "b.jsonl")
    assert open_pair == lines[1]
    effect = verdicts.for_queries(np.array([4, 1]), rows([0], [2, 3]))
    assert lists(effect.promoted) == [[], [7]]


def test_rows_of_one_query_share_their_questions_and_know_all_its_positives(tmp_path):
    table = negatives(
        query_rows=np.array([1, 1], np.int32),
        positive_rows=rows([2], [3]),
        positive_scores=Ragged.from_rows([[0.875], [0.5]], np.float32),
        judged_rows=rows([2, 3], [2, 3]),
    )
    assert write_questions(tmp_path / "a.jsonl", table, QUERIES, CORPUS) == 3
    found = {line["passage_id"]: line for line in read_lines(tmp_path / "a.jsonl")}
    assert set(found) == {"p5", "p6", "p7"}
    assert found["p5"]["positive_score"] == 0.5  # the row where it comes nearest
    assert found["p5"]["positives"] == ["passage 2", "passage 3"]


def test_text_of_any_script_is_written_as_it_is(tmp_path):
    corpus = TextTable(CORPUS.ids, ["你好\u2028\n„x“"] * 12)
    write_questions(tmp_path / "a.jsonl", negatives(), QUERIES, corpus, limit=1)
    text = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert "你好" in text
    assert json.loads(text)["passage"] == "你好\u2028\n„x“"


def test_a_file_that_may_hold_answers_is_not_written_over(tmp_path):
    path = tmp_path / "ask.jsonl"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists and may hold answers"):
        write_questions(path, negatives(), QUERIES, CORPUS)
    assert path.read_text() == "mine"


def test_questions_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(InputError, match="questions are written as jsonl"):
        write_questions(tmp_path / "a.csv", negatives(), QUERIES, CORPUS)
    with pytest.raises(InputError, match="limit=-3"):
        write_questions(tmp_path / "a.jsonl", negatives(), QUERIES, CORPUS, limit=-3)
    with pytest.raises(InputError, match="cannot be written"):
        write_questions(tmp_path / "none" / "a.jsonl", negatives(), QUERIES, CORPUS)
    empty = negatives(negative_rows=rows([], []), negative_scores=rows([], []))
    with pytest.raises(InputError, match="no pairs to judge: all 0 negatives"):
        write_questions(tmp_path / "a.jsonl", empty, QUERIES, CORPUS)
    assert not list(tmp_path.iterdir())
