"""The table of hard negatives: what a rule kept for each training query, and where it came from."""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath

from nvret_jax.data import tables
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError

# Used instead of a teacher's name; the first teacher has scored these negatives.
RANDOM = "random fill"  # drawn because no passage was left
GIVEN = "given"  # from the data set
# The cross-encoder of `rescorer.model`, among the teachers whose scores distillation fits.
RESCORER = "rescorer"

COLUMNS = (
    "query_id",
    "positive_ids",
    "positive_scores",
    "judged_ids",
    "negative_ids",
    "negative_scores",
    "negative_ranks",
    "negative_teachers",
    "negative_ceilings",
    "ceiling",
)

# Columns that are there where mining was asked for them.
OPTIONAL = (
    "positive_weights",
    "negative_risks",
    "distilled_scores",
    "positive_targets",
    "negative_targets",
    "distilled_targets",
)

_ALIGNED = {
    "positive": ("positive_scores", "positive_weights", "positive_targets"),
    "negative": (
        "negative_scores",
        "negative_ranks",
        "negative_teachers",
        "negative_ceilings",
        "negative_risks",
        "negative_targets",
    ),
    "distilled": ("distilled_scores", "distilled_targets"),
}


@dataclasses.dataclass(frozen=True)
class Negatives:
    """Hard negatives, ragged: a row has as many as were found.

    A row is a query; if each positive is its own anchor, a query with one of its positives.

    Attributes:
        query_rows: int32 [R], rows of the data set's queries.
        positive_rows, positive_scores: the positives a row trains on and their teacher scores.
        judged_rows: all positives of the row's query, which are never its negatives in a batch.
        negative_rows: int32, best first.
        negative_scores: float32, teacher scores.
        negative_ranks: int32, rank among the teacher's candidates, from 1, not counting positives;
            0 for one found beyond the stored candidates or drawn at random.
        teachers: names of the teachers.
        negative_teachers: int32, the teacher of each negative.
        negative_ceilings: float32, the ceiling that each negative is below, on its teacher's scale.
        positive_weights: float32, how much each positive counts; None: all the same.
        negative_risks: float32, how likely each is relevant after all; None: not estimated.
        distilled_rows, distilled_scores: int32 and float32, further candidates of the first
            teacher, not negatives; see `distilled.add`. None: not stored.
        positive_targets, negative_targets, distilled_targets: float32, what distillation fits in
            the place of the scores; see `targets.add`. None: the scores.
        ceilings: float32 [R], the ceiling on the scale of `positive_scores`: the first teacher's,
            or the one drawn for the row.
    """

    query_rows: np.ndarray
    positive_rows: Ragged
    positive_scores: Ragged
    judged_rows: Ragged
    negative_rows: Ragged
    negative_scores: Ragged
    negative_ranks: Ragged
    teachers: tuple[str, ...]
    negative_teachers: Ragged
    negative_ceilings: Ragged
    ceilings: np.ndarray
    positive_weights: Ragged | None = None
    negative_risks: Ragged | None = None
    distilled_rows: Ragged | None = None
    distilled_scores: Ragged | None = None
    positive_targets: Ragged | None = None
    negative_targets: Ragged | None = None
    distilled_targets: Ragged | None = None

    def __len__(self) -> int:
        return len(self.query_rows)

    def __repr__(self) -> str:
        found = len(self.negative_rows.values)
        teachers = ", ".join(self.teachers)
        return f"Negatives({len(self):,} rows, {found:,} negatives; teachers: {teachers})"

    def take(self, rows: np.ndarray) -> Negatives:
        """Some of the rows, in the given order."""
        changed = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Ragged):
                changed[field.name] = value.take(rows)
            elif isinstance(value, np.ndarray):
                changed[field.name] = value[rows]
        return dataclasses.replace(self, **changed)

    def write(self, path: epath.Path, queries: TextTable, corpus: TextTable) -> None:
        """Writes the table with ids in place of rows."""
        import pyarrow as pa  # see tables.py

        passage_ids, query_ids = tables.id_array(corpus.ids), tables.id_array(queries.ids)
        names = pa.array(self.teachers, pa.large_string())
        optional = {name: getattr(self, name) for name in OPTIONAL}
        optional = {n: tables.list_column(v) for n, v in optional.items() if v is not None}
        if self.distilled_rows is not None:
            optional["distilled_ids"] = tables.ids_column(self.distilled_rows, passage_ids)
        tables.write_table(
            path,
            {
                "query_id": tables.ids_column(self.query_rows, query_ids),
                "positive_ids": tables.ids_column(self.positive_rows, passage_ids),
                "positive_scores": tables.list_column(self.positive_scores),
                "judged_ids": tables.ids_column(self.judged_rows, passage_ids),
                "negative_ids": tables.ids_column(self.negative_rows, passage_ids),
                "negative_scores": tables.list_column(self.negative_scores),
                "negative_ranks": tables.list_column(self.negative_ranks),
                "negative_teachers": tables.ids_column(self.negative_teachers, names),
                "negative_ceilings": tables.list_column(self.negative_ceilings),
                "ceiling": pa.array(self.ceilings),
                **optional,
            },
        )

    @classmethod
    def read(cls, path: epath.Path, queries: TextTable, corpus: TextTable) -> Negatives:
        """Reads a table written by `write`, for the same data set.

        Raises:
            InputError: the file is damaged, is another table, or names an id that is not in the
                data set.
        """
        import pyarrow as pa  # see tables.py

        table = tables.read_table(path, COLUMNS)
        passage_ids, query_ids = tables.id_array(corpus.ids), tables.id_array(queries.ids)

        def rows(name: str, ids: pa.Array):
            return tables.rows_of(table[name], ids, f"{path}, {name}")

        try:
            flat = table["negative_teachers"].combine_chunks().flatten()
            teachers = tuple(sorted(set(flat.to_pylist())))
            found = cls(
                query_rows=rows("query_id", query_ids),
                positive_rows=rows("positive_ids", passage_ids),
                positive_scores=tables.ragged_numbers(table["positive_scores"], np.float32),
                judged_rows=rows("judged_ids", passage_ids),
                negative_rows=rows("negative_ids", passage_ids),
                negative_scores=tables.ragged_numbers(table["negative_scores"], np.float32),
                negative_ranks=tables.ragged_numbers(table["negative_ranks"], np.int32),
                teachers=teachers,
                negative_teachers=rows("negative_teachers", pa.array(teachers, pa.large_string())),
                negative_ceilings=tables.ragged_numbers(table["negative_ceilings"], np.float32),
                ceilings=table["ceiling"].to_numpy().astype(np.float32),
                distilled_rows=rows("distilled_ids", passage_ids)
                if "distilled_ids" in table.column_names
                else None,
                **{
                    name: tables.ragged_numbers(table[name], np.float32)
                    for name in OPTIONAL
                    if name in table.column_names
                },
            )
            for side, names in _ALIGNED.items():
                for name in names:
                    if getattr(found, name) is None:
                        continue
                    counts = getattr(found, f"{side}_rows").counts
                    if not np.array_equal(getattr(found, name).counts, counts):
                        raise InputError(f"{path}: {side}_ids and {name} differ in length")
        except InputError:
            raise
        except (AttributeError, TypeError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{path}: not a table of negatives ({error})") from None
        return found
