"""Artefacts appear whole, say why they are stale, and continue only what is theirs."""

import json

import pytest
from etils import epath

from nvret_jax.artifacts.artifact import Digest, write_atomic
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.errors import InputError

CONFIG = {
    "name": "x",
    "data": {"train": "pydocs:", "test": "pydocs:"},
    "teacher": {"model": "m"},
    "student": {"model": "m"},
    "mining": {"percent": 0.95},
}


def open_workdir(path, **changes):
    return Workdir.open(path, {**CONFIG, **changes})


def test_fingerprint_does_not_depend_on_the_order_of_parts(tmp_path):
    workdir = open_workdir(tmp_path / "w")
    one = workdir.artifact("a", {"x": 1, "y": [2, 3]})
    two = workdir.artifact("a", {"y": [2, 3], "x": 1})
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != workdir.artifact("a", {"x": 1, "y": [3, 2]}).fingerprint


def test_a_file_is_stale_until_written_and_says_what_changed(tmp_path):
    workdir = open_workdir(tmp_path / "w")
    item = workdir.artifact("dir/file.txt", {"percent": 0.95, "data": Digest("a", "the data")})
    assert item.stale() == "not there yet"
    item.write_file(lambda path: path.write_text("content"))
    assert item.stale() is None
    assert item.path.read_text() == "content"
    changed = workdir.artifact("dir/file.txt", {"percent": 0.9, "data": Digest("b", "the data")})
    assert changed.stale() == "the data changed; percent 0.95 → 0.9"
    gone = workdir.artifact("dir/file.txt", {"margin": 1, "data": Digest("a", "the data")})
    assert gone.stale() == "margin unset → 1; percent 0.95 → unset"


def test_a_writer_that_fails_leaves_nothing_under_the_name(tmp_path):
    workdir = open_workdir(tmp_path / "w")
    item = workdir.artifact("file.txt", {"x": 1})

    def fails(path):
        path.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        item.write_file(fails)
    assert not item.path.exists()
    assert item.stale() == "not there yet"


def test_an_artefact_without_record_is_not_trusted(tmp_path):
    workdir = open_workdir(tmp_path / "w")
    item = workdir.artifact("file.txt", {"x": 1})
    item.write_file(lambda path: path.write_text("content"))
    item.record.unlink()
    assert item.stale() == "not finished"
    item.record.write_text("{ damaged")
    assert item.stale() == "damaged: its record does not match its checksum"


def test_an_unfinished_folder_is_continued_only_by_the_same_inputs(tmp_path):
    workdir = open_workdir(tmp_path / "w")
    item = workdir.artifact("folder", {"x": 1})
    assert item.begin() is False
    (item.partial / "chunk-0").write_text("done")
    assert item.begin() is True
    assert (item.partial / "chunk-0").exists()
    other = workdir.artifact("folder", {"x": 2})
    assert other.begin() is False
    assert not (other.partial / "chunk-0").exists()
    (other.partial / "chunk-0").write_text("new")
    other.finish_folder()
    assert sorted(p.name for p in other.path.iterdir()) == ["chunk-0"]
    assert not other.partial.exists()
    assert other.stale() is None
    assert item.stale() == "x 2 → 1"


def test_what_is_there_stays_until_the_new_one_is_finished(tmp_path):
    workdir = open_workdir(tmp_path / "w")
    item = workdir.artifact("folder", {"x": 1})
    item.begin()
    item.finish_folder()
    new = workdir.artifact("folder", {"x": 2})
    new.begin()
    assert item.stale() is None
    assert new.stale() == "x 1 → 2"  # the old one is never taken for the new one
    new.finish_folder()
    assert item.stale() == "x 2 → 1"


def test_a_workdir_belongs_to_one_experiment(tmp_path):
    open_workdir(tmp_path / "w", name="mistyped")
    workdir = open_workdir(tmp_path / "w")  # nothing was made in it yet
    workdir.artifact("file", {}).write_file(lambda path: path.write_text(""))
    again = open_workdir(tmp_path / "w", mining={"percent": 0.9})  # values may change
    stored = tmp_path / "w" / "config.json"
    assert json.loads(stored.read_text())["mining"] == {"percent": 0.95}  # nothing was made by it
    again.artifact("file", {"x": 1}).write_file(lambda path: path.write_text(""))
    with pytest.raises(InputError, match=r"data.train is 'pydocs:' there but 'beir:x' here"):
        open_workdir(tmp_path / "w", data={"train": "beir:x", "test": "pydocs:"})
    with pytest.raises(InputError, match="name is 'x' there"):
        open_workdir(tmp_path / "w", name="y")
    assert json.loads(stored.read_text())["mining"] == {"percent": 0.9}


def test_a_folder_of_something_else_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        open_workdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        open_workdir(tmp_path / "file")


def test_a_dry_run_writes_nothing(tmp_path):
    Workdir.open(tmp_path / "w", CONFIG, write=False)
    assert not (tmp_path / "w").exists()


def test_write_atomic_replaces(tmp_path):
    path = epath.Path(tmp_path) / "deep" / "file"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
