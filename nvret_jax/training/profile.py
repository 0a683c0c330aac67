"""A trace of some steps of training, for xprof: `train.profile`."""

from __future__ import annotations

from typing import Any

import jax
from etils import epath

from nvret_jax import mesh as mesh_lib


class Profile:
    """Traces steps `first` to `last` of a stage, of this process. Use as a context manager."""

    def __init__(self, steps: tuple[int, ...], folder: epath.Path | None, stage: str):
        """A trace.

        Args:
            steps: (first, last), counted from 1; (): none.
            folder: where it goes; None: nowhere.
            stage: the stage's name.
        """
        self._steps = steps if folder is not None and mesh_lib.is_main() else ()
        self._folder, self._stage, self._on = folder, stage, False

    def before(self, step: int) -> None:
        """Called before a step is dispatched."""
        # Of a run that continues in the middle of the steps, those that are left.
        if self._steps and not self._on and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, step: int, metrics: Any) -> None:
        """Called with what a step returned, which may still be computed."""
        if self._on and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            self._stop(f"steps {self._steps[0]} to {self._steps[1]}")

    def _stop(self, what: str) -> None:
        jax.profiler.stop_trace()
        self._on, self._steps = False, ()
        mesh_lib.say(f"profile   {what} of stage {self._stage!r}: xprof {self._folder}")

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *error: object) -> None:
        if self._on:
            self._stop("the steps until training ended")
