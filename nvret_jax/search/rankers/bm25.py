"""BM25 as a teacher, on the library `bm25s`.

`bm25s` computes the score of every (term, passage) that occurs when it builds its index, so that a
query is a sum of a few sparse columns. Its index and sums are used. Its top-k is not used, because
it leaves the order among ties undefined, nor its tokenizer, because it treats a sentence in a
script without spaces as one word.

Choices:

- Words are those of `data.words`: runs of two or more word characters with their marks,
  lower-cased, and pairs of neighbouring characters in scripts without spaces. No stemming, and stop
  words are kept (BM25 gives them next to no weight; `stopwords='en'` removes them).
- A word that occurs twice in a query counts twice. Words that occur in no passage are ignored.
- The default is Lucene's formula, idf(t) · tf / (tf + k1 (1 - b + b · length / mean length)) with
  idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)): the textbook's factor (k1 + 1), which changes no
  order and no ratio, is left out, and no score is negative.
- Passages without any word of the query score 0 and come last, by row: they are legal candidates.
- Sums are float32, term by term in the query's order, in `rank` and `score` alike: the score of a
  pair is the same to the last bit in both.

Texts are tokenised in memory: the index takes about 10 bytes of host memory per token of the
corpus, and several times that while it is built.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from nvret_jax import options
from nvret_jax.data import arguments
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.words import words
from nvret_jax.errors import InputError
from nvret_jax.search.index import checks
from nvret_jax.search.rankers import topk

WORDS_VERSION = 3  # of `data.words`; for fingerprints
METHODS = ("lucene", "robertson", "atire", "bm25l", "bm25+")  # none of them scores below 0
_TAKES = {
    "k1": options.number(0, 1e6),
    "b": options.number(0, 1),
    "method": options.choice(*METHODS),
    "progress": options.flag(),
}


class Bm25Ranker:
    """BM25 over Q query texts and N passages.

    Attributes:
        queries, passages, deep: see `Ranker`.
        unmatched: queries that share no word with the corpus; they rank the corpus by row.
        settings: everything that affects a score except the texts, including the library's version;
            for fingerprints.
    """

    deep = True

    def __init__(
        self,
        query_texts: Sequence[str],
        corpus_texts: Sequence[str],
        *,
        k1: float = 1.5,
        b: float = 0.75,
        method: str = "lucene",
        stopwords: str | Sequence[str] | None = None,
        progress: bool = False,
    ):
        """Tokenises both sides and builds the index.

        Args:
            query_texts, corpus_texts: titles and texts in the form to be searched.
            k1: how slowly the weight of a repeated word saturates, at least 0.
            b: how much long passages are penalised, 0 to 1.
            method: one of `METHODS`.
            stopwords: a language ('en', 'de', …) whose stop words are left out, or the words.
            progress: bars of the library.

        Raises:
            InputError: an invalid parameter, no passage with a word in it, or no query that shares
                a word with a passage.
        """
        options.check_arguments("bm25", locals(), _TAKES)
        query_texts = arguments.texts(query_texts, "bm25: query_texts")
        corpus_texts = arguments.texts(corpus_texts, "bm25: corpus_texts")
        if stopwords is not None and not isinstance(stopwords, str):
            stopwords = list(arguments.texts(stopwords, "bm25: stopwords"))
        import bm25s  # loads JAX's backend when imported, so not before it is needed

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # the library sets DEBUG itself
        self.queries, self.passages = len(query_texts), len(corpus_texts)
        self.settings = {
            "bm25s": bm25s.__version__,
            "words": WORDS_VERSION,
            "method": method,
            "k1": float(k1),
            "b": float(b),
            "stopwords": stopwords
            if stopwords is None or isinstance(stopwords, str)
            else "|".join(stopwords),
        }

        vocabulary: dict[str, int] = {}
        corpus = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in words(text)]
            for text in corpus_texts
        ]
        corpus, vocabulary = _without(corpus, vocabulary, _stop_words(vocabulary, stopwords))
        if not vocabulary:
            raise InputError(
                f"bm25: none of the {self.passages} passages has a word of two letters or more; "
                "there is nothing to search"
            )
        self._index = bm25s.BM25(k1=k1, b=b, method=method, backend="numpy")
        self._index.index((corpus, vocabulary), create_empty_token=False, show_progress=progress)
        del corpus
        self._terms = Ragged.from_rows(
            (
                [vocabulary[word] for word in words(text) if word in vocabulary]
                for text in query_texts
            ),
            np.int32,
        )
        self.unmatched = int((self._terms.counts == 0).sum())
        if self.queries and self.unmatched == self.queries:
            raise InputError(
                f"bm25: none of the {self.queries:,} queries shares a word with any of the "
                f"{self.passages:,} passages; use another teacher"
            )

    @property
    def remarks(self) -> list[str]:
        """What a user should know about the ranking, one line each, with numbers."""
        if not self.unmatched:
            return []
        return [
            f"{self.unmatched:,} of {self.queries:,} queries share no word with the corpus; BM25 "
            f"scores every passage 0 for them"
        ]

    def rank(self, numbers, k, *, ceiling_q=None, exclude=None, progress=False):
        """See `Ranker.rank`."""
        return topk.rank_all(
            numbers,
            k,
            lambda number: self._index.get_scores_from_ids(self._terms[number]),
            queries=self.queries,
            passages=self.passages,
            ceiling_q=ceiling_q,
            exclude=exclude,
            progress="BM25" if progress else None,
        )

    def score(self, numbers: np.ndarray, pairs: Ragged) -> np.ndarray:
        """See `Ranker.score`. Looks each pair up in the columns of the query's words."""
        numbers = topk.check_numbers(numbers, self.queries)
        checks.check_exclude(pairs, len(numbers), self.passages)
        scores = np.zeros(len(pairs.values), np.float32)
        for at, number in enumerate(numbers):
            own = slice(pairs.offsets[at], pairs.offsets[at + 1])
            scores[own] = self._score_rows(self._terms[number], pairs.values[own])
        return scores

    def _score_rows(self, terms: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The scores of some passages, summed in the order that `get_scores_from_ids` sums in."""
        index = self._index.scores
        scores = np.zeros(len(rows), np.float32)
        for term in terms:
            column = slice(index["indptr"][term], index["indptr"][term + 1])
            holders = index["indices"][column]  # ascending
            if not len(holders):
                continue
            place = np.minimum(np.searchsorted(holders, rows), len(holders) - 1)
            has = holders[place] == rows
            scores[has] += index["data"][column][place[has]]
        # BM25L and BM25+ give every passage this score for a word, plus that of its occurrences.
        absent = self._index.nonoccurrence_array
        return scores if absent is None else scores + absent[terms].sum()


def _stop_words(vocabulary: Sequence[str], stopwords: str | Sequence[str] | None) -> set[str]:
    """The words that are stop words according to the library or the caller."""
    import bm25s  # see Bm25Ranker

    listed = list(vocabulary)
    try:
        kept = bm25s.tokenize(
            listed,
            lower=False,
            token_pattern=r"(?s)^.+$",
            stopwords=stopwords,
            return_ids=False,
            show_progress=False,
        )
    except ValueError as error:  # a language without stop words in the library
        raise InputError(f"bm25.stopwords={stopwords!r}: {error}") from None
    return {word for word, left in zip(listed, kept, strict=True) if not left}


def _without(
    corpus: list[list[int]], vocabulary: dict[str, int], stop_words: set[str]
) -> tuple[list[list[int]], dict[str, int]]:
    """Token ids and vocabulary, numbered anew without some of the words."""
    if not stop_words:
        return corpus, vocabulary
    kept = [word for word in vocabulary if word not in stop_words]
    number = {vocabulary[word]: new for new, word in enumerate(kept)}
    corpus = [[number[old] for old in row if old in number] for row in corpus]
    return corpus, {word: new for new, word in enumerate(kept)}
