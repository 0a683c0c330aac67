"""`--plan` of the main command, and `python -m nvret_jax.plan`."""

import dataclasses
import importlib
import subprocess
import sys

import command as shell  # tests/pipeline/command.py
import jax
import pytest

from nvret_jax import config as config_lib
from nvret_jax import main
from nvret_jax import mesh as mesh_lib
from nvret_jax.plan import chips, command


@pytest.mark.parametrize("topology", ["v9:4x4", "v5e"])
def test_an_unknown_topology_is_one_line(topology):
    line = shell.inside(shell.CONFIG, f"--plan={topology}").error
    assert f"topology '{topology}'; expected one of v5e, v5p, v6e" in line


def test_a_config_is_checked_before_it_is_planned():
    said = shell.inside(shell.CONFIG, "--config.train.batch_size=0", "--plan=v5e:2x2").error
    assert "train.batch_size=0" in said


@pytest.fixture
def a_chip(monkeypatch):
    """Plans for this machine's CPU under the name of a chip; gives a way to set its memory."""
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])

    def of(hbm: float) -> None:
        chip = dataclasses.replace(chips.CHIPS["v5e"], hbm=hbm)
        monkeypatch.setattr(command, "topology_mesh", lambda *a, **k: (mesh, chip))

    monkeypatch.setattr(command, "leave_devices_alone", lambda: None)
    return of


def small_config() -> config_lib.ConfigDict:
    config = config_lib.base()
    for block in (config.teacher, config.student):
        block.model = "sentence-transformers/all-MiniLM-L6-v2"
        block.query_length = block.passage_length = 16
    config.train.batch_size, config.train.num_negatives = 4, 1
    config.train.chunk_tokens = -1
    config.embed.token_budget = 64
    config.data.max_queries = 8
    config.search.depth = 5
    return config


def test_a_config_is_planned_stage_by_stage(a_chip, capsys):
    a_chip(16e9)
    config = small_config()
    config_lib.add_teacher(config, "words", "bm25:")
    config.mining.teachers = ("teacher", "words")
    assert command.run(config, "v5e:1x1", passages=1000) == 0
    said = capsys.readouterr()
    assert not said.err
    titles = [line for line in said.out.splitlines() if line.startswith(("train", "embed", "sear"))]
    assert [title.split(":")[0] for title in titles[:2]] == ["train", "embed (teacher, student)"]
    assert titles[2].startswith("search 1,000 x 384 float32, 8 queries, k = 5")
    assert any(line.strip().startswith("MFU, at most") for line in said.out.splitlines())
    assert said.out.count("\nfits: ") == 3


def test_a_plan_is_of_the_stages_that_are_named(a_chip, capsys):
    a_chip(16e9)
    config = small_config()
    config.data.train = config.data.test = "beir:x"
    assert command.run(config, "v5e:1x1", stages=("embed",), passages=1000) == 0
    said = capsys.readouterr().out
    titles = [line for line in said.splitlines() if line.startswith(("train", "embed", "sear"))]
    assert [title.split(":")[0] for title in titles] == ["embed (teacher)"]
    said = shell.inside(shell.CONFIG, "--plan=v5e:2x2", "--stages=dance").error
    assert "--stages=dance: this config has the stages embed, search" in said


def test_a_plan_that_does_not_fit_ends_with_status_3_and_a_line(a_chip, capsys):
    a_chip(250e6)
    config = small_config()
    config.stages = ("train",)
    config_lib.add_stage(config, "first")
    config_lib.add_stage(config, "second", batch_size=8)
    assert command.run(config, "v5e:1x1") == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: the plan does not fit v5e:1x1: train first: 0.")
    assert lines[1].startswith("error: the plan does not fit v5e:1x1: train second: 0.")
    assert "of which optimizer" in lines[0]


def test_a_search_alone_that_does_not_fit_ends_the_same_way(a_chip, capsys, monkeypatch):
    a_chip(16e9)
    argv = ["plan", "--topology=v5e:1x1", "--passages=1000", "--width=16", "--queries=8", "--k=5"]
    assert main.guarded(main.run, ["", *argv]) == 0
    monkeypatch.setattr(command, "fits", lambda step, chip: False)
    assert main.guarded(main.run, ["", *argv]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the plan does not fit v5e:1x1: search: 0.")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--topology=v5e:2x2", "--passages=10", "--width=4", "--k=50"], "k=50"),
        (["--passages=10"], "--topology: give the chips, as in --topology=v5e:4x4; --width: give"),
        (["--topology=v5e:2x2", shell.CONFIG, "--width=4"], "--width: is only for a search"),
        (["--topology=v5e:2x2", "--passages=9", "--width=4", "--data"], "--data: needs --config"),
        (["--topology=v5e:2x2", "--passages=9", "--width=4", "--stages=a"], "--stages: needs --c"),
    ],
)
def test_what_a_plan_refuses(argv, said):
    assert said in shell.inside("plan", *argv).error


def test_the_package_is_a_command():
    assert importlib.util.find_spec("nvret_jax.plan.__main__")
    done = subprocess.run(
        [sys.executable, "-m", "nvret_jax.plan", "--topology=v5e:2x2", "--passages=10"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: plan: --width: give a number above 0, or a whole run with --config=FILE\n"
    )
