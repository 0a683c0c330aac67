"""Files of records: CSV, TSV, JSON, JSON lines, Parquet or Arrow.

Choices:

- The suffix determines the format; `.gz` and `.zst` may follow it.
- CSV is RFC 4180's: fields in double quotes may hold commas, line ends and doubled quotes. The
  delimiter (comma, semicolon, tab or bar) is the one that gives the first lines equal widths, so
  Excel's files are read in every locale, and so is its line `sep=;`. Spreadsheets leave rows of
  only delimiters and empty columns without a name around a table: they are skipped, and so is a
  first column without a name, which pandas writes for its index.
- TSV has no quoting, so a quote in a sentence is an ordinary character and cannot swallow lines.
- Text is UTF-8, or UTF-16 with a byte order mark. Any other encoding has to be named, because it
  cannot be detected from the bytes.
- CSV and TSV begin with a line of column names, or `header=no` numbers the columns from 1, like
  JSON lines that are arrays. Their values are always strings: an id keeps its zeros.
- The columns of JSON lines are the keys of the first line. A later new key is added from there on.
- Parquet and Arrow are read in batches, so that a file larger than memory can be read.
"""

from __future__ import annotations

import contextlib
import csv
import glob as glob_lib
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.files.fields import Json, kind
from nvret_jax.files.json_lines import json_values, lines, parse_json
from nvret_jax.files.lines import Mistakes, bytes_of, csv_reader, read_text, shown, stem
from nvret_jax.files.source import Source

BATCH = 8192  # rows of a column-wise file turned into Python at a time
_DELIMITERS = ",;\t|"
_HEAD = 1 << 16  # characters in which the delimiter is detected
_ZIP = b"PK\x03\x04"
_SHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_NOT_DATA = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json")


@dataclass(frozen=True)
class Layout:
    """The layout of a text file, as far as its bytes do not show it.

    Attributes:
        encoding: a codec of Python, such as 'cp1252'; None: UTF-8, or UTF-16 with its mark.
        delimiter: of CSV; None: found in the first lines.
        header: whether the first row names the columns.
    """

    encoding: str | None = None
    delimiter: str | None = None
    header: bool = True


PLAIN = Layout()
LAYOUT = ("encoding", "delimiter", "header")  # its options, after the name of a source


def layout_of(source: Source) -> Layout:
    """The layout from the options of a source.

    Raises:
        InputError: an invalid value.
    """
    names = {"tab": "\t", "comma": ",", "semicolon": ";", "bar": "|"}
    delimiter = source.options.get("delimiter")
    delimiter = names.get(delimiter, delimiter) if delimiter is not None else None
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        words = ", ".join(names)
        raise InputError(
            f"{source.shown}: option delimiter={shown(delimiter)}: expected one character, or one "
            f"of {words}"
        )
    header = source.choice("header", ("yes", "no"), "yes") == "yes"
    return Layout(source.options.get("encoding"), delimiter, header)


@dataclass(frozen=True)
class Records:
    """A file of records.

    Attributes:
        path: the file.
        names: its columns; for JSON lines, more may be added while the file is read.
        rows: see `read`.
        schema: Arrow's, of a columnar file; None for others.
    """

    path: epath.Path
    names: list[str]
    rows: Callable[[Sequence[str], Mistakes | None], Iterator[tuple[str, Json]]]
    schema: Any = None

    def read(
        self, names: Sequence[str] = (), mistakes: Mistakes | None = None
    ) -> Iterator[tuple[str, Json]]:
        """('file:line', or for parquet 'file, row n', and the record) of each row; call it once.

        Args:
            names: columns to read; others may be in a record, too. Empty: all.
            mistakes: collects invalid rows, which are then skipped; None: the first one raises.

        Raises:
            InputError: the file is damaged, or has no rows.
        """
        return self.rows(names or self.names, mistakes)

    def need(self, *names: str) -> None:
        """Raises InputError unless these columns exist."""
        for name in names:
            self.column(name)

    def column(self, *choices: str) -> str:
        """The first of these columns that exists.

        Raises:
            InputError: none of them does.
        """
        for name in choices:
            if name in self.names:
                return name
        wanted = " or ".join(f"'{name}'" for name in choices)
        there = ", ".join(map(str, self.names)) or "none"
        raise InputError(f"{self.path}: lacks the column {wanted}; columns there: {there}")


def find_files(place: str, what: str) -> list[epath.Path]:
    """The files of records that `place` refers to, in natural order of their names.

    Args:
        place: a file; a pattern with '*', '?' or '[…]', where '**' matches any folders; or a
            folder, for the files of records in it.
        what: what they should hold, for messages.

    Raises:
        InputError: there is none.
    """
    path = epath.Path(place)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown(place, 100)}: is not a file name ({reason})") from None
    if is_folder:
        found = [file for file in path.iterdir() if is_data(file)]
        if not found:
            known = ", ".join(READERS)
            raise InputError(f"{place}: no file with {what} in this folder; suffixes: {known}")
        return sorted(found, key=_natural)
    if exists or not glob_lib.has_magic(place):
        return [path]
    found = [epath.Path(name) for name in glob_lib.glob(place, recursive=True)]
    found = [file for file in found if file.is_file()]
    if not found:
        raise InputError(f"{place}: no file matches; expected files with {what}")
    return sorted(found, key=_natural)


def is_data(path: epath.Path) -> bool:
    """Whether a file holds records, by its name; text files and hidden ones do not."""
    hidden = path.name.startswith((".", "_")) or path.name in _NOT_DATA
    return not hidden and stem(path)[1] in READERS and stem(path)[1] != ".txt" and path.is_file()


def _natural(path: epath.Path) -> list[Any]:
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if part.isdigit() and part.isascii() else part for part in parts]


def open_records(
    path: epath.PathLike, what: str, layout: Layout = PLAIN, *, suffix: str = ""
) -> Records:
    """Opens a file by its suffix (see `READERS`), which .gz or .zst may follow.

    Args:
        path: any path `etils.epath` reads.
        what: what it should hold, for messages.
        layout: of CSV and TSV, as far as the bytes do not show it.
        suffix: takes the place of the name's own; '': it does not.

    Raises:
        InputError: no such file, another suffix, a damaged file, or one without records.
    """
    path = epath.Path(path)
    suffix = suffix or stem(path)[1]
    if suffix in _SHEETS:
        raise InputError(f"{path}: is a workbook; save the sheet as 'CSV UTF-8' and use that file")
    if suffix not in READERS:
        known = ", ".join(READERS)
        there = f"got '{suffix}'" if suffix else "this name has no suffix"
        raise InputError(f"{path}: expected a file with {what}, named {known}; {there}")
    return READERS[suffix](path, what, layout)


# --- JSON ----------------------------------------------------------------------------------------


def _open_json_lines(path: epath.Path, what: str, layout: Layout) -> Records:
    return _of_values(path, lambda mistakes: json_values(path, what, mistakes))


def _open_json(path: epath.Path, what: str, layout: Layout) -> Records:
    """An array of objects, an object that holds one, or JSON lines in a file of this name."""
    start = [line.strip() for _, line in itertools.islice(lines(path, what), 2)]
    if len(start) == 2 and all(line[0] == "{" and line[-1] == "}" for line in start):
        return _open_json_lines(path, what, layout)
    whole = parse_json(read_text(path, what) or "null", str(path))
    if isinstance(whole, dict):
        lists = [value for value in whole.values() if isinstance(value, list)]
        nested = [value for value in lists if value and isinstance(value[0], dict)]
        whole = nested[0] if len(nested) == 1 else [whole]
    if not isinstance(whole, list) or not whole:
        raise InputError(f"{path}: expected an array of objects with {what}")
    return _of_values(
        path,
        lambda mistakes: ((f"{path}, item {n}", value) for n, value in enumerate(whole, 1)),
    )


def _of_values(
    path: epath.Path, values: Callable[[Mistakes | None], Iterator[tuple[str, Any]]]
) -> Records:
    """Records of values that may be gone through twice: for the first one's keys, and to read."""
    names = list(next(_objects(values(None), None))[1])
    known = set(names)

    def read(_: Sequence[str], mistakes: Mistakes | None) -> Iterator[tuple[str, Json]]:
        for where, record in _objects(values(mistakes), mistakes):
            for name in record:
                if name not in known:
                    known.add(name)
                    names.append(name)
            yield where, record

    return Records(path, names, read)


def _objects(
    values: Iterator[tuple[str, Any]], mistakes: Mistakes | None
) -> Iterator[tuple[str, Json]]:
    """Objects, or arrays with positions as keys; all have the kind of the first one."""
    first: type | None = None
    for where, value in values:
        first = first or (list if isinstance(value, list) else dict)
        if not isinstance(value, first):
            expected = "array" if first is list else "object"
            _refuse(f"{where}: expected a JSON {expected}, got {kind(value)}", mistakes)
            continue
        if first is list:
            value = {str(number): item for number, item in enumerate(value, 1)}
        yield where, value


def _refuse(message: str, mistakes: Mistakes | None) -> None:
    """Collects what is wrong with a row; raises it where nothing collects."""
    if mistakes is None:
        raise InputError(message)
    mistakes.add(message)


# --- CSV and TSV ---------------------------------------------------------------------------------


def _open_csv(path: epath.Path, what: str, layout: Layout) -> Records:
    with _text(path, what, layout) as text:
        head = text.read(_HEAD)
    skip, delimiter = 0, layout.delimiter
    if said := re.match(r"sep=(.)\r?\n?", head):
        skip, delimiter = 1, delimiter or said[1]
        head = head[said.end() :]
    delimiter = delimiter or _delimiter(head)
    return _open_table(path, what, layout, {"delimiter": delimiter, "strict": True}, skip)


def _open_tsv(path: epath.Path, what: str, layout: Layout) -> Records:
    dialect = {"delimiter": layout.delimiter or "\t", "quoting": csv.QUOTE_NONE, "strict": True}
    return _open_table(path, what, layout, dialect, 0)


def _delimiter(head: str) -> str:
    """The delimiter that gives the first lines equal widths; the widest of several."""
    best, best_rank = ",", (False, 0)
    for delimiter in _DELIMITERS:
        rows = []
        with contextlib.suppress(csv.Error):
            for row in csv_reader(io.StringIO(head, newline=""), delimiter=delimiter):
                rows.append(row)
        if len(head) >= _HEAD and len(rows) > 1:
            rows.pop()  # truncated
        widths = {len(row) for row in rows[:50] if any(cell.strip() for cell in row)}
        width = len(rows[0]) if rows else 1
        rank = (len(widths) == 1 and width > 1, width)
        if rank > best_rank and width > 1:
            best, best_rank = delimiter, rank
    return best


def _open_table(
    path: epath.Path, what: str, layout: Layout, dialect: dict[str, Any], skip: int
) -> Records:
    rows = _fields(path, what, layout, dialect, skip)
    where, names = next(rows, (None, None))
    if names is None:
        raise InputError(f"{path}: empty; expected a line of column names, then the {what}")
    if not layout.header:
        rows = itertools.chain([(where, names)], rows)
        names = [str(number) for number in range(1, len(names) + 1)]
    names = [name.strip().strip("\ufeff") for name in names]
    if any("\0" in name for name in names):
        raise InputError(
            f"{where}: a column name has NUL characters; UTF-16 without a byte order mark has to "
            "be named, as in ?encoding=utf-16-le"
        )
    has_index = len(names) > 1 and not names[0] and all(names[1:])
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: the column name '{twice}' occurs twice")

    def read(_: Sequence[str], mistakes: Mistakes | None) -> Iterator[tuple[str, Json]]:
        empty = True
        for place, cells in rows:
            empty = False
            if len(cells) != len(names):
                shown_names = ", ".join(name or "''" for name in names)
                wrong = f"expected {len(names)} columns ({shown_names}), got {len(cells)}"
                _refuse(f"{place}: {wrong}", mistakes)
                continue
            record = dict(zip(names, cells, strict=True))
            if record.pop("", "").strip() and not has_index:
                wrong = f"{place}: has a value in a column without a name; name the column"
                _refuse(wrong, mistakes)
                continue
            yield place, record
        if empty:
            raise InputError(f"{path}: has column names and no rows")

    return Records(path, [name for name in names if name], read)


def _fields(
    path: epath.Path, what: str, layout: Layout, dialect: dict[str, Any], skip: int
) -> Iterator[tuple[str, list[str]]]:
    """('file:line', fields) of every row that is not blank; a row may be several lines."""
    with _text(path, what, layout) as text:
        for _ in range(skip):
            text.readline()
        reader = csv_reader(text, **dialect)
        while True:
            where = f"{path}:{reader.line_num + skip + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(f"{where}: cannot be read as a table ({error})") from None
            if any(field.strip() for field in fields):
                yield where, fields


@contextlib.contextmanager
def _text(path: epath.Path, what: str, layout: Layout) -> Iterator[io.TextIOWrapper]:
    """An open text file; bytes invalid in its encoding are an InputError with their line."""
    with bytes_of(path, what) as file:
        encoding = layout.encoding or _encoding(path, what)
        try:
            text = io.TextIOWrapper(file, encoding, newline="")
            yield text
        except UnicodeDecodeError:
            if encoding == "utf-8-sig":
                _refuse_bytes(path, what)
            raise InputError(f"{path}: is not {encoding}; name another with ?encoding=") from None
        except LookupError:
            raise InputError(
                f"{path}: encoding={shown(encoding)}: expected an encoding that Python knows, "
                f"such as cp1252"
            ) from None


def _encoding(path: epath.Path, what: str) -> str:
    with bytes_of(path, what) as file:
        mark = file.read(4)
    if mark == _ZIP:
        raise InputError(
            f"{path}: is a workbook or another zip archive, not text; save the sheet as 'CSV UTF-8'"
        )
    mark = mark[:2]
    return "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _refuse_bytes(path: epath.Path, what: str) -> None:
    """Raises InputError with the line of the first byte that is not UTF-8."""
    try:
        read_text(path, what)
    except InputError as error:
        raise InputError(
            f"{str(error).partition(';')[0]}; save the file as UTF-8, or name its encoding, as in "
            "?encoding=cp1252 (what Excel writes as 'CSV' in western Europe and America)"
        ) from None


# --- Parquet and Arrow ---------------------------------------------------------------------------


def _open_parquet(path: epath.Path, what: str, layout: Layout) -> Records:
    import pyarrow.parquet as pq  # see tables.py

    def opened(file: Any) -> tuple[Any, Callable[[Sequence[str]], Iterable[Any]]]:
        parquet = pq.ParquetFile(file)
        return parquet.schema_arrow, lambda names: parquet.iter_batches(BATCH, columns=list(names))

    return _open_columns(path, what, opened, "parquet")


def _open_arrow(path: epath.Path, what: str, layout: Layout) -> Records:
    import pyarrow as pa

    def opened(file: Any) -> tuple[Any, Callable[[Sequence[str]], Iterable[Any]]]:
        try:
            reader = pa.ipc.open_stream(file)
            batches: Iterable[Any] = reader
        except pa.ArrowInvalid:
            file.seek(0)
            reader = pa.ipc.open_file(file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        return reader.schema, lambda names: (batch.select(list(names)) for batch in batches)

    return _open_columns(path, what, opened, "Arrow")


def _open_columns(path: epath.Path, what: str, opened: Callable, form: str) -> Records:
    import pyarrow as pa

    @contextlib.contextmanager
    def damage() -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise InputError(f"{path}: cannot be read as {form} ({error})") from None

    with _seekable(path, what) as file, damage():
        schema = opened(file)[0]
    if len(set(schema.names)) != len(schema.names):
        raise InputError(f"{path}: a column name occurs twice among {schema.names}")

    def batches(names: Sequence[str]) -> Iterator[tuple[int, Any]]:
        number = 1
        with _seekable(path, what) as file:
            with damage():
                found = iter(opened(file)[1](names))
            while True:
                with damage():
                    batch = next(found, None)
                    if batch is not None:
                        batch.validate(full=True)
                if batch is None:
                    break
                yield number, batch
                number += batch.num_rows
        if number == 1:
            raise InputError(f"{path}: has no rows")

    def read(names: Sequence[str], _: Mistakes | None) -> Iterator[tuple[str, Json]]:
        for number, batch in batches(names):
            for start in range(0, batch.num_rows, BATCH):
                with damage():
                    rows = batch.slice(start, BATCH).to_pylist()
                for offset, record in enumerate(rows, number + start):
                    yield f"{path}, row {offset}", record

    return Records(path, list(schema.names), read, schema)


@contextlib.contextmanager
def _seekable(path: epath.Path, what: str) -> Iterator[Any]:
    with bytes_of(path, what) as file:
        seekable = hasattr(file, "seekable") and file.seekable()
        yield file if seekable else io.BytesIO(file.read())


def write_parquet(file: IO[bytes], schema: Any, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes records as parquet, `BATCH` rows to a group; returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, chunk = 0, []
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for record in records:
            chunk.append(record)
            count += 1
            if len(chunk) == BATCH:
                writer.write_table(pa.Table.from_pylist(chunk, schema))
                chunk = []
        if chunk or not count:
            writer.write_table(pa.Table.from_pylist(chunk, schema))
    return count


READERS: dict[str, Callable[[epath.Path, str, Layout], Records]] = {
    ".jsonl": _open_json_lines,
    ".json": _open_json,
    ".csv": _open_csv,
    ".tsv": _open_tsv,
    ".txt": _open_csv,
    ".parquet": _open_parquet,
    ".arrow": _open_arrow,
    ".feather": _open_arrow,
}
