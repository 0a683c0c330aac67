"""Metrics that also go to a tracker of experiments: Weights & Biases, or MLflow.

They are separate packages (the extras `wandb` and `mlflow`), imported where `track` names them. A
continued run uses the same run of the tracker, whose id is kept in the workdir. Where the trackers
are (project, server, key) is as their own environment variables say. One that fails while it is
used is left out with a warning: training does not depend on it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from absl import logging
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.files.atomic import write_atomic

PROJECT = "nvret_jax"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another


class Opened(Protocol):
    """A run of a tracker, ready to take metrics."""

    id: str

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the scalars of a step."""
        ...

    def close(self) -> None:
        """Ends the run."""
        ...


class _Wandb:
    def __init__(self, name: str, folder: epath.Path, config: Mapping[str, Any], known: str | None):
        wandb = importlib.import_module("wandb")
        self.id = known or uuid.uuid4().hex[:12]
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(
            project=project, name=name, id=self.id, resume="allow", dir=str(folder), config=config
        )
        # A run that was killed repeats steps, which W&B's own counter refuses.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({**scalars, "step": step})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, name: str, folder: epath.Path, config: Mapping[str, Any], known: str | None):
        self._mlflow = importlib.import_module("mlflow")
        if known is None:
            if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
                self._mlflow.set_experiment(PROJECT)
            run = self._mlflow.start_run(run_name=name)
            # MLflow takes at most 100 parameters at a time.
            flat = list(_flat(config).items())
            for start in range(0, len(flat), 100):
                self._mlflow.log_params(dict(flat[start : start + 100]))
        else:
            run = self._mlflow.start_run(run_id=known)
        self.id = run.info.run_id

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(scalars), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def _flat(config: Mapping[str, Any], at: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{at}{key}.")
        else:
            out[at + key] = str(value)[:500]
    return out


TRACKERS: dict[str, Callable[..., Opened]] = {"wandb": _Wandb, "mlflow": _Mlflow}


def check(names: Sequence[str]) -> None:
    """Raises InputError for a tracker that is not installed, with what installs it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"track={name}: not installed; pip install 'nvret_jax[{name}]'")


class Trackers:
    """The trackers of a run; each is opened with the first metrics."""

    def __init__(
        self, names: Sequence[str], *, name: str, folder: epath.PathLike, config: Mapping[str, Any]
    ):
        """Trackers by name.

        Args:
            names: keys of `TRACKERS`.
            name: of the run.
            folder: its workdir.
            config: shown beside the metrics.
        """
        self._names, self._name, self._config = list(names), name, config
        self._folder = epath.Path(folder)
        self._opened: dict[str, Opened] = {}

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the scalars of a step, under the names they have in metrics.jsonl."""
        for name in list(self._names):
            self._try(name, lambda name=name: self._open(name).log(step, scalars))

    def close(self) -> None:
        """Ends their runs; the next metrics continue them."""
        for name, opened in self._opened.items():
            self._try(name, opened.close)
        self._opened = {}

    def _open(self, name: str) -> Opened:
        if name not in self._opened:
            file = self._folder / "trackers.json"
            known = json.loads(file.read_text()) if file.exists() else {}
            opened = TRACKERS[name](self._name, self._folder, self._config, known.get(name))
            self._opened[name] = opened
            if known.get(name) != opened.id:
                write_atomic(file, json.dumps({**known, name: opened.id}) + "\n")
        return self._opened[name]

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a client of a server raises
            said = " ".join(str(error).split())[:200]
            logging.warning("track: %s: %s: %s; it gets no more", name, type(error).__name__, said)
            self._names = [other for other in self._names if other != name]
