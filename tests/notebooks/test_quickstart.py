"""The notebook runs from its first cell to its last, on a CPU with tiny settings."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest
import tiny_project

NOTEBOOK = pathlib.Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


def cells(kind: str) -> list[str]:
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_it_is_kept_without_outputs_and_its_code_is_python():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            compile("".join(cell["source"]), "cell", "exec")


def test_the_names_it_uses_exist():
    import re

    import nvret_jax as nv

    text = "\n".join(cells("code") + cells("markdown"))
    for name in re.findall(r"\bnv\.(\w+)", text):
        assert hasattr(nv, name), name
    for name in re.findall(r"\btrained\.(\w+)", text):
        assert hasattr(nv.Encoder, name), name


@pytest.mark.slow
def test_it_runs_to_its_end(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    tiny_project.make(tmp_path)
    settings = {
        "NVRET_MODEL": tmp_path / "model",
        "NVRET_SOURCE": f"beir:{tmp_path / 'data'}",
        "NVRET_STEPS": 2,
        "NVRET_BATCH": 8,
        "NVRET_QUERIES": 20,
        "NVRET_LENGTH": 24,
        "PYTHONPATH": ":".join([str(NOTEBOOK.parents[1]), *filter(None, sys.path)]),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where)
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 3
    shown = [out["data"]["text/plain"] for out in outputs if "text/plain" in out.get("data", {})]
    for word in ("Dataset('data': 96 passages", "Encoder(", "Evaluation(data test", "Negatives(20"):
        assert any(word in text for text in shown), (word, shown)
    assert (tmp_path / "my-retriever" / "model.safetensors").exists()
    said = "".join(out.get("text", "") for out in outputs)
    assert "ndcg_cut_10    before" in said
