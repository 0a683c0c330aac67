"""Writes training metrics: metrics.jsonl and TensorBoard files, on one process.

Steps are counted over all stages of a run; a line also names its stage. A resumed run first
restores metrics.jsonl from the copy in the checkpoint from which it continues, and rewrites the
event files; so both are as if the run had not been interrupted.
"""

from __future__ import annotations

import json
import math
from typing import Any

import tensorboardX
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.files.atomic import remove, write_atomic
from nvret_jax.training.trackers import Trackers


class MetricWriter:
    """Scalars by step. Use as a context manager."""

    def __init__(
        self,
        jsonl: epath.Path,
        tensorboard: epath.Path,
        *,
        stage: str,
        before: str,
        trackers: Trackers | None = None,
    ):
        """Opens both.

        Args:
            jsonl: the file; replaced.
            tensorboard: the folder of event files; rewritten.
            stage: the stage that writes.
            before: lines that come first: the metrics up to the checkpoint from which training
                continues.
            trackers: what the scalars also go to.
        """
        restore(jsonl, tensorboard, before)
        self._file = epath.Path(jsonl).open("a")
        self._stage, self._trackers = stage, trackers
        self._board = tensorboardX.SummaryWriter(str(tensorboard))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line, one point per scalar.

        Raises:
            InputError: a value is not finite; the run cannot recover from that.
        """
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise InputError(
                    f"training: {name} is {value} at step {step}; lower train.learning_rate or "
                    "raise train.temperature"
                )
        line = {"step": step, "stage": self._stage, **scalars}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(f"train/{name}", value, step)
        if self._trackers is not None:
            self._trackers.log(step, {f"train/{name}": v for name, v in scalars.items()})

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *unused) -> None:
        self._file.close()
        self._board.close()
        if self._trackers is not None:
            self._trackers.close()


class NoWriter:
    """The writer of the other processes."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Does nothing."""
        del step, scalars

    def __enter__(self) -> NoWriter:
        return self

    def __exit__(self, *unused) -> None:
        pass


def restore(jsonl: epath.Path, tensorboard: epath.Path, text: str) -> None:
    """Restores both to their state when metrics.jsonl held `text`."""
    jsonl = epath.Path(jsonl)
    write_atomic(jsonl, text)
    remove(tensorboard)
    if not text:
        return
    with tensorboardX.SummaryWriter(str(tensorboard)) as board:
        for line in _lines(jsonl):
            step = line.pop("step")
            for name, value in line.items():
                if name != "stage":
                    board.add_scalar(f"train/{name}", value, step)


def read_metrics(jsonl: epath.Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, oldest first; a missing file has none."""
    return _lines(jsonl)


def _lines(jsonl: epath.Path) -> list[dict[str, Any]]:
    jsonl = epath.Path(jsonl)
    out = []
    if jsonl.exists():
        for text in jsonl.read_text().splitlines():
            try:
                out.append(json.loads(text))
            except ValueError:
                break  # the last line of a process that was killed while it wrote
    return out
