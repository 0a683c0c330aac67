"""Reads and writes JSON lines, JSON and parquet; files appear whole or not at all.

- JSON lines are read and written one at a time; parquet is written in row groups of `CHUNK` rows.
- Text files are read from .gz and .zst, too.
- Errors that libraries raise for damaged files become `InputError`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.files.fields import Json, kind
from nvret_jax.files.lines import bytes_of, json_value, read_text
from nvret_jax.files.lines import lines as numbered_lines

CHUNK = 10_000  # rows of a parquet file written or turned into Python at a time


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


def json_values(path: epath.Path, what: str) -> Iterator[tuple[str, Any]]:
    """('file:line', value) of a file of JSON lines.

    Raises:
        InputError: a line is not JSON, or there is none at all.
    """
    empty = True
    for where, line in lines(path, what):
        value = parse_json(line, where)
        empty = False
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


class Parquet:
    """A parquet file to read: column types at once, rows on demand.

    Attributes:
        path: the file.
        schema: Arrow's schema.
    """

    def __init__(self, path: epath.Path, what: str):
        """Reads and validates the whole file.

        Raises:
            InputError: no such file, or it is damaged.
        """
        self.path = path
        with bytes_of(path, what) as file, self._damage():
            self._table = pq.read_table(file)
            self._table.validate(full=True)
        self.schema = self._table.schema
        names = self.schema.names
        if len(set(names)) != len(names):
            raise InputError(f"{path}: a column name occurs twice among {names}")

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise InputError(f"{self.path}: cannot be read as parquet ({error})") from None

    @property
    def names(self) -> list[str]:
        return self.schema.names

    def need(self, *names: str) -> None:
        """Raises InputError unless these columns exist."""
        for name in names:
            if name not in self.names:
                there = ", ".join(self.names) or "none"
                raise InputError(f"{self.path}: lacks the column '{name}'; columns there: {there}")

    def records(self, names: Iterable[str]) -> Iterator[tuple[str, Json]]:
        """('file, row n', {column: value}) counting from 1.

        Raises:
            InputError: there is no row at all.
        """
        with self._damage():
            table, number = self._table.select(list(names)), 0
        for start in range(0, table.num_rows, CHUNK):
            with self._damage():
                chunk = table.slice(start, CHUNK).to_pylist()
            for record in chunk:
                number += 1
                yield f"{self.path}, row {number}", record
        if not number:
            raise InputError(f"{self.path}: has no rows")


def write_parquet(file: IO[bytes], schema: pa.Schema, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes records as parquet in row groups of `CHUNK`; returns how many."""
    count, chunk = 0, []
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for record in records:
            chunk.append(record)
            count += 1
            if len(chunk) == CHUNK:
                writer.write_table(pa.Table.from_pylist(chunk, schema))
                chunk = []
        if chunk or not count:
            writer.write_table(pa.Table.from_pylist(chunk, schema))
    return count
