"""`tfds:`, against sets that TensorFlow Datasets itself has written as array_record."""

import json
import subprocess
import sys

import numpy as np
import pytest
from own_files import EMPTY, prepare

from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record.python.array_record_module")


def beir(folder, order):
    text = {name: tfds.features.Text() for name in EMPTY if name != "score"}

    def judged(rows, score=1.0):
        return [
            EMPTY
            | {"query_id": f"q{i}", "query": f"ask {i}", "passage_id": f"{i:02}", "score": score}
            for i in rows
        ]

    passages = [
        EMPTY
        | {
            "passage_id": f"{i:02}",
            "passage": f"text {i} ü",
            "passage_metadata": json.dumps({"title": f"T{i}"} if i % 2 else {}),
        }
        for i in range(9)
    ]
    queries = [EMPTY | {"query_id": f"q{i}", "query": f"ask {i}"} for i in range(9)]
    splits = {
        "passage": passages[::order],
        "query": queries[::order],
        "train": judged(range(5)[::order]),
        "validation": judged(range(5, 7)),
        "test": judged(range(7, 9), 2.0),
    }
    return prepare(folder, text | {"score": np.float32}, splits)


def test_beir_with_titles_dev_and_one_fingerprint_for_any_order(tmp_path, caplog):
    folder = beir(tmp_path / "beir" / "tiny" / "1.0.0", 1)
    data = load_dataset(f"tfds:{folder}")
    assert data.corpus.ids == tuple(f"{i:02}" for i in range(9))
    assert list(data.corpus.texts[:2]) == ["text 0 ü", "T1 text 1 ü"]
    assert list(data.qrels) == ["train", "dev", "test"]
    assert data.qrels["test"] == {"q7": {"07": 2}, "q8": {"08": 2}}
    other = beir(tmp_path / "beir" / "tiny" / "1.0.1", -1)
    assert load_dataset(f"tfds:{other}").fingerprint == data.fingerprint
    by_name = load_dataset(f"tfds:beir/tiny?data_dir={tmp_path}", splits="test")
    assert list(by_name.qrels) == ["test"]


def test_judgments_from_a_folder_beside_it(tmp_path):
    folder = beir(tmp_path / "beir" / "tiny" / "1.0.0", 1)
    qrels = tmp_path / "qrels"
    qrels.mkdir()
    (qrels / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t03\t1\nq2\t03\t1\n")
    data = load_dataset(f"tfds:{folder}?qrels={qrels}")
    assert data.qrels == {"test": {"q1": {"03": 1}, "q2": {"03": 1}}}


def test_any_other_set_by_its_columns(tmp_path):
    names = ("id", "context", "question", "title")
    rows = [
        dict(zip(names, (f"{i}", f"c{i // 2} .", f"q{i} ?", "t"), strict=True)) for i in range(6)
    ]
    features = {name: tfds.features.Text() for name in names}
    splits = {"train": rows[:4], "validation": rows[4:]}
    folder = prepare(tmp_path / "squad" / "plain" / "3.0.0", features, splits)
    data = load_dataset(f"tfds:{folder}?query=question&passage=context&title=")
    assert {split: len(qrels) for split, qrels in data.qrels.items()} == {"train": 4, "dev": 2}
    assert len(data.corpus) == 3
    assert set(data.corpus.texts) == {"c0 .", "c1 .", "c2 ."}


def test_what_is_not_prepared_or_lost_rows(tmp_path):
    with pytest.raises(
        InputError, match=r"not prepared in .*tfds build beir/scifact --file_format"
    ):
        load_dataset(f"tfds:beir/scifact?data_dir={tmp_path}")
    folder = beir(tmp_path / "beir" / "tiny" / "1.0.0", 1)
    with pytest.raises(InputError, match="has the configs tiny; name one"):
        load_dataset(f"tfds:beir?data_dir={tmp_path}")
    info = folder / "dataset_info.json"
    said = json.loads(info.read_text())
    info.write_text(json.dumps(said | {"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match=r"prepared as tfrecord, which takes TensorFlow"):
        load_dataset(f"tfds:{folder}")
    for count in (8, 10):
        for split in said["splits"]:
            if split["name"] == "passage":
                split["shardLengths"] = [str(count)]
        info.write_text(json.dumps(said))
        with pytest.raises(
            InputError, match=f"'passage': holds 9 records and should hold {count};"
        ):
            load_dataset(f"tfds:{folder}")


def test_tensorflow_is_not_imported(tmp_path):
    folder = beir(tmp_path / "beir" / "tiny" / "1.0.0", 1)
    program = (
        "import sys\n"
        "from nvret_jax.data.load import load_dataset\n"
        f"load_dataset('tfds:{folder}')\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
