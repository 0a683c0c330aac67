"""Ids of passages in a batch: equal texts have the same id, across all sets of a stage.

The masks of the loss compare ids (terms.py). An id here identifies a text, not a row of a corpus,
so a copy of a positive under another id, in another row of the batch or in another set, is masked
like the positive itself. Equality is that of mining: `data.same_text`.

The ids that are never negatives of a row are the judged positives of its query and of every equal
query, and the passage that is the query's own text, if there is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nvret_jax.data.normalize import keys
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText


@dataclasses.dataclass(frozen=True)
class SetTexts:
    """The texts of one set in batches.

    Attributes:
        passages: N, size of the corpus.
        rows: int32 [M], ascending: passages that a batch can hold, or that are judged.
        keys: `normalize.KEY_DTYPE` [M], of their texts.
        query_keys: `normalize.KEY_DTYPE` [R], of the query of each row of the table of negatives.
        judged: int32, per row of the table the corpus rows of its judged positives.
    """

    passages: int
    rows: np.ndarray
    keys: np.ndarray
    query_keys: np.ndarray
    judged: Ragged

    @classmethod
    def of(
        cls,
        query_texts: Sequence[str],
        passage_texts: Sequence[str],
        query_rows: np.ndarray,
        judged: Ragged,
        used: np.ndarray,
    ) -> SetTexts:
        """Hashes the texts that a table of negatives names.

        Args:
            query_texts, passage_texts: of the data set.
            query_rows: int32 [R], rows of `query_texts`.
            judged: int32, judged positives of each.
            used: int, passages that a batch can hold, in any order, repeated or not; -1 is ignored.
        """
        rows = np.unique(np.concatenate([judged.values, used]))
        rows = rows[rows >= 0].astype(np.int32)
        queries, place = np.unique(query_rows, return_inverse=True)
        query_keys = keys(query_texts[row] for row in queries.tolist())[place.reshape(-1)]
        passage_keys = keys(passage_texts[row] for row in rows.tolist())
        return cls(len(passage_texts), rows, passage_keys, query_keys, judged)


@dataclasses.dataclass(frozen=True)
class Names:
    """The ids of one set's passages in batches.

    Attributes:
        of_row: int32 [N], the id of each passage that a batch can hold; -1: not held.
        known: int32, per row of the table of negatives the ids that are not its negatives.
    """

    of_row: np.ndarray
    known: Ragged


def name_passages(sets: Sequence[SetTexts], offsets: Sequence[int]) -> list[Names]:
    """Ids for the passages of all sets of a stage.

    Args:
        sets: in order.
        offsets: added to the corpus rows of each set; equal for sets with the same corpus.

    Returns:
        One for each set. The id of a text is the lowest row, offset included, that has it: if all
        texts differ, the row itself.
    """
    rows = np.concatenate([o + s.rows.astype(np.int64) for s, o in zip(sets, offsets, strict=True)])
    order = np.argsort(rows, kind="stable")
    texts, first, text = np.unique(
        np.concatenate([s.keys for s in sets])[order], return_index=True, return_inverse=True
    )
    id_of_text = rows[order][first]
    ids = np.empty_like(rows)
    ids[order] = id_of_text[text.reshape(-1)]

    of_rows, start = [], 0
    for one in sets:
        of_row = np.full(one.passages, -1, np.int32)
        of_row[one.rows] = ids[start : start + len(one.rows)]
        of_rows.append(of_row)
        start += len(one.rows)
    known = _known(sets, of_rows, texts, id_of_text)
    ends = np.cumsum([len(one.query_keys) for one in sets])
    parts = np.split(np.arange(len(known)), ends[:-1])
    return [Names(of, known.take(part)) for of, part in zip(of_rows, parts, strict=True)]


def _known(
    sets: Sequence[SetTexts], of_rows: Sequence[np.ndarray], texts: np.ndarray, ids: np.ndarray
) -> Ragged:
    """Ids that are not negatives of each row of all tables, ascending.

    Args:
        texts, ids: keys of all texts, ascending, and the id of each.
    """
    query_keys = np.concatenate([one.query_keys for one in sets])
    group = SameText(query_keys).first_n.astype(np.int64)
    judged = [of_row[one.judged.values] for one, of_row in zip(sets, of_rows, strict=True)]
    counts = np.concatenate([one.judged.counts for one in sets])
    place = np.searchsorted(texts, query_keys)
    own = np.flatnonzero(texts[np.minimum(place, len(texts) - 1)] == query_keys)
    row = np.concatenate([np.repeat(np.arange(len(counts)), counts), own])
    known = np.concatenate([*judged, ids[place[own]]])
    return Ragged.distinct(group[row], known.astype(np.int32), len(group)).take(group)
