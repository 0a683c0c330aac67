"""Texts to vectors on disk, chunk by chunk, so that a kill costs one chunk.

A chunk is encoded the same way whoever encodes it and whenever: its batches depend on its own
texts alone. An interrupted run therefore ends with the very bytes an undisturbed one would have.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nvret_jax import mesh as mesh_lib
from nvret_jax import progress
from nvret_jax.artifacts import Artifact
from nvret_jax.console import say
from nvret_jax.data.dataset import TextTable
from nvret_jax.errors import InputError
from nvret_jax.files import remove, write_atomic
from nvret_jax.search.store import EmbeddingStore

# texts -> float32 [len(texts), D], called on every process with the same texts
Encode = Callable[[list[str]], np.ndarray]


def embed_texts(
    artifact: Artifact,
    table: TextTable,
    encode: Encode,
    width: int,
    *,
    chunk_rows: int,
    label: str,
) -> None:
    """Makes one artefact of embeddings, or finishes the one a killed run left behind.

    Args:
        artifact: where; a folder with the store and `ids.txt`, one id a line, row by row.
        table: what to embed, N texts.
        encode: the encoder.
        width: D.
        chunk_rows: rows of a chunk.
        label: shown in the progress bar.
    """
    resumed = artifact.begin(repair=True)
    if mesh_lib.is_main():
        # Both are short and follow from what is asked: written anew, whatever a dead run left.
        remove(artifact.partial / "zarr.json")
        EmbeddingStore.create(artifact.partial, (len(table), width), chunk_rows)
        write_atomic(artifact.partial / "ids.txt", "".join(f"{i}\n" for i in table.ids))
    mesh_lib.barrier(f"created {artifact.name}")
    store = EmbeddingStore.open(artifact.partial)
    damaged = store.damaged_chunks() if resumed else []
    if damaged:
        say(f"          {len(damaged)} damaged chunks of {artifact.name} are made again")
    if mesh_lib.is_main():
        for chunk in damaged:
            store.remove_chunk(chunk)
    mesh_lib.barrier(f"checked {artifact.name}")
    finished = set(store.finished_chunks())
    mesh_lib.barrier(f"counted {artifact.name}")  # before any process adds a chunk
    chunks = -(-len(table) // chunk_rows)
    rows_done = sum(min(chunk_rows, len(table) - c * chunk_rows) for c in finished)
    bar = progress.bar(
        total=len(table),
        initial=rows_done,
        unit=" texts",
        desc=f"embed {label}",
        show=mesh_lib.is_main(),
    )
    with bar:
        for chunk in range(chunks):
            if chunk in finished:
                continue
            start = chunk * chunk_rows
            texts = list(table.texts[start : start + chunk_rows])
            rows = encode(texts)
            if chunk % mesh_lib.process_count() == mesh_lib.process_index():
                store.write_chunk(chunk, rows)
            bar.update(len(texts))
    mesh_lib.barrier(f"embedded {artifact.name}")
    if left := sorted(set(range(chunks)) - set(store.finished_chunks())):
        raise InputError(
            f"{artifact.partial}: chunk {left[0]} was written and is not there; does another "
            "program remove files from this folder?"
        )
    artifact.finish_folder()
