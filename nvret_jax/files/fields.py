"""Checked single values from other tools' files, and the notes of a conversion.

A reader never guesses and never skips. A value of the wrong kind is an `InputError` that names the
file, the line and the key. What is accepted although it is not quite right (a bare string for a
list, a number for an id) is recorded in `Notes`, which reports each kind once, with a count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from nvret_jax.errors import InputError
from nvret_jax.files import numbers
from nvret_jax.files.lines import json_kind as kind

Json = dict[str, Any]
UNKNOWN = math.nan  # a missing score


class Notes:
    """Repairs by a reader or losses of a writer, each reported once."""

    def __init__(self):
        self._found: dict[str, tuple[str, int]] = {}  # what -> first place, count

    def add(self, where: str, what: str) -> None:
        """Records `what`; `where` is reported for its first occurrence only."""
        first, count = self._found.get(what, (where, 0))
        self._found[what] = (first, count + 1)

    def report(self, say: Callable[[str], None]) -> None:
        """Prints all notes, in the order of their first occurrence."""
        for what, (where, count) in self._found.items():
            say(f"{where}: {what}" + (f" (and {count - 1:,} times more)" if count > 1 else ""))


def need(record: Mapping[str, Any], key: str, where: str) -> Any:
    """`record[key]`.

    Raises:
        InputError: there is no such key.
    """
    if key not in record:
        there = ", ".join(list(map(str, record))[:8]) or "none"
        raise InputError(f"{where}: key '{key}' is missing; keys there: {there}")
    return record[key]


def text(record: Mapping[str, Any], key: str, where: str) -> str:
    """A string under a key that must be there."""
    value = need(record, key, where)
    if not isinstance(value, str):
        raise InputError(f"{where}: key '{key}' must be a string, got {kind(value)}")
    return value


def optional_text(record: Mapping[str, Any], key: str, where: str) -> str | None:
    """A string, or None where the key is missing or null."""
    return None if record.get(key) is None else text(record, key, where)


def identifier(value: Any, key: str, where: str, notes: Notes) -> str:
    """An id: a string that is not empty, or a whole number, which is read as its digits."""
    found = numbers.identifier(value)
    if found:
        if not isinstance(value, str):
            notes.add(where, f"'{key}' is a number; ids are text here and it is read as such")
        return found
    got = "an empty string" if value == "" else kind(value)
    raise InputError(f"{where}: key '{key}' must be an id (a string or a whole number), got {got}")


def items(record: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """A list under a key; a missing key or null is the empty list."""
    value = record.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"{where}: key '{key}' must be a list, got {kind(value)}")
    return value


def texts(record: Mapping[str, Any], key: str, where: str, notes: Notes) -> list[str]:
    """A list of strings; a bare string becomes a list of one, and is noted."""
    if isinstance(record.get(key), str):  # which FlagEmbedding would split into letters
        notes.add(where, f"'{key}' is a bare string, read as a list of one")
        return [record[key]]
    found = items(record, key, where)
    for number, value in enumerate(found, 1):
        if not isinstance(value, str):
            raise InputError(
                f"{where}: item {number} of '{key}' must be a string, got {kind(value)}"
            )
    return found


def identifiers(record: Mapping[str, Any], key: str, where: str, notes: Notes) -> list[str]:
    """A list of ids."""
    found = items(record, key, where)
    return [identifier(value, key, where, notes) for value in found]


def score(value: Any, key: str, where: str) -> float:
    """A finite number; null is `UNKNOWN`."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: key '{key}' must hold numbers, got {kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{where}: key '{key}' must hold finite numbers, got {number}")
    return number


def scores(record: Mapping[str, Any], key: str, count: int, of: str, where: str) -> list[float]:
    """One score for each of `count` items of key `of`; all `UNKNOWN` without the key."""
    if record.get(key) is None:
        return [UNKNOWN] * count
    found = items(record, key, where)
    if len(found) != count:
        raise InputError(f"{where}: key '{key}' has {len(found)} numbers for {count} in '{of}'")
    return [score(value, key, where) for value in found]


def rest(record: Mapping[str, Any], known: frozenset[str], where: str) -> Json:
    """The keys a format does not know, to be kept.

    Raises:
        InputError: one of them holds a value that cannot be written as JSON (1e999).
    """
    extra = {key: value for key, value in record.items() if key not in known}
    if extra:
        try:
            json.dumps(extra, allow_nan=False)
        except (ValueError, TypeError, RecursionError):
            keys = ", ".join(extra)
            raise InputError(f"{where}: a value under {keys} is not plain finite JSON") from None
    return extra


def with_extra(record: Json, extra: Json, where: str, notes: Notes) -> Json:
    """`record` and the kept keys; if both have a key, the format's own wins."""
    for key, value in extra.items():
        if key in record:
            notes.add(where, f"'{key}' is a key of this format; the source's own is left out")
        else:
            record[key] = value
    return record


def known_or_null(value: float) -> float | None:
    """A score in the form for JSON and parquet."""
    return None if math.isnan(value) else value
