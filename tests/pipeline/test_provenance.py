"""What made a workdir: a line per stage, whatever becomes of it."""

import json
import subprocess
import sys

import pytest

from nvret_jax.pipeline import provenance
from nvret_jax.pipeline import report as report_stage


def test_lines_are_appended_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/nvret_jax/main.py", "--config=a b.py", "--workdir=w"])
    for stage, seconds in ("embed", 1.23456), ("train", 60.0), ("embed", 2.0):
        provenance.begin(tmp_path, stage)
        provenance.end(tmp_path, stage, seconds)
    provenance.begin(tmp_path, "train")  # and is killed
    *found, killed = provenance.read(tmp_path)
    assert killed["stage"] == "train"
    assert killed["command"] == found[0]["command"]
    assert "ended" not in killed
    assert [(line["stage"], line["seconds"]) for line in found] == [
        ("embed", 1.235),
        ("train", 60.0),
        ("embed", 2.0),
    ]
    command = "python -m nvret_jax.main '--config=a b.py' --workdir=w"
    assert {line["command"] for line in found} == {command}
    assert found[0]["versions"]["jax"] == sys.modules["jax"].__version__
    assert found[0]["ended"].endswith("+00:00")
    assert report_stage._commands(found) == [command]
    timings = report_stage._timings([*found, killed], ["embed", "mine", "train"])
    assert [(one.stage, one.seconds) for one in timings] == [("embed", 2.0), ("train", 60.0)]


def test_what_cannot_be_read_is_left_out(tmp_path):
    assert provenance.read(tmp_path) == []
    good = {"stage": "embed", "begun": "2026", "versions": {}}
    end = {"stage": "embed", "ended": "2026", "seconds": 1.0}
    bad = [{**good, "versions": 3}, {**end, "stage": "mine"}, {"stage": "mine"}, []]
    lines = ["{", *map(json.dumps, [*bad, good, {**end, "seconds": "x"}, end])]
    (tmp_path / provenance.FILE).write_text("\n".join(lines))
    assert provenance.read(tmp_path) == [good | {"ended": "2026", "seconds": 1.0}]
    (tmp_path / provenance.FILE).write_bytes(b"\xff\xfe")
    assert provenance.read(tmp_path) == []


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/site/nvret_jax/__main__.py", "python -m nvret_jax --x"),
        ("/venv/bin/nvret_jax", "python -m nvret_jax --x"),
        ("nvret_jax.main", "python -m nvret_jax.main --x"),
        ("/venv/bin/ipykernel_launcher.py", ""),
        ("", ""),
    ],
)
def test_only_commands_of_this_package_are_shown(monkeypatch, program, words):
    monkeypatch.setattr(sys, "argv", [program, "--x"])
    assert provenance.command() == words


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    package = tmp_path / "nvret_jax"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr("nvret_jax.__file__", str(package / "__init__.py"))

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert provenance._commit() == f"commit {commit}"
    (package / "__init__.py").write_text("changed = 1")
    assert provenance._commit() == f"commit {commit} with changes"
    # Below a checkout of something else it is not of that.
    inner = tmp_path / "env" / "nvret_jax"
    inner.mkdir(parents=True)
    monkeypatch.setattr("nvret_jax.__file__", str(inner / "__init__.py"))
    assert commit not in provenance._commit()
