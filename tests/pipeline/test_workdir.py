"""What can become of a workdir's files: damage, links, modes, a lost config, an older format."""

from __future__ import annotations

import json
import os
import stat

import pytest

from nvret_jax.artifacts import fingerprints
from nvret_jax.artifacts.artifact import Damaged
from nvret_jax.artifacts.workdir import Workdir, check_table
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import write_atomic

CONFIG = {"name": "x", "data": {"train": "pydocs:", "test": "pydocs:"}}


@pytest.fixture
def workdir(tmp_path):
    return Workdir.open(tmp_path / "w", CONFIG)


def fresh(workdir):
    """The same, as a later run sees it."""
    return Workdir.open(workdir.path, CONFIG, write=False)


def folder(workdir, parts=None, content="content", **more):
    item = workdir.artifact("folder", parts or {"x": 1}, **more)
    item.begin()
    (item.partial / "deep").mkdir(exist_ok=True)
    (item.partial / "deep" / "file").write_text(content)
    item.finish_folder()
    return item


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_text("contemt"), "deep/file does not match its checksum"),
        (lambda p: p.write_text("cont"), "deep/file has 4 bytes, not 7"),
        (lambda p: p.unlink(), "deep/file is missing"),
    ],
)
def test_damage_inside_a_folder_is_named_and_repaired(workdir, damage, words):
    item = folder(workdir)
    damage(item.path / "deep" / "file")
    again = fresh(workdir).artifact("folder", {"x": 1})
    assert again.stale() == f"damaged: {words}"
    assert again.begin(repair=True)
    assert not (again.partial / "deep" / "file").exists()
    (again.partial / "deep" / "file").write_text("content")
    again.finish_folder()
    assert fresh(workdir).artifact("folder", {"x": 1}).stale() is None


def test_what_lies_beside_belongs_to_its_artefact(workdir):
    (workdir.path / "counts.json").write_text("{}")
    item = folder(workdir, beside=("counts.json", "absent"))
    (workdir.path / "counts.json").write_text("[]")
    again = fresh(workdir).artifact("folder", {"x": 1})
    assert again.stale() == "damaged: counts.json does not match its checksum"
    assert list(again.lost()) == ["../counts.json"]
    assert item.record.exists()


def test_damage_that_is_found_in_use_is_noted(workdir):
    item = folder(workdir)
    item.note_damage({"deep/file": "does not match its checksum"})
    again = fresh(workdir).artifact("folder", {"x": 1})
    assert again.stale() == "damaged: deep/file does not match its checksum"
    with pytest.raises(InputError, match="damaged: deep/file"):
        check_table(item.path, workdir.path)
    folder(workdir)
    assert fresh(workdir).artifact("folder", {"x": 1}).stale() is None
    check_table(item.path, workdir.path)
    assert issubclass(Damaged, InputError)


def test_a_flipped_bit_in_a_record_is_seen(workdir):
    item = folder(workdir)
    text = item.record.read_text()
    for old, new in (('"x": 1', '"x": 3'), (item.fingerprint[:8], "00000000"), ("deep", "reep")):
        assert old in text
        item.record.write_text(text.replace(old, new, 1))
        assert fresh(workdir).artifact("folder", {"x": 1}).stale() == (
            "damaged: its record does not match its checksum"
        )


def test_an_older_format_is_made_again(workdir, monkeypatch):
    item = folder(workdir, kind="export")
    after = workdir.artifact("file", {"made from": item})
    after.write_file(lambda path: path.write_text(""))
    monkeypatch.setitem(fingerprints.FORMATS, "export", fingerprints.FORMATS["export"] + 1)
    new = fresh(workdir).artifact("folder", {"x": 1}, kind="export")
    assert new.stale() == "made by an older version of nvret_jax"
    later = fresh(workdir).artifact("file", {"made from": new})
    assert later.stale() == "folder: made by an older version of nvret_jax"


def test_a_record_of_before_formats_is_an_older_version(workdir):
    item = folder(workdir)
    old = {"fingerprint": "0", "parts": {"x": 1}, "sizes": {"deep/file": 7}}
    item.record.write_text(json.dumps(old))
    assert item.stale() == "made by an older version of nvret_jax"


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(workdir, tmp_path):
    (tmp_path / "disk").mkdir()
    item = workdir.artifact("folder", {"x": 1})
    os.symlink(tmp_path / "disk", item.path)
    for x in (1, 2, 2):
        item = folder(workdir, {"x": x}, content=str(x))
        assert os.path.islink(item.path)
        assert sorted(os.listdir(tmp_path / "disk")) == ["deep"]
        assert (tmp_path / "disk" / "deep" / "file").read_text() == str(x)
        assert fresh(workdir).artifact("folder", {"x": x}).stale() is None
    # A process that was killed while it put the files in their place.
    item = workdir.artifact("folder", {"x": 3})
    item.begin()
    (item.partial / "one").write_text("1")
    (item.partial / "finishing.txt").write_text("")
    for name in os.listdir(tmp_path / "disk"):
        if name != "unfinished.partial":
            os.rename(tmp_path / "disk" / name, tmp_path / "gone")
    (item.path / "two").write_text("2")
    assert item.begin()
    assert {"one", "two"} <= set(os.listdir(item.partial))
    item.finish_folder()
    assert sorted(os.listdir(tmp_path / "disk")) == ["one", "two"]


def test_a_link_to_nowhere_is_one_line(workdir, tmp_path):
    item = workdir.artifact("folder", {"x": 1})
    os.symlink(tmp_path / "unmounted", item.path)
    with pytest.raises(InputError, match="unmounted, which does not exist; make that folder"):
        item.begin()


def test_a_planted_link_is_not_written_through(workdir, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "dear").mkdir()
    (tmp_path / "dear" / "file").write_text("dear")
    for name in ("config.json.partial", "file.txt.partial"):
        os.symlink(tmp_path / "precious", workdir.path / name)
    os.symlink(tmp_path / "dear", workdir.path / "folder.partial")
    write_atomic(workdir.path / "config.json", "{}")
    workdir.artifact("file.txt", {}).write_file(lambda path: path.write_text("new"))
    folder(workdir)
    assert (tmp_path / "precious").read_text() == "precious"
    assert os.listdir(tmp_path / "dear") == ["file"]


def test_files_get_the_mode_of_the_umask(workdir):
    before = os.umask(0o027)
    try:
        item = workdir.artifact("folder", {"x": 1})
        item.begin()
        os.close(os.open(item.partial / "weights", os.O_CREAT, 0o600))
        item.finish_folder()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(item.path / "weights").st_mode) == 0o640


def test_killed_between_name_and_record(workdir):
    item = folder(workdir)
    item.record.unlink()
    (item.path / "fingerprint.txt").write_text(item.fingerprint)
    again = fresh(workdir).artifact("folder", {"x": 1})
    assert again.stale() == "not finished"
    assert again.begin()
    assert (again.partial / "deep" / "file").read_text() == "content"


@pytest.mark.parametrize("damage", ["{", "[]", "gone", "changed", "sum", "sum changed"])
def test_a_damaged_config_is_written_anew(workdir, capsys, damage):
    item = folder(workdir)
    config, copy = workdir.path / "config.json", workdir.path / "config.json.sum"
    whole = config.read_bytes()
    if damage == "gone":
        config.unlink()
    elif damage == "changed":  # and another experiment's, by a flipped bit
        config.write_text(config.read_text().replace('"x"', '"y"'))
    elif damage == "sum":
        copy.write_text("{")
    elif damage == "sum changed":
        copy.write_text(copy.read_text().replace('"x"', '"y"'))
    else:
        config.write_text(damage)
    fresh(workdir)
    again = Workdir.open(workdir.path, CONFIG)
    assert config.read_bytes() == whole
    out = capsys.readouterr().out
    assert out == "" if "sum" in damage else "rewritten" in out
    assert again.artifact("folder", {"x": 1}).stale() is None
    again.store_config()
    with pytest.raises(InputError, match="name is 'x' there but 'z' here"):
        Workdir.open(workdir.path, {**CONFIG, "name": "z"})
    assert item.path.exists()


def test_a_broken_config_alone_makes_no_workdir(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"holds thesis\.tex.* its config\.json is damaged"):
        Workdir.open(tmp_path, CONFIG)
