"""Running lists on disk, from which a killed search continues.

The lists of a pass over the passages are saved merged over all shards, with the number of rows
they cover: 0 to `rows - 1`, in corpus order. That is independent of the mesh, so a search may
continue on another number of devices and processes. A file is written under a temporary name and
renamed: it exists whole or not at all. Its name contains a digest of the whole request (shapes, k,
queries, ceilings, exclusions), so that other requests never read it; the *contents* of the passages
are not part of it, because reading them all is the search itself. A folder therefore belongs to one
set of passages.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tokenize
import zipfile
import zlib

import jax
import numpy as np
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import write_atomic
from nvret_jax.mesh import say

VERSION = 1
# What numpy and zipfile raise for damaged files.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    OverflowError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class Saved:
    """The saved lists of one request.

    Attributes:
        folder: made when first written to.
        name: prefix of the files of this request.
    """

    def __init__(self, folder: os.PathLike | str, name: str):
        """`name` is from `question`."""
        self.folder, self.name = epath.Path(folder), name
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; a search is resumed from a folder")

    def sizes(self) -> dict[str, int]:
        """Tile, block and pass of the run that saved lists here, and its shards; {} if none."""
        found = self._read(self._path("sizes"))
        return {} if found is None else {key: int(found[key]) for key in found}

    def store_sizes(self, **sizes: int) -> None:
        """Saves the values that `sizes` returns; on the main process."""
        self._write(self._path("sizes"), sizes)

    def lists(self, start: int, stop: int, k: int) -> tuple[int, np.ndarray, np.ndarray] | None:
        """(rows covered, scores [stop - start, k], rows [stop - start, k]) of these queries.

        None if there are no lists, or none that can be read (which is logged).

        Raises:
            InputError: the processes of a run see different files.
        """
        path = self._path(f"{start}-{stop}")
        found = self._read(path)
        if found is not None:
            scores_qk, rows_qk = found.get("scores_qk"), found.get("rows_qk")
            shape = (stop - start, k)
            if "rows" not in found or np.shape(scores_qk) != shape or np.shape(rows_qk) != shape:
                say(f"{path} is damaged (not the lists of a search); searching from the start")
                found = None
        covered = 0 if found is None else int(found["rows"])
        _agree(covered, self.folder)
        if not covered:
            return None
        return covered, scores_qk.astype(np.float32), rows_qk.astype(np.int32)

    def store_lists(
        self, start: int, stop: int, rows: int, scores_qk: np.ndarray, rows_qk: np.ndarray
    ) -> None:
        """Saves the values that `lists` returns, replacing earlier ones; on the main process."""
        self._write(
            self._path(f"{start}-{stop}"),
            {"rows": np.int64(rows), "scores_qk": scores_qk, "rows_qk": rows_qk},
        )

    def _path(self, what: str) -> epath.Path:
        return self.folder / f"{self.name}-{what}.npz"

    def _write(self, path: epath.Path, arrays: dict) -> None:
        if not mesh_lib.is_main():
            return
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        try:
            write_atomic(path, buffer.getvalue())
        except OSError as error:
            raise InputError(f"{path}: cannot save the search: {error}") from None

    def _read(self, path: epath.Path) -> dict | None:
        """The arrays of a file; None if it is not there or damaged (zip keeps a crc of each)."""
        if not path.exists():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except _UNREADABLE as error:
            say(f"{path} is damaged ({error}); searching from the start")
            return None


def question(
    shape: tuple[int, int],
    dtype,
    k: int,
    queries_qd: np.ndarray,
    multiply: np.dtype,
    ceiling_q: np.ndarray | None,
    pairs_2m: np.ndarray | None,
) -> str:
    """A digest of everything that the result depends on, except the contents of the passages."""
    digest = hashlib.sha256()
    head = (VERSION, *map(int, shape), np.dtype(dtype).name, int(k), np.dtype(multiply).name)
    digest.update(repr(head).encode())
    for array in (queries_qd, ceiling_q, pairs_2m):
        if array is None:
            digest.update(b"none")
            continue
        digest.update(repr((array.shape, array.dtype.name)).encode())
        digest.update(np.ascontiguousarray(array))
    return f"search-{digest.hexdigest()[:16]}"


def _agree(covered: int, folder: epath.Path) -> None:
    """InputError unless every process found the same."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    found = np.unique(multihost_utils.process_allgather(np.array([covered], np.int32)))
    if len(found) > 1:
        raise InputError(
            f"{folder}: the processes of this run find {found.tolist()} finished rows there; "
            "all hosts must share one folder"
        )
