"""The table of hard negatives: what a rule kept for each training query, and where it came from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from etils import epath

from nvret_jax.data import tables
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged

COLUMNS = (
    "query_id",
    "positive_ids",
    "positive_scores",
    "negative_ids",
    "negative_scores",
    "negative_ranks",
    "negative_teachers",
    "ceiling",
)


@dataclasses.dataclass(frozen=True)
class Negatives:
    """Hard negatives per query, ragged: a query has as many as could be found.

    Attributes:
        query_rows: int32 [Q], rows of the data set's queries.
        positive_rows, positive_scores: judged positives and their teacher scores.
        negative_rows: int32, best first.
        negative_scores: float32, teacher scores.
        negative_ranks: int32, rank among the teacher's candidates counted from 1 without
            positives; 0 for one found beyond the stored candidates.
        teachers: names of the teachers.
        negative_teachers: int32, for each negative the teacher it is from.
        ceilings: float32 [Q], the score every negative lies below.
    """

    query_rows: np.ndarray
    positive_rows: Ragged
    positive_scores: Ragged
    negative_rows: Ragged
    negative_scores: Ragged
    negative_ranks: Ragged
    teachers: tuple[str, ...]
    negative_teachers: Ragged
    ceilings: np.ndarray

    def __len__(self) -> int:
        return len(self.query_rows)

    def write(self, path: epath.Path, queries: TextTable, corpus: TextTable) -> None:
        """Writes the table with ids in place of rows."""
        passage_ids, query_ids = tables.id_array(corpus.ids), tables.id_array(queries.ids)
        names = pa.array(self.teachers, pa.large_string())
        tables.write_table(
            path,
            {
                "query_id": tables.ids_column(self.query_rows, query_ids),
                "positive_ids": tables.ids_column(self.positive_rows, passage_ids),
                "positive_scores": tables.list_column(self.positive_scores),
                "negative_ids": tables.ids_column(self.negative_rows, passage_ids),
                "negative_scores": tables.list_column(self.negative_scores),
                "negative_ranks": tables.list_column(self.negative_ranks),
                "negative_teachers": tables.ids_column(self.negative_teachers, names),
                "ceiling": pa.array(self.ceilings),
            },
        )

    @classmethod
    def read(cls, path: epath.Path, queries: TextTable, corpus: TextTable) -> Negatives:
        """Reads what `write` wrote, against the same data set.

        Raises:
            InputError: the file is damaged or names an id the data set does not have.
        """
        table = tables.read_table(path, COLUMNS)
        passage_ids, query_ids = tables.id_array(corpus.ids), tables.id_array(queries.ids)
        flat = table["negative_teachers"].combine_chunks().flatten()
        teachers = tuple(sorted(set(flat.to_pylist())))
        names = pa.array(teachers, pa.large_string())
        return cls(
            tables.rows_of(table["query_id"], query_ids, f"{path}, query_id"),
            tables.rows_of(table["positive_ids"], passage_ids, f"{path}, positive_ids"),
            tables.ragged_numbers(table["positive_scores"], np.float32),
            tables.rows_of(table["negative_ids"], passage_ids, f"{path}, negative_ids"),
            tables.ragged_numbers(table["negative_scores"], np.float32),
            tables.ragged_numbers(table["negative_ranks"], np.int32),
            teachers,
            tables.rows_of(table["negative_teachers"], names, f"{path}, negative_teachers"),
            table["ceiling"].to_numpy().astype(np.float32),
        )
