"""The accelerator command: how it survives steps that fail, what it writes, and a small run."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

from benchmarks.accelerator import __main__ as command  # noqa: E402
from benchmarks.accelerator import folders, page, right  # noqa: E402
from benchmarks.accelerator.sizes import SMALL  # noqa: E402


@pytest.fixture
def steps(tmp_path):
    """Steps that work, raise, die and hang, as a module of the command's own."""
    source = """
import os, time
def works(sizes, place): return {"texts_per_s": 3.0}
def raises(sizes, place): raise ValueError("two\\nlines")
def dies(sizes, place): os._exit(9)
def hangs(sizes, place): time.sleep(60)
"""
    (tmp_path / "some_steps.py").write_text(source)
    return "some_steps"


def run(steps, names, tmp_path, monkeypatch, seconds=60):
    table = {name: ("one", steps, name, None) for name in names}
    monkeypatch.setattr(command, "STEPS", table)
    monkeypatch.setattr(command, "SMALL", dataclasses.replace(SMALL, seconds=seconds))
    program = (
        "import sys; sys.path[:0] = [sys.argv.pop(1), sys.argv.pop(1)]\n"
        "from benchmarks.accelerator import __main__ as command\n"
        f"command.STEPS = {table!r}\n"
        "sys.exit(command.main())"
    )
    monkeypatch.setattr(
        command, "WORKER", [sys.executable, "-c", program, str(ROOT), str(tmp_path)]
    )
    return command.run(names, True, tmp_path / "out.json")


def test_a_step_that_fails_or_dies_does_not_stop_the_others(steps, tmp_path, monkeypatch, capsys):
    names = ["raises", "dies", "works"]
    results = run(steps, names, tmp_path, monkeypatch)
    found = results["steps"]
    assert found["raises"]["failed"] == "ValueError: two lines"
    assert found["dies"]["failed"] == "the process ended with 9"
    assert found["works"]["texts_per_s"] == 3.0
    assert json.loads((tmp_path / "out.json").read_text())["steps"] == found
    assert not command.passed(results)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == names


def test_what_hangs_is_ended_and_the_rest_is_skipped(steps, tmp_path, monkeypatch):
    results = run(steps, ["hangs", "works"], tmp_path, monkeypatch, seconds=4)
    assert results["steps"]["hangs"] == {"skipped": "the time is over"}
    assert results["steps"]["works"] == {"skipped": "the time is over"}
    assert results["seconds"] < 30


def test_a_wrong_result_is_called_wrong():
    good = right.verdict({"a": 1e-6, "b": 0.0}, {"a": 1e-5, "b": 0.0})
    assert good["ok"]
    assert page.outcome(good).startswith("right; worst: a")
    for errors in ({"a": 1e-4, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": float("nan"), "b": 0.0}):
        bad = right.verdict(errors, {"a": 1e-5, "b": 0.0})
        assert not bad["ok"]
        assert page.outcome(bad).startswith("WRONG")
        assert not command.passed({"steps": {"x": bad}})


def test_the_table_goes_between_the_markers_of_a_page(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    results = {"small": False, "seconds": 3.0, "steps": {"x": {"failed": "why"}}}
    page.insert(file, results)
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| x |  | failed: why |" in text
    page.insert(file, results)
    assert file.read_text() == text
    file.write_text("no markers")
    with pytest.raises(SystemExit, match="expected the lines"):
        page.insert(file, results)


def test_operations_of_an_encoder_counted_by_hand(tmp_path):
    """One layer, by name: four D x D products, two D x F; and scores and their use."""
    sizes = {"hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 1}
    folder = folders.make(tmp_path, "bert", sizes | {"num_attention_heads": 2}, 16)
    got = folders.forward_flops(folder, [3, 5])
    weights = 4 * 8 * 8 + 2 * 8 * 20 + 4 * 8 + 20 + 8 + 4 * 8  # with biases and norms
    assert got == 2 * weights * 8 + 4 * 8 * (9 + 25)


def test_our_reference_is_not_our_encoder(tmp_path):
    """The float64 BERT of the check is another implementation, and sees a changed weight."""
    import safetensors.numpy

    folder = folders.make(tmp_path, "minilm", SMALL.models["minilm"], SMALL.max_length)
    before = right._reference(folder, [np.array([2, 7, 9, 3])])
    assert np.isfinite(before).all()
    np.testing.assert_allclose(np.linalg.norm(before, axis=1), 1.0)
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["encoder.layer.1.output.dense.weight"][:4] *= 3
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    assert np.abs(right._reference(folder, [np.array([2, 7, 9, 3])]) - before).max() > 1e-3


@pytest.mark.slow
def test_the_whole_command_small(tmp_path):
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.accelerator", "--small", "--out", str(out)],
        cwd=ROOT,
        env=dict(os.environ) | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    results = json.loads(out.read_text())
    assert json.loads(done.stdout.splitlines()[-1])["steps"].keys() == results["steps"].keys()
    assert list(results["steps"]) == list(command.STEPS)
    wrong = {n: s for n, s in results["steps"].items() if "failed" in s or not s.get("ok", True)}
    assert not wrong, wrong
    assert done.returncode == 0
    for name in ("right-embeddings", "right-attention", "right-search", "right-losses"):
        assert results["steps"][name]["ok"], name
