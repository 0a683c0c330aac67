"""Where training metrics go: metrics.jsonl always, TensorBoard files beside, on one process.

Steps are counted over all stages of a run; a line also names its stage. A resumed run first cuts
metrics.jsonl back to the step it resumes from, so the file reads as if nothing had happened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import tensorboardX
from etils import epath

from nvret_jax.artifacts import write_atomic
from nvret_jax.errors import InputError


class MetricWriter:
    """Scalars by step. Use as a context manager."""

    def __init__(
        self,
        jsonl: epath.Path,
        tensorboard: epath.Path,
        *,
        stage: str,
        earlier: Sequence[str] = (),
        resume_at: int,
    ):
        """Opens both.

        Args:
            jsonl: the file. Kept are the lines of earlier stages, and of this one those that a
                checkpoint covers.
            tensorboard: the folder of event files.
            stage: the stage that writes.
            earlier: the stages before it.
            resume_at: the last step a checkpoint of this stage covers; -1: there is none.
        """

        def stays(line: dict[str, Any]) -> bool:
            of = line.get("stage")
            return of in earlier or (of == stage and line["step"] <= resume_at)

        kept = [line for line in _lines(jsonl) if stays(line)]
        write_atomic(jsonl, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = epath.Path(jsonl).open("a")
        self._stage = stage
        last = max((line["step"] for line in kept), default=0)
        self._board = tensorboardX.SummaryWriter(
            str(tensorboard), purge_step=last + 1 if last > 0 else None
        )

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

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *unused) -> None:
        self._file.close()
        self._board.close()


class NoWriter:
    """What the other processes have."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Does what a process that does not write does."""
        del step, scalars

    def __enter__(self) -> NoWriter:
        return self

    def __exit__(self, *unused) -> None:
        pass


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
