"""Shared by readers of text files: numbered lines, and a list of mistakes.

Mistakes are collected while a file is read: the first three are spelled out by file and line and
the rest counted, so that the message is sufficient to repair the file.

A file may be compressed: a file whose name ends in .gz or .zst is decompressed. Limits of parsers
are handled: fields of CSV may have any length, and JSON that Python's parser cannot read (nested
too deeply, numbers of thousands of digits) is a mistake with a line like any other.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.files.numbers import is_plain, shown

SHOWN = 3  # mistakes spelled out in one message
COMPRESSED = (".gz", ".zst")

__all__ = [
    "COMPRESSED",
    "Mistakes",
    "bytes_of",
    "csv_reader",
    "find_file",
    "is_plain",
    "json_kind",
    "json_value",
    "lines",
    "read_text",
    "shown",
    "stem",
]


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


def stem(path: epath.Path) -> tuple[str, str]:
    """A file's name without its suffix, and the suffix in lower case, ignoring compression.

    'test.tsv.gz' is ('test', '.tsv').
    """
    if path.suffix.lower() in COMPRESSED:
        path = path.parent / path.stem
    return path.stem, path.suffix.lower()


def find_file(path: epath.Path) -> epath.Path:
    """The file of this name, or its compressed form if only that exists.

    Raises:
        InputError: there are several, or the name is invalid.
    """
    names = [path, *(path.parent / f"{path.name}{suffix}" for suffix in COMPRESSED)]
    try:
        found = [name for name in names if name.exists()]
    except (OSError, ValueError) as error:  # too long, a NUL or half of a surrogate pair
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown(str(path), 100)}: is not a file name ({reason})") from None
    if len(found) > 1:
        raise InputError(f"{found[0]}: {found[1].name} exists, too; remove one of them")
    return found[0] if found else path


@contextlib.contextmanager
def bytes_of(path: epath.PathLike, what: str) -> Iterator[IO[bytes]]:
    """An open file, decompressed if its name ends in one of `COMPRESSED`.

    Args:
        path: any path `etils.epath` reads.
        what: what it should hold, for messages.

    Raises:
        InputError: it is missing, a folder, or cannot be read, now or later inside the block.
    """
    path = epath.Path(path)
    what = what if what.startswith(("a ", "an ", "the ")) else f"the {what}"
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; expected a file with {what}")
        if not path.exists():
            raise InputError(f"{path}: no such file; it should hold {what}")
        with path.open("rb") as file, _decompressed(file, path.suffix.lower()) as plain:
            yield plain
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from None


def _decompressed(file: IO[bytes], suffix: str):
    if suffix == ".gz":
        return gzip.open(file)
    if suffix == ".zst":
        import pyarrow as pa  # see tables.py

        return io.BufferedReader(_Raw(pa.CompressedInputStream(file, "zstd")))
    return contextlib.nullcontext(file)


class _Raw(io.RawIOBase):
    """A read-only stream as a file that can be iterated by lines."""

    def __init__(self, stream: Any):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def read_text(path: epath.PathLike, what: str) -> str:
    """A whole UTF-8 file, without its byte order mark.

    Args:
        path: any path `etils.epath` reads.
        what: what it should hold, for messages.

    Raises:
        InputError: it is missing, cannot be read, or is not UTF-8 (with the line).
    """
    with bytes_of(path, what) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(_not_utf8(path, line, error)) from None


def lines(path: epath.PathLike, what: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of each line that is not blank, one at a time.

    Raises as `read_text` does.
    """
    with bytes_of(path, what) as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(_not_utf8(path, number, error)) from None
            if line and not line.isspace():
                yield number, line.rstrip("\r\n")


def _not_utf8(path: epath.PathLike, line: int, error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"


def csv_reader(text: Any, **dialect: Any) -> Any:
    """`csv.reader` for fields of any length.

    The standard library's limit of 131,072 characters holds for the whole process; it is only
    raised here.
    """
    csv.field_size_limit(max(csv.field_size_limit(), sys.maxsize >> 1))
    return csv.reader(text, **dialect)


def json_value(text: str, *, finite: bool = False) -> Any:
    """One JSON value.

    Args:
        text: only the value.
        finite: refuse NaN and Infinity, which Python's parser accepts.

    Raises:
        ValueError: it is not one; the message says why, with the column if known.
    """
    try:
        return json.loads(text, parse_constant=_refuse if finite else None)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise ValueError("not valid JSON (nested too deeply)") from None
    except _Constant as error:
        raise ValueError(f"not valid JSON ({error})") from None
    except ValueError:  # an integer beyond what Python converts
        raise ValueError("not valid JSON (a number of thousands of digits)") from None


class _Constant(ValueError):
    """NaN or Infinity."""


def _refuse(constant: str) -> None:
    raise _Constant(f"{constant} is not JSON")


def json_kind(value: object) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    if isinstance(value, int | float) and not isinstance(value, bool):
        small = isinstance(value, float) or abs(value) < 10**18
        digits = value.bit_length() * 0.30103 if not small else 0.0
        return f"the number {value}" if small else f"a number of {int(digits) + 1} digits"
    return names.get(type(value), "null" if value is None else type(value).__name__)
