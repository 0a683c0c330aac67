"""Equal texts under several ids are one text to mining: against loops over texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from same_text_reference import corpus, known_texts, mined

import nvret_jax.api as nv
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.normalize import normalize
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText, share_positives
from nvret_jax.mining import sampling
from nvret_jax.mining.exclude import exclusion
from nvret_jax.mining.exclude.exclusion import Reason
from nvret_jax.mining.options import Exclude

few = settings(max_examples=25, deadline=None)
TEXTS = st.lists(st.sampled_from(["a", "A!", "b", "b ", "c", "d d"]), min_size=1, max_size=8)


def mine(data, **options):
    query_texts, passage_texts, positives, queries_qd, passages_nd = data
    defaults = {"num_negatives": 3, "depth": 2, "progress": False}
    return nv.mine(
        query_texts,
        passage_texts,
        positives,
        query_embeddings=queries_qd,
        passage_embeddings=passages_nd,
        **(defaults | options),
    )


@given(st.integers(0, 10**6), st.sampled_from([0.9, 1.0, 1.5]), st.sampled_from([2, 6, 24]))
@few
def test_each_text_is_mined_once_and_no_query_is_starved(seed, percent, depth):
    data = corpus(seed)
    expected = mined(*data, percent=percent, count=3)
    for backend in ("device", "faiss"):
        found = mine(data, percent=percent, depth=depth, backend=backend)
        texts = [[normalize(data[1][row]) for row in rows] for rows in found.negative_rows]
        assert texts == expected


@given(st.integers(0, 10**6), st.sampled_from(["intra_dedup", "union", "rrf", "cross"]))
@few
def test_several_teachers_and_random_fill_keep_to_it(seed, ensemble):
    data = corpus(seed)
    teachers = [nv.Bm25Ranker(data[0], data[1])] * 2
    known = known_texts(*data[:3])
    found = nv.mine(
        *data[:3], teacher=teachers, ensemble=ensemble, num_negatives=5, short="random", depth=3
    )
    left = len({normalize(text) for text in data[1]})
    for b, rows in enumerate(found.negative_rows):
        texts = [normalize(data[1][row]) for row in rows]
        assert len(set(texts)) == len(texts)
        assert not set(texts) & known[b]
        here = known[b] & {normalize(text) for text in data[1]}
        assert len(texts) == min(5, left - len(here))


def test_a_preset_of_another_tool_counts_every_id():
    data = corpus(3)
    found = mine(data, compat="sentence_transformers", rule="naive", num_negatives=8)
    texts = [[normalize(data[1][row]) for row in rows] for rows in found.negative_rows]
    assert any(len(set(row)) < len(row) for row in texts)


@given(TEXTS, st.data())
@few
def test_copies_and_shared_lists(texts, data):
    same, forms = SameText.of(texts), [normalize(text) for text in texts]
    assert same.count == len(set(forms))
    assert same.first_n.tolist() == [forms.index(form) for form in forms]
    rows = data.draw(
        st.lists(
            st.lists(st.integers(0, len(texts) - 1), max_size=3, unique=True),
            min_size=len(texts),
            max_size=len(texts),
        )
    )
    copies = same.copies(Ragged.from_rows(rows, np.int32))
    for found, given_rows in zip(copies, rows, strict=True):
        wanted = {forms[row] for row in given_rows}
        assert found.tolist() == [row for row in range(len(texts)) if forms[row] in wanted]
    shared = same.share(Ragged.from_rows(rows, np.int32))
    for row, found in enumerate(shared):
        assert found[: len(rows[row])].tolist() == rows[row]
        wanted = {v for other, of in enumerate(rows) if forms[other] == forms[row] for v in of}
        assert sorted(found.tolist()) == sorted(wanted)


def test_equal_queries_share_their_positives():
    queries = TextTable(("1", "2", "3"), ["Who?", "who", "what"])
    positives = {"1": ["a"], "2": ["b", "a"], "3": ["c"]}
    assert share_positives(positives, queries) == {"1": ["a", "b"], "2": ["b", "a"], "3": ["c"]}


@pytest.mark.parametrize("same_text", [True, False])
def test_a_verdict_is_on_a_text(same_text):
    corpus = TextTable(("a", "b", "c"), ["x", "X.", "y"])
    made = exclusion.build(
        ["q"],
        corpus,
        Ragged.from_rows([[2]], np.int32),
        Exclude(same_text=same_text),
        verdict_rows=Ragged.from_rows([[0]], np.int32),
    )
    assert made.rows[0].tolist() == ([0, 1] if same_text else [0])
    assert set(made.reasons[0].tolist()) == {Reason.VERDICT}


def test_random_rows_do_not_repeat_a_text():
    texts = SameText.of(["a", "A", "b", "b.", "c"])
    for seed in range(20):
        rows = sampling.random_rows(5, 4, {1}, seed, np.uint64(7), texts)
        assert sorted(texts.first_n[rows].tolist()) == [2, 4]
