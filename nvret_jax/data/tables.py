"""Parquet tables whose cells are ids or lists of ids, read as row numbers.

Artefacts hold ids, computations use row numbers; only the two functions here convert.

pyarrow is imported where it is used: it takes 38 MiB, which work on arrays does not need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from nvret_jax.data.mapped import MappedTexts
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


def id_array(ids: Sequence[str]) -> pa.Array:
    """Ids as an Arrow array, made once and used for every column of a table."""
    import pyarrow as pa

    return ids.array() if isinstance(ids, MappedTexts) else pa.array(ids, pa.large_string())


def ids_column(rows: np.ndarray | Ragged, ids: pa.Array) -> pa.Array:
    """A column of ids from row numbers, or of lists of ids from `Ragged` rows."""
    import pyarrow as pa

    if isinstance(rows, Ragged):
        return pa.LargeListArray.from_arrays(rows.offsets, ids.take(pa.array(rows.values)))
    return ids.take(pa.array(rows))


def list_column(values: Ragged) -> pa.Array:
    """A column of lists of numbers."""
    import pyarrow as pa

    return pa.LargeListArray.from_arrays(values.offsets, pa.array(values.values))


def rows_of(column: pa.Array, ids: pa.Array, what: str) -> np.ndarray | Ragged:
    """Row numbers, int32, from a column of ids or lists of ids.

    Raises:
        InputError: an id that is not in the data set; `what` is its place.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        offsets = np.asarray(column.offsets, np.int64)
        return Ragged(offsets - offsets[0], rows_of(column.flatten(), ids, what))
    found = pc.index_in(column.cast(ids.type), value_set=ids)
    if found.null_count:
        bad = column.filter(pc.is_null(found))[0].as_py()
        raise InputError(f"{what}: id {bad!r} is not in the data set")
    return found.to_numpy(zero_copy_only=False).astype(np.int32)


def ragged_numbers(column: pa.Array, dtype) -> Ragged:
    """A `Ragged` from a column of lists of numbers."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    offsets = np.asarray(column.offsets, np.int64)
    return Ragged(offsets - offsets[0], np.asarray(column.flatten()).astype(dtype))


def write_table(path: epath.Path, columns: Mapping[str, pa.Array]) -> None:
    """Writes a parquet file; `path` should not be the final name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with epath.Path(path).open("wb") as file:
        pq.write_table(pa.table(dict(columns)), file, compression="zstd")


def read_table(path: epath.Path, columns: Sequence[str]) -> pa.Table:
    """Reads a parquet file.

    Raises:
        InputError: it is missing, damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = epath.Path(path)
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from None
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]!r}; it has {table.column_names}")
    return table
