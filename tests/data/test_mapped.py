"""Texts in mapped files and ids without a dict, against lists and dicts."""

import random
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvret_jax.data import dataset, mapped
from nvret_jax.data.dataset import TextTable, content_hash
from nvret_jax.data.load import load_dataset
from nvret_jax.data.mapped import IdRows, MappedTexts, TextWriter


def some_texts(count, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices("abc ü𝄞\n", k=rng.randint(0, 30))) for _ in range(count)]


def written(texts, in_memory=500, block=300):
    writer = TextWriter(in_memory, block)
    for row, text in enumerate(texts):
        writer.add(text)
        assert writer[row] == text
        assert writer[row // 2] == texts[row // 2]
    return writer.done()


def test_mapped_texts_are_the_texts():
    texts = some_texts(400)
    found = written(texts)
    assert isinstance(found, MappedTexts)
    assert len(found) == 400
    assert list(found) == texts
    assert [found[row] for row in range(-400, 400)] == texts * 2
    rng = random.Random(1)
    for _ in range(50):
        start, stop = rng.randint(-10, 410), rng.randint(-10, 410)
        assert found[start:stop] == texts[start:stop]
        assert found[start : stop : rng.choice([2, -1])] is not None
    assert found[::-3] == texts[::-3]
    assert found.array().to_pylist() == texts
    with pytest.raises(IndexError):
        found[400]
    assert repr(found) == "MappedTexts(400 texts)"


def test_few_texts_are_a_list():
    texts = some_texts(10)
    assert written(texts, in_memory=10_000) == texts
    assert list(MappedTexts((), ())) == []


def test_ids_without_a_dict():
    ids = [f"id-{i}" for i in range(1000)]
    table = TextTable(written(ids), ids)
    assert isinstance(table.row, IdRows)
    assert dict(table.row) == {identifier: row for row, identifier in enumerate(ids)}
    assert table.row.get("id-1000") is None
    assert "id-999" in table.row
    assert 7 not in table.row
    with pytest.raises(KeyError):
        table.row["nothing"]
    assert list(IdRows(["a", "b", "a", "c", "b"]).twins()) == [(0, 2), (1, 4)]
    assert list(table.select(["id-3", "id-1"]).texts) == ["id-3", "id-1"]


def test_mapped_tables_have_the_same_fingerprint(tmp_path, monkeypatch):
    texts = [f"{i} {text.strip() or 'x'}" for i, text in enumerate(some_texts(300))]
    for name, columns in {
        "corpus/corpus": {
            "_id": [f"p{i}" for i in range(300)] + ["p7"],
            "text": [*texts, texts[7]],
        },
        "queries/queries": {"_id": [f"q{i}" for i in range(20)], "text": texts[:20]},
        "data/test": {
            "query-id": [f"q{i}" for i in range(20)],
            "corpus-id": [f"p{i}" for i in range(20)],
        },
    }.items():
        path = tmp_path / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), path)
    small = load_dataset(f"hf:{tmp_path}")

    monkeypatch.setattr(mapped, "IN_MEMORY", 1000)
    monkeypatch.setattr(mapped, "_BLOCK", 500)
    large = load_dataset(f"hf:{tmp_path}")
    assert isinstance(large.corpus.texts, MappedTexts)
    assert isinstance(large.corpus.ids, MappedTexts)
    assert large.fingerprint == small.fingerprint
    assert len(large.corpus) == 300
    assert large.positives("test") == small.positives("test")


def test_hashing_does_not_hold_all_texts(monkeypatch):
    texts = ["x" * 1000] * 20_000
    table = TextTable(tuple(str(i) for i in range(20_000)), texts)
    empty = TextTable((), [])
    monkeypatch.setattr(dataset, "_HASHED", 100)
    tracemalloc.start()
    content_hash(table, empty, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
