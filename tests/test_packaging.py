"""What a wheel holds, and that it works where there is no checkout."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from nvret_jax.config import overrides

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def setuptools_is_new() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked; built from a copy, as a build writes into its source."""
    if not setuptools_is_new():
        pytest.skip("building needs setuptools 77, which the extra 'test' brings")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("nvret_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(folder / done.stdout.split()[-1]) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_it_holds_all_code_the_configs_the_types_and_the_licence(wheel):
    found = {str(p.relative_to(wheel)) for p in wheel.rglob("*") if p.is_file()}
    code = {str(p.relative_to(ROOT)) for p in (ROOT / "nvret_jax").rglob("*.py")}
    configs = {f"nvret_jax/configs/{p.name}" for p in (ROOT / "configs").glob("*.py")}
    more = {"nvret_jax/py.typed"}
    more |= {str(p.relative_to(ROOT)) for p in (ROOT / "nvret_jax").rglob("*.html.j2")}
    more |= {str(p.relative_to(ROOT)) for p in (ROOT / "nvret_jax").rglob("*.css")}
    assert len(more) > 3
    assert (code | configs | more) - found == set()
    assert [n for n in found if not n.startswith("nvret_jax")] == []
    (info,) = wheel.glob("*.dist-info")
    assert (info / "licenses/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    metadata = email.message_from_string((info / "METADATA").read_text())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"


def test_its_configs_are_found_from_any_folder_and_it_says_which(wheel, tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "nvret_jax", "--config=configs/own.py", "--workdir=w"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    # No data are named: the config was found and read.
    assert "data.train=''" in done.stderr, done.stderr[-2000:]
    used = wheel / "nvret_jax/configs/own.py"
    assert f"config: {used}, which came with nvret_jax" in done.stdout
    assert not (tmp_path / "w").exists()


def test_a_config_of_the_working_folder_comes_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = overrides.located(["main", "--config", "configs/own.py:smoke", "--workdir=w"])
    assert found == ["main", "--config", f"{ROOT / 'configs/own.py'}:smoke", "--workdir=w"]
    assert f"config: {ROOT / 'configs/own.py'}, which came" in capsys.readouterr().out
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/own.py").write_text("")
    for argument in ("--config=configs/own.py", "--config=configs/none.py", "--config=own.py"):
        assert overrides.located(["main", argument]) == ["main", argument]
    assert capsys.readouterr().out == ""


def test_what_is_imported_is_declared():
    """Every import of the package is Python's, its own, or among the dependencies.

    A module for a package that is an extra has that package's name, such as evaluation/mteb.py.
    """
    declared = {
        re.split(r"[\[<>=!; ]", entry)[0].replace("-", "_").lower()
        for entry in PROJECT["dependencies"]
    }
    known = {"absl": "absl_py", "faiss": "faiss_cpu", "orbax": "orbax_checkpoint"}
    known["yaml"] = "pyyaml"
    imported = {}
    for path in (ROOT / "nvret_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                imported[name.split(".")[0]] = path.name
    missing = {
        name: path
        for name, path in imported.items()
        if name not in sys.stdlib_module_names
        and name != "nvret_jax"
        and known.get(name, name).lower() not in declared
        and not (name in PROJECT["optional-dependencies"] and path == f"{name}.py")
    }
    assert missing == {}


def test_dependencies_that_break_between_minor_releases_have_an_upper_bound():
    for name in ("jax", "flax", "orbax-checkpoint"):
        entries = [e for e in PROJECT["dependencies"] if re.match(rf"{name}[<>=]", e)]
        assert entries, name
        assert all("<" in entry.split(";")[0] for entry in entries), entries


def test_files_of_the_project_are_whole():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    versions = jobs["test"]["strategy"]["matrix"]["python"]
    listed = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert versions == listed
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} >= {"ruff-check", "ruff-format"}


def test_an_image_gets_the_files_that_its_dockerfile_copies():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    text = (ROOT / "launch/docker/Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY")]
    names = {name for names in copied for name in names}
    assert names == kept
    assert all((ROOT / name).exists() for name in names)
    for extra in re.findall(r"EXTRA=(\w+)", text):
        assert extra in PROJECT["optional-dependencies"]
    assert "TOKEN" not in re.sub("#.*", "", text)
