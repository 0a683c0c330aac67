"""How fast training goes: examples, tokens and operations per second, MFU, and memory.

Tokens are those of texts, without padding. MFU is what the model needs for them (`models/flops.py`)
as a share of what the devices could do in bfloat16; devices whose peak is not known have none.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from nvret_jax.models import flops

GIB = 1 << 30
# What a step is measured by: metrics that differ from run to run.
NAMES = ("examples_per_second", "tokens_per_second", "mfu", "memory_gib")


class Rates:
    """The rates of one stage of training."""

    def __init__(
        self,
        model: nnx.Module,
        trainable: Any,
        mesh: Mesh,
        batch_size: int,
        lengths: Callable[[int], Mapping[str, np.ndarray]] | None,
    ):
        """Of a model and its batches.

        Args:
            model: an `EmbeddingModel`, abstract or not.
            trainable: the filter of what training changes.
            mesh: it is trained on.
            batch_size: queries per step.
            lengths: step, from 0 -> tokens of each text of a side; None: not known.
        """
        self._shape = flops.shape_of(model, trainable)
        self._batch_size, self._lengths = batch_size, lengths
        devices = mesh.devices.flat
        peak = flops.peak(devices[0].device_kind)
        self._peak = None if peak is None else peak * mesh.size
        self._local = mesh.local_devices

    def of(self, step: int, seconds: float) -> dict[str, float]:
        """The metrics of a step that took some seconds, counted from 0; see `NAMES`."""
        seconds = max(seconds, 1e-9)
        found = {"examples_per_second": round(self._batch_size / seconds, 3)}
        if self._lengths is not None:
            lengths = [np.asarray(n, np.float64) for n in self._lengths(step).values()]
            tokens = sum(float(n.sum()) for n in lengths)
            found["tokens_per_second"] = round(tokens / seconds, 1)
            if self._peak is not None:
                needed = sum(float(self._shape.training(1, n[n > 0]).sum()) for n in lengths)
                found["mfu"] = round(needed / seconds / self._peak, 5)
        found["memory_gib"] = round(self._memory() / GIB, 3)
        return found

    def _memory(self) -> int:
        """Most bytes that a device of this process has held; on a CPU, the process."""
        stats = [device.memory_stats() or {} for device in self._local]
        held = max(int(found.get("peak_bytes_in_use", 0)) for found in stats)
        if held:
            return held
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024
