"""Files of records, one text or pair of texts each: JSON lines, CSV, TSV or Parquet, by suffix.

Choices:

- CSV is RFC 4180's: fields in double quotes may hold commas, line ends and doubled quotes. TSV has
  no quoting, so a quote in a sentence is a character like others and cannot swallow lines.
- CSV and TSV begin with a line of column names. The columns of JSON lines are the keys of the first
  line; every line must have those that are used.
- Values of CSV and TSV are strings, whatever they look like.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from nvret_jax.data.interchange.fields import Json
from nvret_jax.data.interchange.files import Parquet, json_lines
from nvret_jax.data.lines import csv_reader, read_text, stem
from nvret_jax.errors import InputError


@dataclass(frozen=True)
class Records:
    """A file of records.

    Attributes:
        path: the file.
        names: its columns.
        read: columns to read -> ('file:line', or for parquet 'file, row n', and the record) of
            each row; may be called once.
    """

    path: epath.Path
    names: Sequence[str]
    read: Callable[[Sequence[str]], Iterator[tuple[str, Json]]]

    def column(self, *choices: str) -> str:
        """The first of these columns that is there.

        Raises:
            InputError: none of them is.
        """
        for name in choices:
            if name in self.names:
                return name
        wanted = " or ".join(f"'{name}'" for name in choices)
        there = ", ".join(map(str, self.names)) or "none"
        raise InputError(f"{self.path}: lacks the column {wanted}; columns there: {there}")


def open_records(path: epath.PathLike, what: str) -> Records:
    """Opens a file by its suffix: .jsonl, .json, .csv, .tsv or .parquet; .gz or .zst behind it.

    Args:
        path: any path `etils.epath` reads.
        what: what it should hold, for messages.

    Raises:
        InputError: no such file, another suffix, a damaged file, or one without records.
    """
    path = epath.Path(path)
    _, suffix = stem(path)
    if suffix not in _READERS:
        known = ", ".join(_READERS)
        raise InputError(f"{path}: expected a file with {what}, named {known}; got '{suffix}'")
    return _READERS[suffix](path, what)


def _open_json(path: epath.Path, what: str) -> Records:
    records = json_lines(path, what)
    first = next(records)
    return Records(path, list(first[1]), lambda _: itertools.chain([first], records))


def _open_parquet(path: epath.Path, what: str) -> Records:
    file = Parquet(path, what)
    return Records(path, file.names, file.records)


def _open_csv(path: epath.Path, what: str) -> Records:
    return _open_lines(path, what, {"strict": True})


def _open_tsv(path: epath.Path, what: str) -> Records:
    return _open_lines(path, what, {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "strict": True})


def _open_lines(path: epath.Path, what: str, dialect: dict[str, Any]) -> Records:
    rows = _fields(path, csv_reader(io.StringIO(read_text(path, what), newline=""), **dialect))
    where, names = next(rows, (None, None))
    if names is None:
        raise InputError(f"{path}: empty; expected a line of column names, then the {what}")
    names = [name.strip() for name in names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: the column name '{twice}' occurs twice")

    def read(_: Sequence[str]) -> Iterator[tuple[str, Json]]:
        empty = True
        for place, fields in rows:
            if len(fields) != len(names):
                raise InputError(
                    f"{place}: expected {len(names)} columns ({', '.join(names)}), got "
                    f"{len(fields)}"
                )
            empty = False
            yield place, dict(zip(names, fields, strict=True))
        if empty:
            raise InputError(f"{path}: has column names and no rows")

    return Records(path, names, read)


def _fields(path: epath.Path, reader: Any) -> Iterator[tuple[str, list[str]]]:
    """('file:line', fields) of every row that is not blank; a row may be several lines."""
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{where}: cannot be read as a table ({error})") from None
        if fields and (len(fields) > 1 or fields[0].strip()):
            yield where, fields


_READERS: dict[str, Callable[[epath.Path, str], Records]] = {
    ".jsonl": _open_json,
    ".json": _open_json,
    ".csv": _open_csv,
    ".tsv": _open_tsv,
    ".parquet": _open_parquet,
}
