"""Mining against a brute force that looks at the whole corpus, query by query."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.miner import judge, mine, own_text_rows
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.rules import RULES, Rule, anchors
from nvret_jax.search.candidates import Candidates


def full_order(scores_n):
    """Rows by score descending, row ascending."""
    return np.lexsort((np.arange(len(scores_n)), -scores_n))


def brute_force(scores_qn, positives, own_text, rule, count):
    """What each query should get, from the whole corpus, in plain loops."""
    out = []
    for q, scores_n in enumerate(scores_qn):
        anchor = {"min": min, "max": max, "mean": np.mean}[rule.anchor](
            [np.float64(scores_n[p]) for p in positives[q]]
        )
        ceiling = rule.ceilings(np.array([anchor]))[0]
        rank, kept = 0, []
        for row in full_order(scores_n):
            if row in positives[q] or row in own_text[q]:
                continue
            rank += 1
            if rank <= rule.ranks_to_skip or not scores_n[row] < ceiling:
                continue
            kept.append(int(row))
        out.append(kept[:count])
    return out


def table(scores_qn, positives, depth):
    """Candidates as a search of depth `depth` would store them."""
    order = [full_order(row)[:depth] for row in scores_qn]
    return Candidates(
        np.arange(len(scores_qn), dtype=np.int32),
        Ragged.from_rows(order, np.int32),
        Ragged.from_rows([s[o] for s, o in zip(scores_qn, order, strict=True)], np.float32),
        Ragged.from_rows(positives, np.int32),
        Ragged.from_rows(
            [s[list(p)] for s, p in zip(scores_qn, positives, strict=True)], np.float32
        ),
    )


def searcher(scores_qn, calls):
    """The second search, over a score matrix."""

    def search_below(numbers, k, ceilings, exclude):
        calls.append(len(numbers))
        scores_sk = np.full((len(numbers), k), -np.inf, np.float32)
        rows_sk = np.full((len(numbers), k), -1, np.int32)
        for i, q in enumerate(numbers):
            scores_n = scores_qn[q]
            left = [
                r for r in full_order(scores_n) if scores_n[r] < ceilings[i] and r not in exclude[i]
            ][:k]
            scores_sk[i, : len(left)], rows_sk[i, : len(left)] = scores_n[left], left
        return scores_sk, rows_sk

    return search_below


@st.composite
def problems(draw):
    n, q = draw(st.integers(3, 24)), draw(st.integers(1, 5))
    # Quarters make ties, and ties at the ceiling, the rule rather than the exception.
    grid = st.integers(-4, 4).map(lambda i: i / 4)
    scores = np.array(draw(st.lists(grid, min_size=q * n, max_size=q * n)), np.float32)
    rows = st.integers(0, n - 1)
    positives = [sorted(draw(st.sets(rows, min_size=1, max_size=min(3, n)))) for _ in range(q)]
    own_text = [sorted(draw(st.sets(rows, max_size=1))) for _ in range(q)]
    rule = Rule(
        draw(st.sampled_from(["naive", "shifted", "abs", "margin_pos", "perc_pos"])),
        percent=draw(st.sampled_from([0.5, 0.95, 1.0])),
        margin=draw(st.sampled_from([0.0, 0.25, 0.5])),
        threshold=draw(st.sampled_from([-0.25, 0.5])),
        shift=draw(st.integers(0, 6)),
        anchor=draw(st.sampled_from(["min", "max", "mean"])),
    )
    return scores.reshape(q, n), positives, own_text, rule, draw(st.integers(1, 5)), draw(rows) + 1


@settings(max_examples=300, deadline=None)
@given(problems())
def test_any_depth_gives_what_the_whole_corpus_gives(problem):
    scores_qn, positives, own_text, rule, count, depth = problem
    negatives, counts = mine(
        table(scores_qn, positives, depth),
        rule=rule,
        num_negatives=count,
        own_text=Ragged.from_rows(own_text, np.int32),
        corpus_size=scores_qn.shape[1],
        search_below=searcher(scores_qn, []),
    )
    expected = brute_force(scores_qn, positives, own_text, rule, count)
    found = [negatives.negative_rows[q].tolist() for q in range(len(negatives))]
    assert found == expected
    for q, rows in enumerate(found):
        assert negatives.negative_scores[q].tolist() == scores_qn[q][rows].tolist()
    missing = [count - len(rows) for rows in expected]
    assert counts.missing == sum(missing)
    assert counts.short == sum(m > 0 for m in missing)


def test_ranks_count_neither_positives_nor_the_querys_own_text():
    scores_qn = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], np.float32)
    candidates = table(scores_qn, [[1]], 5)
    verdicts, ranks, _ = judge(candidates, Rule("naive"), 2, Ragged.from_rows([[0]], np.int32))
    assert ranks.tolist() == [[0, 0, 1, 2, 3]]
    assert verdicts.tolist() == [[2, 1, 5, 5, 6]]


def test_the_second_search_is_asked_only_for_queries_left_short():
    rng = np.random.default_rng(0)
    scores_qn = rng.random((6, 40)).astype(np.float32)
    positives = [[int(np.argsort(-s)[20])] for s in scores_qn[:3]] + [
        [int(np.argmax(s))] for s in scores_qn[3:]
    ]
    calls = []
    negatives, counts = mine(
        table(scores_qn, positives, 10),
        rule=Rule("margin_pos", margin=0.0),
        num_negatives=4,
        own_text=Ragged.from_rows([[]] * 6, np.int32),
        corpus_size=40,
        search_below=searcher(scores_qn, calls),
    )
    assert calls == [3]  # the first three have twenty better passages than their positive
    assert counts.searched_again == 3
    assert counts.found_again == 12
    assert negatives.negative_rows.counts.tolist() == [4] * 6
    assert negatives.negative_ranks[0].tolist() == [0, 0, 0, 0]  # beyond the stored candidates
    assert negatives.negative_ranks[5].tolist() == [1, 2, 3, 4]


def test_own_text_is_found_whatever_the_space_around_it():
    rows = own_text_rows(["a b", "none"], ["x", " a b", "a b\n", "a  b"])
    assert [rows[0].tolist(), rows[1].tolist()] == [[1, 2], []]


def test_scores_that_are_not_finite_are_refused():
    scores_qn = np.array([[0.9, np.nan, 0.7]], np.float32)
    with pytest.raises(InputError, match="passage row 1"):
        mine(
            table(scores_qn, [[0]], 3),
            rule=Rule(),
            num_negatives=1,
            own_text=Ragged.from_rows([[]], np.int32),
            corpus_size=3,
            search_below=searcher(scores_qn, []),
        )


def test_no_query_is_an_error():
    empty = table(np.zeros((0, 3), np.float32), [], 3)
    with pytest.raises(InputError, match="no training query"):
        mine(
            empty,
            rule=Rule(),
            num_negatives=1,
            own_text=Ragged.from_rows([], np.int32),
            corpus_size=3,
            search_below=searcher(np.zeros((0, 3)), []),
        )


def test_the_table_survives_the_disk(tmp_path):
    rng = np.random.default_rng(1)
    scores_qn = rng.random((5, 12)).astype(np.float32)
    positives = [[1, 2], [0], [3], [4, 5, 6], [11]]
    candidates = table(scores_qn, positives, 8)
    negatives, _ = mine(
        candidates,
        rule=Rule("perc_pos", percent=0.9),
        num_negatives=3,
        own_text=Ragged.from_rows([[]] * 5, np.int32),
        corpus_size=12,
        search_below=searcher(scores_qn, []),
        teacher="a teacher",
    )
    corpus = TextTable(tuple(f"p{i}" for i in range(12)), [""] * 12)
    queries = TextTable(tuple(f"q{i}" for i in range(5)), [""] * 5)
    candidates.write(tmp_path / "c.parquet", queries, corpus)
    negatives.write(tmp_path / "n.parquet", queries, corpus)
    for before, after in (
        (candidates, Candidates.read(tmp_path / "c.parquet", queries, corpus)),
        (negatives, Negatives.read(tmp_path / "n.parquet", queries, corpus)),
    ):
        for name, value in vars(before).items():
            other = getattr(after, name)
            if isinstance(value, Ragged):
                np.testing.assert_array_equal(value.offsets, other.offsets)
                np.testing.assert_array_equal(value.values, other.values)
            else:
                np.testing.assert_array_equal(value, other)
    fewer = TextTable(corpus.ids[:5], [""] * 5)
    with pytest.raises(InputError, match="is not in the data set"):
        Candidates.read(tmp_path / "c.parquet", queries, fewer)


def test_a_damaged_table_is_one_line(tmp_path):
    path = tmp_path / "n.parquet"
    path.write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        Negatives.read(path, TextTable((), []), TextTable((), []))


def test_every_rule_name_is_known_to_the_config():
    from nvret_jax import config

    assert config.RULES == RULES
    assert anchors(Ragged.from_rows([[1.0]], np.float32), "min") == 1.0
