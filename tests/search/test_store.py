"""EmbeddingStore: whole chunks or none, through kills, damage and several writers."""

import os
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest

from nvret_jax.errors import InputError
from nvret_jax.search.index import exact
from nvret_jax.search.store import EmbeddingStore


def _rows(n, width=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def _fill(path, rows, chunk_rows, dtype="float32"):
    store = EmbeddingStore.create(path, rows.shape, chunk_rows, dtype)
    for i in range(store.chunks):
        store.write_chunk(i, rows[i * chunk_rows : (i + 1) * chunk_rows])
    return store


def test_round_trip_and_slices(tmp_path):
    rows = _rows(10)
    _fill(tmp_path / "deep" / "store", rows, 4)
    store = EmbeddingStore.open(tmp_path / "deep" / "store")
    assert (len(store), store.shape, store.dtype, store.chunks) == (10, (10, 6), np.float32, 3)
    assert store.finished_chunks() == [0, 1, 2]
    np.testing.assert_array_equal(np.asarray(store), rows)
    for cut in (slice(0, 4), slice(3, 9), slice(-2, None), slice(8, 99), slice(5, 5), slice(7, 2)):
        np.testing.assert_array_equal(store[cut], rows[cut])
    assert np.asarray(store, np.float64).dtype == np.float64
    with pytest.raises(TypeError):
        store[3]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_dtypes(tmp_path, dtype):
    rows = _rows(9)
    store = _fill(tmp_path / "s", rows, 4, dtype)
    narrow = rows.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    assert EmbeddingStore.open(tmp_path / "s").dtype == narrow.dtype
    np.testing.assert_array_equal(store[:], narrow)


def test_zero_vectors_are_kept(tmp_path):
    """A chunk equal to the fill value would be dropped; zeros must not be that value."""
    store = _fill(tmp_path / "s", np.zeros((8, 3), np.float32), 4)
    assert store.finished_chunks() == [0, 1]
    assert (EmbeddingStore.open(tmp_path / "s")[:] == 0).all()


def test_missing_chunk_is_an_error_not_zeros(tmp_path):
    rows = _rows(10)
    store = EmbeddingStore.create(tmp_path / "s", rows.shape, 4)
    store.write_chunk(2, rows[8:])
    assert store.finished_chunks() == [2]
    np.testing.assert_array_equal(store[8:10], rows[8:])
    with pytest.raises(InputError, match=r"c/1/0: missing, so rows 4 to 7 were never embedded"):
        store[5:9]
    with pytest.raises(InputError, match="c/0/0: missing"):
        exact.search(rows[:1], store, 1)


@pytest.mark.parametrize("chunk", [1, 2])  # 2 is the last one, which covers its file only in part
def test_damage_names_the_file_and_can_be_mended(tmp_path, chunk):
    rows = _rows(10)
    _fill(tmp_path / "s", rows, 4)
    path = tmp_path / "s" / "c" / str(chunk) / "0"
    part = slice(chunk * 4, chunk * 4 + 4)

    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"c/{chunk}/0: damaged"):
        EmbeddingStore.open(tmp_path / "s")[:]

    path.write_bytes(data[:20])
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.finished_chunks() == [i for i in range(3) if i != chunk]
    with pytest.raises(InputError, match=rf"c/{chunk}/0: truncated at 20 bytes"):
        store[part]
    store.write_chunk(chunk, rows[part])
    np.testing.assert_array_equal(EmbeddingStore.open(tmp_path / "s")[:], rows)


def test_bad_arguments(tmp_path):
    store = EmbeddingStore.create(tmp_path / "s", (10, 6), 4)
    bad = _rows(4)
    bad[2, 3] = np.nan
    for words, call in (
        (["chunk 0", "(3, 6)", "(4, 6)"], lambda: store.write_chunk(0, _rows(3))),
        (["chunk 2", "(4, 6)", "(2, 6)"], lambda: store.write_chunk(2, _rows(4))),
        (["no chunk 3", "there are 3"], lambda: store.write_chunk(3, _rows(4))),
        (["row 6", "NaN"], lambda: store.write_chunk(1, bad)),
        (["10", "12"], lambda: EmbeddingStore.create(tmp_path / "s", (12, 6), 4)),
        (["int8"], lambda: EmbeddingStore.create(tmp_path / "t", (12, 6), 4, "int8")),
        (["(0, 6)"], lambda: EmbeddingStore.create(tmp_path / "t", (0, 6), 4)),
        (["nothing-here"], lambda: EmbeddingStore.open(tmp_path / "nothing-here")),
    ):
        with pytest.raises(InputError) as error:
            call()
        for word in words:
            assert word in str(error.value)
    assert store.finished_chunks() == []
    # The same layout again is the same store: several processes may all call create.
    store.write_chunk(0, _rows(4))
    assert EmbeddingStore.create(tmp_path / "s", (10, 6), 4).finished_chunks() == [0]


WRITER = """
import sys, numpy as np
from nvret_jax.search.store import EmbeddingStore
path, first, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = EmbeddingStore.create(path, (40 * 500, 64), 500)
print("started", flush=True)
for i in range(first, 40, step):
    store.write_chunk(i, np.full((500, 64), i, np.float32))
"""


def _writer(path, first, step):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first), str(step)], stdout=subprocess.PIPE
    )


def test_killed_while_writing_leaves_whole_chunks(tmp_path):
    """kill -9 in the middle, at several moments: what is listed is right, the rest is rewritten."""
    for moment in (0.0, 0.01, 0.03):
        path = tmp_path / f"kill-{moment}"
        process = _writer(path, 0, 1)
        process.stdout.readline()
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        store = EmbeddingStore.open(path)
        finished = store.finished_chunks()
        for i in finished:
            assert (store[i * 500 : (i + 1) * 500] == i).all()
        # Whatever a kill can leave beside a chunk must not stand in the way of the next writer.
        leftover = path / "c" / "39"
        leftover.mkdir(parents=True, exist_ok=True)
        (leftover / "0.__lock").write_bytes(b"half a chunk")
        assert store.finished_chunks() == finished
        for i in set(range(40)) - set(finished):
            store.write_chunk(i, np.full((500, 64), i, np.float32))
        assert (EmbeddingStore.open(path)[:][:, 0] == np.repeat(np.arange(40), 500)).all()


def test_two_processes_write_one_store(tmp_path):
    writers = [_writer(tmp_path / "s", first, 2) for first in (0, 1)]
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.finished_chunks() == list(range(40))
    assert (store[:][:, 63] == np.repeat(np.arange(40), 500)).all()


def test_search_reads_a_store(tmp_path):
    rows = _rows(300, 8)
    store = _fill(tmp_path / "s", rows, 64)
    want = exact.search(rows[:7], rows, 12)
    got = exact.search(rows[:7], store, 12, tile=80)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)


def test_no_permission(tmp_path):
    if os.geteuid() == 0:
        path = "/proc/no/store"  # root may write anywhere but here
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        path = str(tmp_path / "locked" / "store")
    with pytest.raises(InputError, match="cannot make a store"):
        EmbeddingStore.create(path, (4, 2), 2)
