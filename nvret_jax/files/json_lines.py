"""JSON in files: one value per line, or one for the whole file; read with its place, and written.

Numbers are finite and texts whole Unicode. A file may be compressed, as of `lines.bytes_of`. Errors
that libraries raise for damaged files become `InputError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.files.fields import Json, kind
from nvret_jax.files.lines import Mistakes, json_value, read_text
from nvret_jax.files.lines import lines as numbered_lines


def lines(path: epath.Path, what: str) -> Iterator[tuple[str, str]]:
    """('file:line', text without its end) of every line that is not blank, one at a time.

    Raises:
        InputError: no such file, or bytes that are not UTF-8.
    """
    for number, line in numbered_lines(path, what):
        yield f"{path}:{number}", line


def parse_json(data: str, where: str) -> Any:
    """One JSON value, with only finite numbers and whole characters.

    Raises:
        InputError: it is not one.
    """
    try:
        value = json_value(data, finite=True)
        if "\\ud" in data or "\\uD" in data:  # only an escape can produce half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise InputError(
            f"{where}: half of a surrogate pair (\\u{half:04x}) is not valid Unicode"
        ) from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    return value


def json_lines(path: epath.Path, what: str) -> Iterator[tuple[str, Json]]:
    """('file:line', object) of a file of JSON lines.

    Raises:
        InputError: a line is not a JSON object, or there is none at all.
    """
    for where, record in json_values(path, what):
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected a JSON object, got {kind(record)}")
        yield where, record


def json_values(
    path: epath.Path, what: str, mistakes: Mistakes | None = None
) -> Iterator[tuple[str, Any]]:
    """('file:line', value) of a file of JSON lines.

    Args:
        mistakes: collects lines that are not JSON, which are then skipped; None: the first raises.

    Raises:
        InputError: a line is not JSON, or there is none at all.
    """
    empty = True
    for where, line in lines(path, what):
        empty = False
        try:
            value = parse_json(line, where)
        except InputError as error:
            if mistakes is None:
                raise
            mistakes.add(str(error))
        else:
            yield where, value
    if empty:
        raise InputError(f"{path}: empty; expected one JSON object per line, with {what}")


def json_file(path: epath.Path, what: str) -> Json:
    """A file that is one JSON object."""
    value = parse_json(read_text(path, what), str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object with {what}, got {kind(value)}")
    return value


def dump_line(record: Mapping[str, Any]) -> bytes:
    """A record as one JSON line."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_json_lines(file: IO[bytes], records: Iterable[Mapping[str, Any]]) -> int:
    """Writes records as JSON lines; returns how many."""
    count = 0
    for record in records:
        file.write(dump_line(record))
        count += 1
    return count
