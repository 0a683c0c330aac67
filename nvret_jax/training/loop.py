"""The training loop, as a visible `for`.

Start order: this run's own latest checkpoint; otherwise the weights the encoder came with. A run
that was killed continues with the same batches, the same optimizer and the same metrics file, and
ends where an undisturbed one would have.

What is trained is what `Encoder.trainable` says: all weights, or adapters beside a frozen model.
Steps, the optimizer's state and checkpoints hold that and no more; the rest comes from the model's
own folder each time.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from nvret_jax import mesh as mesh_lib
from nvret_jax.console import say
from nvret_jax.errors import InputError
from nvret_jax.models.encoder import Encoder
from nvret_jax.training.checkpoint import Checkpoints
from nvret_jax.training.examples import Examples, local_rows, to_devices
from nvret_jax.training.losses import Loss
from nvret_jax.training.optimizer import make_optimizer, schedule
from nvret_jax.training.step import init_optimizer, make_step
from nvret_jax.training.writer import MetricWriter, NoWriter

DevScore = Callable[[Encoder], float]


@dataclasses.dataclass(frozen=True)
class Places:
    """Where a run keeps what it writes."""

    checkpoints: epath.Path
    metrics: epath.Path
    tensorboard: epath.Path


def total_steps(config: ConfigDict, rows: int) -> int:
    """Steps of a run: `config.steps`, or `config.epochs` over `rows` training queries."""
    return config.steps or max(1, math.ceil(config.epochs * rows / config.batch_size))


def is_time(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps, and at the end, is due after `step`."""
    return step == last or (every > 0 and step % every == 0)


def check_weights(trainable: Any, step: int) -> None:
    """Raises InputError if training has blown the weights up; every process comes to the same."""
    if not np.isfinite(np.asarray(_norm(trainable))):
        raise InputError(
            f"training: the weights are no longer finite after step {step}; lower "
            "train.learning_rate or raise train.temperature"
        )


_norm = jax.jit(optax.global_norm)


def check_batch(config: ConfigDict, shards: int) -> None:
    """Raises InputError unless the batch can be split over the mesh."""
    if config.batch_size % shards:
        raise InputError(
            f"train.batch_size={config.batch_size} is not a multiple of the {shards} devices the "
            f"batch is split over; use {-(-config.batch_size // shards) * shards}"
        )


def loss_of(config: ConfigDict, width: int) -> Loss:
    """The loss that a config describes.

    Args:
        config: `config.train` of a run.
        width: of the embeddings.

    Raises:
        InputError: options that cannot be, all in one line.
    """
    loss = Loss(
        temperature=config.temperature,
        in_batch=config.in_batch_negatives,
        **config.loss.to_dict(),
    )
    if max(loss.dims, default=0) > width:
        raise InputError(
            f"train.loss.dims={loss.dims}: the embedding is {width} wide; name prefixes up to that"
        )
    return loss


def train(
    encoder: Encoder,
    examples: Examples,
    config: ConfigDict,
    places: Places,
    dev_score: DevScore | None = None,
) -> Encoder:
    """Trains the student.

    Args:
        encoder: where to start from.
        examples: what to train on.
        config: `config.train` of the run.
        places: where to write; finds an earlier, unfinished run there.
        dev_score: nDCG@10 of an encoder on dev queries; called on every process.

    Returns:
        The trained encoder.

    Raises:
        InputError: the batch does not divide over the mesh, or the loss stops being finite.
    """
    mesh = encoder.mesh
    check_batch(config, mesh_lib.shards(mesh, "batch"))
    steps = total_steps(config, len(examples.negatives))
    rate = schedule(config, steps)
    optimizer = make_optimizer(config, steps)
    loss = loss_of(config, encoder.width)
    start, stop = local_rows(mesh, config.batch_size)
    main = mesh_lib.is_main()
    adapters_drop = encoder.lora is not None and encoder.lora.dropout > 0

    with jax.set_mesh(mesh), Checkpoints(places.checkpoints, keep=config.keep) as checkpoints:
        graph, trainable, frozen = nnx.split(encoder.model, encoder.trainable, ...)
        trainable = jax.tree.map(jnp.copy, trainable)  # steps donate it; the encoder keeps its own
        optimizer_state = init_optimizer(optimizer, loss, trainable)
        step_fn = make_step(
            graph,
            optimizer,
            mesh=mesh,
            loss=loss,
            chunk_tokens=config.chunk_tokens,
            dropout=config.dropout > 0 or adapters_drop,
            seed=examples.seed,
        )
        iterator = iter(examples.dataset(steps, start, stop))

        done = checkpoints.latest or 0
        if done:
            trainable, optimizer_state = checkpoints.load(
                done, trainable, optimizer_state, iterator
            )
            say(f"train     resumed at step {done} of {steps}")

        open_writer = (
            MetricWriter(places.metrics, places.tensorboard, resume_at=done or -1)
            if main
            else NoWriter()
        )
        bar = tqdm(total=steps, initial=done, unit="step", desc="train", disable=not main)
        with open_writer as writer, bar:
            pending = None  # metrics are fetched one step late, so that the device never waits
            clock = time.perf_counter()

            def flush():
                nonlocal pending, clock
                if pending is None:
                    return
                at, device_metrics = pending
                pending = None
                scalars = {k: float(np.asarray(v)) for k, v in device_metrics.items()}
                now = time.perf_counter()
                speed = config.batch_size / max(now - clock, 1e-9)
                clock = now
                scalars["learning_rate"] = float(rate(at - 1))
                scalars["examples_per_second"] = round(speed, 3)
                if is_time(at, config.log_every, steps):
                    writer.write(at, scalars)
                bar.update(at - bar.n)
                bar.set_postfix_str(f"loss {scalars['loss']:.4f}, {speed:.1f} examples/s")

            def score(at: int) -> None:
                nonlocal clock
                flush()
                check_weights(trainable, at)
                state = nnx.merge_state(trainable, frozen)
                value = dev_score(encoder.replace(state))
                writer.write(at, {"dev_ndcg_cut_10": value})
                bar.write(f"step {at}: dev nDCG@10 {value:.4f}") if main else None
                clock = time.perf_counter()

            if dev_score is not None and not done:
                score(0)
            for step in range(done + 1, steps + 1):
                batch = to_devices(next(iterator), mesh, start, config.batch_size)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    trainable, optimizer_state, metrics = step_fn(
                        trainable, optimizer_state, frozen, batch, jnp.uint32(step)
                    )
                flush()
                pending = (step, metrics)
                if dev_score is not None and is_time(step, config.eval_every, steps):
                    score(step)
                if is_time(step, config.checkpoint_every, steps):
                    flush()  # the metrics file holds every step a checkpoint covers
                    check_weights(trainable, step)
                    checkpoints.save(step, trainable, optimizer_state, iterator)
                    clock = time.perf_counter()
            flush()
        return encoder.replace(nnx.merge_state(trainable, frozen))


def load_trained(encoder: Encoder, folder: epath.Path) -> Encoder:
    """The encoder with the parameters of the last checkpoint in `folder`.

    Raises:
        InputError: there is none.
    """
    with jax.set_mesh(encoder.mesh), Checkpoints(folder) as checkpoints:
        if checkpoints.latest is None:
            raise InputError(f"{folder} holds no checkpoint; run the train stage first")
        _, trainable, frozen = nnx.split(encoder.model, encoder.trainable, ...)
        params = checkpoints.load_params(checkpoints.latest, trainable)
        return encoder.replace(nnx.merge_state(params, frozen))
