"""Rows of different lengths as sets of numbers, against Python's sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvret_jax.data.ragged import Ragged, union

numbers = st.integers(0, 6)
pairs = st.lists(st.tuples(st.integers(0, 3), numbers), max_size=20)


def rows_of(table):
    return [row.tolist() for row in table]


@given(pairs)
def test_grouped_keeps_the_order_within_a_row_and_distinct_sorts_it(found):
    row_of, values = (np.asarray([pair[i] for pair in found], np.int32) for i in (0, 1))
    grouped, distinct = Ragged.grouped(row_of, values, 5), Ragged.distinct(row_of, values, 5)
    want = [[value for row, value in found if row == r] for r in range(5)]
    assert rows_of(grouped) == want
    assert rows_of(distinct) == [sorted(set(row)) for row in want]
    assert grouped.values.dtype == distinct.values.dtype == np.int32
    assert grouped.offsets.dtype == distinct.offsets.dtype == np.int64


lists = st.lists(st.lists(numbers, max_size=5), min_size=3, max_size=3)


@given(lists, lists)
def test_union_and_minus_go_row_by_row(one, other):
    a, b = (Ragged.from_rows(rows, np.int32) for rows in (one, other))
    assert rows_of(union(a, b)) == [sorted({*x, *y}) for x, y in zip(one, other, strict=True)]
    left = [[v for v in x if v not in y] for x, y in zip(one, other, strict=True)]
    assert rows_of(a.minus(b)) == left


@given(lists, st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 8)), max_size=9))
def test_what_a_row_contains_is_found_where_it_is(rows, asked):
    table = Ragged.from_rows(rows, np.int32)
    row_of, values = (np.asarray([pair[i] for pair in asked], np.int64) for i in (0, 1))
    place = table.find(row_of, values)
    assert table.contains(row_of, values).tolist() == [v in rows[r] for r, v in asked]
    for (row, value), at in zip(asked, place.tolist(), strict=True):
        if at >= 0:
            assert table.values[at] == value
            assert table.row_of[at] == row


@pytest.mark.parametrize("rows", [[[2, 5], [], [-1]], [[], [], []]])
def test_a_matrix_asks_row_by_row_and_nothing_is_never_there(rows):
    table = Ragged.from_rows([[v for v in row if v >= 0] for row in rows], np.int32)
    asked_rk = np.array([[5, -1, 2], [2, 5, -1], [0, -1, 5]])
    want = [[v in row and v >= 0 for v in asked] for asked, row in zip(asked_rk, rows, strict=True)]
    assert table.contains(np.arange(3)[:, None], asked_rk).tolist() == want


def test_numbers_of_2_to_the_31_and_millions_of_rows_are_told_apart():
    table = Ragged.grouped(np.array([0, 3_000_000]), np.array([2**31 - 1, 0]), 3_000_001)
    assert table.contains(np.array([0, 1, 3_000_000]), np.array([2**31 - 1, 0, 0])).tolist() == [
        True,
        False,
        True,
    ]
