"""BM25 against its formula in float64, against the library's own retrieval, and for exact order."""

import collections
import math
import re

import bm25s
import numpy as np
import pytest
from rank_reference import all_scores, assert_ranks_as_its_scores_say

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.search.rankers.bm25 import METHODS, Bm25Ranker

WORDS = "wing flow heat shock layer plate body speed cell gene The OF".split()


def texts(count, most, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, n)) for n in rng.integers(0, most, count)]


@pytest.fixture(scope="module")
def corpus():
    return [*texts(60, 12, seed=1), "", "a b c", "wing wing wing"]


@pytest.fixture(scope="module")
def queries():
    return [*texts(9, 6, seed=2), "wing wing flow", "unheard words", "", "x"]


def by_formula(queries, corpus, k1, b):
    """Lucene's BM25, from the definition, float64."""
    split = [re.findall(r"\w\w+", text.lower()) for text in corpus]
    mean = sum(map(len, split)) / len(split)
    df = collections.Counter(word for words in split for word in set(words))
    scores = np.zeros((len(queries), len(corpus)))
    for q, query in enumerate(queries):
        for word in re.findall(r"\w\w+", query.lower()):
            idf = math.log(1 + (len(corpus) - df[word] + 0.5) / (df[word] + 0.5))
            for n, words in enumerate(split):
                tf = words.count(word)
                if tf:
                    scores[q, n] += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean))
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (0.0, 0.0), (2.0, 1.0)])
def test_scores_are_the_formula_in_float64_up_to_rounding(queries, corpus, k1, b):
    ranker = Bm25Ranker(queries, corpus, k1=k1, b=b)
    np.testing.assert_allclose(
        all_scores(ranker), by_formula(queries, corpus, k1, b), rtol=2e-6, atol=0
    )


@pytest.mark.parametrize("method", METHODS)
def test_order_is_exact_for_every_method_with_ceilings_and_exclusions(queries, corpus, method):
    ranker = Bm25Ranker(queries, corpus, method=method)
    assert (all_scores(ranker) >= 0).all()
    assert_ranks_as_its_scores_say(ranker)


@pytest.mark.parametrize("method", METHODS)
def test_the_library_retrieves_the_same_scores(queries, corpus, method):
    index = bm25s.BM25(method=method)
    index.index(bm25s.tokenize(corpus, stopwords=None, show_progress=False), show_progress=False)
    known = [query for query in queries if set(re.findall(r"\w\w+", query.lower())) & set(WORDS)]
    words = bm25s.tokenize(known, stopwords=None, return_ids=False, show_progress=False)
    rows, scores = index.retrieve(words, k=len(corpus), show_progress=False)
    got_scores, got_rows = Bm25Ranker(known, corpus, method=method).rank(
        np.arange(len(known)), len(corpus)
    )
    np.testing.assert_array_equal(got_scores, scores)
    for theirs, ours, score in zip(rows, got_rows, scores, strict=True):  # ties in any order
        for value in np.unique(score):
            assert set(theirs[score == value]) == set(ours[score == value])


def test_passages_without_a_word_of_the_query_come_last_in_row_order(corpus):
    ranker = Bm25Ranker(["gene"], corpus)
    scores, rows = ranker.rank(np.array([0]), len(corpus))
    without = [row for row, text in enumerate(corpus) if "gene" not in text.split()]
    assert rows[0, -len(without) :].tolist() == without
    assert (scores[0, -len(without) :] == 0).all()
    assert (scores[0, : -len(without)] > 0).all()


def test_queries_without_any_known_word_are_counted_and_rank_by_row(queries, corpus):
    ranker = Bm25Ranker(queries, corpus)
    empty = [query for query in queries if not set(query.split()) & set(WORDS)]
    assert ranker.unmatched == len(empty) >= 3
    number = queries.index("x")
    scores, rows = ranker.rank(np.array([number]), 5)
    assert rows[0].tolist() == [0, 1, 2, 3, 4]
    assert (scores == 0).all()


def test_case_does_not_count_and_stop_words_do_unless_taken_out(corpus):
    lower, upper = ["the flow of heat"], ["THE Flow OF Heat"]
    np.testing.assert_array_equal(
        all_scores(Bm25Ranker(lower, corpus)), all_scores(Bm25Ranker(upper, corpus))
    )
    without = all_scores(Bm25Ranker(lower, corpus, stopwords="en"))
    assert (without != all_scores(Bm25Ranker(lower, corpus))).any()
    np.testing.assert_array_equal(
        without, all_scores(Bm25Ranker(["flow heat"], corpus, stopwords="en"))
    )


def test_a_subset_of_pairs_scores_as_in_the_whole(queries, corpus):
    ranker = Bm25Ranker(queries, corpus)
    pairs = Ragged.from_rows([[3, 3, 60], [], [62, 0]], np.int32)
    got = ranker.score(np.array([9, 1, 2]), pairs)
    whole = all_scores(ranker)
    np.testing.assert_array_equal(got, whole[[9, 9, 9, 2, 2], [3, 3, 60, 62, 0]])
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"method": "bm26"}, "bm26"),
        ({"k1": -1.0}, "k1=-1.0"),
        ({"k1": math.nan}, "k1=nan"),
        ({"b": 1.5}, "b=1.5"),
        ({"stopwords": "klingon"}, "klingon"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(corpus, change, names):
    with pytest.raises(InputError, match=re.escape(names)):
        Bm25Ranker(["wing"], corpus, **change)


@pytest.mark.parametrize("corpus", [[], ["", "a b", "?"]])
def test_a_corpus_without_words_is_refused(corpus):
    with pytest.raises(InputError, match=f"none of the {len(corpus)} passages"):
        Bm25Ranker(["wing"], corpus)


def test_what_is_asked_of_it_is_checked(corpus):
    ranker = Bm25Ranker(["wing", "flow"], corpus)
    with pytest.raises(InputError, match="query number 2; there are 2"):
        ranker.rank(np.array([0, 2]), 3)
    with pytest.raises(InputError, match="query number -1"):
        ranker.rank(np.array([-1]), 3)
    with pytest.raises(InputError, match="k=64"):
        ranker.rank(np.array([0]), 64)
    with pytest.raises(InputError, match="row 63"):
        ranker.score(np.array([0]), Ragged.from_rows([[63]], np.int32))


def test_a_script_without_spaces_is_searched(corpus):
    passages = ["東京は日本の首都です", "お茶は緑色です", "ภาษาไทยเขียนติดกัน", *corpus]
    ranker = Bm25Ranker(["日本の首都", "緑のお茶", "ภาษาไทย", "wing"], passages)
    _, rows = ranker.rank(np.arange(4), 1)
    assert rows[:3, 0].tolist() == [0, 1, 2]
    assert ranker.unmatched == 0
    assert ranker.remarks == []


def test_queries_without_a_known_word_are_counted_and_alone_refused(corpus):
    ranker = Bm25Ranker(["wing", "unheard words", ""], corpus)
    assert ranker.remarks == [
        "2 of 3 queries share no word with the corpus; BM25 scores every passage 0 for them"
    ]
    with pytest.raises(InputError, match="none of the 2 queries shares a word with any of the 63"):
        Bm25Ranker(["unheard words", ""], corpus)
