"""Candidates beside a query's negatives, for distillation alone.

What scores at or above the ceiling may be relevant, so no loss should push it away; but the teacher
has scored it, and a student that fits the teacher's scores learns from it nonetheless. The longer
the list that is fitted, the more of the teacher's ranking it holds (Tamber et al. 2025,
arXiv 2505.19274).
"""

from __future__ import annotations

import dataclasses

from nvret_jax.data.ragged import Ragged, union
from nvret_jax.mining.negatives import Negatives
from nvret_jax.search.candidates import Candidates


def add(negatives: Negatives, candidates: Candidates, excluded: Ragged, most: int) -> Negatives:
    """The table with up to `most` further candidates per row, the best first.

    Args:
        negatives: the finished table, of R rows.
        candidates: of its first teacher, of Q queries.
        excluded: int32, per query of the candidates what is never a negative, such as copies of
            positives.
        most: candidates per row.

    Returns:
        The table with `distilled_rows` and `distilled_scores`: no judged positive, no negative of
        the row, no excluded passage; above and below the ceiling.
    """
    numbers = candidates.numbers_of(negatives.query_rows)
    rows, scores = candidates.passage_rows.take(numbers), candidates.scores.take(numbers)
    taken = union(negatives.judged_rows, excluded.take(numbers), negatives.negative_rows)
    keep = ~taken.contains(rows.row_of, rows.values)
    return dataclasses.replace(
        negatives,
        distilled_rows=rows.mask(keep).head(most),
        distilled_scores=scores.mask(keep).head(most),
    )
