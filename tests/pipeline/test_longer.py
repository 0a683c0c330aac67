"""More steps, epochs or stages go on from where training ended, or say why they do not."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import recipe_project
import tiny_project

from nvret_jax import config as config_lib
from nvret_jax import pipeline
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.pipeline import trained
from nvret_jax.pipeline.state import Run
from nvret_jax.training.checkpoint import Checkpoints

STEADY = {"schedule": "constant", "warmup": 2, "chunk_tokens": -1}


def recipe(project, **train):
    made = recipe_project.config(project, **STEADY | train)
    made.stages = ("embed", "search", "mine", "train")
    made.distributed.mode = "off"
    return made


def weights(config, workdir):
    run = Run(config, Workdir.open(workdir, config.to_dict(), write=False))
    return {k: np.asarray(v) for k, v in trained.student(run).save_weights_hf().items()}


def assert_same(config, ours, theirs):
    assert tiny_project.metrics(ours) == tiny_project.metrics(theirs)
    one, other = weights(config, ours), weights(config, theirs)
    assert all((one[name] == value).all() for name, value in other.items())


@pytest.fixture(scope="module")
def short(pristine):
    """A workdir of three steps, which is on no schedule, and one stage."""
    pipeline.run(recipe(pristine, steps=3), pristine / "short")
    return pristine / "short"


@pytest.fixture
def used(short, tmp_path):
    return shutil.copytree(short, tmp_path / "used")


def once(config, short, folder):
    """The same in a workdir that was never trained in."""
    workdir = shutil.copytree(short, folder / "once")
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "fingerprints" / "checkpoints.json").unlink()
    pipeline.run(config, workdir)
    return workdir


def dry(config, workdir, capsys):
    capsys.readouterr()
    pipeline.run(config, workdir, dry_run=True)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("train ")]
    return line


def test_more_steps_go_on(pristine, short, used, tmp_path, capsys):
    longer = recipe(pristine, steps=6)
    plan = dry(longer, used, capsys)
    assert "train.steps 3 → 6; continuing from step 3 of stage 'train'" in plan
    pipeline.run(longer, used)
    assert "resumed at step 3 of 6" in capsys.readouterr().out
    assert_same(longer, used, once(longer, short, tmp_path))
    with Checkpoints(used / "checkpoints" / "train") as checkpoints:
        assert checkpoints.scheduled == [4, 6]
    fewer = dry(recipe(pristine, steps=3), used, capsys)
    assert "train.steps 6 → 3; the finished training is kept until the new one is" in fewer


def test_more_epochs_go_on(pristine, tmp_path, capsys):
    workdir = tmp_path / "w"
    pipeline.run(recipe(pristine, steps=0, epochs=1.0), workdir)
    longer = recipe(pristine, steps=0, epochs=2.0)
    pipeline.run(longer, workdir)
    out = capsys.readouterr().out
    assert "(train.epochs 1.0 → 2.0; continuing from step 3 of stage 'train')" in out
    assert "resumed at step 3 of 6" in out


@pytest.mark.slow
def test_a_further_stage_goes_on_whatever_the_schedule(pristine, tmp_path, capsys):
    first = recipe(pristine)
    first.train.schedule = "linear"
    config_lib.add_stage(first, "train", steps=3)
    pipeline.run(first, tmp_path / "w")
    before = tmp_path / "before"
    shutil.copytree(tmp_path / "w", before)
    second = recipe(pristine)
    second.train.schedule = "linear"
    config_lib.add_stage(second, "train", steps=3)
    config_lib.add_stage(second, "fine", steps=2, warmup=0)
    capsys.readouterr()
    pipeline.run(second, tmp_path / "w")
    out = capsys.readouterr().out
    assert "train.stages ['train'] → ['train', 'fine']" in out
    assert "continuing from step 3 of stage 'train'" in out
    assert "stage 'train' is finished (3 steps)" in out
    assert_same(second, tmp_path / "w", once(second, before, tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedule": "linear"}, "the learning rate of schedule 'linear' depends on the number of"),
        ({"warmup": 0.5}, "a warm-up of 0.5 of the steps depends on their number"),
    ],
)
def test_a_rate_that_depends_on_the_length_begins_again(
    pristine, short, tmp_path, capsys, change, words
):
    workdir = shutil.copytree(short, tmp_path / "w")
    pipeline.run(recipe(pristine, steps=3, **change), workdir)
    longer = recipe(pristine, steps=5, **change)
    plan = dry(longer, workdir, capsys)
    assert f"train.steps 3 → 5; training starts over: {words}" in plan
    assert "the finished one, of 3 steps, is kept until then" in plan


def test_what_was_trained_stays_until_the_new_one_is_finished(pristine, used, capsys, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    before = weights(recipe(pristine, steps=3), used)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "finish", killed)
        for words in ("resumed at step 3 of 6", "resumed at step 6 of 6"):
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(recipe(pristine, steps=6), used)
            assert words in capsys.readouterr().out
    # The metrics were the longer training's by then; the checkpoints have a copy of their own.
    pipeline.run(recipe(pristine, steps=3), used)
    out = capsys.readouterr().out
    assert "making checkpoints (damaged: metrics.jsonl " in out
    assert "resumed" not in out
    after = weights(recipe(pristine, steps=3), used)
    assert all((after[name] == value).all() for name, value in before.items())
