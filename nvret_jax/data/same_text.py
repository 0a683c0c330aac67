"""Equal texts under several ids: which rows share a text, and the consequences.

Two texts are equal if their normal forms are (normalize.py): letter case, width, white space and
punctuation do not count. The same criterion decides which copies of a positive are never negatives,
so mining, batches and masks agree on equality.

A text is identified by the first row that has it. If all texts differ, that is the row itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from nvret_jax.data.dataset import TextTable
from nvret_jax.data.normalize import keys
from nvret_jax.data.ragged import Ragged


class SameText:
    """The rows of a table that have equal texts.

    Attributes:
        keys_n: `normalize.KEY_DTYPE` [N], equal for equal texts.
        first_n: int32 [N], the first row with the text of each row.
        count: distinct texts.
    """

    def __init__(self, keys_n: np.ndarray):
        self.keys_n = keys_n
        _, first, group = np.unique(keys_n, return_index=True, return_inverse=True)
        self.first_n = first[group.reshape(-1)].astype(np.int32)
        self.count = len(first)

    @classmethod
    def of(cls, texts: Iterable[str]) -> SameText:
        """Of N texts, read once."""
        return cls(keys(texts))

    def __len__(self) -> int:
        return len(self.first_n)

    @property
    def any_equal(self) -> bool:
        """Whether any two rows have the same text."""
        return self.count < len(self)

    def copies(self, rows: Ragged) -> Ragged:
        """All rows that have the text of a listed row, the listed ones among them.

        Args:
            rows: int, lists of rows.

        Returns:
            int32, as many lists, each ascending and unique.
        """
        of_text = self._members.take(self.first_n[rows.values]) if self.any_equal else None
        values = rows.values if of_text is None else of_text.values
        counts = 1 if of_text is None else of_text.counts
        row_of = np.repeat(rows.row_of, counts)
        return Ragged.distinct(row_of, values.astype(np.int32), len(rows))

    def share(self, lists: Ragged) -> Ragged:
        """Joins the lists of equal rows; there is one list for each row of the table.

        Returns:
            The row's own values first and in their order, then those of equal rows in the order
            of the table, without repetitions. Rows without an equal are unchanged.
        """
        if len(lists) != len(self):
            raise ValueError(f"{len(lists)} lists for {len(self)} rows")
        if not self.any_equal:
            return lists
        sizes = np.bincount(self.first_n, minlength=len(self))
        out = [lists[row] for row in range(len(self))]
        for text in np.flatnonzero(sizes > 1).tolist():
            members = self._members[text].tolist()
            joined = [value for row in members for value in lists[row].tolist()]
            for row in members:
                out[row] = list(dict.fromkeys([*lists[row].tolist(), *joined]))
        return Ragged.from_rows(out, lists.values.dtype)

    @functools.cached_property
    def _members(self) -> Ragged:
        """For the first row of each text, the rows that have it, ascending; empty for others."""
        counts = np.bincount(self.first_n, minlength=len(self))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Ragged(offsets, np.argsort(self.first_n, kind="stable").astype(np.int32))


def share_positives(positives: dict[str, list[str]], queries: TextTable) -> dict[str, list[str]]:
    """Judged positives by query id, with those of equal queries appended to a query's own.

    Args:
        positives: query id -> passage ids, as `Dataset.positives` returns them.
        queries: the table that has the texts of these queries.
    """
    same = SameText.of(queries.texts[queries.row[query]] for query in positives)
    if not same.any_equal:
        return positives
    number: dict[str, int] = {}  # passage id -> a number, and back by the order of the keys
    lists = Ragged.from_rows(
        [[number.setdefault(p, len(number)) for p in ids] for ids in positives.values()], np.int64
    )
    names, shared = list(number), same.share(lists)
    return {query: [names[n] for n in shared[i]] for i, query in enumerate(positives)}
