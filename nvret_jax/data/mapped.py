"""Texts that may exceed memory: written to disk as Arrow incrementally, and memory-mapped.

Small tables are lists of Python strings. Past `IN_MEMORY` characters a block of texts at a time
is written to a file of Arrow's layout in the user's cache folder, which is unlinked from the start,
so that it disappears with the process, however that ends. Iterating returns pages to the system
block by block, so a corpus of any size is read within the memory of one block.

`IdRows` maps ids to rows with 16 bytes per id, where a dict takes ten times as much.
"""

from __future__ import annotations

import bisect
import mmap
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nvret_jax.data.hashing import stable_hash
from nvret_jax.errors import InputError
from nvret_jax.files import paths

if TYPE_CHECKING:
    import pyarrow as pa

IN_MEMORY = 1 << 28  # characters of a table kept as Python strings
_BLOCK = 1 << 26  # characters of a block on disk
_ROWS = 8192  # turned into Python at a time


class MappedTexts(Sequence):
    """Strings in Arrow's layout, in blocks that are mapped files.

    A slice is a list. All strings are valid Unicode.
    """

    def __init__(self, blocks: Sequence[pa.LargeStringArray], maps: Sequence[mmap.mmap | None]):
        self._blocks, self._maps = list(blocks), list(maps)
        self._ends = np.cumsum([len(block) for block in blocks]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __repr__(self) -> str:
        return f"MappedTexts({len(self):,} texts)"

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            if step != 1:
                return [self[r] for r in range(start, stop, step)]
            return [text for part in self._parts(start, stop) for text in part]
        row = int(row)
        row = row + len(self) if row < 0 else row
        if not 0 <= row < len(self):
            raise IndexError(row)
        number = bisect.bisect_right(self._ends, row)
        begin = self._ends[number - 1] if number else 0
        return self._blocks[number][row - begin].as_py()

    def __iter__(self) -> Iterator[str]:
        for part in self._parts(0, len(self)):
            yield from part

    def _parts(self, start: int, stop: int) -> Iterator[list[str]]:
        """Lists of at most `_ROWS` strings; pages of a finished block are given back."""
        number = bisect.bisect_right(self._ends, start)
        while start < stop:
            begin = self._ends[number - 1] if number else 0
            end = min(stop, self._ends[number])
            for at in range(start, end, _ROWS):
                size = min(_ROWS, end - at)
                yield self._blocks[number].slice(at - begin, size).to_pylist()
            if self._maps[number] is not None:
                self._maps[number].madvise(mmap.MADV_DONTNEED)
            start, number = end, number + 1

    def array(self) -> pa.LargeStringArray:
        """All of them as one array in memory."""
        import pyarrow as pa

        return pa.chunked_array(self._blocks, pa.large_string()).combine_chunks()


class TextWriter:
    """Collects texts one by one, and can be read at any row in the meantime.

    Attributes:
        in_memory: characters that are kept as a list.
    """

    def __init__(self, in_memory: int | None = None, block: int | None = None):
        self.in_memory = IN_MEMORY if in_memory is None else in_memory
        self._block = _BLOCK if block is None else block
        self._texts: list[str] = []
        self._characters = 0
        self._blocks: list[Any] = []
        self._maps: list[mmap.mmap | None] = []
        self._written = MappedTexts((), ())

    def __len__(self) -> int:
        return len(self._written) + len(self._texts)

    def __getitem__(self, row: int) -> str:
        written = len(self._written)
        return self._written[row] if row < written else self._texts[row - written]

    def add(self, text: str) -> None:
        """Adds one text, which must be valid Unicode."""
        self._texts.append(text)
        self._characters += len(text) + 50  # of a Python string in addition to its characters
        if self._characters > (self._block if self._blocks else self.in_memory):
            self._write()

    def _write(self) -> None:
        """Moves what is in memory to blocks on disk."""
        size, start = 0, 0
        for row, text in enumerate(self._texts):
            size += len(text)
            if size > self._block:
                self._write_block(self._texts[start : row + 1])
                size, start = 0, row + 1
        if start < len(self._texts):
            self._write_block(self._texts[start:])
        self._texts, self._characters = [], 0
        self._written = MappedTexts(self._blocks, self._maps)

    def _write_block(self, texts: Sequence[str]) -> None:
        import pyarrow as pa

        batch = pa.record_batch({"text": pa.array(texts, pa.large_string())})
        folder = paths.cache("texts")
        try:
            with tempfile.TemporaryFile(dir=None if folder is None else str(folder)) as file:
                with pa.ipc.new_file(file, batch.schema) as sink:
                    sink.write_batch(batch)
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except OSError as error:
            raise InputError(
                f"{folder or tempfile.gettempdir()}: texts that exceed memory cannot be kept there "
                f"({error.strerror or error})"
            ) from None
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        self._blocks.append(reader.get_batch(0).column(0))
        self._maps.append(mapped)
        mapped.madvise(mmap.MADV_DONTNEED)

    def done(self) -> Sequence[str]:
        """All texts: a list if they fit into memory, else `MappedTexts`."""
        if not self._blocks:
            return self._texts
        if self._texts:
            self._write()
        return self._written


def distinct(
    ids: Sequence[str], texts: Sequence[str], is_wrong: Callable[[int, int], bool]
) -> tuple[Sequence[str], Sequence[str], int]:
    """A table with each id once.

    Args:
        ids, texts: of N rows.
        is_wrong: (earlier row, later row) of a repeated id -> whether that is a mistake, which it
            notes.

    Returns:
        Ids, texts, and how many rows were left out.
    """
    gone = {second for first, second in IdRows(ids).twins() if not is_wrong(first, second)}
    if not gone:
        return ids, texts, 0
    kept = TextWriter(), TextWriter()
    for row, pair in enumerate(zip(ids, texts, strict=True)):
        if row not in gone:
            for writer, text in zip(kept, pair, strict=True):
                writer.add(text)
    return kept[0].done(), kept[1].done(), len(gone)


class IdRows(Mapping):
    """id -> row of a table whose ids are not a tuple; two arrays of numbers instead of a dict."""

    def __init__(self, ids: Sequence[str]):
        self._ids = ids
        hashes = np.concatenate(
            [np.zeros(0, np.uint64)]
            + [stable_hash(ids[start : start + _ROWS]) for start in range(0, len(ids), _ROWS)]
        )
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def get(self, key: Any, default: Any = None) -> Any:
        """The row of an id, or `default`."""
        if not isinstance(key, str):
            return default
        hashed = stable_hash([key])[0]
        at = int(np.searchsorted(self._hashes, hashed))
        while at < len(self._hashes) and self._hashes[at] == hashed:
            row = int(self._order[at])
            if self._ids[row] == key:
                return row
            at += 1
        return default

    def __getitem__(self, key: str) -> int:
        row = self.get(key)
        if row is None:
            raise KeyError(key)
        return row

    def __contains__(self, key: Any) -> bool:
        return self.get(key) is not None

    def twins(self) -> Iterator[tuple[int, int]]:
        """(earlier row, later row) of repeated ids, ascending by the later one."""
        same = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        found = []
        for at in same.tolist():
            first, second = sorted(self._order[[at, at + 1]].tolist())
            if self._ids[first] == self._ids[second]:
                found.append((second, first))
        for second, first in sorted(found):
            yield first, second
