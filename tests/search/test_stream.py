"""Passages that stream: the answers of brute force within any budget, read once, in the back."""

import threading

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import assert_same, brute_force, exclusions, integers

from nvret_jax.errors import InputError
from nvret_jax.mesh import make_mesh
from nvret_jax.search.index import backend, exact, memory, resume, steps, stream
from nvret_jax.search.store import EmbeddingStore

ONE = make_mesh(devices=jax.devices()[:1])


def least_bytes(passages_nd, k, tile=None):
    """What the error message of a budget of one byte names."""
    index = stream.StreamIndex(passages_nd, mesh=ONE, tile=tile, memory_bytes=1)
    with pytest.raises(InputError, match="too few") as error:
        index.search(np.zeros((1, passages_nd.shape[1]), np.float32), k)
    return int(str(error.value).split("at least ")[1].split(" bytes")[0].replace(",", ""))


@settings(max_examples=9, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([1, 7, 200, 1000]),
    queries=st.sampled_from([1, 16, 50]),
    k=st.sampled_from([1, 3, 20]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    times=st.sampled_from([1.3, 3, 20, 1000]),
    with_ceiling=st.booleans(),
    with_exclude=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_budget_any_mask(n, queries, k, dtype, times, with_ceiling, with_exclude, seed):
    """From a budget that barely holds one tile of 8 rows to one that holds everything."""
    k = min(k, n)
    rng = np.random.default_rng(seed)
    queries_qd = integers(rng, queries)
    passages_nd = integers(rng, n).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    ceiling_q = rng.integers(-4, 9, queries).astype(np.float64) if with_ceiling else None
    exclude = exclusions(rng, queries, n) if with_exclude else None
    budget = int(times * (least_bytes(passages_nd, k) + 8 * k * queries))
    index = stream.StreamIndex(passages_nd, mesh=ONE, memory_bytes=budget)
    got = index.search(queries_qd, k, ceiling_q=ceiling_q, exclude=exclude)
    assert_same(got, brute_force(queries_qd, passages_nd, k, ceiling_q, exclude))
    assert index.plan.streams
    assert index.plan.total <= budget


@pytest.mark.parametrize("tile", [1, 24, 96, 5000])
def test_any_tile(tile):
    rng = np.random.default_rng(1)
    queries_qd, passages_nd = integers(rng, 40), integers(rng, 61 if tile == 1 else 700)
    index = stream.StreamIndex(passages_nd, mesh=ONE, tile=tile, memory_bytes=1 << 27)
    assert_same(index.search(queries_qd, 30), brute_force(queries_qd, passages_nd, 30))


def test_rows_past_the_end_are_never_found():
    """They are zeros, and would score above everything here."""
    rng = np.random.default_rng(12)
    queries_qd = np.abs(integers(rng, 20)) + 1
    passages_nd = -np.abs(integers(rng, 300)) - 1
    index = stream.StreamIndex(passages_nd, mesh=ONE, tile=128, memory_bytes=1 << 27)
    assert_same(index.search(queries_qd, 25), brute_force(queries_qd, passages_nd, 25))


def test_several_passes_and_blocks_with_masks():
    """Lists of all queries exceed half of the budget: queries go in passes, each in blocks."""
    rng = np.random.default_rng(2)
    queries_qd, passages_nd = integers(rng, 300), integers(rng, 500)
    ceiling_q = rng.integers(-3, 9, 300).astype(np.float64)
    exclude = exclusions(rng, 300, 500)
    budget = least_bytes(passages_nd, 40) + 250_000
    index = stream.StreamIndex(passages_nd, mesh=ONE, memory_bytes=budget)
    got = index.search(queries_qd, 40, ceiling_q=ceiling_q, exclude=exclude)
    assert index.plan.passes > 1
    assert index.plan.query_blocks > 1
    assert index.plan.total <= budget
    assert_same(got, brute_force(queries_qd, passages_nd, 40, ceiling_q, exclude))


def test_bfloat16_scores_are_the_same_bits_whatever_the_tile():
    """On a CPU with bfloat16 units, and for float32 where shapes agree, nothing is left to luck."""
    if not steps.cpu_multiplies_bfloat16():
        pytest.skip("this CPU has no bfloat16 instructions: products are made in float32")
    rng = np.random.default_rng(3)
    passages_nd = rng.standard_normal((5000, 64)).astype(ml_dtypes.bfloat16)
    queries_qd = rng.standard_normal((70, 64)).astype(ml_dtypes.bfloat16)
    answers = [
        stream.StreamIndex(passages_nd, mesh=ONE, tile=tile, memory_bytes=1 << 28).search(
            queries_qd, 25
        )
        for tile in (72, 1024, 5000)
    ]
    answers.append(exact.search(queries_qd, passages_nd, 25, mesh=ONE, tile=640))
    for other in answers[1:]:
        assert_same(other, answers[0])


class Watched:
    """Passages that remember who read what, and what lay on the devices meanwhile."""

    def __init__(self, array, fail_from=None):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.read, self.threads, self.live, self.fail_from = [], set(), [], fail_from

    def __getitem__(self, rows):
        if self.fail_from is not None and rows.start >= self.fail_from:
            raise KeyboardInterrupt
        self.read.append((rows.start, rows.stop))
        self.threads.add(threading.current_thread())
        self.live.append(sum(a.nbytes for a in jax.live_arrays()))
        return self.array[rows]


def test_every_passage_is_read_once_by_another_thread_within_the_budget():
    rng = np.random.default_rng(4)
    passages, queries_qd = Watched(rng.standard_normal((30_000, 64)).astype(np.float32)), None
    queries_qd = rng.standard_normal((40, 64)).astype(np.float32)
    before = sum(a.nbytes for a in jax.live_arrays())
    index = stream.StreamIndex(passages, mesh=ONE, memory_bytes=3 << 20)
    index.search(queries_qd, 10)
    plan = index.plan
    assert sorted(r for a, b in passages.read for r in range(a, b)) == list(range(30_000))
    assert threading.main_thread() not in passages.threads
    assert plan.tiles > 4
    assert plan.total <= 3 << 20
    assert plan.tile_bytes == 2 * plan.tile * 64 * 4
    # What lay on the device while the next tile was read, beside arrays of other tests.
    held = max(passages.live) - before
    assert held <= plan.tile_bytes + plan.query_bytes + plan.list_bytes + plan.score_bytes
    assert held <= plan.total
    assert held >= plan.tile * 64 * 4


def test_rows_up_to_the_last_int32(tmp_path):
    """A search of 2^31 - 1 passages of which all but the last 3,000 were done before."""

    class Endless:
        shape, dtype = (2**31 - 1, 3), np.dtype(np.float32)

        def __getitem__(self, rows):
            row = np.arange(rows.start, rows.stop, dtype=np.int64)
            last = self.shape[0] - 1
            return np.stack([row == last, row % 7, row % 5], axis=1).astype(np.float32)

    n, k, start = Endless.shape[0], 20, 2**31 - 1 - 3000
    queries_qd = np.array([[9, 1, 0], [0, 1, 1], [-1, 0, -1]], np.float32)
    ceiling_q = np.array([20, 9, 100.0])
    exclude = [[n - 1 - 70], [], [n - 1, n - 2]]
    pairs_2m = np.array([[0, 2, 2], [n - 71, n - 1, n - 2]], np.int32)
    name = resume.question(
        Endless.shape, np.float32, k, queries_qd, steps.FLOAT32,
        ceiling_q.astype(np.float32), pairs_2m,
    )  # fmt: skip
    saved = resume.Saved(tmp_path, name)
    empty = np.full((3, k), -np.inf, np.float32), np.full((3, k), -1, np.int32)
    saved.store_lists(0, 3, start, *empty)
    got = stream.StreamIndex(Endless(), mesh=ONE, tile=1024, memory_bytes=1 << 27).search(
        queries_qd, k, ceiling_q=ceiling_q, exclude=exclude, resume=tmp_path
    )
    tail_nd = Endless()[slice(start, n)]
    local = [[row - start for row in rows] for rows in exclude]
    scores, rows = brute_force(queries_qd, tail_nd, k, ceiling_q, local)
    assert_same(got, (scores, np.where(rows >= 0, rows + start, -1).astype(np.int32)))
    assert got[1][0].max() == n - 1


# --- resume ---------------------------------------------------------------------------------------


def interrupted(passages_nd, queries_qd, folder, fail_from, **arguments):
    """Searches until a row that cannot be read."""
    index = stream.StreamIndex(
        Watched(passages_nd, fail_from), mesh=ONE, tile=arguments.pop("tile"), memory_bytes=1 << 27
    )
    with pytest.raises(KeyboardInterrupt):
        index.search(queries_qd, arguments.pop("k"), resume=folder, **arguments)


@pytest.mark.parametrize("tile", [64, 40])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path, tile):
    """With the same tiles, and with others whose borders lie elsewhere."""
    rng = np.random.default_rng(5)
    queries_qd, passages_nd = integers(rng, 30), integers(rng, 1000)
    masks = {
        "ceiling_q": rng.integers(-3, 9, 30).astype(float),
        "exclude": exclusions(rng, 30, 1000),
    }
    interrupted(passages_nd, queries_qd, tmp_path, 600, tile=64, k=15, **masks)
    again = Watched(passages_nd)
    index = stream.StreamIndex(again, mesh=ONE, tile=tile, memory_bytes=1 << 27)
    got = index.search(queries_qd, 15, resume=tmp_path, **masks)
    assert_same(got, brute_force(queries_qd, passages_nd, 15, **masks))
    first = min(a for a, _ in again.read)
    assert 400 < first <= 640
    # Once more: everything is there.
    last = Watched(passages_nd)
    index = stream.StreamIndex(last, mesh=ONE, tile=tile, memory_bytes=1 << 27)
    assert_same(index.search(queries_qd, 15, resume=tmp_path, **masks), got)
    assert not last.read


def test_another_question_in_the_same_folder_starts_afresh(tmp_path):
    rng = np.random.default_rng(6)
    queries_qd, passages_nd = integers(rng, 20), integers(rng, 400)
    interrupted(passages_nd, queries_qd, tmp_path, 200, tile=64, k=9)
    for change in ({"k": 8}, {"ceiling_q": np.full(20, 3.0)}, {"exclude": [[5]] * 20}, {"q": 1}):
        asked = {"k": 9} | change
        other_qd = queries_qd + asked.pop("q", 0)
        again, k = Watched(passages_nd), asked.pop("k")
        index = stream.StreamIndex(again, mesh=ONE, tile=64, memory_bytes=1 << 27)
        got = index.search(other_qd, k, resume=tmp_path, **asked)
        assert min(a for a, _ in again.read) == 0
        assert_same(got, brute_force(other_qd, passages_nd, k, **asked))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_damaged_lists_are_thrown_away_with_a_word(tmp_path, damage, capsys):
    rng = np.random.default_rng(7)
    queries_qd, passages_nd = integers(rng, 20), integers(rng, 400)
    interrupted(passages_nd, queries_qd, tmp_path, 200, tile=64, k=9)
    (file,) = tmp_path.glob("*-0-20.npz")
    data = bytearray(file.read_bytes())
    if damage == "other":
        np.savez(file, rows=np.int64(128), scores_qk=np.zeros((3, 3)), rows_qk=np.zeros((3, 3)))
    else:
        data[len(data) // 2] ^= 255
        file.write_bytes({"cut": data[:-40], "flipped": data, "empty": b""}[damage])
    again = Watched(passages_nd)
    index = stream.StreamIndex(again, mesh=ONE, tile=64, memory_bytes=1 << 27)
    got = index.search(queries_qd, 9, resume=tmp_path)
    assert_same(got, brute_force(queries_qd, passages_nd, 9))
    assert min(a for a, _ in again.read) == 0
    assert f"{file} is damaged" in capsys.readouterr().out


def test_the_sizes_of_the_first_run_are_kept_if_they_fit(tmp_path):
    rng = np.random.default_rng(8)
    queries_qd, passages_nd = integers(rng, 40), integers(rng, 4000)
    small = least_bytes(passages_nd, 9) + 100_000
    runs = []
    for budget, folder in ((small, "a"), (1 << 27, "a"), (1 << 27, "b"), (small, "b")):
        index = stream.StreamIndex(passages_nd, mesh=ONE, memory_bytes=budget)
        index.search(queries_qd, 9, resume=tmp_path / folder)
        runs.append((index.plan.tile, index.plan.query_block))
    assert runs[0] == runs[1]
    assert runs[2] != runs[0]
    assert runs[3] == runs[0]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    index = stream.StreamIndex(np.ones((9, 2), np.float32), mesh=ONE, memory_bytes=1 << 27)
    with pytest.raises(InputError, match="file is a file"):
        index.search(np.ones((1, 2), np.float32), 1, resume=tmp_path / "file")


# --- what is refused, and which index is chosen ---------------------------------------------------


def test_a_missing_chunk_is_named(tmp_path):
    store = EmbeddingStore.create(tmp_path / "vectors", (400, 4), 100)
    for i in (0, 1, 3):
        store.write_chunk(i, np.ones((100, 4), np.float32))
    index = stream.StreamIndex(store, mesh=ONE, tile=64, memory_bytes=1 << 27)
    with pytest.raises(InputError, match="rows 200 to 299 were never embedded"):
        index.search(np.ones((2, 4), np.float32), 3)


def test_a_store_is_read_in_its_own_chunks_and_no_row_twice(tmp_path):
    rng = np.random.default_rng(9)
    passages_nd = integers(rng, 1000)
    store = EmbeddingStore.create(tmp_path / "vectors", (1000, 5), 64, "bfloat16")
    for i in range(store.chunks):
        store.write_chunk(i, passages_nd[i * 64 : (i + 1) * 64])
    queries_qd = integers(rng, 9)
    index = stream.StreamIndex(store, mesh=ONE, tile=250, memory_bytes=1 << 27)
    assert_same(index.search(queries_qd, 12), brute_force(queries_qd, passages_nd, 12))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_bad_value_is_named_by_its_row(bad, dtype):
    passages_nd = np.ones((500, 8), np.float32)
    passages_nd[333, 5] = bad
    index = stream.StreamIndex(passages_nd.astype(dtype), mesh=ONE, tile=64, memory_bytes=1 << 27)
    with pytest.raises(InputError, match=r"passages row 333 has .* in column 5"):
        index.search(np.ones((1, 8), np.float32), 2)


def test_a_budget_too_small_says_the_least_that_is_enough():
    passages_nd = np.ones((300, 8), np.float32)
    least = least_bytes(passages_nd, 5)
    queries_qd = np.ones((1, 8), np.float32)
    for budget, enough in ((least, True), (least - 1, False)):
        index = stream.StreamIndex(passages_nd, mesh=ONE, memory_bytes=budget)
        if enough:
            index.search(queries_qd, 5)
        else:
            with pytest.raises(InputError, match=f"at least {least:,} bytes"):
                index.search(queries_qd, 5)


def test_a_small_budget_streams_and_a_large_one_stays_and_both_agree():
    rng = np.random.default_rng(10)
    queries_qd, passages_nd = integers(rng, 20, 16), integers(rng, 9000, 16)
    want = brute_force(queries_qd, passages_nd, 10)
    for memory_bytes, streams in ((300_000, True), (1 << 27, False)):
        index = backend.make_index(
            passages_nd, mesh=ONE, backend="device", memory_bytes=memory_bytes
        )
        assert index.streams is streams
        assert_same(index.search(queries_qd, 10), want)
        assert index.plan.total <= memory_bytes
        assert index.plan.streams is streams
    got = backend.search(queries_qd, passages_nd, 10, mesh=ONE, memory_bytes=300_000)
    assert_same(got, want)


def test_faiss_is_left_where_the_corpus_exceeds_the_budget(capsys):
    backend._say.cache_clear()
    passages_nd = np.ones((5000, 16), np.float32)
    assert backend.make_index(passages_nd, memory_bytes=200_000).streams
    assert "FAISS would hold" in capsys.readouterr().out
    assert not hasattr(backend.make_index(passages_nd, memory_bytes=1 << 27), "streams")


def test_memory_is_said_once(capsys):
    passages_nd, queries_qd = np.ones((500, 8), np.float32), np.ones((3, 8), np.float32)
    index = stream.StreamIndex(passages_nd, mesh=ONE, memory_bytes=1 << 20)
    index.search(queries_qd, 2)
    index.search(queries_qd, 2)
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("search memory")]
    assert len(lines) == 1
    assert "500 x 8 float32 stream through 1 device" in lines[0]
    assert memory.size(1 << 20) in lines[0]
