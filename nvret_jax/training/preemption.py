"""Training on a signal: it saves after the current step and ends.

A scheduler that reclaims a machine sends SIGTERM to the processes, not always to all of them and
never at the same instant, but all processes must stop after the same step. So each one passes the
number of its signal to every step, as an array of one number per device; the step returns the
largest among its metrics, which are read one step late, so no step waits for it. A single process
reads the number itself.

The end is deferred only while steps run (`stops.deferred`). At any other time (while texts are
tokenised, for example) all finished work is on disk, and a signal ends the process at once.
"""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.processes import stops

FLAGS = "preempted"  # its name in a batch and among the metrics of a step

_largest = jax.jit(jnp.max)


def broadcast_from_main(flag: bool) -> bool:
    """The main process's flag, on every process; waits for it."""
    if mesh_lib.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


class Preemption:
    """Whether a signal asked this run to end. Use as a context manager, inside `jax.set_mesh`.

    Attributes:
        number: of the signal that any process received, once all processes know; else 0.
    """

    def __init__(self, mesh: Mesh):
        self.number = 0
        self._sharding = mesh_lib.sharding(mesh, "rows")
        self._devices = mesh.size
        self._alone = mesh_lib.process_count() == 1
        self._deferred = contextlib.ExitStack()
        self._end: stops.Deferral

    def __enter__(self) -> Preemption:
        self._end = self._deferred.enter_context(stops.deferred())
        return self

    def __exit__(self, *error) -> None:
        self._deferred.__exit__(*error)

    def saved(self, line: str | None) -> None:
        """Sets the line for an end now, when all steps are saved; None when they are not.

        Only a single process can end by itself at such a time.
        """
        if self._alone:
            self._end.saved = line

    def flags(self) -> dict[str, jax.Array]:
        """An entry of a batch: int32 [devices], each process's signal on its own devices."""
        return {} if self._alone else {FLAGS: self._submitted()}

    def reached(self, flags: float) -> bool:
        """After a step: whether to stop here; the same on every process.

        Args:
            flags: the largest that earlier steps returned.
        """
        self.number = self.number or (self._end.asked() if self._alone else int(flags))
        return self.number > 0

    def settled(self) -> bool:
        """The same without delay, for the beginning and the end; waits for the other processes."""
        return self.reached(0 if self._alone else int(np.asarray(_largest(self._submitted()))))

    def _submitted(self) -> jax.Array:
        own = self._end.asked()

        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(self._devices)
            return np.full(last - first, own, np.int32)

        return jax.make_array_from_callback((self._devices,), self._sharding, part)
