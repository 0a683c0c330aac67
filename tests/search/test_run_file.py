"""Run files: every form, the order they stand for, and what is wrong with them by file and line."""

import gzip
import re

import numpy as np
import pytest
from rank_reference import rank_by_hand

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.rules import Rule, anchors
from nvret_jax.search.rankers.run_file import RunRanker

QUERIES = ["q0", "q1", "q2"]
PASSAGES = [f"p{i}" for i in range(8)]
POSITIVES = Ragged.from_rows([[3], [0, 7], [1]], np.int32)
# query -> passage -> score; q1 has ties, q2 is not in the file, 'other' is not wanted
RUN = {
    "other": {"p0": 1.0, "px": 0.5},
    "q1": {"p5": 2.5, "p2": 2.5, "p7": 3.0, "p4": -1.0, "p1": 2.5},
    "q0": {"p6": 0.25, "p3": 0.125},
}


def lines(form):
    """The run in one of the forms, best first, with ranks from 1."""
    for query, hits in RUN.items():
        ordered = sorted(hits.items(), key=lambda hit: (-hit[1], hit[0]))
        for rank, (passage, score) in enumerate(ordered, start=1):
            yield {
                "trec": f"{query} Q0 {passage} {rank} {score} tag",
                "colbert": f"{query}\t{passage}\t{rank}\t{score}",
                "msmarco": f"{query}\t{passage}\t{rank}",
                "tevatron-run": f"{query}\t{passage}\t{score}",
            }[form]


def write(tmp_path, content, name="run.txt"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else "\n".join(content) + "\n")
    return path


def read(path, **options):
    return RunRanker.read(path, QUERIES, PASSAGES, POSITIVES, **options)


def listed(ranker):
    """What it lists, as {query: [(passage, score), …]}."""
    scores, rows = ranker.rank(np.arange(3), 8)
    return {
        query: [(PASSAGES[r], float(s)) for s, r in zip(*pair, strict=True) if r >= 0]
        for query, *pair in zip(QUERIES, scores, rows, strict=True)
    }


WANT = {
    "q0": [("p6", 0.25), ("p3", 0.125)],
    "q1": [("p7", 3.0), ("p1", 2.5), ("p2", 2.5), ("p5", 2.5), ("p4", -1.0)],
    "q2": [],
}


@pytest.mark.parametrize("form", ["trec", "colbert", "msmarco", "tevatron-run"])
@pytest.mark.parametrize("forced", [False, True])
def test_every_form_is_told_and_read(tmp_path, form, forced):
    ranker = read(write(tmp_path, lines(form)), form=form if forced else None)
    assert ranker.form == form
    assert not ranker.deep
    assert (ranker.queries, ranker.passages) == (3, 8)
    assert (ranker.skipped_queries, ranker.empty_queries) == (1, 1)
    assert ranker.unlisted_positives == 2  # q1's p0, q2's p1
    got = listed(ranker)
    if form != "msmarco":
        assert got == WANT
    else:
        assert got["q1"] == [("p7", -1), ("p1", -2), ("p2", -3), ("p5", -4), ("p4", -5)]


def test_rank_filters_the_list_by_ceiling_and_exclusions(tmp_path):
    ranker = read(write(tmp_path, lines("tevatron-run")))
    table = np.full((3, 8), -np.inf)
    for query, hits in WANT.items():
        for passage, score in hits:
            table[QUERIES.index(query), PASSAGES.index(passage)] = score
    numbers = np.array([1, 0, 2, 1])
    for k in (1, 3, 8):
        for ceiling_q in (None, np.array([2.5, 9.0, 9.0, 2.5000001]), np.full(4, -np.inf)):
            for exclude in (None, [[7, 2], [], [1], [4, 4]]):
                got = ranker.rank(numbers, k, ceiling_q=ceiling_q, exclude=exclude)
                want = rank_by_hand(table, numbers, k, ceiling_q, exclude)
                want[1][want[0] == -np.inf] = -1
                np.testing.assert_array_equal(got[0], want[0])
                np.testing.assert_array_equal(got[1], want[1])
                assert got[0].dtype == np.float32
                assert got[1].dtype == np.int32


def test_what_is_not_listed_scores_as_the_lowest_listed(tmp_path):
    ranker = read(write(tmp_path, lines("tevatron-run")))
    pairs = Ragged.from_rows([[7, 0, 1, 4], [3, 6, 0], [1]], np.int32)
    got = ranker.score(np.array([1, 0, 2]), pairs)
    assert got.tolist() == [3.0, -1.0, 2.5, -1.0, 0.125, 0.25, 0.125, 0.0]
    assert got.dtype == np.float32


@pytest.mark.parametrize("rule", [Rule("margin_pos", margin=0.0), Rule("perc_pos", percent=1.0)])
def test_the_ceiling_of_a_positive_that_is_not_listed_keeps_nothing(tmp_path, rule):
    ranker = read(write(tmp_path, lines("tevatron-run")))
    one = np.array([1])
    unlisted = Ragged.from_rows([[0]], np.int32)
    scores = Ragged(unlisted.offsets, ranker.score(one, unlisted))
    _, rows = ranker.rank(one, 8, ceiling_q=rule.ceilings(anchors(scores, "min")))
    assert (rows == -1).all()


def test_scores_win_over_ranks_that_contradict_them_and_it_is_said_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        "nvret_jax.files.runs.logging.warning", lambda text, *a: said.append(text % a)
    )
    path = write(tmp_path, ["q0 Q0 p1 1 0.5 t", "q0 Q0 p2 2 0.75 t", "q1 Q0 p1 9 1 t"])
    assert listed(read(path))["q0"] == [("p2", 0.75), ("p1", 0.5)]
    assert said == [f"{path}: for 1 queries the ranks contradict the scores; the scores are used"]
    said.clear()
    # Equal scores contradict no rank, and neither does a rank that starts at 0.
    read(write(tmp_path, ["q0 Q0 p2 0 0.5 t", "q0 Q0 p1 1 0.5 t", "q0 Q0 p3 1 0.4 t"]))
    assert not said


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (["q0\tp1\t1", "q0\tp2\t2", "q1\tp2\t1"], "msmarco"),
        (["q0\tp1\t2", "q0\tp2\t1", "q1\tp2\t1"], "msmarco"),
        (["q0\tp1\t3", "q0\tp2\t2"], "tevatron-run"),  # no rank 1
        (["q0\tp1\t1", "q0\tp2\t1"], "tevatron-run"),  # the same rank twice
        (["q0\tp1\t1", "q0\tp2\t0.5"], "tevatron-run"),
        (["q0\tp1\t1", "q0\tp2\t0"], "tevatron-run"),
        (["q0 p1 1", "q0 p2 2"], "msmarco"),
    ],
)
def test_three_columns_are_ranks_only_where_they_can_be(tmp_path, content, form):
    assert read(write(tmp_path, content)).form == form


def test_forced_forms_settle_what_columns_leave_open(tmp_path):
    path = write(tmp_path, ["q0\tp1\t1", "q0\tp2\t2"])
    assert listed(read(path))["q0"] == [("p1", -1), ("p2", -2)]
    assert listed(read(path, form="tevatron-run"))["q0"] == [("p2", 2), ("p1", 1)]
    with pytest.raises(InputError, match=r"run.txt:1: 3 columns, expected 6 \(trec: query Q0"):
        read(path, form="trec")
    with pytest.raises(InputError, match="no form 'csv'; expected one of trec"):
        read(path, form="csv")


def test_gzip_tabs_blank_lines_and_a_byte_order_mark_are_read(tmp_path):
    text = "\ufeff" + "\r\n".join(line.replace(" ", "\t") for line in lines("trec")) + "\r\n\r\n"
    path = tmp_path / "run.trec.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert listed(read(path)) == WANT
    path.write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read")):
        read(path)


def test_ids_with_spaces_are_read_where_tabs_separate(tmp_path):
    path = write(tmp_path, ["a query\ta b\t0.5", "a query\tc\t0.25"])
    ranker = RunRanker.read(path, ["a query"], ["c", "a b"], Ragged.from_rows([[0]], np.int32))
    assert ranker.rank(np.array([0]), 2)[1].tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "an empty run"),
        ("\n \n", "an empty run"),
        (
            "q0 Q0 p1 1 0.5 t\nq0 Q0 p2 2 0.5\n",
            ":2: 5 columns, expected 6 (trec: query Q0 passage rank score tag)",
        ),
        ("q0 Q0 p1 1 0.5 t\n\nq0 Q0 px 2 0.5 t\n", ":3: passage 'px' is not among the 8"),
        ("q0 Q0 p1 1 high t\n", ":1: score 'high' is not a number"),
        ("q0 Q0 p1 first 0.5 t\n", ":1: rank 'first' is not a whole number from 0"),
        ("q0\tp1\t0.5\nq0\tp2\tnan\n", ":2: score 'nan' is not a finite float32 number"),
        ("q0\tp1\tinf\n", ":1: score 'inf' is not a finite float32 number"),
        ("q0\tp1\t1e39\n", ":1: score '1e39' is not a finite float32 number"),
        (
            "q0\tp1\t3\nq1\tp1\t2\nq0\tp1\t1\n",
            ":3: passage 'p1' again for query 'q0', after line 1",
        ),
        ("q0 Q0 p1 -1 0.5 t\n", ":1: rank '-1' is not a whole number from 0"),
        ("q0 Q0 p1 1.5 0.5 t\n", ":1: rank '1.5' is not a whole number from 0"),
        ("\tp1\t0.5\n", ":1: an id is empty"),
        ("q0 p1\n", ":1: 2 columns, expected 6, 4 or 3"),
        ("x\tp1\t1\ny\tp1\t1\n", "none of its 2 queries is among the 3 wanted; one of them is 'x'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, says):
    path = write(tmp_path, content)
    with pytest.raises(
        InputError, match=re.escape(f"{path}{says if says[0] == ':' else ': ' + says}")
    ):
        read(path)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.txt: no such file; it should hold a run"):
        read(tmp_path / "none.txt")
    path = tmp_path / "run"
    path.write_bytes(b"q0\tp1\t1\nq0\t\xff\t2\n")
    with pytest.raises(InputError, match="run:2: byte 0xff is not UTF-8"):
        read(path)
    path.write_text("q0\tp1\t0.5\n")
    with pytest.raises(InputError, match="1 lists for 3 queries"):
        RunRanker.read(path, QUERIES, PASSAGES, Ragged.from_rows([[1]], np.int32))


def test_what_a_run_lacks_is_said_with_numbers(tmp_path):
    path = write(tmp_path, lines("trec"))
    assert read(path).remarks == [
        f"{path} lists nothing for 1 of 3 queries; they get no negatives from it",
        f"{path} does not list 2 of 4 positives; each gets the score of the last entry of its "
        f"query",
        f"queries of {path} that are not needed: 1",
    ]


@pytest.mark.parametrize("score", ["1_0", "１", "0x1", "1" * 5000])
def test_numbers_of_other_spellings_are_refused(tmp_path, score):
    path = write(tmp_path, f"q0 Q0 p1 1 {score} t\n")
    with pytest.raises(InputError, match=r":1: score .* is not a number"):
        read(path)
