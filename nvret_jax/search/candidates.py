"""Candidates: the passages a teacher ranks high for each query, before any rule.

The table keeps raw scores of the `depth` best passages, positives among them, and also the score of
every positive. Another rule or value is a new pass over this table, not a new search.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath

from nvret_jax.data import tables
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.search.rankers.ranker import Ranker

COLUMNS = ("query_id", "passage_ids", "scores", "positive_ids", "positive_scores")


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The depth best passages of each query, as row numbers of one data set.

    Attributes:
        query_rows: int32 [Q], rows of the data set's queries.
        passage_rows: int32, per query best first: score descending, then row ascending.
        scores: float32, aligned with `passage_rows`.
        positive_rows: int32, judged positives of each query.
        positive_scores: float32, aligned with `positive_rows`.
    """

    query_rows: np.ndarray
    passage_rows: Ragged
    scores: Ragged
    positive_rows: Ragged
    positive_scores: Ragged

    def __len__(self) -> int:
        return len(self.query_rows)

    def __repr__(self) -> str:
        found = len(self.passage_rows.values)
        return f"Candidates({len(self):,} queries, {found:,} candidates)"

    def numbers_of(self, query_rows: np.ndarray) -> np.ndarray:
        """The number of each query, int64; -1 for one that is not among these.

        Args:
            query_rows: rows of the data set's queries.
        """
        place = np.full(int(self.query_rows.max(initial=-1)) + 1, -1, np.int64)
        place[self.query_rows] = np.arange(len(self))
        return place[query_rows]

    @classmethod
    def concatenate(cls, parts: list[Candidates]) -> Candidates:
        """One table from consecutive ones."""

        def join(name: str) -> Ragged:
            rows = [getattr(part, name) for part in parts]
            counts = np.concatenate([r.counts for r in rows])
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            return Ragged(offsets, np.concatenate([r.values for r in rows]))

        lists = ("passage_rows", "scores", "positive_rows", "positive_scores")
        query_rows = np.concatenate([part.query_rows for part in parts])
        return cls(query_rows, *(join(name) for name in lists))

    def write(self, path: epath.Path, queries: TextTable, corpus: TextTable) -> None:
        """Writes the table with ids in place of rows."""
        passage_ids, query_ids = tables.id_array(corpus.ids), tables.id_array(queries.ids)
        tables.write_table(
            path,
            {
                "query_id": tables.ids_column(self.query_rows, query_ids),
                "passage_ids": tables.ids_column(self.passage_rows, passage_ids),
                "scores": tables.list_column(self.scores),
                "positive_ids": tables.ids_column(self.positive_rows, passage_ids),
                "positive_scores": tables.list_column(self.positive_scores),
            },
        )

    @classmethod
    def read(cls, path: epath.Path, queries: TextTable, corpus: TextTable) -> Candidates:
        """Reads a table written by `write`, for the same data set.

        Raises:
            InputError: the file is damaged or names an id that is not in the data set.
        """
        table = tables.read_table(path, COLUMNS)
        passage_ids, query_ids = tables.id_array(corpus.ids), tables.id_array(queries.ids)
        return cls(
            tables.rows_of(table["query_id"], query_ids, f"{path}, query_id"),
            tables.rows_of(table["passage_ids"], passage_ids, f"{path}, passage_ids"),
            tables.ragged_numbers(table["scores"], np.float32),
            tables.rows_of(table["positive_ids"], passage_ids, f"{path}, positive_ids"),
            tables.ragged_numbers(table["positive_scores"], np.float32),
        )


def find(
    query_rows: np.ndarray,
    numbers: np.ndarray,
    ranker: Ranker,
    positive_rows: Ragged,
    depth: int,
    **how,
) -> Candidates:
    """Searches one block of queries.

    Args:
        query_rows: int32 [S], which queries of the data set these are.
        numbers: int [S], their numbers in the ranker.
        ranker: the teacher.
        positive_rows: judged positives, a row per query.
        depth: candidates per query; a smaller corpus gives fewer.
        **how: passed on to `ranker.rank`.

    Raises:
        InputError: a positive's score is not finite.
    """
    scores_qk, rows_qk = ranker.rank(numbers, min(depth, ranker.passages), **how)
    found = rows_qk >= 0
    return Candidates(
        np.asarray(query_rows, np.int32),
        Ragged.from_mask(rows_qk.astype(np.int32), found),
        Ragged.from_mask(scores_qk.astype(np.float32), found),
        positive_rows,
        positive_rows.like(ranker.score(numbers, positive_rows)),
    )
