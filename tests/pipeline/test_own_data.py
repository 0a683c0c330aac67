"""From each file of the table in docs/data.md to a model that is trained and exported."""

import json
import re

import command
import doc_blocks
import numpy as np
import own_files
import pyarrow.parquet as pq
import pytest
import tiny_models
import tiny_project

from nvret_jax.evaluation.dev import Dev
from nvret_jax.models.encoder import Encoder

COMMANDS = own_files.commands()
LATER = [name for name in COMMANDS if name != "mined.jsonl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("own")
    own_files.make(made, tiny_models.WORDS)
    own_files.make_prepared(made, tiny_models.WORDS)
    tiny_project.make_model(made / "model")
    return made


def run(folder, workdir, source, changes=(), config="own.py"):
    """The command of the table, with a tiny model and two steps."""
    values = {
        "data.train": source,
        "data.test": source,
        "teacher.model": folder / "model",
        "student.model": folder / "model",
        "train.batch_size": 8,
        "train.steps": 2,
        "train.chunk_tokens": -1,
        "report.examples": 2,
        "distributed.mode": "off",
        **dict(changes),
    }
    return command.inside(
        f"--config={tiny_project.ROOT / 'configs' / config}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    )


def check(folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(folder)
    done = run(folder, tmp_path / "run", COMMANDS[name])
    assert done.status == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()
    assert (tmp_path / "run" / "report.html").exists()


def test_one_file_by_one_command(folder, tmp_path, monkeypatch, compiled):
    check(folder, tmp_path, monkeypatch, "mined.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("positives", [1, 3])
def test_the_recommended_config(tmp_path, positives, compiled):
    """Its risks are fitted to ranks where queries have one positive, else to hidden ones."""
    tiny_project.make(tmp_path)
    data = tmp_path / "data"
    rows = ["query-id\tcorpus-id\tscore"]
    texts = [json.loads(line)["text"] for line in (data / "corpus.jsonl").open()]
    with (data / "queries.jsonl").open("a") as file:
        for i in range(110):
            words = texts[i % 96].split()[: 4 + i // 96]
            file.write(json.dumps({"_id": f"more{i}", "text": " ".join(words)}) + "\n")
            rows += [f"more{i}\tp{(i + 31 * k) % 96}\t1" for k in range(positives)]
    (data / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n")
    done = run(tmp_path, tmp_path / "run", f"beir:{data}", config="recommended.py")
    assert done.status == 0, done.stdout[-1500:] + done.stderr[-3000:]
    table = pq.read_table(tmp_path / "run/negatives/train.parquet").to_pylist()
    assert any(row["negative_risks"] for row in table)
    for row in table:
        assert len(row["negative_ids"]) <= 8
        assert np.mean(row["negative_risks"] or [0]) <= 0.2 + 1e-6
    assert '"masked_by_score"' in (tmp_path / "run/metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def harmed(tmp_path_factory):
    """(folder, output) of training that only harms, on data without a dev split."""
    folder = tmp_path_factory.mktemp("harmed")
    tiny_project.make(folder)
    qrels = folder / "data" / "qrels"
    dev = (qrels / "dev.tsv").read_text().split("\n", 1)[1]
    (qrels / "train.tsv").write_text((qrels / "train.tsv").read_text() + dev)
    (qrels / "dev.tsv").unlink()
    changes = {"train.learning_rate": 1e-2, "train.eval_every": 1, "data.dev_share": 0.4}
    scores = iter([0.5, 0.4, 0.3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dev, "score", lambda dev: lambda encoder: next(scores))
        done = run(folder, folder / "run", f"beir:{folder / 'data'}", changes)
    assert done.status == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return folder, done.stdout


def test_where_training_does_not_help_the_model_stays_as_it_was(harmed):
    folder, output = harmed
    assert "data has no split 'dev': 12 of 30 training queries are held out for it" in output
    (said,) = [line for line in output.splitlines() if line.startswith("dev  ")]
    assert "training did not help on dev" in said
    assert said.endswith("result.pick='best' keeps the weights from before")
    (shown,) = [b.text for b in doc_blocks.blocks("docs/training.md") if "dev  " in b.text]
    assert re.search(doc_blocks.pattern(shown), said)
    assert (
        '<p class="note">Training did not help on dev'
        in (folder / "run" / "report.html").read_text()
    )
    found = json.loads((folder / "run" / "evaluation" / "data.json").read_text())
    after = {name: found[name] for name in found["before"]}
    assert after == pytest.approx(found["before"], abs=1e-9)
    text = ["wing flow heat", "shock layer"]
    before, after = (
        Encoder.from_pretrained(str(folder / name), normalize=True).encode(text)
        for name in ("model", "run/export")
    )
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", LATER)
def test_every_file_by_one_command(folder, tmp_path, monkeypatch, compiled, name):
    check(folder, tmp_path, monkeypatch, name)
