"""A corpus in which every text occurs once: a ranker and its candidates without repeated texts.

A text that is in the corpus under several ids takes up several ranks, and several places among a
query's negatives. Here the best-ranked id of a text represents all of them, and excluding one id
excludes the text. If all texts differ, nothing changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nvret_jax.data.ragged import Ragged, join_rows
from nvret_jax.data.same_text import SameText
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers.ranker import Ranker


def distinct(
    candidates: Candidates, ranker: Ranker | None, texts: SameText | None
) -> tuple[Candidates, Ranker | None]:
    """A teacher's candidates and ranker over distinct texts.

    Args:
        candidates: of Q queries.
        ranker: for the same queries, or None.
        texts: of the corpus; None: every id is a distinct text.
    """
    if texts is None or not texts.any_equal:
        return candidates, ranker
    rows = candidates.passage_rows
    pairs = rows.row_of * np.int64(len(texts)) + texts.first_n[rows.values]
    first = np.zeros(len(pairs), bool)
    first[np.unique(pairs, return_index=True)[1]] = True
    once = dataclasses.replace(
        candidates, passage_rows=rows.mask(first), scores=candidates.scores.mask(first)
    )
    return once, None if ranker is None else DistinctRanker(ranker, texts)


class DistinctRanker:
    """A ranker that returns each text once.

    Attributes:
        queries, passages, deep: see `Ranker`.
    """

    def __init__(self, ranker: Ranker, texts: SameText):
        """
        Args:
            ranker: over all ids of the corpus.
            texts: of the corpus.
        """
        self._ranker, self._texts = ranker, texts
        self.queries, self.passages, self.deep = ranker.queries, ranker.passages, ranker.deep

    def rank(
        self,
        numbers: np.ndarray,
        k: int,
        *,
        ceiling_q: np.ndarray | None = None,
        exclude: Sequence[Sequence[int]] | None = None,
        **how,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Ranker.rank`; the k best texts that are not excluded, each by its best id.

        Where ids of one text take up places among the k best, the search continues below them.
        """
        numbers = np.asarray(numbers)
        rows_qk = np.full((len(numbers), k), -1, np.int32)
        scores_qk = np.full((len(numbers), k), -np.inf, np.float32)
        have_q = np.zeros(len(numbers), np.int64)
        exclude = [()] * len(numbers) if exclude is None else exclude
        barred = self._texts.copies(Ragged.from_rows(exclude, np.int32))
        ceiling_q = None if ceiling_q is None else np.asarray(ceiling_q)
        at = np.arange(len(numbers))
        while len(at):
            held = self._texts.copies(Ragged.from_mask(rows_qk[at], rows_qk[at] >= 0))
            scores, rows = self._ranker.rank(
                numbers[at],
                int((k - have_q[at]).max()),
                ceiling_q=None if ceiling_q is None else ceiling_q[at],
                exclude=list(join_rows(barred.take(at), held)),
                **how,
            )
            rows, scores = np.asarray(rows), np.asarray(scores)
            new = self._first(rows)
            place = have_q[at][:, None] + np.cumsum(new, axis=1) - 1
            new &= place < k
            line = np.broadcast_to(at[:, None], new.shape)[new]
            rows_qk[line, place[new]], scores_qk[line, place[new]] = rows[new], scores[new]
            have_q[at] += new.sum(axis=1)
            at = at[(rows[:, -1] >= 0) & (have_q[at] < k)]
        return scores_qk, rows_qk

    def score(self, numbers: np.ndarray, pairs: Ragged) -> np.ndarray:
        """See `Ranker.score`."""
        return self._ranker.score(numbers, pairs)

    def _first(self, rows_qk: np.ndarray) -> np.ndarray:
        """Whether an entry is the first with its text in its line, bool; False past the end."""
        texts_qk = np.where(rows_qk >= 0, self._texts.first_n[rows_qk], -1)
        span = np.int64(len(self._texts) + 1)
        pairs = np.arange(len(rows_qk), dtype=np.int64)[:, None] * span + texts_qk + 1
        first = np.zeros(rows_qk.size, bool)
        first[np.unique(pairs.ravel(), return_index=True)[1]] = True
        return first.reshape(rows_qk.shape) & (rows_qk >= 0)
