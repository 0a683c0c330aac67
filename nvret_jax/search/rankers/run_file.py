"""A run file as a teacher: a ranking made by another tool, in a form of `files.runs.FORMS`.

`files.runs` says what ranks and scores mean. As a teacher:

- Scores are float32; equal ones are ordered by row.
- Without scores, the score is minus the rank: a margin then counts ranks, and a relative margin of
  5 % removes passages down to 1.05 times the positive's rank.
- **A run has only the passages it lists** (`deep` is False): `rank` filters the stored list, and a
  query that a rule leaves short stays short.
- **Unlisted passages** have no score. `score` returns the lowest listed score of the query, which
  is an upper bound. An unlisted positive is therefore outranked by everything listed, so a ceiling
  derived from it keeps nothing: no negative is better than one that may be a positive. For a query
  without any listed passage, the score is 0.
- Queries of the file that are not needed are skipped and counted, and needed queries that it lacks
  are counted (`remarks`). A passage that is not in the corpus means that the run belongs to another
  corpus, and is an error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.files import paths, runs
from nvret_jax.search.index import checks
from nvret_jax.search.rankers import topk


class RunRanker:
    """A run over the queries and passages of a data set.

    Attributes:
        queries, passages, deep: see `Ranker`.
        form: one of `runs.FORMS`.
        skipped_queries: queries of the file that are not needed.
        empty_queries: needed queries that are not in the file.
        unlisted_positives: judged positives that the run does not list for their query.
    """

    deep = False

    def __init__(self, rows: Ragged, scores: Ragged, passages: int):
        """Use `read`.

        Args:
            rows: int32, passages listed for each query, in any order, none twice.
            scores: float32, aligned with `rows`.
            passages: N.
        """
        order = np.lexsort((rows.values, -scores.values, rows.row_of))
        self._rows, self._scores = rows.like(rows.values[order]), rows.like(scores.values[order])
        self._lowest_q = scores.reduce(np.minimum, 0.0).astype(np.float32)
        self.queries, self.passages = len(rows), passages
        self.form, self.skipped_queries, self.unlisted_positives = "", 0, 0
        self._path, self._positives = "", 0
        self.empty_queries = int((rows.counts == 0).sum())

    @classmethod
    def read(
        cls,
        path: os.PathLike | str,
        query_ids: Sequence[str],
        passage_ids: Sequence[str],
        positive_rows: Ragged,
        *,
        form: str | None = None,
    ) -> RunRanker:
        """Reads a run file.

        Args:
            path: the file.
            query_ids: Q ids, of the queries to rank for.
            passage_ids: N ids, the corpus.
            positive_rows: judged positives, a row per query; only counted, see the attributes.
            form: one of `runs.FORMS`; None: detected from the columns.

        Raises:
            InputError: no such file, a line that cannot be read, a passage that is not in the
                corpus or is listed twice, or no needed query in the whole file.
        """
        path = paths.local(path, "run")
        checks.check_exclude(positive_rows, len(query_ids), len(passage_ids))
        listed = runs.read(path, form, query_ids=query_ids, passage_ids=passage_ids)
        rows, scores = (
            Ragged.grouped(listed.query, values, len(query_ids))
            for values in (listed.passage.astype(np.int32), listed.scores.astype(np.float32))
        )
        ranker = cls(rows, scores, len(passage_ids))
        ranker.form, ranker.skipped_queries = listed.form, len(listed.unknown)
        ranker._path, ranker._positives = str(path), len(positive_rows.values)
        ranker.unlisted_positives = len(positive_rows.minus(rows).values)
        return ranker

    @property
    def remarks(self) -> list[str]:
        """What a user should know about the ranking, one line each, with numbers."""
        out = []
        if self.empty_queries:
            out.append(
                f"{self._path} lists nothing for {self.empty_queries:,} of {self.queries:,} "
                "queries; they get no negatives from it"
            )
        if self.unlisted_positives:
            out.append(
                f"{self._path} does not list {self.unlisted_positives:,} of {self._positives:,} "
                "positives; each gets the score of the last entry of its query"
            )
        if self.skipped_queries:
            out.append(f"queries of {self._path} that are not needed: {self.skipped_queries:,}")
        return out

    def rank(self, numbers, k, *, ceiling_q=None, exclude=None, progress=False):
        """See `Ranker.rank`; from the stored lists."""
        del progress  # nothing here takes long
        numbers = topk.check_numbers(numbers, self.queries)
        k = checks.check_k(k, self.passages)
        ceiling_q = checks.check_ceiling(ceiling_q, len(numbers))
        pairs = checks.check_exclude(exclude, len(numbers), self.passages)
        rows, scores = self._rows.take(numbers), self._scores.take(numbers)
        keep = np.ones(len(rows.values), bool)
        if ceiling_q is not None:
            keep &= scores.values < ceiling_q[rows.row_of]
        if pairs is not None:
            left_out = Ragged.grouped(*pairs, len(numbers))
            keep &= ~left_out.contains(rows.row_of, rows.values)
        return scores.mask(keep).padded(-np.inf, k), rows.mask(keep).padded(-1, k)

    def score(self, numbers: np.ndarray, pairs: Ragged) -> np.ndarray:
        """See `Ranker.score`, and the module's docstring for unlisted passages."""
        numbers = topk.check_numbers(numbers, self.queries)
        checks.check_exclude(pairs, len(numbers), self.passages)
        scores = self._lowest_q[numbers[pairs.row_of]]
        place = self._rows.take(numbers).find(pairs.row_of, pairs.values)
        listed = place >= 0
        scores[listed] = self._scores.take(numbers).values[place[listed]]
        return scores
