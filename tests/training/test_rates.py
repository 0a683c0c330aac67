"""Rates of training, traces of its steps, and trackers of its metrics."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types

import command
import numpy as np
import pytest
import tiny_models
import tiny_project

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models import flops
from nvret_jax.models.encoder import Encoder
from nvret_jax.training import trackers
from nvret_jax.training.rates import NAMES, Rates

# --- rates ---


def test_rates_count_real_tokens_and_what_the_model_needs(tmp_path, monkeypatch):
    tiny_models.write(tmp_path / "m")
    encoder = Encoder.from_pretrained(tmp_path / "m")
    lengths = {"query": np.array([3, 5]), "passage": np.array([7, 0, 2])}
    monkeypatch.setattr(flops, "peak", lambda kind: 1e9)
    rates = Rates(encoder.model, encoder.trainable, encoder.mesh, 2, lambda step: lengths)
    found = rates.of(0, 0.5)
    assert tuple(found) == NAMES
    assert found["examples_per_second"] == 4
    assert found["tokens_per_second"] == 34
    shape = flops.shape_of(encoder.model, encoder.trainable)
    needed = sum(shape.training(1, n) for n in (3, 5, 7, 2))  # a text that is not there needs none
    assert found["mfu"] == pytest.approx(needed / 0.5 / 1e9, abs=1e-5)
    assert found["mfu"] > 1e-4
    assert 0.05 < found["memory_gib"] < 64


def test_there_is_no_mfu_of_a_device_whose_peak_is_not_known(tmp_path):
    tiny_models.write(tmp_path / "m")
    encoder = Encoder.from_pretrained(tmp_path / "m")
    rates = Rates(encoder.model, encoder.trainable, mesh_lib.make_mesh(), 2, None)
    assert set(rates.of(0, 1.0)) == {"examples_per_second", "memory_gib"}


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 PCIe", None),
        ("cpu", None),
    ],
)
def test_devices_by_the_names_that_jax_has_for_them(kind, chip):
    assert flops.peak(kind) == (None if chip is None else flops.PEAKS[chip])


# --- trackers ---


class Fake(types.ModuleType):
    """A client of a tracker that keeps what it is given; as both packages are called."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.begun, self.logged, self.ended, self.params = [], [], 0, {}
        self.fails = False

    # Weights & Biases
    def init(self, **how):
        self.begun.append(how)
        run = types.SimpleNamespace()
        run.define_metric = lambda *a, **k: None
        run.log = self._log
        run.finish = self.end_run
        return run

    def _log(self, scalars, step=None):
        if self.fails:
            raise ConnectionError("no\nserver")
        self.logged.append((scalars.pop("step", step), scalars))

    # MLflow
    def set_experiment(self, name):
        self.experiment = name

    def start_run(self, run_name=None, run_id=None):
        self.begun.append({"name": run_name, "id": run_id})
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "r1"))

    def log_params(self, params):
        assert len(params) <= 100
        self.params |= params

    def log_metrics(self, scalars, step):
        self._log(scalars, step)

    def end_run(self):
        self.ended += 1


@pytest.fixture(params=["wandb", "mlflow"])
def fake(request, monkeypatch):
    module = Fake(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def opened(fake, folder):
    config = {"a": 1, "b": {"c": "x"}}
    return trackers.Trackers([fake.__name__], name="n", folder=folder, config=config)


def test_a_tracker_gets_what_metrics_are_and_goes_on_in_its_run(fake, tmp_path):
    first = opened(fake, tmp_path)
    assert fake.begun == []  # until there is something to log
    first.log(3, {"train/loss": 0.5})
    first.close()
    opened(fake, tmp_path).log(4, {"train/loss": 0.25})
    assert fake.logged == [(3, {"train/loss": 0.5}), (4, {"train/loss": 0.25})]
    assert fake.ended == 1
    known = json.loads((tmp_path / "trackers.json").read_text())[fake.__name__]
    assert [begun["id"] for begun in fake.begun][-1] == known
    if fake.__name__ == "wandb":
        assert {begun["id"] for begun in fake.begun} == {known}
        assert fake.begun[0]["project"] == "nvret_jax"
        assert fake.begun[0]["config"] == {"a": 1, "b": {"c": "x"}}
    else:
        assert fake.begun[0] == {"name": "n", "id": None}
        assert (fake.experiment, fake.params) == ("nvret_jax", {"a": "1", "b.c": "x"})


def test_a_tracker_that_fails_is_left_out_and_said(fake, tmp_path, caplog):
    fake.fails = True
    tracker = opened(fake, tmp_path)
    with caplog.at_level("WARNING", "absl"):
        tracker.log(1, {"x": 1.0})
        tracker.log(2, {"x": 1.0})
    said = [r.getMessage() for r in caplog.records]
    assert said == [f"track: {fake.__name__}: ConnectionError: no server; it gets no more"]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"track=wandb: not installed; pip install 'nvret_jax\[wa"):
        trackers.check(["wandb"])


# --- a run with all of it ---


@pytest.mark.slow
def test_a_run_with_a_tracker_and_a_trace(tmp_path, fake):
    tiny_project.make(tmp_path)
    result = command.inside(
        command.CONFIG,
        f"--workdir={tmp_path / 'run'}",
        *command.flags_of(tmp_path),
        f"--config.track={fake.__name__}",
        "--config.train.profile=(2,2)",
        f"--log_file={tmp_path / 'log.txt'}",
    )
    assert result.status == 0, result.stderr
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert all(set(NAMES) - {"mfu"} <= set(line) for line in trained)
    sent = [step for step, scalars in fake.logged if "train/loss" in scalars]
    assert sent == [line["step"] for line in trained]
    last = fake.logged[-1][1]
    scores = json.loads((tmp_path / "run/evaluation/data.json").read_text())
    assert last["evaluation/ndcg_cut_10"] == scores["ndcg_cut_10"]
    assert last["evaluation/before/map"] == scores["before"]["map"]
    traces = list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert "profile   steps 2 to 2 of stage 'train'" in result.stdout
    # The file has the lines that were printed, in their order.
    kept = [
        x.split(" ", 3)[3] for x in (tmp_path / "log.txt").read_text().splitlines() if " INFO " in x
    ]
    shown = [x for x in result.stdout.splitlines() if x in kept]
    assert shown == [x for x in kept if x in shown]
    assert any(x.startswith("finished  in ") for x in kept)


def test_profile_takes_two_steps_in_order():
    said = command.inside(command.CONFIG, "--workdir=w", "--config.train.profile=(3,2)").error
    assert "train.profile=(3, 2): expected two numbers" in said
