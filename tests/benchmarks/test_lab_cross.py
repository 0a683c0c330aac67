"""A cross-encoder fine-tuned on dev queries: what it is shown, and that others can read it."""

import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "pipeline")]
import tiny_project  # noqa: E402

from benchmarks.lab import cross_encoder  # noqa: E402
from benchmarks.lab import grid as grid_lib  # noqa: E402
from benchmarks.lab.grids import rules  # noqa: E402
from nvret_jax.data.load import load_dataset  # noqa: E402
from nvret_jax.models.cross_encoder import CrossEncoder  # noqa: E402


@pytest.fixture
def project(tmp_path, monkeypatch):
    tiny_project.make(tmp_path)
    monkeypatch.setattr(cross_encoder, "BASE", str(tmp_path / "model"))
    return tmp_path


VALUES = rules.lengths(12, 16, 16)


def test_a_list_is_a_positive_and_others_of_dev_queries(project):
    data = load_dataset(f"beir:{project / 'data'}")
    text = data.corpus.texts
    judged = {
        data.queries.texts[data.queries.row[query]]: {text[data.corpus.row[p]] for p in found}
        for query, found in data.positives("dev").items()
    }
    made = list(cross_encoder.draws(data, VALUES, 20))
    assert made == list(cross_encoder.draws(data, VALUES, 20))
    assert len(made) == 20  # more than there are queries
    assert {query for query, _ in made} == set(judged)
    for query, (first, *others) in made:
        assert len(others) == cross_encoder.NEGATIVES
        assert first in judged[query]
        assert not judged[query] & set(others)


def test_an_unknown_set_is_one_line(project, capsys):
    assert cross_encoder.main(["nowhere", f"--out={project / 'made'}"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere: the grid of rules has banking77,")


@pytest.mark.parity
def test_the_package_reads_it_as_sentence_transformers_does(project, monkeypatch, capsys):
    st = pytest.importorskip("sentence_transformers")
    wanted = grid_lib.DataSet(f"beir:{project / 'data'}", values=VALUES)
    grid = grid_lib.Grid(sets={"tiny": wanted}, axes={})
    monkeypatch.setattr(grid_lib, "read", lambda name: grid)
    command = ["tiny", f"--out={project / 'made'}", "--steps=2", "--queries=3"]
    assert cross_encoder.main(command) == 0
    assert "tiny 2/2" in capsys.readouterr().out
    folder = project / "made" / "tiny"
    pairs = [("a query", "a passage of some words"), ("another", "and its passage")]
    theirs = st.CrossEncoder(str(folder)).predict(pairs, activation_fn=lambda x: x)
    ours = CrossEncoder.from_pretrained(str(folder)).score(pairs)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert cross_encoder.main(command) == 0  # nothing is made twice
    assert "remove it to make it anew" in capsys.readouterr().out
