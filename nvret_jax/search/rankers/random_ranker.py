"""The random baseline of the paper (section 4.1) as a teacher: meaningless scores.

Every (query, passage) pair has a number in [0, 1), drawn by hashing the seed and the two ids
(`data.hashing`): the same on any machine, for any order of rows, in any subset of the data. Judged
positives score exactly 1. So the best ranks are a uniform draw without replacement from the
corpus, and any rule is uniform too: a ceiling of 0.95 removes each passage with probability 0.05.

Scores are float32 with 24 random bits. In a corpus of millions some are equal; the lower row then
comes first, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvret_jax.data import hashing
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.search.index import checks
from nvret_jax.search.rankers import topk

_TILE = 32768  # passages hashed at a time, so that the words stay in the cache


class RandomRanker:
    """Pseudo-random scores of all pairs; see the module's docstring.

    Attributes:
        queries, passages, deep: see `Ranker`.
    """

    deep = True

    def __init__(
        self,
        query_ids: Sequence[str],
        passage_ids: Sequence[str],
        positive_rows: Ragged,
        seed: int = 0,
    ):
        """
        Args:
            query_ids, passage_ids: Q and N ids; nothing else is used. Passages with the same id
                have the same score.
            positive_rows: judged positives, a row per query; they score 1.
            seed: another seed, another draw.

        Raises:
            InputError: no passage, another number of rows, or a row outside the corpus.
        """
        self.queries, self.passages = len(query_ids), len(passage_ids)
        if not self.passages:
            raise InputError("random teacher: the corpus has no passage")
        checks.check_exclude(positive_rows, self.queries, self.passages)
        self._positive_rows = positive_rows
        self._query_keys = hashing.mix(seed, hashing.stable_hash(query_ids))
        self._passage_hashes = hashing.stable_hash(passage_ids)

    def rank(self, numbers, k, *, ceiling_q=None, exclude=None, progress=False):
        """See `Ranker.rank`."""
        return topk.rank_all(
            numbers,
            k,
            self._scores,
            queries=self.queries,
            passages=self.passages,
            ceiling_q=ceiling_q,
            exclude=exclude,
            progress="random ranks" if progress else None,
        )

    def score(self, numbers: np.ndarray, pairs: Ragged) -> np.ndarray:
        """See `Ranker.score`."""
        numbers = topk.check_numbers(numbers, self.queries)
        checks.check_exclude(pairs, len(numbers), self.passages)
        query = numbers[pairs.row_of]
        scores = _unit(hashing.mix(self._query_keys[query], self._passage_hashes[pairs.values]))
        positives = self._positive_rows.take(numbers)
        scores[positives.contains(pairs.row_of, pairs.values)] = 1.0
        return scores

    def _scores(self, number: int) -> np.ndarray:
        """One query against the corpus, float32 [N]."""
        scores_n = np.empty(self.passages, np.float32)
        for start in range(0, self.passages, _TILE):
            hashes = self._passage_hashes[start : start + _TILE]
            scores_n[start : start + _TILE] = _unit(hashing.mix(self._query_keys[number], hashes))
        scores_n[self._positive_rows[number]] = 1.0
        return scores_n


def _unit(words: np.ndarray) -> np.ndarray:
    """uint64 words as float32 in [0, 1): the upper 24 bits, which float32 holds exactly."""
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
