"""What every reader of a text file needs: its lines with their numbers, and a list of mistakes.

Mistakes are collected while a file is read: the first three are spelled out by file and line and
the rest counted, so that one look at the message is enough to repair the file.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from etils import epath

from nvret_jax.errors import InputError

SHOWN = 3  # mistakes spelled out in one message


class Mistakes:
    """Collects mistakes, and raises them as one line.

    Attributes:
        count: how many there are so far.
    """

    def __init__(self):
        self._first: list[str] = []
        self.count = 0

    def add(self, message: str) -> None:
        """Notes a mistake."""
        self.count += 1
        if len(self._first) < SHOWN:
            self._first.append(message)

    def check(self) -> None:
        """Raises InputError if there was any mistake."""
        if self.count:
            left = self.count - len(self._first)
            raise InputError("; ".join(self._first) + (f"; … and {left} more" if left else ""))


def read_text(path: epath.PathLike, what: str) -> str:
    """A whole UTF-8 file, without its byte order mark.

    Args:
        path: any path `etils.epath` reads.
        what: what it should hold, for messages.

    Raises:
        InputError: it is missing, cannot be read, or is not UTF-8 (with the line).
    """
    path = epath.Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; it should hold the {what}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise InputError(
            f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def lines(path: epath.PathLike, what: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of each line that is not blank; raises as `read_text` does."""
    # Not splitlines(): JSON may hold U+2028 and its like unescaped inside a string.
    for number, line in enumerate(read_text(path, what).split("\n"), 1):
        if line and not line.isspace():
            yield number, line.rstrip("\r")


def is_plain(identifier: str) -> bool:
    """Whether an id survives as one column of a file that is split at white space, as runs are."""
    if identifier.isprintable() and " " not in identifier:  # the quick answer for nearly all
        return bool(identifier)
    return not any(c.isspace() or unicodedata.category(c) == "Cc" for c in identifier)


def json_kind(value: object) -> str:
    """What a JSON value is called in JSON's own words."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = str(value) if isinstance(value, float) or abs(value) < 1e18 else f"{value:.3e}"
        return f"the number {shown}"
    return names.get(type(value), "null" if value is None else type(value).__name__)
