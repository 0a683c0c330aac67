"""The parts of a training run: stages, the batches of each, and the folders it writes to.

A run is a list of stages (pretraining on weak pairs, then fine-tuning on mined negatives, say).
Each has its data, batch, loss, schedule and initial weights, and begins with a new optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import grain
import numpy as np
import optax
from etils import epath

from nvret_jax.training.loss.own import Own
from nvret_jax.training.options import LAST, Training
from nvret_jax.training.trackers import Trackers


class Batches(Protocol):
    """The batches of one stage, each a pure function of (seed, step).

    Attributes:
        seed: of order, choice and dropout.
        steps: their number.
    """

    seed: int
    steps: int

    def batch(self, step: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows start..stop of the global batch of one step, counted from 0."""
        ...

    def dataset(self, first: int, start: int, stop: int) -> Iterable[dict[str, np.ndarray]]:
        """The same for steps first..steps in order, prepared ahead."""
        ...


def prefetched(make: Callable[[int], Any], first: int, stop: int) -> grain.IterDataset:
    """`make` of steps first..stop in order, made ahead by a thread."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    steps = grain.MapDataset.range(first, stop).map(lambda step: make(int(step)))
    return steps.to_iter_dataset(options)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: its folder under `checkpoints/`, and 'stage' in metrics.jsonl.
        config: its options.
        make_batches: its data; called only if the stage is not finished.
        start: 'last' or 'best' (checkpoint of the stage before, by dev metric), 'student' (the
            encoder as given), or a folder: a model of the same architecture, or checkpoints of
            another run. For the first stage 'last' is the encoder as given.
        loss: a caller's loss in the place of the config's; see `loss.own`.
        rate: a caller's schedule in the place of the config's: number of a step, counted from 0,
            -> learning rate, as optax has it.
        optimizer: a caller's, in the place of AdamW.
    """

    name: str
    config: Training
    make_batches: Callable[[], Batches]
    start: str = LAST
    loss: Own | None = None
    rate: optax.Schedule | None = None
    optimizer: optax.GradientTransformation | None = None


@dataclasses.dataclass(frozen=True)
class Places:
    """The folders a run writes to; each stage has its own under `checkpoints`.

    Attributes:
        profile: of traces; None: there are none.
        trackers: what metrics also go to.
    """

    checkpoints: epath.Path
    metrics: epath.Path
    tensorboard: epath.Path
    profile: epath.Path | None = None
    trackers: Trackers | None = None
