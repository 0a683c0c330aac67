"""Every format of training rows as a source: its positives, and its negatives as given."""

import json

import pytest
from interchange import interchange_samples as samples

from nvret_jax.data import interchange
from nvret_jax.data.load import READERS, ROW_FORMATS, load_dataset
from nvret_jax.errors import InputError


def test_every_format_of_rows_is_a_source():
    assert set(ROW_FORMATS) == set(samples.ROW_FORMATS) - {"beir"}
    assert set(ROW_FORMATS) < set(READERS)


@pytest.mark.parametrize("name", ROW_FORMATS)
def test_positives_and_negatives_of_each_format(tmp_path, name):
    builder = interchange.Builder()
    for i in range(4):
        query = builder.query("", f"query {i}", f"q{i}")
        passages = [builder.passage("", f"text {j} of {i}", f"p{i}-{j}") for j in range(3)]
        builder.add(query, passages[:1], passages[1:], [0.9], [0.5, 0.25])
    path = tmp_path / f"rows{samples.SUFFIX.get(name, '.jsonl' if name.startswith('st') else '')}"
    interchange.write(builder.build(), name, path, lambda line: None)
    data = load_dataset(f"{name}:{path}?split=train")
    q, p = data.queries, data.corpus
    found = {
        q.texts[q.row[query]]: (
            [p.texts[p.row[passage]] for passage in judged],
            [p.texts[p.row[passage]] for passage in data.given["train"][query]],
        )
        for query, judged in data.qrels["train"].items()
    }
    assert found == {
        f"query {i}": ([f"text 0 of {i}"], [f"text 1 of {i}", f"text 2 of {i}"]) for i in range(4)
    }
    if "ids" in samples.HOLDS[name]:
        assert "p0-0" in p.row


def test_files_split_as_tables_of_pairs_do(tmp_path):
    rows = [{"query": f"q{i} is", "pos": [f"p{i} is"], "neg": ["n"]} for i in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("mined.jsonl", "train.jsonl"):
        (tmp_path / name).write_text(text)
    drawn = load_dataset(f"flagembedding:{tmp_path}/mined.jsonl")
    assert {s: len(q) for s, q in drawn.qrels.items()} == {"train": 16, "dev": 2, "test": 2}
    assert {s: len(q) for s, q in drawn.given.items()} == {"train": 16, "dev": 2, "test": 2}
    assert list(load_dataset(f"flagembedding:{tmp_path}/train.jsonl").qrels) == ["train"]
    both = load_dataset(f"flagembedding:{tmp_path}/*.jsonl")
    assert len(both.queries) == 20


def test_a_negative_that_is_a_positive_is_an_error(tmp_path):
    rows = [
        {"query": "q", "pos": ["a"], "neg": ["b"]},
        {"query": "q", "pos": ["b"], "neg": ["c"]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"a.jsonl, row 2: .* judged 1 .* a negative at .* row 1"):
        load_dataset(f"flagembedding:{path}?split=train")


def test_given_negatives_are_part_of_the_fingerprint(tmp_path):
    found = set()
    for negatives in (["b"], ["b", "c"], ["c", "b"]):
        rows = [
            {"query": "q", "pos": ["a"], "neg": negatives},
            {"query": "r", "pos": ["b"]},
            {"query": "s", "pos": ["c"]},
        ]
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.add(load_dataset(f"flagembedding:{path}?split=train").fingerprint)
    assert len(found) == 3
