"""One rule for every path that a user gives, wherever it is given."""

import os
import pathlib

import command
import pytest

from nvret_jax.config import base
from nvret_jax.config.checks import check_paths
from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError, from_system
from nvret_jax.files import paths

ADDRESSES = ("gs://bucket/x", "s3://bucket/x", "file:///x/y", "https://example.org/x", "foo://x")


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_refused_by_its_key(address):
    with pytest.raises(InputError, match=r"--workdir: .* a path on this machine") as refused:
        paths.local(address, "--workdir")
    assert address.split("//")[0] + "//" in str(refused.value)


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "\udfff"])
def test_what_no_path_can_hold_is_refused_in_one_printable_line(text):
    with pytest.raises(InputError, match="NUL") as refused:
        paths.local(text, "data.train")
    str(refused.value).encode()
    assert "\n" not in str(refused.value)


def test_names_that_only_look_odd_are_paths(tmp_path):
    for name in ("a:b", "2024-01-01T10:00:00", "C:", "ä ö?#", "x://"[:2]):
        assert paths.local(tmp_path / name, "k") == tmp_path / name
    assert paths.local("./a://b", "k") == pathlib.Path("a:/b")
    raw = os.fsdecode(b"/tmp/\xff")  # a file may have it, and no encoding
    assert str(paths.local(raw, "k")) == raw


def test_a_tilde_is_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert paths.local("~/x", "k") == pathlib.Path("/somewhere/x")
    assert paths.local("~", "k") == pathlib.Path("/somewhere")
    assert paths.local("a/~/x", "k") == pathlib.Path("a/~/x")
    with pytest.raises(InputError, match="k: ~no-such-user/x: no such user"):
        paths.local("~no-such-user/x", "k")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.train", "beir:gs://b/d"),
        ("data.test", "labels:https://example.org/d"),
        ("data.train", "foo://b/d"),
        ("teacher.model", "https://example.org/m"),
        ("teacher.model", "run:gs://b/r.trec"),
        ("teacher.model", "vectors:s3://b/v"),
        ("student.model", "hf://b/m"),
        ("student.adapter", "gs://b/a"),
        ("rescorer.model", "gs://b/a"),
        ("mining.verdicts", "s3://b/v.jsonl"),
        ("mining.exclude.document_map", "gs://b/m.tsv"),
        ("train.start", "gs://b/c"),
        ("result.merge_with", ("models/a", "gs://b/m")),
        ("data.train", "pydocs:gs://b/d"),
        ("teacher.model", "bm25:gs://b/d"),
    ],
)
def test_every_path_of_a_config_is_looked_at(key, value):
    config = base()
    assert check_paths(config) == []
    config.update_from_flattened_dict({key: value})
    (wrong,) = check_paths(config)
    assert wrong.startswith(f"{key}: ")


def test_data_sets_and_conversions_follow_the_rule(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="expected a path on this machine"):
        load_dataset("beir:gs://bucket/d")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=f"{tmp_path}/nothing"):
        load_dataset("beir:~/nothing")
    for source, target in (
        ("flagembedding:gs://b/x.jsonl", "st-triplet:o.jsonl"),
        ("workdir:gs://b/x", "st-triplet:o.jsonl"),
    ):
        assert "gs://" in command.inside("convert", source, target).error


def test_a_config_file_in_a_folder_with_colons(tmp_path):
    folder = tmp_path / "2024-01-01T10:00:00"
    folder.mkdir()
    (folder / "conf.py").write_text(pathlib.Path(command.CONFIG.split("=", 1)[1]).read_text())
    for arg, name in (("", "quickstart"), (":smoke", "quickstart-smoke")):
        done = command.inside(
            f"--config={folder / 'conf.py'}{arg}", "--workdir=gs://b/x", "--config.seed=3"
        )
        assert done.error.startswith("error: --workdir: gs://b/x"), name
    refused = command.inside(f"--config={folder / 'conf.py'}:huge", "--workdir=x").error
    assert "':huge'" in refused
    assert "no such file" in command.inside(f"--config={folder / 'no.py'}", "--workdir=x").error
    assert "gs://" in command.inside("--config=gs://b/c.py", "--workdir=x").error
    assert "error: " in command.inside(f"--config={'x' * 5000}", "--workdir=x").error


def test_a_cache_that_the_home_cannot_hold_is_among_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert paths.cache("x") == tmp_path / "home" / ".cache" / "nvret_jax" / "x"
    monkeypatch.setenv("HOME", "/proc/nothing")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert paths.cache("x") == tmp_path / f"nvret_jax-{os.getuid()}" / "x"
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/proc/nothing")
    assert paths.cache("x") is None


def test_a_limit_of_open_files_that_is_too_low_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("resource.getrlimit", lambda _: (24, 40))
    raised = []
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: raised.append(limits))
    error = command.inside(command.CONFIG, f"--workdir={tmp_path / 'run'}").error
    assert "may open 40 files" in error
    assert raised == [(40, 40)]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/a"), "/a: Permission denied"),
        (OSError(40, "Too many levels of symbolic links", "/a"), "/a: Too many levels"),
        (OSError(24, "Too many open files", "/a"), "/a: Too many open files; raise the limit"),
        (OSError(36, "File name too long", "x" * 5000), r"xxx… \(5000 characters\): File name"),
        (ValueError("FAILED_PRECONDITION: open: No space left on device [x]"), "/w: No space"),
        (RuntimeError("something else"), None),
        (FileNotFoundError(2, "No such file or directory", "/a"), None),
    ],
)
def test_what_the_system_refuses_takes_one_line(error, line):
    known = from_system(error, "/w")
    if line is None:
        assert known is None
    else:
        with pytest.raises(InputError, match=line):
            raise known
