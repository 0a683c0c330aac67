"""Every file of the table in docs/data.md is read by the source that stands beside it."""

import pathlib

import own_files
import pytest
import tiny_models

from nvret_jax.data.load import load_dataset

COMMANDS = own_files.commands()
# Sources whose negatives come with them.
WITH_NEGATIVES = (
    "arrays.jsonl.zst triples.tsv judged.csv triplets.parquet tuples.jsonl mined.jsonl "
    "tevatron.jsonl tables/ saved/ configs/"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("own")
    own_files.make(made, tiny_models.WORDS)
    own_files.make_prepared(made, tiny_models.WORDS)
    return made


def test_the_table_is_long():
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize("name", COMMANDS)
def test_each_file_is_read_by_its_source(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    for part in name.split(", "):
        assert list(pathlib.Path().glob(part)), part
    data = load_dataset(COMMANDS[name])
    sizes = {split: len(qrels) for split, qrels in data.qrels.items()}
    assert list(sizes) == ["train", "dev", "test"]
    assert sum(sizes.values()) == own_files.ROWS
    assert min(sizes.values()) >= 2
    assert bool(data.given.get("train")) == (name in WITH_NEGATIVES)
    asked = data.positives("train")
    if not name.startswith("classes"):
        assert len(data.corpus) == own_files.ROWS
        for query, found in asked.items():
            text = data.queries.texts[data.queries.row[query]].removesuffix(" é")
            assert data.corpus.texts[data.corpus.row[found[0]]].startswith(text)
