"""`hf:` folders in the layouts of the Hugging Face hub, written by pyarrow or by `datasets`."""

import json

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvret_jax.data import hub
from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError

CORPUS = {"_id": ["007", "08"], "title": ["", "T"], "text": ["seven", "eight"]}
QUERIES = {"_id": ["01", "02", "03"], "text": ["which", "what", "who"]}
JUDGED = {
    "train": {"query-id": ["01"], "corpus-id": ["007"], "score": [1.0]},
    "validation": {"query-id": ["03"], "corpus-id": ["007"], "score": [1.0]},
    "test": {"query-id": ["02", "02"], "corpus-id": ["08", "007"], "score": [2.0, 0.0]},
}
QRELS = {
    "train": {"01": {"007": 1}},
    "dev": {"03": {"007": 1}},
    "test": {"02": {"08": 2, "007": 0}},
}
PAIRS = {"anchor": [f"q{i} ?" for i in range(4)], "positive": [f"p{i} ." for i in range(4)]}
README = """---
license: mit
configs:
- config_name: corpus
  data_files: things/c*
- config_name: queries
  data_files:
  - split: queries
    path: things/q.jsonl
- config_name: default
  data_files:
  - split: train
    path: judged/tr*.tsv
  - split: test
    path: ["judged/te*.tsv"]
---
# A data set
"""


def parquet(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def judged_folder(root):
    parquet(root / "corpus" / "corpus-00000-of-00001.parquet", CORPUS)
    parquet(root / "queries" / "queries-00000-of-00001.parquet", QUERIES)
    for split, columns in JUDGED.items():
        parquet(root / "data" / f"{split}-00000-of-00001.parquet", columns)
    return root


def check_judged(data, splits=("train", "dev", "test")):
    assert data.corpus.ids == ("007", "08")
    assert list(data.corpus.texts) == ["seven", "T eight"]
    assert data.queries.ids == ("01", "02", "03")
    assert data.qrels == {split: QRELS[split] for split in splits}


def test_a_corpus_with_judgments_by_the_names_of_files(tmp_path):
    data = load_dataset(f"hf:{judged_folder(tmp_path / 'SciFact')}")
    check_judged(data)
    assert data.name == "scifact"
    check_judged(load_dataset(f"hf:{tmp_path}/SciFact", splits="test"), ["test"])


def test_a_corpus_with_judgments_by_the_readme(tmp_path):
    (tmp_path / "things").mkdir()
    (tmp_path / "judged").mkdir()
    (tmp_path / "README.md").write_text(README)
    parquet(tmp_path / "things" / "c.parquet", CORPUS)
    rows = [dict(zip(QUERIES, row, strict=True)) for row in zip(*QUERIES.values(), strict=True)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "things" / "q.jsonl").write_text(text)
    head = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "judged" / "train.tsv").write_text(f"{head}01\t007\t1\n")
    (tmp_path / "judged" / "test.tsv").write_text(f"{head}02\t08\t2\n02\t007\t0\n")
    check_judged(load_dataset(f"hf:{tmp_path}"), ["train", "test"])


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("data/*.csv", ["data/a.csv"]),
        ("**/a.csv", ["a.csv", "data/a.csv", "data/x/a.csv"]),
        ("data/**", ["data/a.csv", "data/x/a.csv"]),
        ("./?.csv", ["a.csv"]),
        ("data/*", ["data/a.csv"]),
        ("a+csv", []),
    ],
)
def test_patterns_of_a_readme(pattern, found):
    files = ["a.csv", "data/a.csv", "data/x/a.csv", "data/x.bin", "README.md"]
    assert hub._matching(files, pattern) == found


def test_judgments_in_a_repository_beside_it(tmp_path):
    root = tmp_path / "x"
    parquet(root / "corpus" / "0000.parquet", CORPUS)
    parquet(root / "queries" / "0000.parquet", QUERIES)
    beside = tmp_path / "x-qrels"
    beside.mkdir()
    (beside / "test.tsv").write_text("query-id\tcorpus-id\tscore\n02\t08\t2\n02\t007\t0\n")
    check_judged(load_dataset(f"hf:{root}"), ["test"])
    beside.rename(tmp_path / "other")
    check_judged(load_dataset(f"hf:{root}?qrels={tmp_path}/other"), ["test"])


def test_judgments_of_what_is_not_there(tmp_path):
    root = judged_folder(tmp_path / "x")
    parquet(root / "corpus" / "corpus-00000-of-00001.parquet", {"_id": ["007"], "text": ["seven"]})
    with pytest.raises(InputError, match=r"test.*parquet, row 1: passage id '08' is not among"):
        load_dataset(f"hf:{root}")
    parquet(root / "data" / "test-00000-of-00001.parquet", JUDGED["train"])
    assert len(load_dataset(f"hf:{root}", missing="drop").qrels["test"]) == 1


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"_id": ["a", "a"], "text": ["x", "y"]}, r"passage id 'a' has two texts"),
        ({"_id": ["a", "b"], "text": ["x", " "]}, r"row 2: passage 'b' is blank"),
        ({"_id": ["a", "b c"], "text": ["x", "y"]}, r"row 2: passage 'b c' has an id that"),
        ({"_id": ["a", None], "text": ["x", "y"]}, r"row 2: column '_id' must be an id"),
        ({"_id": ["a"], "text": [None]}, r"row 1: column 'text' must be a string, got null"),
        ({"_id": ["a"], "words": ["x"]}, r"no column with the text of a passage"),
    ],
)
def test_what_is_wrong_with_a_corpus(tmp_path, corpus, message):
    root = judged_folder(tmp_path / "x")
    parquet(root / "corpus" / "corpus-00000-of-00001.parquet", corpus)
    with pytest.raises(InputError, match=message):
        load_dataset(f"hf:{root}")


def test_options_of_pairs_are_refused_where_there_are_judgments(tmp_path):
    root = judged_folder(tmp_path / "x")
    with pytest.raises(InputError, match=r"no option 'test'; options: config, revision, qrels"):
        load_dataset(f"hf:{root}?test=0.1")


def test_configs_of_pairs(tmp_path):
    for split in ("train", "dev"):
        parquet(tmp_path / "pair" / f"{split}-00000-of-00001.parquet", PAIRS)
        more = PAIRS | {"negative": [f"n{i}" for i in range(4)]}
        parquet(tmp_path / "triplet" / f"{split}-00000-of-00001.parquet", more)
    with pytest.raises(
        InputError, match=r"has the configs pair, triplet; name one, as in \?config"
    ):
        load_dataset(f"hf:{tmp_path}")
    data = load_dataset(f"hf:{tmp_path}?config=pair")
    assert {split: len(qrels) for split, qrels in data.qrels.items()} == {"train": 4, "dev": 4}
    assert not data.given
    assert len(load_dataset(f"hf:{tmp_path}?config=triplet").given["train"]) == 4
    with pytest.raises(InputError, match="no config 'x'; configs: pair, triplet"):
        load_dataset(f"hf:{tmp_path}?config=x")


def test_folders_of_the_converted_branch(tmp_path):
    parquet(tmp_path / "default" / "train" / "0000.parquet", PAIRS)
    parquet(tmp_path / "default" / "train" / "0001.parquet", {k: ["x"] for k in PAIRS})
    parquet(tmp_path / "default" / "validation" / "0000.parquet", PAIRS)
    data = load_dataset(f"hf:{tmp_path}")
    assert {split: len(qrels) for split, qrels in data.qrels.items()} == {"train": 5, "dev": 4}


def test_what_save_to_disk_leaves(tmp_path):
    table = pa.table(PAIRS)
    for place in ("whole", "two/train", "two/validation"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        name = "data-00000-of-00001.arrow"
        with pa.ipc.new_stream(folder / name, table.schema) as sink:
            sink.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    whole = load_dataset(f"hf:{tmp_path}/whole?test=0.25&dev=0")
    assert {split: len(qrels) for split, qrels in whole.qrels.items()} == {"train": 3, "test": 1}
    two = load_dataset(f"hf:{tmp_path}/two")
    assert {split: len(qrels) for split, qrels in two.qrels.items()} == {"train": 4, "dev": 4}


@pytest.mark.parity
def test_what_datasets_itself_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made = datasets.DatasetDict({"train": datasets.Dataset.from_dict(PAIRS)})
    made.save_to_disk(tmp_path / "disk")
    made["train"].to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    one, other = (load_dataset(f"hf:{tmp_path}/{name}") for name in ("disk", "hub"))
    assert one.fingerprint == other.fingerprint


def test_the_hub_is_asked_only_where_it_may_be(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"hf:owner/name: no such folder, and not in .*download"):
        load_dataset("hf:owner/name")
    with pytest.raises(InputError, match="'hf:': name the folder"):
        load_dataset("hf:")
    root, asked = judged_folder(tmp_path / "cache"), []

    class Api:
        def list_repo_files(self, name, **what):
            asked.append((name, what["revision"]))
            found = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]
            return ["x.py"] if what["revision"] is None else [*found, "big.bin"]

    def snapshot(name, *, repo_type, revision, allow_patterns):
        assert repo_type == "dataset"
        asked.append((name, revision, len(allow_patterns)))
        return str(root)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    data = load_dataset("hf:owner/Name@v2", download=True)
    assert data.name == "name"
    check_judged(data)
    assert asked == [("owner/Name", "v2"), ("owner/Name", "v2", 5)]
    asked.clear()
    load_dataset("hf:owner/name", download=True)  # a script alone
    assert asked[1:] == [("owner/name", hub.CONVERTED), ("owner/name", hub.CONVERTED, 5)]
