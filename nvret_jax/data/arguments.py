"""Arguments of Python callers (texts, ids, row numbers, vectors), checked and in one form.

Unambiguous values are accepted: any ordered collection of texts, a generator, a column of a table;
tensors and tables of other libraries as the arrays they hold. Everything else is an InputError that
names the argument, the position, the value and what to give instead. Nothing is cast: '30', 1.9 and
True are not row numbers.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from nvret_jax.data.mapped import MappedTexts
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.options import is_unicode, shown

_BLOCK = 4096  # texts checked at a time


def texts(value: Any, at: str) -> Sequence[str]:
    """Texts in order, each a str that UTF-8 can encode.

    Args:
        value: a list, tuple, array, generator, column of a table: anything with an order.
        at: the argument, such as 'mine: queries'.

    Raises:
        InputError: one str, something without order, an item that is not a str or has half of a
            surrogate pair.
    """
    if isinstance(value, MappedTexts):  # whole Unicode by its layout
        return value
    found = _listed(value, at, "texts")
    for start in range(0, len(found), _BLOCK):
        block = found[start : start + _BLOCK]
        try:
            "".join(block).encode()
        except (TypeError, UnicodeEncodeError):
            _check_texts(block, start, at)
    return found


def _check_texts(block: Sequence[Any], start: int, at: str) -> None:
    for row, text in enumerate(block, start):
        if not isinstance(text, str):
            raise InputError(
                f"{at}: text {row} is {shown(text)} ({type(text).__name__}); expected str"
            )
        if not is_unicode(text):
            bad = next(i for i, letter in enumerate(text) if "\ud800" <= letter <= "\udfff")
            raise InputError(
                f"{at}: text {row} has half of a surrogate pair at character {bad}, which is not "
                "valid Unicode; remove it, such as by text.encode('utf-8', 'replace').decode()"
            )


def ids(value: Any, count: int, at: str) -> list[str]:
    """Ids of `count` texts: different strs.

    Args:
        value: as in `texts`; None: the numbers of the texts.
        count: how many are expected.
        at: the argument.

    Raises:
        InputError: a wrong number of ids, one that is not a str, a repeated one.
    """
    if value is None:
        return list(map(str, range(count)))
    found = texts(value, at)
    if len(found) != count:
        raise InputError(f"{at}: {len(found)} ids for {count} texts")
    if len(set(found)) < count:
        first: dict[str, int] = {}
        for row, one in enumerate(found):
            if first.setdefault(one, row) != row:
                raise InputError(
                    f"{at}: {shown(one)} is the id of rows {first[one]} and {row}; ids differ"
                )
    return list(found)


def rows(
    value: Any, count: int, most: int, at: str, *, one_each: bool = False, distinct: bool = False
) -> Ragged:
    """Row numbers of passages for each of some queries, in the order given.

    Args:
        value: `count` lists or arrays of whole numbers, or a `Ragged`.
        count: queries.
        most: passages there are.
        at: the argument, such as 'mine: positives'.
        one_each: whether a number instead of a list means a list of only that number.
        distinct: whether repeated rows in a list are dropped.

    Returns:
        int32, a row per query.

    Raises:
        InputError: a wrong number of lists, or anything in them that is not a row number.
    """
    if isinstance(value, Ragged):
        found = value
    else:
        value = _listed(value, at, "lists of row numbers, one per query")
        found = [_row(one, query, at, one_each) for query, one in enumerate(value)]
    if len(found) != count:
        raise InputError(f"{at}: {len(found)} lists for {count} queries; give one for each")
    for query in range(count):
        for one in found[query] if not isinstance(found[query], np.ndarray) else ():
            _check_row(one, query, most, at)
    if distinct:
        found = [list(dict.fromkeys(np.asarray(one).tolist())) for one in found]
    made = found if isinstance(found, Ragged) else Ragged.from_rows(found, np.int64)
    bad = (made.values < 0) | (made.values >= most)
    if bad.any():
        where = int(np.argmax(bad))
        _check_row(int(made.values[where]), int(made.row_of[where]), most, at)
    return Ragged(made.offsets, made.values.astype(np.int32))


def _check_row(row: int, query: int, most: int, at: str) -> None:
    if not 0 <= row < most:
        raise InputError(
            f"{at}: query {query} has row {shown(row)}; there are {most} passages, from row 0"
        )


def _row(value: Any, query: int, at: str, one_each: bool) -> np.ndarray | list[int]:
    """The numbers of one query: an array of an integer type, or a list of whole numbers."""
    value = host(value)
    if one_each and _is_whole(value):
        return [int(value)]
    if isinstance(value, np.ndarray) and value.ndim == 1:
        if value.dtype.kind in "iu" and value.dtype != np.uint64:
            return value
        value = value.tolist()
    if not isinstance(value, list | tuple | range):
        raise _no_row(value, query, at)
    for one in value:
        if not _is_whole(one):
            raise _no_row(one, query, at)
    return [int(one) for one in value]


def _no_row(value: Any, query: int, at: str) -> InputError:
    text = isinstance(value, str)
    remedy = "; turn ids and texts into their positions in `passages` first" if text else ""
    return InputError(
        f"{at}: query {query} has {shown(value)} ({type(value).__name__}); expected a list of row "
        f"numbers of passages, which are whole numbers{remedy}"
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def vectors(value: Any, at: str) -> Any:
    """A matrix of vectors that slices by rows: the value itself if it does, else an array of it.

    Args:
        value: a numpy or JAX array, a store, a tensor of another library (copied to the host), a
            table of floats, or a list of vectors of one length.
        at: the argument.

    Raises:
        InputError: something else. Shapes, types and values are checked where they are used.
    """
    value = host(value)
    if isinstance(value, list | tuple):
        value = _stacked(value, at)
    if all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__")):
        return value
    raise InputError(
        f"{at}: expected a matrix of floats, [rows, width], got {type(value).__name__}"
    )


def _stacked(value: Sequence[Any], at: str) -> np.ndarray:
    found = []
    for row, one in enumerate(value):
        try:
            found.append(np.asarray(host(one)))
        except (TypeError, ValueError):
            raise InputError(f"{at}: row {row} is not a list of numbers") from None
        if found[row].shape != found[0].shape or found[row].dtype.kind not in "fiu":
            raise InputError(
                f"{at}: row {row} has shape {found[row].shape} of {found[row].dtype}, row 0 has "
                f"{found[0].shape} of {found[0].dtype}; expected vectors of floats of one length"
            )
    return np.stack(found) if found else np.zeros((0, 0), np.float32)


def host(value: Any) -> Any:
    """Tensors and tables of other libraries as numpy arrays; other values unchanged."""
    library = type(value).__module__.partition(".")[0]
    try:
        if library == "torch" and hasattr(value, "detach"):
            value = value.detach().cpu()
            return (value.float() if value.is_floating_point() else value).numpy()
        if library in ("pandas", "polars", "pyarrow") and hasattr(value, "to_numpy"):
            return value.to_numpy()
    except (TypeError, ValueError, RuntimeError):
        pass  # values that no array can hold are refused by their type
    return value


def _listed(value: Any, at: str, what: str) -> Sequence[Any]:
    """An ordered collection as an object with a length and slices."""
    expected = f"{at}: expected a sequence of {what}, got"
    if isinstance(value, str | bytes):
        raise InputError(f"{expected} one {type(value).__name__}; wrap it in a list")
    if isinstance(value, Mapping | Set):
        raise InputError(
            f"{expected} a {type(value).__name__}; give a list, so that each has a position"
        )
    value = host(value)
    if getattr(value, "ndim", 1) != 1 and what == "texts":
        raise InputError(f"{expected} {value.ndim} dimensions; give one column")
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        raise InputError(f"{expected} {shown(value)} ({type(value).__name__})")
    return list(value)
