"""Precomputed vectors in every form: the same rows come out, and nothing wrong gets in."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.search.index import exact
from nvret_jax.search.rankers.ranker import DenseRanker, gather_rows
from nvret_jax.search.rankers.vectors import fingerprint, open_pair, open_vectors
from nvret_jax.search.store import EmbeddingStore

FORMS = ("npy", "npz", "parquet", "zarr")
N, WIDTH = 23, 5
IDS = [f"p{i}" for i in range(N)]


def rows(count=N, seed=0, width=WIDTH):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def write(folder, form, ids, matrix, kind="passages", id_column="docid", column="embedding"):
    """One file of vectors, by the plainest means."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{kind}.{form}"
    matrix = np.asarray(matrix)
    if form in ("npy", "zarr"):
        (folder / f"{kind}.ids.txt").write_text("".join(f"{identifier}\n" for identifier in ids))
    if form == "npy":
        np.save(path, matrix)
    elif form == "npz":
        np.savez(path, ids=np.array(ids), vectors=matrix)
    elif form == "parquet":
        table = pa.table({"other": pa.array(ids), id_column: pa.array(ids), column: list(matrix)})
        pq.write_table(table, path, row_group_size=7)
    elif form == "zarr":
        store = EmbeddingStore.create(path, matrix.shape, 4)
        for i in range(store.chunks):
            store.write_chunk(i, matrix[4 * i : 4 * i + 4])
    return path


def in_file_order(order, seed=0):
    """(ids, matrix) of a file whose row i is row order[i] of the data set; -1: of no data set."""
    matrix = rows(seed=seed)
    ids = [IDS[row] if row >= 0 else f"extra{at}" for at, row in enumerate(order)]
    return ids, np.stack([matrix[row] if row >= 0 else np.ones(WIDTH) for row in order])


ORDERS = {
    "same": list(range(N)),
    "shifted by a few others": [-1, -1, *range(N), -1],
    "with others between": [x for row in range(N) for x in (row, -1)],
    "shuffled": np.random.default_rng(1).permutation(N).tolist(),
    "shuffled with others": [-1, *np.random.default_rng(2).permutation(N).tolist(), -1],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ORDERS)
def test_rows_come_in_the_data_sets_order_whatever_the_files(tmp_path, form, order):
    ids, matrix = in_file_order(ORDERS[order])
    write(tmp_path, form, ids, matrix)
    vectors = open_vectors(tmp_path, "passages", IDS)
    assert vectors.shape == (N, WIDTH)
    assert len(vectors) == N
    assert vectors.extra == len(ids) - N
    for part in (slice(None), slice(3, 11), slice(22, 40), slice(5, 5), slice(9, 3)):
        got = vectors[part]
        np.testing.assert_array_equal(got, rows()[part])
        assert got.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(vectors), rows())
    np.testing.assert_array_equal(gather_rows(vectors, np.array([1, 4, 20])), rows()[[1, 4, 20]])


@pytest.mark.parametrize("form", FORMS)
def test_a_dense_ranker_searches_them(tmp_path, form):
    ids, matrix = in_file_order(ORDERS["shuffled with others"])
    write(tmp_path, form, ids, matrix)
    write(tmp_path, form, ["q0", "q1"], rows(2, seed=7), kind="queries")
    passages, queries = open_pair(tmp_path, IDS, ["q1", "q0"])
    ranker = DenseRanker(queries[:], passages, exact.ExactIndex)
    scores, found = ranker.rank(np.arange(2), 4)
    want = rows(2, seed=7)[::-1] @ rows().T
    np.testing.assert_array_equal(found, np.argsort(-want, axis=1)[:, :4])
    pairs = Ragged.from_rows([found[0], found[1]], np.int32)
    np.testing.assert_allclose(ranker.score(np.arange(2), pairs), scores.ravel(), rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_normalised_rows_have_unit_length_and_the_same_direction(tmp_path, form):
    ids, matrix = in_file_order(ORDERS["shuffled"])
    write(tmp_path, form, ids, matrix * 1e18)
    got = open_vectors(tmp_path, "passages", IDS, normalize=True)[:]
    np.testing.assert_allclose(
        got, rows() / np.linalg.norm(rows(), axis=1, keepdims=True), rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_every_float_type_is_read(tmp_path, form, dtype):
    write(tmp_path, form, IDS, rows().astype(dtype))
    np.testing.assert_array_equal(
        open_vectors(tmp_path, "passages", IDS)[:], rows().astype(dtype).astype(np.float32)
    )


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed"])
@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64()])
def test_every_list_type_of_parquet_is_read_and_folders_of_parts_too(tmp_path, kind, number):
    make = {"list": pa.list_, "large_list": pa.large_list, "fixed": lambda n: pa.list_(n, WIDTH)}
    values = rows().astype(np.float16 if number == pa.float16() else np.float32)
    folder = tmp_path / "passages.parquet"
    folder.mkdir()
    for part, (a, b) in enumerate([(0, 10), (10, 10), (10, N)]):
        column = pa.array(list(values[a:b]), make[kind](number))
        table = pa.table({"_id": pa.array(IDS[a:b], pa.string()), "vectors": column})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=4)
    got = open_vectors(tmp_path, "passages", IDS)
    np.testing.assert_array_equal(got[:], values.astype(np.float32))


@pytest.mark.parametrize("column", ["id", "_id", "docid", "passage_id", "query_id"])
def test_ids_may_be_whole_numbers_under_any_known_name(tmp_path, column):
    table = pa.table({column: np.arange(N), "vector": list(rows())})
    pq.write_table(table, tmp_path / "passages.parquet")
    got = open_vectors(tmp_path, "passages", [str(i) for i in range(N)][::-1])
    np.testing.assert_array_equal(got[:], rows()[::-1])
    np.savez(tmp_path / "queries.npz", ids=np.arange(N), vectors=rows())
    got = open_vectors(tmp_path, "queries", ["22", "3"])
    np.testing.assert_array_equal(got[:], rows()[[22, 3]])


def test_npy_is_mapped_not_read(tmp_path):
    write(tmp_path, "npy", IDS, rows())
    assert isinstance(open_vectors(tmp_path, "passages", IDS)._matrix, np.memmap)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_is_refused_with_its_row_and_id(tmp_path, form, bad):
    if form == "zarr":
        pytest.skip("a store refuses them when it is written")
    ids, matrix = in_file_order(ORDERS["shuffled"])
    matrix[17, 2] = bad
    path = write(tmp_path, form, ids, matrix)
    with pytest.raises(InputError, match=re.escape(f"{path}: row 17 (id '{ids[17]}') has NaN")):
        open_vectors(tmp_path, "passages", IDS)
    assert open_vectors(tmp_path, "passages", IDS, scan=False).shape == (N, WIDTH)


def test_a_float64_beyond_float32_is_refused(tmp_path):
    matrix = rows().astype(np.float64)
    matrix[3, 0] = 1e300
    write(tmp_path, "npy", IDS, matrix)
    with pytest.raises(InputError, match=r"row 3 \(id 'p3'\) has NaN or infinity"):
        open_vectors(tmp_path, "passages", IDS)


@pytest.mark.parametrize("form", FORMS)
def test_a_zero_vector_is_refused_only_where_unit_length_is_asked_for(tmp_path, form):
    ids, matrix = in_file_order(ORDERS["shuffled"])
    matrix[5] = 0
    write(tmp_path, form, ids, matrix)
    assert not open_vectors(tmp_path, "passages", IDS)[:].all()
    with pytest.raises(InputError, match=re.escape(f"row 5 (id '{ids[5]}') has only zeros")):
        open_vectors(tmp_path, "passages", IDS, normalize=True)


@pytest.mark.parametrize("form", FORMS)
def test_ids_that_are_missing_or_there_twice_are_named(tmp_path, form):
    write(tmp_path, form, IDS, rows())
    with pytest.raises(InputError, match=r"2 of the data set's 25 ids have no vector.*'new'"):
        open_vectors(tmp_path, "passages", [*IDS, "new", "newer"])
    (tmp_path / f"passages.{form}").rename(tmp_path / "old")
    write(tmp_path, form, [*IDS[:-1], "p4"], rows())
    with pytest.raises(InputError, match="id 'p4' is in rows 4 and 22"):
        open_vectors(tmp_path, "passages", IDS[:-1])


def test_widths_must_agree(tmp_path):
    write(tmp_path, "npy", IDS, rows())
    write(tmp_path, "npz", ["q"], rows(1, width=6), kind="queries")
    with pytest.raises(InputError, match=r"queries.npz has vectors 6 wide, .*passages.npy 5"):
        open_pair(tmp_path, IDS, ["q"])


def test_there_must_be_one_file(tmp_path):
    with pytest.raises(InputError, match="no vectors of passages here; expected one of"):
        open_vectors(tmp_path, "passages", IDS)
    write(tmp_path, "npy", IDS, rows())
    write(tmp_path, "npz", IDS, rows())
    with pytest.raises(InputError, match=r"both passages\.npy and passages\.npz"):
        open_vectors(tmp_path, "passages", IDS)


def test_shapes_and_types_that_are_no_vectors_are_refused(tmp_path):
    path = tmp_path / "passages.npz"
    for ids, matrix, says in [
        (IDS, rows().astype(np.int32), "int32; expected float16"),
        (IDS, rows()[0], r"shape \(5,\); expected \[rows, width\]"),
        (IDS[:-1], rows(), "23 vectors, but 22 ids"),
        (np.array(IDS, object), rows(), "np.array\\(ids, dtype=str\\)"),
        ([], np.zeros((0, 5), np.float32), "empty, 0 x 5|ids are float64"),
        (IDS, np.zeros((N, 0), np.float32), "empty, 23 x 0"),
    ]:
        np.savez(path, ids=ids, vectors=matrix)
        with pytest.raises(InputError, match=says):
            open_vectors(tmp_path, "passages", IDS)
    np.savez(path, ids=IDS, embeddings=rows())
    with pytest.raises(InputError, match="no array 'vectors'; it has ids, embeddings"):
        open_vectors(tmp_path, "passages", IDS)


@pytest.mark.parametrize("form", ["npy", "npz", "parquet"])
def test_a_damaged_or_empty_file_is_named(tmp_path, form):
    path = write(tmp_path, form, IDS, rows())
    whole = path.read_bytes()
    for piece in (b"", whole[: len(whole) // 2]):
        path.write_bytes(piece)
        with pytest.raises(InputError, match=re.escape(str(path))):
            open_vectors(tmp_path, "passages", IDS)


def test_parquet_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "passages.parquet"
    ids = pa.array(IDS)
    short = [*rows()[:9], rows()[9, :2], *rows()[10:]]
    none = [*rows()[:8], None, *rows()[9:]]
    hole = [*rows()[:10].tolist(), [1.0, None, 1.0, 1.0, 1.0], *rows()[11:].tolist()]
    for table, says in [
        ({"id": ids, "embedding": short}, "row 9 has 2 numbers, row 7 5"),
        ({"id": ids, "embedding": none}, "row 8 has no vector"),
        ({"id": ids, "embedding": hole}, "row 10 has a missing value"),
        ({"id": ids, "embedding": list(rows().astype(int))}, "expected lists of floats"),
        ({"id": ids, "text": ids}, "expected one column of embedding.*found none among id, text"),
        ({"id": ids, "docid": ids, "vector": list(rows())}, "found id and docid"),
        ({"id": rows()[:, 0], "vector": list(rows())}, "ids are float; expected strings"),
        ({"id": [*IDS[:12], None, *IDS[13:]], "vector": list(rows())}, "row 12 has no id"),
    ]:
        pq.write_table(pa.table(table), path, row_group_size=7)
        with pytest.raises(InputError, match=says):
            open_vectors(tmp_path, "passages", IDS)
    wide = pa.table({"id": IDS, "vector": [*rows()[:7], *rows(16, width=4)]})
    pq.write_table(wide, path, row_group_size=7)
    with pytest.raises(InputError, match="vectors 4 wide, earlier ones 5"):
        open_vectors(tmp_path, "passages", IDS)


def test_the_list_of_ids_is_checked(tmp_path):
    write(tmp_path, "npy", IDS, rows())
    lines = tmp_path / "passages.ids.txt"
    lines.write_text("\ufeff" + "\r\n".join(IDS), newline="")
    assert open_vectors(tmp_path, "passages", IDS).shape == (N, WIDTH)
    lines.write_text("p0\n\np2\n")
    with pytest.raises(InputError, match=r"passages.ids.txt:2: an empty line"):
        open_vectors(tmp_path, "passages", IDS)
    lines.write_bytes(b"p0\n\xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        open_vectors(tmp_path, "passages", IDS)
    lines.unlink()
    for use in (lambda: open_vectors(tmp_path, "passages", IDS), lambda: fingerprint(tmp_path)):
        with pytest.raises(InputError, match=r"ids.txt: not found; expected one id per line"):
            use()


@pytest.mark.parametrize("form", FORMS)
def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path, form):
    def make(name, matrix, ids):
        write(tmp_path / name, form, ids, matrix)
        write(tmp_path / name, "npy", ["q"], rows(1), kind="queries")
        (tmp_path / name / "README").write_text(name)
        return fingerprint(tmp_path / name)

    changed = rows()
    changed[22, 4] += 1
    first = make("a", rows(), IDS)
    assert make("b", rows(), IDS) == first
    assert len({first, make("c", changed, IDS), make("d", rows(), [*IDS[:-1], "other"])}) == 3
