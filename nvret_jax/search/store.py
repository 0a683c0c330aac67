"""Embeddings on disk: a zarr v3 array [N, D] in chunks of rows, written and read by tensorstore.

A chunk is one file and appears whole or not at all: tensorstore writes a temporary file, syncs,
renames and syncs the folder (object stores put whole objects anyway). So a killed run is resumed by
writing the chunks that `finished_chunks` does not list, and several processes may write different
chunks of one store at the same time.

Choices, and why:

* The fill value is NaN and NaN is never written. zarr reads a missing chunk as the fill value and
  may drop a chunk that consists of nothing else; with zeros an unfinished store would read as
  vectors of zeros. On top of that, a read of a missing chunk is an error here.
* Chunks are stored uncompressed (embeddings do not compress) with a crc32c at the end, so that
  damage inside a file of the right length is detected, too.
* The store does not know which row is which passage; its owner keeps the ids next to it.
"""

from __future__ import annotations

import os
import re

import ml_dtypes
import numpy as np
import tensorstore as ts
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
CHECKSUM_BYTES = 4
_READ_AHEAD = 16  # chunks that are checked at a time
READ_AGAIN = "delete it and run the stage again; only the missing chunks will be rebuilt"


class EmbeddingStore:
    """A matrix of embeddings on disk that is filled by chunks of rows and sliced by rows.

    Attributes:
        path: the folder of the zarr array.
        shape: (N, D).
        dtype: numpy dtype of the vectors.
        chunk_rows: rows of a chunk; the last one may hold fewer.
        chunks: how many chunks there are.
    """

    def __init__(self, path: epath.Path, array: ts.TensorStore):
        """Use `create` or `open`."""
        self.path = path
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype.numpy_dtype)
        self.chunk_rows = array.chunk_layout.read_chunk.shape[0]
        self.chunks = -(-self.shape[0] // self.chunk_rows)
        self._array = array
        self._whole: set[int] = set()  # chunks known to be whole; a chunk is never removed again

    @classmethod
    def create(
        cls, path: os.PathLike | str, shape: tuple[int, int], chunk_rows: int, dtype="float32"
    ) -> EmbeddingStore:
        """A store at `path`: a new, empty one, or the existing one if it has the same layout.

        Args:
            path: a folder, made with its parents; local or gs://, s3://.
            shape: (N, D).
            chunk_rows: rows of a chunk.
            dtype: 'float32', 'float16' or 'bfloat16'.

        Raises:
            InputError: sizes below 1, unknown dtype, a store of another layout, or no permission.
        """
        path = epath.Path(path)
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        if name not in DTYPES:
            raise InputError(f"{path}: dtype {name}; expected one of {', '.join(DTYPES)}")
        if len(shape) != 2 or min(shape) < 1 or chunk_rows < 1:
            raise InputError(
                f"{path}: shape {tuple(shape)} in chunks of {chunk_rows} rows; "
                "expected [rows, width] and chunks, all of at least 1"
            )
        chunk_rows = min(int(chunk_rows), int(shape[0]))
        spec = {
            "driver": "zarr3",
            "kvstore": _kvstore(path),
            "metadata": {
                "shape": [int(size) for size in shape],
                "data_type": name,
                "fill_value": "NaN",
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [chunk_rows, int(shape[1])]},
                },
                "chunk_key_encoding": {"name": "default"},
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "crc32c"},
                ],
            },
        }
        try:
            return cls(path, ts.open(spec, create=True, open=True).result())
        except (ValueError, OSError) as error:
            raise InputError(
                f"{path}: cannot make a store of {shape[0]} x {shape[1]} {name}: {_short(error)}"
            ) from None

    @classmethod
    def open(cls, path: os.PathLike | str) -> EmbeddingStore:
        """The store at `path`, finished or not; InputError if there is none."""
        path = epath.Path(path)
        try:
            array = ts.open({"driver": "zarr3", "kvstore": _kvstore(path)}).result()
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: no embeddings can be read here: {_short(error)}") from None
        if len(array.shape) != 2:
            raise InputError(f"{path}: a zarr array of shape {tuple(array.shape)}; expected [N, D]")
        return cls(path, array)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        rows, width = self.shape
        return f"EmbeddingStore({rows:,} x {width} {self.dtype}, {str(self.path)!r})"

    def finished_chunks(self) -> list[int]:
        """The numbers of the chunks that exist and are whole, ascending."""
        found = []
        for key in self._array.kvstore.list().result():
            match = re.fullmatch(rb"c/(\d+)/0", key)
            if match and self._is_whole(int(match[1])):
                found.append(int(match[1]))
        self._whole = set(found)
        return sorted(found)

    def damaged_chunks(self) -> list[int]:
        """The numbers of the chunks that exist but are damaged.

        Reads every chunk once. The processes of a run share the work, and all get the result.
        """
        process, processes = mesh_lib.process_index(), mesh_lib.process_count()
        mine = [i for i in range(self.chunks) if i % processes == process]
        bad = np.zeros(self.chunks, np.int32)
        for first in range(0, len(mine), _READ_AHEAD):
            reads = {}
            for i in mine[first : first + _READ_AHEAD]:
                if os.path.exists(self._file(i)):
                    reads[i] = self._array[slice(*self._bounds(i))].read()
            for i, read in reads.items():
                try:
                    whole = self._is_whole(i)
                    read.result()
                except (ValueError, OSError):
                    whole = False
                bad[i] = not whole
        return np.flatnonzero(mesh_lib.sum_over_processes(bad)).tolist()

    def write_chunk(self, i: int, rows: np.ndarray) -> None:
        """Writes chunk i, durably: when this returns, the chunk survives a crash of the machine.

        Args:
            i: 0 to chunks - 1. Only one process may write a given chunk.
            rows: [chunk_rows, D], in the last chunk [the remaining rows, D]; cast to the store's
                dtype.

        Raises:
            InputError: no such chunk, a wrong shape, NaN or infinity, or a disk error.
        """
        start, stop = self._bounds(i)
        rows = np.asarray(rows)
        if rows.shape != (stop - start, self.shape[1]):
            raise InputError(
                f"{self.path}: chunk {i} got rows of shape {rows.shape}; "
                f"expected ({stop - start}, {self.shape[1]})"
            )
        with np.errstate(over="ignore"):
            rows = rows.astype(self.dtype, copy=False)
        finite = np.isfinite(rows.astype(np.float32, copy=False)).all(axis=1)
        if not finite.all():
            raise InputError(
                f"{self.path}: row {start + int(np.argmin(finite))} has NaN or infinity in it; "
                "the encoder's weights or its input text are damaged"
            )
        try:
            if not self._is_whole(i):
                # The last chunk covers its file only in part, so writing it would first read a
                # damaged file.
                self._array.kvstore.write(self._key(i), None).result()
            self._array[start:stop].write(rows).result()
        except (ValueError, OSError) as error:
            raise InputError(f"{self._file(i)}: cannot write: {_short(error)}") from None
        self._whole.add(i)

    def remove_chunk(self, i: int) -> None:
        """Removes chunk i, as if it had never been written; on one process."""
        self._bounds(i)
        self._array.kvstore.write(self._key(i), None).result()
        self._whole.discard(i)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows start:stop as a numpy array [stop - start, D] of the store's dtype.

        Raises:
            InputError: a chunk of these rows is missing or damaged.
        """
        if not isinstance(rows, slice):
            raise TypeError(f"EmbeddingStore is read by slices of rows, got {rows!r}")
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise TypeError(f"EmbeddingStore slices have step 1, got {step}")
        if stop <= start:
            return np.empty((0, self.shape[1]), self.dtype)
        needed = range(start // self.chunk_rows, (stop - 1) // self.chunk_rows + 1)
        for i in needed:
            if i not in self._whole:
                self._check_whole(i)
        try:
            return np.asarray(self._array[start:stop].read().result())
        except (ValueError, OSError) as error:
            raise InputError(
                f"{self._blame(needed)}: damaged ({_short(error)}); {READ_AGAIN}"
            ) from None

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """All rows, for `np.asarray(store)`."""
        if copy is False:
            raise ValueError("EmbeddingStore is on disk: np.asarray has to copy it")
        return self[:].astype(dtype or self.dtype, copy=False)

    def _bounds(self, i: int) -> tuple[int, int]:
        """First row of chunk i and the one after its last."""
        if not 0 <= i < self.chunks:
            raise InputError(f"{self.path}: no chunk {i}; there are {self.chunks}")
        return i * self.chunk_rows, min((i + 1) * self.chunk_rows, self.shape[0])

    def _key(self, i: int) -> str:
        return f"c/{i}/0"

    def _file(self, i: int) -> epath.Path:
        return self.path / "c" / str(i) / "0"

    def _is_whole(self, i: int) -> bool:
        """Whether the file of chunk i exists, in full length where files can be truncated."""
        if _is_url(self.path):
            return bool(self._array.kvstore.read(self._key(i)).result().state == "value")
        # The last chunk's file is as long as the others: rows past the array are padding.
        expected = self.chunk_rows * self.shape[1] * self.dtype.itemsize + CHECKSUM_BYTES
        try:
            return os.stat(self._file(i)).st_size == expected
        except FileNotFoundError:
            return False

    def _check_whole(self, i: int) -> None:
        """Remembers that chunk i is whole, or raises InputError with what is wrong with it."""
        if self._is_whole(i):
            self._whole.add(i)
            return
        start, stop = self._bounds(i)
        if not _is_url(self.path) and self._file(i).exists():
            raise InputError(
                f"{self._file(i)}: truncated at {os.stat(self._file(i)).st_size} bytes; "
                f"{READ_AGAIN}"
            )
        raise InputError(
            f"{self._file(i)}: missing, so rows {start} to {stop - 1} were never embedded; finish "
            f"the stage that makes these embeddings"
        )

    def _blame(self, chunks: range) -> epath.Path:
        """The file of the first of these chunks that cannot be read."""
        for i in chunks:
            start, stop = self._bounds(i)
            try:
                self._array[start:stop].read().result()
            except (ValueError, OSError):
                return self._file(i)
        return self.path


def _is_url(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _kvstore(path: epath.Path):
    """The tensorstore key-value store under `path`: its URL, or the file driver for local paths."""
    if _is_url(path):
        return os.fspath(path).rstrip("/") + "/"
    return {"driver": "file", "path": os.path.abspath(os.fspath(path)) + "/"}


def _short(error: Exception) -> str:
    """tensorstore's message without the dump of its spec."""
    return str(error).split(" [tensorstore_spec", 1)[0].split(" [source locations", 1)[0]
