"""Vectors written to one file, as they come: `vectors.py` reads it, and so do other tools.

    NAME.npy       float [N, D], and NAME.ids.txt beside it, one id per line
    NAME.parquet   the columns id, embedding (lists of D floats) and perhaps text

Memory holds a few chunks of rows, whatever the number of texts. The file appears whole or not at
all; an earlier one of its name is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from nvret_jax.data.dataset import TextTable
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import whole_file
from nvret_jax.search.embedding import Chunks

SUFFIXES = (".npy", ".parquet")
CHUNK = 8192  # rows put together before they are written
_TEXTS = 1 << 16  # ids written at a time


def check_target(path: epath.PathLike) -> epath.Path:
    """The path, if vectors can be written under its name.

    Raises:
        InputError: another suffix, or it is a folder.
    """
    path = epath.Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file to write")
    return path


def write_vectors(
    path: epath.PathLike,
    table: TextTable,
    vectors: Iterable[tuple[np.ndarray, np.ndarray]],
    width: int,
    *,
    dtype: str = "float32",
    texts: bool = False,
) -> None:
    """Writes the vectors of a table.

    Args:
        path: ends in one of `SUFFIXES`.
        table: whose rows they are, N of them.
        vectors: (rows int [B], float [B, D]), each row once, in any order.
        width: D.
        dtype: 'float32' or 'float16', of the file.
        texts: whether the file has the texts, too; of parquet.

    Raises:
        InputError: the path cannot be written, or a number is beyond float16.
    """
    path = check_target(path)
    if texts and path.suffix != ".parquet":
        raise InputError(f"{path}: only a parquet file has room for texts")
    blocks = _narrowed(in_order(vectors, len(table), width), dtype, path)
    if path.suffix == ".parquet":
        _write_parquet(path, table, blocks, width, np.dtype(dtype), texts)
    else:
        _write_npy(path, table, blocks, width, np.dtype(dtype))


def in_order(
    vectors: Iterable[tuple[np.ndarray, np.ndarray]], count: int, width: int
) -> Iterator[np.ndarray]:
    """Vectors that come in any order, as float32 [≤ CHUNK, D], from the first row to the last.

    What is held meanwhile is what has come before its turn.
    """
    chunks, waiting, turn = Chunks(count, width, CHUNK), {}, 0
    for rows, found in vectors:
        waiting |= dict(chunks.add(rows, found))
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1


def _narrowed(blocks: Iterator[np.ndarray], dtype: str, path: epath.Path) -> Iterator[np.ndarray]:
    for number, block in enumerate(blocks):
        with np.errstate(over="ignore"):
            narrow = block.astype(dtype, copy=False)
        if not np.isfinite(narrow).all():
            row = number * CHUNK + int(np.argmin(np.isfinite(narrow).all(axis=1)))
            raise InputError(f"{path}: row {row} has a number beyond {dtype}; store float32")
        yield narrow


def _write_npy(
    path: epath.Path, table: TextTable, blocks: Iterator[np.ndarray], width: int, dtype: np.dtype
) -> None:
    header = {"descr": dtype.str, "fortran_order": False, "shape": (len(table), width)}
    names = path.parent / f"{path.stem}.ids.txt"
    _check_ids(table.ids, names)
    # The ids get their name first, with no vectors beside them: a crash leaves no wrong pair.
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
        with whole_file(names) as lines:
            for start in range(0, len(table), _TEXTS):
                some = table.ids[start : start + _TEXTS]
                lines.write("".join(f"{i}\n" for i in some).encode())
            path.unlink(missing_ok=True)


def _check_ids(ids: Sequence[str], file: epath.Path) -> None:
    for identifier in ids:
        if "\n" in identifier or "\r" in identifier:
            raise InputError(f"{file}: id {identifier!r} has a line end in it; write .parquet")


def _write_parquet(
    path: epath.Path,
    table: TextTable,
    blocks: Iterator[np.ndarray],
    width: int,
    dtype: np.dtype,
    texts: bool,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = pa.float16() if dtype == np.float16 else pa.float32()
    columns = {"id": pa.large_string(), "embedding": pa.list_(number, width)}
    columns |= {"text": pa.large_string()} if texts else {}
    schema = pa.schema(columns)
    start = 0
    with whole_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for block in blocks:
            stop = start + len(block)
            flat = pa.array(np.ascontiguousarray(block).reshape(-1), number)
            found = [
                pa.array(table.ids[start:stop], pa.large_string()),
                pa.FixedSizeListArray.from_arrays(flat, width),
            ]
            found += [pa.array(table.texts[start:stop], pa.large_string())] if texts else []
            writer.write_batch(pa.record_batch(found, schema=schema))
            start = stop
