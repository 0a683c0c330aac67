"""Texts to vectors on disk, as one stream, so that a kill costs no more than a block of texts.

The encoder goes through the table in blocks (`Encoder.encoded`), independent of the chunks of the
store; a thread writes a chunk as soon as its last row is available, while the devices continue.
Blocks begin at fixed rows, and a block with any missing chunk is encoded whole: an interrupted run
ends with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.data.dataset import TextTable
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import remove, write_atomic
from nvret_jax.mesh import say
from nvret_jax.processes import progress
from nvret_jax.search.store import EmbeddingStore

# (texts, which are wanted: bool [N]) -> (rows, their vectors float32), in any order; called on
# every process with the same texts. It may yield more rows than are wanted.
Encoded = Callable[[Sequence[str], np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]
# Bytes of chunks that may wait for the disk. Texts come sorted by length, so all chunks of a block
# are complete at about the same time.
_BEHIND = 1 << 30


def embed_texts(
    artifact: Artifact,
    table: TextTable,
    encoded: Encoded,
    width: int,
    *,
    chunk_rows: int,
    label: str,
) -> None:
    """Makes one artefact of embeddings, or finishes the one left by a killed run.

    Args:
        artifact: a folder with the store and `ids.txt`, one id per line, row by row.
        table: what to embed, N texts.
        encoded: the encoder.
        width: D.
        chunk_rows: rows of a chunk.
        label: shown in the progress bar.
    """
    resumed = artifact.begin(repair=True)
    if mesh_lib.is_main():
        # Both are short and follow from the arguments: always rewritten, even after a killed run.
        remove(artifact.partial / "zarr.json")
        EmbeddingStore.create(artifact.partial, (len(table), width), chunk_rows)
        write_atomic(artifact.partial / "ids.txt", "".join(f"{i}\n" for i in table.ids))
    mesh_lib.barrier(f"created {artifact.name}")
    store = EmbeddingStore.open(artifact.partial)
    damaged = store.damaged_chunks() if resumed else []
    if damaged:
        say(f"          {len(damaged)} damaged chunks of {artifact.name}; rebuilding them")
    if mesh_lib.is_main():
        for chunk in damaged:
            store.remove_chunk(chunk)
    mesh_lib.barrier(f"checked {artifact.name}")
    finished = set(store.finished_chunks())
    mesh_lib.barrier(f"counted {artifact.name}")  # before any process adds a chunk
    wanted = np.ones(len(table), bool)
    for chunk in finished:
        wanted[chunk * chunk_rows : (chunk + 1) * chunk_rows] = False
    bar = progress.bar(
        total=len(table),
        initial=len(table) - int(wanted.sum()),
        unit=" texts",
        desc=f"embed {label}",
        show=mesh_lib.is_main(),
    )
    most = max(2, _BEHIND // (4 * width * chunk_rows))
    writing: collections.deque[concurrent.futures.Future] = collections.deque()
    chunks = Chunks(len(table), width, chunk_rows)
    with bar, concurrent.futures.ThreadPoolExecutor(1) as thread:
        # Without missing chunks the encoder is not called, because loading one may take a while.
        stream = encoded(table.texts, wanted) if wanted.any() else iter(())
        for rows, vectors in stream:
            new = wanted[rows]
            bar.update(int(new.sum()))
            for chunk, whole in chunks.add(rows[new], vectors[new]):
                writing.append(thread.submit(store.write_chunk, chunk, whole))
            while writing and (writing[0].done() or len(writing) > most):
                writing.popleft().result()
        while writing:
            writing.popleft().result()
    mesh_lib.barrier(f"embedded {artifact.name}")
    if left := sorted(set(range(store.chunks)) - set(store.finished_chunks())):
        raise InputError(
            f"{artifact.partial}: chunk {left[0]} was written but is missing; does another "
            f"program remove files from this folder?"
        )
    artifact.finish_folder()


class Chunks:
    """Assembles rows that arrive in any order into the chunks that this process writes.

    Chunk i has the rows from i · chunk_rows on; the last one may have fewer.
    """

    def __init__(self, count: int, width: int, chunk_rows: int):
        self._count, self._width, self._size = count, width, chunk_rows
        self._begun: dict[int, tuple[np.ndarray, int]] = {}  # rows, and how many are missing

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Takes some rows, and yields the chunks that are now complete."""
        if not len(rows):
            return
        order = np.argsort(rows, kind="stable")
        rows, vectors = rows[order], vectors[order]
        numbers, begins = np.unique(rows // self._size, return_index=True)
        for chunk, begin, end in zip(
            numbers.tolist(), begins, [*begins[1:], len(rows)], strict=True
        ):
            if chunk % mesh_lib.process_count() != mesh_lib.process_index():
                continue
            start = chunk * self._size
            size = min(self._size, self._count - start)
            whole, missing = self._begun.pop(chunk, (None, size))
            if whole is None:
                whole = np.empty((size, self._width), np.float32)
            whole[rows[begin:end] - start] = vectors[begin:end]
            missing -= int(end - begin)
            if missing:
                self._begun[chunk] = whole, missing
            else:
                yield chunk, whole
