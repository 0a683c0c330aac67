"""`import nvret_jax as nv`: cheap to import, and every name is what it says."""

from __future__ import annotations

import ast
import inspect
import pathlib
import pydoc
import subprocess
import sys

import pytest

import nvret_jax as nv

ROOT = pathlib.Path(__file__).parents[2]
NAMES = [name for name in nv.__all__ if name != "__version__"]


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_loads_nothing():
    code = "import sys, nvret_jax as nv; nv.__version__; dir(nv)\n"
    code += "print([m for m in sys.modules if m.partition('.')[0] in ('jax', 'numpy', 'absl')])"
    assert in_a_new_process(code).strip() == "[]"


def test_a_function_and_a_package_share_a_name_in_any_order_of_imports():
    code = """
import nvret_jax.search.candidates as candidates
import nvret_jax.export.hub
import nvret_jax as nv
from nvret_jax.search import candidates as again
from nvret_jax.search.index.backend import search
from nvret_jax.export.sentence_transformers import export
assert candidates is again is nv.search.candidates is nvret_jax.search.candidates
assert candidates.find and nv.export.hub.push
assert nv.search is search and nv.export is export
import nvret_jax.search.rankers.topk
assert nv.search is search and nvret_jax.search.rankers.topk.__name__.endswith(".topk")
"""
    assert in_a_new_process(code) == ""


def test_all_names_are_there_and_typed():
    for name in NAMES:
        assert getattr(nv, name) is not None
    assert set(NAMES) <= set(dir(nv))
    tree = ast.parse((ROOT / "nvret_jax/__init__.pyi").read_text())
    typed = {
        (node.module, alias.asname)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name for _, name in typed} == set(NAMES)
    assert {(nv._HOME[name], name) for name in NAMES} == typed
    assert (ROOT / "nvret_jax/py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        nv.trian  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_a_whole_docstring(name):
    value = getattr(nv, name)
    shown = pydoc.plain(pydoc.render_doc(value))
    assert inspect.getdoc(value).strip().split("\n")[0] in shown
    if inspect.isfunction(value):
        arguments = inspect.signature(value).parameters
        documented = inspect.getdoc(value)
        for argument in arguments:
            assert argument in documented, (name, argument)
            assert argument in shown.split("\n")[2] or len(arguments) > 3
        assert "Args:" in documented
        assert "Raises:" in documented


def test_an_input_error_is_one_line_in_a_notebook():
    IPython = pytest.importorskip("IPython")
    shell = IPython.core.interactiveshell.InteractiveShell.instance()
    from IPython.utils.capture import capture_output

    with capture_output() as said:
        shell.run_cell("import nvret_jax as nv; nv.load_dataset('nowhere')")
    assert len((said.stdout + said.stderr).strip().split("\n")) == 1
    assert "InputError: dataset 'nowhere': no such file or folder" in said.stdout + said.stderr
    shell.clear_instance()


def test_the_line_of_an_input_error_needs_no_notebook():
    with pytest.raises(nv.InputError) as error:
        nv.load_dataset("nowhere")
    assert error.value._render_traceback_() == [f"InputError: {error.value}"]
