"""SIGTERM asks a run to end: it saves at the next step and leaves.

A scheduler that takes a machine back sends SIGTERM to the processes, not always to all of them and
never at the same instant, and all processes must stop after the same step. So each one hands its
flag to every step, as an array of one number per device; the step returns the sum among its
metrics, which are read one step late, so no step waits for it. On one process the flag itself is
read.

The handler is installed only while steps run. At any other moment (texts are being tokenised, say)
everything there is stands on disk, and SIGTERM ends the process as it always did.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib

FLAGS = "preempted"  # its name in a batch and among the metrics of a step

_sum = jax.jit(jnp.sum)


def mains(flag: bool) -> bool:
    """The main process's flag, on every process; waits for it."""
    if mesh_lib.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


class Preemption:
    """Whether this run was asked to end. Use as a context manager, inside `jax.set_mesh`."""

    def __init__(self, mesh: Mesh):
        self._sharding = mesh_lib.sharding(mesh, "rows")
        self._devices = mesh.size
        self._alone = mesh_lib.process_count() == 1
        self._asked = False  # this process
        self._found = False  # any process, and all know
        self._before: Any = None
        self._main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Preemption:
        if self._main_thread:  # Python allows handlers nowhere else
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind, *unused) -> None:
        if not self._main_thread:
            return
        before = signal.SIG_DFL if self._before is None else self._before
        signal.signal(signal.SIGTERM, before)
        if self._asked and not self._found and kind is None:
            os.kill(os.getpid(), signal.SIGTERM)  # it came after the last look

    def _note(self, *unused) -> None:
        self._asked = True

    def flags(self) -> dict[str, jax.Array]:
        """What a batch carries of this: int32 [devices], one process's flag on each of its own."""
        return {} if self._alone else {FLAGS: self._submitted()}

    def reached(self, flags: float) -> bool:
        """After a step: whether to stop here; the same on every process that asks after it.

        Args:
            flags: the sum that earlier steps returned.
        """
        self._found |= self._asked if self._alone else flags > 0
        return self._found

    def settled(self) -> bool:
        """The same at once, for the beginning and the end; waits for the other processes."""
        if self._alone:
            return self.reached(0)
        self._found |= int(np.asarray(_sum(self._submitted()))) > 0
        return self._found

    def _submitted(self) -> jax.Array:
        def own(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(self._devices)
            return np.full(last - first, self._asked, np.int32)

        return jax.make_array_from_callback((self._devices,), self._sharding, own)
