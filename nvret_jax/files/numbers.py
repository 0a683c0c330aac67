"""Numbers and ids in files: ASCII digits, of a plausible size.

`int()` and `float()` accept more than a data file should hold: '1_0', digits of other scripts,
white space, thousands of digits. These are refused in every file.
"""

from __future__ import annotations

import re
import unicodedata

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?")
_DECIMAL = re.compile(
    r"[+-]?(?:(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?|(?i:nan|inf(?:inity)?))"
)
_LARGEST_ID = 2**64


def whole_number(word: str) -> int:
    """A whole number of at most 18 digits; '1.0', as pandas writes it, is one.

    Raises:
        ValueError: it is not.
    """
    if not _WHOLE.fullmatch(word):
        raise ValueError(f"not a whole number: {shown(word)}")
    return int(word.partition(".")[0])


def decimal(word: str) -> float:
    """A decimal number, such as '-1.5e-3'; also 'nan' and 'inf', which the caller checks.

    Raises:
        ValueError: it is not one.
    """
    if not _DECIMAL.fullmatch(word):
        raise ValueError(f"not a number: {shown(word)}")
    return float(word)


def identifier(value: object) -> str | None:
    """The id that a JSON value represents: a string, or a whole number below 2^64 as its digits.

    None for anything else: 1.0, true, null and lists are not ids.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_ID:
        return str(value)
    return None


def shown(text: str, most: int = 60) -> str:
    """A string in quotes for a message: truncated, and with invisible characters named.

    'q1' with a byte order mark in front is "'\\ufeffq1', with the invisible character U+FEFF".
    """
    cut = repr(text if len(text) <= most else text[:most] + "…")
    hidden = next((c for c in text if c != " " and not c.isprintable()), None)
    return cut if hidden is None else f"{cut}, with the invisible character U+{ord(hidden):04X}"


def is_plain(identifier: str) -> bool:
    """Whether an id can be one column of a file that is split at white space, such as a run."""
    if identifier.isprintable() and " " not in identifier:  # fast path for nearly all ids
        return bool(identifier)
    return not any(c.isspace() or unicodedata.category(c) in ("Cc", "Cs") for c in identifier)
