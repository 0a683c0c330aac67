"""Negatives of the data in a whole run, and a run on data for training alone."""

import json

import command
import own_files
import pytest
import tiny_models
import tiny_project

from nvret_jax.commands import convert


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("own")
    own_files.make(made, tiny_models.WORDS)
    tiny_project.make_model(made / "model")
    return made


def run(folder, workdir, *more):
    values = {
        "data.train": f"flagembedding:{folder / 'mined.jsonl'}?test=0&dev=0",
        "data.test": "",
        "teacher.model": folder / "model",
        "student.model": folder / "model",
        "train.batch_size": 8,
        "train.steps": 2,
        "train.chunk_tokens": -1,
        "distributed.mode": "off",
    }
    return command.inside(
        f"--config={tiny_project.ROOT / 'configs' / 'own.py'}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in values.items()),
        *more,
    )


def given_in(workdir):
    """(given, mined) negatives in the table, and the counts beside it."""
    counts = json.loads((workdir / "negatives" / "train.counts.json").read_text())["given"]
    _, negatives = convert.read_workdir(workdir)
    teachers = [negatives.teachers[t] for t in negatives.negative_teachers.values]
    return teachers.count("given"), len(teachers) - teachers.count("given"), counts


@pytest.fixture(scope="module")
def mined(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    done = run(folder, workdir, "--stages=embed,search,mine")
    assert done.status == 0, done.stderr[-2000:]
    return workdir, done.stdout


def test_given_negatives_are_used_and_counted(folder, mined):
    workdir, printed = mined
    given, others, counts = given_in(workdir)
    assert "24 queries come with 24 negatives (mining.given='add'): 24 in the table" in printed
    assert "evaluate  skipped: data.test names no data set to evaluate on" in printed
    assert (given, counts["used"], counts["given"]) == (24, 24, 24)
    assert others > 24
    only = run(folder, workdir, "--stages=mine", "--config.mining.given=only")
    assert "mining.given changed: 'add' → 'only'" in only.stdout or "'only'" in only.stdout
    assert given_in(workdir)[:2] == (24, 0)
    ignored = run(folder, workdir, "--stages=mine", "--config.mining.given=ignore")
    assert "0 in the table" in ignored.stdout
    assert given_in(workdir)[0] == 0
    again = run(folder, workdir, "--stages=mine", "--config.mining.given=ignore")
    assert "mine      up to date" in again.stdout


def test_a_run_on_training_data_alone_ends_with_an_export(folder, tmp_path, compiled):
    done = run(folder, tmp_path, "--config.mining.given=only")
    assert done.status == 0, done.stderr[-2000:]
    assert "evaluate  skipped" in done.stdout
    assert (tmp_path / "export" / "model.safetensors").exists()
    assert not (tmp_path / "evaluation").exists()
    refused = run(folder, tmp_path, "--stages=evaluate")
    assert "--stages=evaluate: data.test names no data set to evaluate on" in refused.error


def test_given_negatives_alone_need_some(folder, tmp_path):
    source = f"--config.data.train=pairs:{folder / 'faq.csv'}?test=0&dev=0"
    done = run(folder, tmp_path, source, "--config.mining.given=only", "--dry_run")
    assert "mining.given='only': no training query of data set faq comes with" in done.error
