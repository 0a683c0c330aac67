"""Rows of different lengths as two flat arrays, like Arrow's list columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Row i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        offsets: int64 [rows + 1], starting at 0, non-decreasing.
        values: any dtype, [offsets[-1]].
    """

    offsets: np.ndarray
    values: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence], dtype) -> Ragged:
        """Packs a sequence of rows."""
        rows = [np.asarray(row, dtype=dtype) for row in rows]
        counts = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        values = np.concatenate(rows) if rows else np.zeros(0, dtype)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), values)

    @classmethod
    def from_mask(cls, values_rc: np.ndarray, mask_rc: np.ndarray) -> Ragged:
        """The entries of each row of a matrix that a mask keeps, in order."""
        counts = mask_rc.sum(axis=1, dtype=np.int64)
        return cls(np.concatenate([[0], np.cumsum(counts)]), values_rc[mask_rc])

    @classmethod
    def grouped(cls, row_of: np.ndarray, values: np.ndarray, rows: int) -> Ragged:
        """Values by the row each belongs to, in their order within a row.

        Args:
            row_of: int [len(values)], 0 to `rows` - 1, in any order.
            values: any dtype.
            rows: their number.
        """
        row_of = np.asarray(row_of)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))])
        if (row_of[1:] < row_of[:-1]).any():
            values = values[np.argsort(row_of, kind="stable")]
        return cls(offsets.astype(np.int64), values)

    @classmethod
    def distinct(cls, row_of: np.ndarray, values: np.ndarray, rows: int) -> Ragged:
        """`grouped`, with each value once per row, ascending; values are at least 0."""
        span = _span(values)
        keys = np.unique(_keys(row_of, values, span))
        return cls.grouped(keys // span, (keys % span).astype(values.dtype), rows)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Ragged({len(self):,} rows, {len(self.values):,} values, {self.values.dtype})"

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    @property
    def counts(self) -> np.ndarray:
        """Length of each row, int64 [rows]."""
        return np.diff(self.offsets)

    @property
    def row_of(self) -> np.ndarray:
        """The row of each value, int64 [len(values)]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.counts)

    @property
    def position(self) -> np.ndarray:
        """The position of each value in its row, from 0, int64 [len(values)]."""
        return np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.counts)

    def reduce(self, ufunc: np.ufunc, empty: float) -> np.ndarray:
        """`ufunc` over each row (np.minimum, np.add, …), float64 [rows]; `empty` for empty rows."""
        out = np.full(len(self), empty, dtype=np.float64)
        full = self.counts > 0
        if full.any():
            out[full] = ufunc.reduceat(self.values.astype(np.float64), self.offsets[:-1][full])
        return out

    def padded(self, fill, width: int | None = None) -> np.ndarray:
        """A matrix [rows, width] with `fill` after each row's end; width: the longest row."""
        counts = self.counts
        width = int(counts.max(initial=0)) if width is None else width
        out = np.full((len(self), width), fill, dtype=self.values.dtype)
        column = self.position
        keep = column < width
        out[self.row_of[keep], column[keep]] = self.values[keep]
        return out

    def mask(self, keep: np.ndarray) -> Ragged:
        """The values that a mask over all of them keeps, row by row."""
        return Ragged(np.concatenate([[0], np.cumsum(keep)])[self.offsets], self.values[keep])

    def head(self, most: int | np.ndarray) -> Ragged:
        """The first `most` values of each row (one number, or one for each row)."""
        return self.mask(self.position < np.broadcast_to(most, len(self))[self.row_of])

    def like(self, values: np.ndarray) -> Ragged:
        """Other values with the same row lengths."""
        return Ragged(self.offsets, values)

    def take(self, rows: np.ndarray) -> Ragged:
        """Some of the rows, in the given order."""
        counts = self.counts[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        starts = np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts)
        return Ragged(offsets, self.values[starts + np.arange(offsets[-1])])

    def find(self, row_of: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The positions in `self.values` of given values in given rows, int64; -1: missing.

        Args:
            row_of: int, broadcast against `values`; 0 to the number of rows - 1.
            values: int of any shape; negative ones are in no row. Those of `self` are whole numbers
                of at least 0.
        """
        values = np.asarray(values)
        if not len(self.values):
            return np.full(np.broadcast_shapes(np.shape(row_of), values.shape), -1, np.int64)
        span = _span(values, self.values)
        own, wanted = _keys(self.row_of, self.values, span), _keys(row_of, values, span)
        order = None if (own[1:] >= own[:-1]).all() else np.argsort(own, kind="stable")
        place = np.searchsorted(own, wanted, sorter=order)
        place = np.minimum(place, len(own) - 1)
        place = place if order is None else order[place]
        return np.where((own[place] == wanted) & (values >= 0), place, -1)

    def contains(self, row_of: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Whether the given rows have the given values, bool; arguments as in `find`."""
        return self.find(row_of, values) >= 0

    def minus(self, other: Ragged) -> Ragged:
        """The values that the same row of `other` does not have, row by row, in their order."""
        return self.mask(~other.contains(self.row_of, self.values))


def _span(*values: np.ndarray) -> np.int64:
    """One more than the largest of some whole numbers."""
    return np.int64(max((int(v.max(initial=0)) for v in values), default=0) + 1)


def _keys(row_of: np.ndarray, values: np.ndarray, span: np.int64) -> np.ndarray:
    """(row, value) as single numbers, in the order of both."""
    return np.asarray(row_of, np.int64) * span + values


def union(*parts: Ragged) -> Ragged:
    """Row by row all values that any part has, each once, ascending; values are at least 0."""
    row_of = np.concatenate([part.row_of for part in parts])
    values = np.concatenate([part.values for part in parts])
    return Ragged.distinct(row_of, values, len(parts[0]))


def join_rows(*parts: Ragged) -> Ragged:
    """Row i of the result is the concatenation of row i of each part."""
    offsets = np.sum([part.offsets for part in parts], axis=0)
    values = np.empty(offsets[-1], parts[0].values.dtype)
    start = offsets[:-1].copy()
    for part in parts:
        values[np.repeat(start, part.counts) + part.position] = part.values
        start += part.counts
    return Ragged(offsets, values)
