"""Precomputed vectors as a teacher: `vectors:DIR`.

DIR holds one file for the passages and one for the queries, in any of these forms:

    passages.npy      float [rows, D], memory-mapped; its ids in passages.ids.txt, one per line
    passages.npz      arrays `ids` and `vectors`
    passages.parquet  an id column (`ID_COLUMNS`) and a column of lists (`VECTOR_COLUMNS`); a folder
    of that name holds parts, read in the order of their names
    passages.zarr     a store of this package (`search.store`); its ids in passages.ids.txt

and the same for `queries`. The result behaves like a matrix whose rows are the rows of the data
set, whatever the order in the file. Choices:

- Every id of the data set must be in the file; the file may hold others, which are counted. A
  repeated id is refused, because it is unclear which of its vectors is meant.
- Slices are float32, whatever the file holds. npy and zarr stay on disk; npz and parquet are held
  in host memory, parquet read one row group at a time. A zarr store in another order than the data
  set is held in memory too, because a store is read by stretches of rows.
- Everything is read once on opening, so that NaN, infinity or (if unit length is requested) a zero
  vector is found before hours of search. `scan=False` leaves that to the search.
- Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath

from nvret_jax.data import tables
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.models.pretrained.weights import file_sha256
from nvret_jax.search.store import EmbeddingStore

KINDS = ("passages", "queries")
FORMS = ("npy", "npz", "parquet", "zarr")
ID_COLUMNS = ("id", "_id", "docid", "passage_id", "query_id")
VECTOR_COLUMNS = ("embedding", "vector", "vectors", "embeddings")
READ_ROWS = 16384  # rows checked at a time


class Vectors:
    """A matrix [N, D] aligned to the rows of a data set; slices are float32.

    Attributes:
        path: the file or folder behind it.
        shape: (N, D).
        dtype: float32.
        extra: vectors of the file whose ids are not in the data set.
        normalize: whether rows are scaled to unit length as they are read.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, path: epath.Path, matrix, file_rows: np.ndarray, *, normalize: bool):
        """Use `open_vectors`.

        Args:
            path: for messages.
            matrix: [rows, D], a numpy array or a store that slices by rows.
            file_rows: int64 [N], the row in `matrix` of each row of the data set.
            normalize: see above.
        """
        self.path, self.normalize = path, normalize
        self.shape = (len(file_rows), matrix.shape[1])
        self.extra = matrix.shape[0] - len(file_rows)
        in_order = len(file_rows) and file_rows[-1] - file_rows[0] == len(file_rows) - 1
        in_order = in_order and bool((np.diff(file_rows) == 1).all())
        self._first = int(file_rows[0]) if in_order else None  # a plain slice of the file, then
        ascending = in_order or bool((np.diff(file_rows) > 0).all())
        if not ascending and not isinstance(matrix, np.ndarray):
            matrix = np.concatenate(
                [matrix[a : a + READ_ROWS] for a in range(0, matrix.shape[0], READ_ROWS)]
            )
        self._matrix, self._file_rows = matrix, file_rows

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        rows, width = self.shape
        return f"Vectors({rows:,} x {width} {self.dtype}, {str(self.path)!r})"

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows start:stop, float32 [stop - start, D]."""
        if not isinstance(rows, slice):
            raise TypeError(f"Vectors are read by slices of rows, got {rows!r}")
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise TypeError(f"Vectors slices have step 1, got {step}")
        stop = max(start, stop)
        if self._first is not None:
            block_nd = self._matrix[self._first + start : self._first + stop]
        elif isinstance(self._matrix, np.ndarray):
            block_nd = self._matrix[self._file_rows[start:stop]]
        else:
            block_nd = self._gather(self._file_rows[start:stop])
        with np.errstate(over="ignore"):  # overflow becomes infinite, which the scan reports
            block_nd = np.array(block_nd, np.float32)
        if self.normalize:
            norm_n = np.linalg.norm(block_nd.astype(np.float64), axis=1, keepdims=True)
            np.divide(block_nd, norm_n, out=block_nd, where=norm_n > 0, casting="unsafe")
        return block_nd

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """All rows, for `np.asarray(vectors)`."""
        if copy is False:
            raise ValueError("Vectors are on disk: np.asarray has to copy them")
        return self[:].astype(dtype or self.dtype, copy=False)

    def scan(self, ids: Sequence[str]) -> None:
        """Reads everything once; InputError names the first row that cannot be searched."""
        for start in range(0, len(self), READ_ROWS):
            block_nd = self[start : start + READ_ROWS]
            wrong = {"NaN or infinity": ~np.isfinite(block_nd).all(axis=1)}
            if self.normalize:
                wrong["only zeros"] = ~block_nd.any(axis=1)
            for what, bad in wrong.items():
                if bad.any():
                    row = start + int(np.argmax(bad))
                    raise InputError(
                        f"{self.path}: row {self._file_rows[row]} (id {ids[row]!r}) has {what} in "
                        "it; " + _CURES[what]
                    )

    def _gather(self, file_rows: np.ndarray) -> np.ndarray:
        """Ascending rows of a store, read as one contiguous range, piece by piece."""
        out = np.empty((len(file_rows), self.shape[1]), self._matrix.dtype)
        start = 0
        while start < len(file_rows):
            stop = int(np.searchsorted(file_rows, file_rows[start] + READ_ROWS))
            block = self._matrix[int(file_rows[start]) : int(file_rows[stop - 1]) + 1]
            out[start:stop] = block[file_rows[start:stop] - file_rows[start]]
            start = stop
        return out


_CURES = {
    "NaN or infinity": "vectors must be finite float32; recompute this one",
    "only zeros": "it cannot be scaled to unit length; recompute it, or turn normalisation off",
}


def open_vectors(
    folder: os.PathLike | str,
    kind: str,
    ids: Sequence[str],
    *,
    normalize: bool = False,
    scan: bool = True,
) -> Vectors:
    """The vectors of a data set's passages or queries.

    Args:
        folder: DIR of `vectors:DIR`; see the module's docstring.
        kind: 'passages' or 'queries'.
        ids: of the data set, in its order.
        normalize: scale every vector to unit length, so that inner products are cosines.
        scan: check every number now.

    Raises:
        InputError: no file or several, one that is damaged, empty or of another form, missing or
            repeated ids, or vectors that cannot be searched.
    """
    path = _find(paths.local(folder, "vectors"), kind)
    if not len(ids):
        raise InputError(f"{path}: the data set has no {kind}")
    return open_file(path, ids, normalize=normalize, scan=scan)


def open_file(
    path: os.PathLike | str, ids: Sequence[str], *, normalize: bool = False, scan: bool = True
) -> Vectors:
    """The vectors of one file, by the ids of a table.

    Args:
        path: see the module's docstring for the forms.
        ids: of the table, in its order; at least one.
        normalize, scan: as of `open_vectors`.

    Raises:
        InputError: as `open_vectors`.
    """
    path = epath.Path(path)
    if path.suffix[1:] not in READERS:
        raise InputError(f"{path}: vectors are {', '.join(f'.{form}' for form in FORMS)} files")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    table = READERS[path.suffix[1:]](path)
    if not len(table.ids) or not table.matrix.shape[1]:
        raise InputError(f"{path}: empty, {table.matrix.shape[0]} x {table.matrix.shape[1]}")
    file_rows = _align(table, tables.id_array(ids), path)
    vectors = Vectors(path, table.matrix, file_rows, normalize=normalize)
    if scan:
        vectors.scan(ids)
    return vectors


def open_pair(
    folder: os.PathLike | str,
    passage_ids: Sequence[str],
    query_ids: Sequence[str],
    *,
    normalize: bool = False,
    scan: bool = True,
) -> tuple[Vectors, Vectors]:
    """Passages and queries of one folder; InputError also where their widths differ."""
    queries = open_vectors(folder, "queries", query_ids, normalize=normalize, scan=scan)
    passages = open_vectors(folder, "passages", passage_ids, normalize=normalize, scan=scan)
    if queries.shape[1] != passages.shape[1]:
        raise InputError(
            f"{queries.path} has vectors {queries.shape[1]} wide, {passages.path} "
            f"{passages.shape[1]}; both must come from one model"
        )
    return passages, queries


def fingerprint(folder: os.PathLike | str) -> str:
    """sha256, hex, of every file that `open_pair` would read; a moved folder keeps its own."""
    digest = hashlib.sha256()
    for kind in KINDS:
        path = _find(paths.local(folder, "vectors"), kind)
        files = sorted(_files(path), key=os.fspath) if path.is_dir() else [path]
        if path.suffix in (".npy", ".zarr"):
            files.append(_ids_path(path))
        for file in files:
            if not file.exists():
                raise InputError(
                    f"{file}: not found; expected one id per line, in the order of {path.name}"
                )
            name = os.fspath(file)[len(os.fspath(path.parent)) :]
            digest.update(f"{kind}\n{name}\n{file_sha256(file)}\n".encode())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Table:
    """The contents of a file: ids (Arrow large_string), a matrix, the name of a row in messages."""

    ids: pa.Array
    matrix: object


def _find(folder: epath.Path, kind: str) -> epath.Path:
    """The one file of that kind."""
    if kind not in KINDS:
        raise InputError(f"vectors: kind {kind!r}; expected one of {', '.join(KINDS)}")
    names = [f"{kind}.{form}" for form in FORMS]
    found = [name for name in names if (folder / name).exists()]
    if not found:
        raise InputError(f"{folder}: no vectors of {kind} here; expected one of {', '.join(names)}")
    if len(found) > 1:
        raise InputError(f"{folder}: both {found[0]} and {found[1]}; keep only one")
    return folder / found[0]


def _files(folder: epath.Path) -> list[epath.Path]:
    """All files below a folder."""
    found = []
    for path in folder.iterdir():
        found.extend(_files(path) if path.is_dir() else [path])
    return found


def _ids_path(path: epath.Path) -> epath.Path:
    return path.parent / f"{path.stem}.ids.txt"


def _read_ids(path: epath.Path) -> pa.Array:
    """One id per line; an empty line is an error."""
    file = _ids_path(path)
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError(
            f"{file}: not found; expected one id per line, in the order of {path.name}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text ({error})") from None
    if lines and not lines[-1]:
        lines.pop()
    lines = [line.removesuffix("\r") for line in lines]
    if "" in lines:
        raise InputError(f"{file}:{lines.index('') + 1}: an empty line; expected an id")
    return tables.id_array(lines)


def _checked(path: epath.Path, ids: pa.Array, matrix) -> _Table:
    """A table with as many ids as vectors."""
    if len(matrix.shape) != 2:
        raise InputError(f"{path}: vectors of shape {matrix.shape}; expected [rows, width]")
    dtype = np.dtype(matrix.dtype)
    if dtype.kind != "f" and dtype.name != "bfloat16":
        raise InputError(f"{path}: vectors are {dtype}; expected float16, float32 or float64")
    if len(ids) != matrix.shape[0]:
        raise InputError(f"{path}: {matrix.shape[0]} vectors, but {len(ids)} ids")
    return _Table(ids, matrix)


def _read_npy(path: epath.Path) -> _Table:
    try:
        if "://" in os.fspath(path):
            with path.open("rb") as file:
                matrix = np.load(file, allow_pickle=False)
        else:
            matrix = np.load(os.fspath(path), mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: not an array that can be read: {error}") from None
    return _checked(path, _read_ids(path), matrix)


def _read_npz(path: epath.Path) -> _Table:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            missing = [name for name in ("ids", "vectors") if name not in arrays]
            if missing:
                raise InputError(
                    f"{path}: no array {missing[0]!r}; it has {', '.join(arrays) or 'none'}"
                )
            ids, matrix = arrays["ids"], arrays["vectors"]
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise different errors
        cure = "; save ids as np.array(ids, dtype=str)" if "allow_pickle" in str(error) else ""
        raise InputError(f"{path}: cannot be read: {error}{cure}") from None
    if ids.ndim != 1 or ids.dtype.kind not in "USiu":
        raise InputError(
            f"{path}: ids are {ids.dtype} of shape {ids.shape}; expected [rows] of str"
        )
    if ids.dtype.kind == "S":
        ids = np.char.decode(ids, "utf-8")
    return _checked(path, tables.id_array([str(identifier) for identifier in ids.tolist()]), matrix)


def _read_parquet(path: epath.Path) -> _Table:
    """All parts, row group by row group, into one float32 matrix."""
    parts = sorted(p for p in path.iterdir() if p.suffix == ".parquet") if path.is_dir() else [path]
    total = 0
    for part in parts:
        with _parquet(part) as parquet:
            total += parquet.metadata.num_rows
    if not total:
        raise InputError(f"{path}: empty, no row in {len(parts)} parquet files")
    ids: list[pa.Array] = []
    matrix, row = None, 0
    for part in parts:
        for block_ids, block_nd in _row_groups(part):
            if matrix is None:
                matrix = np.empty((total, block_nd.shape[1]), np.float32)
            if block_nd.shape[1] != matrix.shape[1]:
                raise InputError(
                    f"{part}: vectors {block_nd.shape[1]} wide, earlier ones {matrix.shape[1]}; "
                    "expected one width"
                )
            ids.append(block_ids)
            with np.errstate(over="ignore"):  # overflow becomes infinite, which the scan reports
                matrix[row : row + len(block_nd)] = block_nd
            row += len(block_nd)
    return _checked(path, pa.concat_arrays(ids), matrix)


@contextlib.contextmanager
def _parquet(path: epath.Path) -> Iterator[pq.ParquetFile]:
    try:
        with path.open("rb") as file:
            yield pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from None


def _row_groups(path: epath.Path) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """Ids and vectors of each row group that has rows."""
    with _parquet(path) as parquet:
        names = parquet.schema_arrow.names
        columns = [_one_of(path, names, wanted) for wanted in (ID_COLUMNS, VECTOR_COLUMNS)]
        first = 0
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=columns)
            if len(table):
                ids = _id_column(path, table[columns[0]], first)
                yield ids, _list_column(path, table[columns[1]], first)
            first += len(table)


def _one_of(path: epath.Path, names: Sequence[str], wanted: Sequence[str]) -> str:
    """The one column of `wanted` that the file has."""
    found = [name for name in wanted if name in names]
    if len(found) != 1:
        raise InputError(
            f"{path}: expected one column of {', '.join(wanted)}; found "
            f"{' and '.join(found) or 'none'} among {', '.join(names)}"
        )
    return found[0]


def _id_column(path: epath.Path, column: pa.ChunkedArray, first: int) -> pa.Array:
    column = column.combine_chunks()
    if column.null_count:
        row = first + column.is_null().to_pylist().index(True)
        raise InputError(f"{path}: row {row} has no id")
    if not (_is_text(column.type) or pa.types.is_integer(column.type)):
        raise InputError(f"{path}: ids are {column.type}; expected strings or whole numbers")
    return column.cast(pa.large_string())


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _list_column(path: epath.Path, column: pa.ChunkedArray, first: int) -> np.ndarray:
    """Lists of floats as a matrix; `first` is the number of the first row, for messages."""
    column = column.combine_chunks()
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists or pa.types.is_fixed_size_list(kind)) or not (
        pa.types.is_floating(kind.value_type)
    ):
        raise InputError(f"{path}: its vectors are {kind}; expected lists of floats")
    if column.null_count:
        row = first + column.is_null().to_pylist().index(True)
        raise InputError(f"{path}: row {row} has no vector")
    widths = np.asarray(pc.list_value_length(column))
    if (widths != widths[0]).any():
        row = int(np.argmax(widths != widths[0]))
        raise InputError(
            f"{path}: row {first + row} has {widths[row]} numbers, row {first} {widths[0]}; "
            "expected one width"
        )
    values = column.flatten()
    if values.null_count:
        row = first + values.is_null().to_pylist().index(True) // int(widths[0])
        raise InputError(f"{path}: row {row} has a missing value in its vector")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _read_zarr(path: epath.Path) -> _Table:
    return _checked(path, _read_ids(path), EmbeddingStore.open(path))


def _align(table: _Table, wanted: pa.Array, path: epath.Path) -> np.ndarray:
    """The row in the file of each id of the data set, int64 [N]."""
    if len(pc.unique(table.ids)) != len(table.ids):
        counts = pc.value_counts(table.ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
        rows = np.flatnonzero(pc.equal(table.ids, twice).to_numpy(zero_copy_only=False))
        raise InputError(
            f"{path}: id {twice.as_py()!r} is in rows {rows[0]} and {rows[1]}; expected every id "
            f"once"
        )
    found = pc.index_in(wanted, value_set=table.ids)
    if found.null_count:
        first = wanted.filter(pc.is_null(found))[0].as_py()
        raise InputError(
            f"{path}: {found.null_count} of the data set's {len(wanted)} ids have no vector, the "
            f"first is {first!r}; the file's ids look like {table.ids[0].as_py()!r}"
        )
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


READERS: dict[str, Callable[[epath.Path], _Table]] = {
    "npy": _read_npy,
    "npz": _read_npz,
    "parquet": _read_parquet,
    "zarr": _read_zarr,
}
