"""Embedding a table: one stream, chunks written behind it, and nothing done twice."""

import threading

import numpy as np
import pytest
from etils import epath

from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.data.dataset import TextTable
from nvret_jax.errors import InputError
from nvret_jax.search.embedding import embed_texts
from nvret_jax.search.store import EmbeddingStore

COUNT, WIDTH = 50, 3
VECTORS = np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype(np.float32)


def table():
    return TextTable([f"p{i}" for i in range(COUNT)], [f"text {i}" for i in range(COUNT)])


def artifact(tmp_path):
    return Workdir(epath.Path(tmp_path)).artifact(
        "embeddings/teacher/data/passages", {"model": "m"}
    )


class Encoder:
    """Gives the vectors of blocks of 20 texts in batches of 7, in no order of rows."""

    def __init__(self, dies_at=None):
        self.blocks, self.batches, self.dies_at = [], 0, dies_at

    def __call__(self, texts, wanted):
        assert len(texts) == len(wanted) == COUNT
        for start in range(0, COUNT, 20):
            if not wanted[start : start + 20].any():
                continue
            self.blocks.append(start)
            rows = start + np.random.default_rng(start).permutation(min(20, COUNT - start))
            for first in range(0, len(rows), 7):
                if self.batches == self.dies_at:
                    raise KeyboardInterrupt
                self.batches += 1
                yield rows[first : first + 7], VECTORS[rows[first : first + 7]]


@pytest.mark.parametrize("chunk_rows", [1, 8, 20, 33, 64])
def test_steps_do_not_depend_on_the_chunks_of_the_store(tmp_path, chunk_rows):
    encoder, made = Encoder(), artifact(tmp_path)
    embed_texts(made, table(), encoder, WIDTH, chunk_rows=chunk_rows, label="p")
    assert (encoder.blocks, encoder.batches) == ([0, 20, 40], 3 + 3 + 2)
    np.testing.assert_array_equal(EmbeddingStore.open(made.path)[:], VECTORS)
    assert (made.path / "ids.txt").read_text().split() == list(table().ids)


def test_chunks_are_written_by_a_thread_while_the_encoder_goes_on(tmp_path, monkeypatch):
    write, went_on, threads = EmbeddingStore.write_chunk, threading.Event(), []

    def waits(self, chunk, rows):
        threads.append(threading.current_thread())
        assert went_on.wait(30)  # for a batch behind the one that completed this chunk
        write(self, chunk, rows)

    def encoded(texts, wanted):
        for number, batch in enumerate(Encoder()(texts, wanted)):
            if number == 3:  # the first block is through, and with it two chunks
                went_on.set()
            yield batch

    monkeypatch.setattr(EmbeddingStore, "write_chunk", waits)
    made = artifact(tmp_path)
    embed_texts(made, table(), encoded, WIDTH, chunk_rows=8, label="p")
    assert threading.main_thread() not in threads
    np.testing.assert_array_equal(EmbeddingStore.open(made.path)[:], VECTORS)


def test_a_killed_run_goes_on_at_the_first_block_with_a_missing_chunk(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed_texts(artifact(tmp_path), table(), Encoder(7), WIDTH, chunk_rows=8, label="p")
    made = artifact(tmp_path)
    before = EmbeddingStore.open(made.partial).finished_chunks()
    assert before == [0, 1, 2, 3, 4]  # rows 40 … 49 are missing
    encoder = Encoder()
    embed_texts(made, table(), encoder, WIDTH, chunk_rows=8, label="p")
    assert encoder.blocks == [40]
    np.testing.assert_array_equal(EmbeddingStore.open(made.path)[:], VECTORS)


def test_a_disk_that_fails_ends_the_run_with_its_error(tmp_path, monkeypatch):
    def full(self, chunk, rows):
        raise InputError("disk full")

    monkeypatch.setattr(EmbeddingStore, "write_chunk", full)
    with pytest.raises(InputError, match="disk full"):
        embed_texts(artifact(tmp_path), table(), Encoder(), WIDTH, chunk_rows=8, label="p")
