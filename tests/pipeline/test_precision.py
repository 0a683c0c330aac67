"""`embed.dtype` and `search.dtype`: what 'auto' is on each platform, and that values arrive."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_project

from nvret_jax import config as config_lib
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.config.checks import wrong_values
from nvret_jax.models import precision
from nvret_jax.models.encoder import Encoder
from nvret_jax.pipeline import ranked
from nvret_jax.pipeline.stages import STAGES
from nvret_jax.pipeline.state import Run


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    tiny_project.make(folder)
    return folder


@pytest.fixture(autouse=True)
def said_anew():
    precision.say_cost.cache_clear()
    precision.say_rounded.cache_clear()


def made(project, workdir, platform, monkeypatch, **values):
    """A run that takes its devices to be of a platform."""
    monkeypatch.setattr(Run, "platform", property(lambda run: platform))
    config = config_lib.base()
    config.name = "precision"
    config.data.train = config.data.test = f"beir:{project / 'data'}"
    config.teacher.model = config.student.model = str(project / "model")
    config.stages = ("embed", "search")
    config.data.max_passages = 40
    for key, value in values.items():
        config[key.split("_")[0]][key.split("_")[1]] = value
    return Run(config, Workdir.open(workdir, config.to_dict()))


def passages(run):
    return next(a for a in STAGES["embed"].artifacts(run) if a.name.endswith("passages"))


@pytest.mark.parametrize(
    ("asked", "own", "platform", "expected"),
    [
        ("auto", "float32", "cpu", "float32"),
        ("auto", "float32", "gpu", "bfloat16"),
        ("auto", "float32", "tpu", "bfloat16"),
        ("auto", "bfloat16", "cpu", "bfloat16"),
        ("float32", "bfloat16", "tpu", "float32"),
        ("bfloat16", "float32", "cpu", "bfloat16"),
    ],
)
def test_auto_is_bfloat16_on_accelerators(asked, own, platform, expected):
    assert precision.embedding_dtype(asked, own, platform) == expected


def test_defaults_are_auto_and_other_words_are_refused():
    config = config_lib.base()
    assert (config.embed.dtype, config.search.dtype) == ("auto", "auto")
    config.embed.dtype = config.search.dtype = "float16"
    assert set(wrong_values(config)) == {"embed.dtype", "search.dtype"}


@pytest.mark.parametrize(
    ("platform", "asked", "expected"),
    [("cpu", "auto", "float32"), ("tpu", "auto", "bfloat16"), ("gpu", "float32", "float32")],
)
def test_the_dtype_reaches_the_encoder(
    project, tmp_path, monkeypatch, capsys, platform, asked, expected
):
    seen, encoded = [], Encoder.encoded

    def spied(self, *args, **how):
        seen.append((self.spec.dtype, self.model.backbone.options.dtype))
        return encoded(self, *args, **how)

    monkeypatch.setattr(Encoder, "encoded", spied)
    run = made(project, tmp_path, platform, monkeypatch, embed_dtype=asked)
    for artifact in STAGES["embed"].artifacts(run):
        STAGES["embed"].bring(run, artifact)
    assert set(seen) == {(expected, expected)}
    costs = "up to 15 times" in (out := capsys.readouterr().out)
    assert costs == (platform == "gpu")
    assert out.count("embed.dtype=bfloat16 avoids it") == int(costs)  # once, for several tables
    assert out.count("products in bfloat16") == int(platform == "tpu")


def test_another_dtype_makes_embeddings_again_and_names_the_key(project, tmp_path, monkeypatch):
    run = made(project, tmp_path, "cpu", monkeypatch)
    STAGES["embed"].bring(run, passages(run))
    assert passages(run).stale() is None
    again = made(project, tmp_path, "cpu", monkeypatch, embed_dtype="float32")
    assert passages(again).stale() is None  # what 'auto' was
    other = made(project, tmp_path, "cpu", monkeypatch, embed_dtype="bfloat16")
    assert passages(other).stale() == "embed.dtype 'auto' → 'bfloat16'"


def test_auto_keeps_what_another_machine_made(project, tmp_path, monkeypatch):
    run = made(project, tmp_path, "tpu", monkeypatch)
    STAGES["embed"].bring(run, passages(run))
    here = made(project, tmp_path, "cpu", monkeypatch)
    assert passages(here).stale() is None
    inputs, _ = STAGES["embed"].inputs(here, passages(here))
    assert inputs.encoder.spec.dtype == "bfloat16"
    asked = made(project, tmp_path, "cpu", monkeypatch, embed_dtype="float32")
    assert passages(asked).stale() == "embed.dtype 'bfloat16' → 'float32'"


def test_the_dtype_reaches_the_search(project, tmp_path, monkeypatch, capsys):
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    run = made(project, tmp_path, "tpu", monkeypatch)
    assert run.searching.passages(vectors) is vectors
    run.searching.passages(vectors)
    assert capsys.readouterr().out.count("up to 6 times") == 1
    narrow = made(project, tmp_path, "tpu", monkeypatch, search_dtype="bfloat16")
    assert narrow.searching.passages(vectors)[:].dtype.name == "bfloat16"
    assert not np.array_equal(narrow.searching.queries(vectors), vectors)
    assert "times" not in capsys.readouterr().out
    before, after = ranked.artifact(run, "teacher"), ranked.artifact(narrow, "teacher")
    assert after.parts["search.dtype"] == "bfloat16"
    assert before.fingerprint != after.fingerprint
