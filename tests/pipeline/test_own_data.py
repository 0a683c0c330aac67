"""From each file of the table in docs/data.md to a model that is trained and exported."""

import command
import own_files
import pytest
import tiny_models
import tiny_project

COMMANDS = own_files.commands()
LATER = [name for name in COMMANDS if name != "mined.jsonl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("own")
    own_files.make(made, tiny_models.WORDS)
    own_files.make_prepared(made, tiny_models.WORDS)
    tiny_project.make_model(made / "model")
    return made


def run(folder, workdir, source):
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
    }
    return command.inside(
        f"--config={tiny_project.ROOT / 'configs' / 'own.py'}",
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
@pytest.mark.parametrize("name", LATER)
def test_every_file_by_one_command(folder, tmp_path, monkeypatch, compiled, name):
    check(folder, tmp_path, monkeypatch, name)
