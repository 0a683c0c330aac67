"""The training step of a run, compiled for chips that are not present.

It is the function that `training.loop` calls, on shapes instead of arrays: for the longest batch,
or for the widths of the config's own texts (`lengths`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.plan.lengths import Drawn, Lengths, usual
from nvret_jax.plan.models import Sketch, bytes_per_chip, placed
from nvret_jax.plan.steps import Step, chosen, compile_step
from nvret_jax.training.batches.length_groups import Groups
from nvret_jax.training.batches.shapes import batch_shapes, padded_width
from nvret_jax.training.gradcache import chunk_budget, chunk_rows
from nvret_jax.training.loop import check_batch
from nvret_jax.training.loss.losses import Loss
from nvret_jax.training.optimizer import make_optimizer
from nvret_jax.training.options import Training
from nvret_jax.training.step import init_optimizer, make_step


def train_step(
    model: Sketch,
    config: Training,
    mesh: Mesh,
    *,
    title: str = "train",
    guide_width: int = 0,
    memory_bytes: int = 0,
    lengths: Lengths | None = None,
) -> Step:
    """One training step: `training.step.make_step`, as the loop calls it.

    Args:
        model: the student.
        config: the options of a stage.
        mesh: of the topology.
        title: its name, if there are several stages.
        guide_width: of the guide's vectors, where the loss reads them.
        memory_bytes: of a chip; 0: no limit, for `train.gather='auto'`.
        lengths: of the texts, for a step at the widths of most steps; None: a step for the longest
            batch, which has to fit in memory.

    Raises:
        InputError: the mesh does not divide the batch; invalid options of the loss.
    """
    check_batch(config, mesh_lib.shards(mesh, "batch"))
    loss = config.loss_for(model.spec.width)
    tokens = chunk_budget(config.chunk_tokens, platforms.of(mesh))
    shards = mesh_lib.shards(mesh, "batch")
    passages = loss.num_positives + config.num_negatives + config.num_distilled
    local = {"query": config.batch_size // shards}
    local["passage"] = passages * local["query"]
    useful = None
    if lengths is None:
        groups = {kind: Groups((local[kind],), (w,)) for kind, w in _widths(model).items()}
    else:
        drawn = Drawn(
            lengths,
            config.batch_size,
            loss.num_positives,
            config.num_negatives + config.num_distilled,
            0,
            _steps(config, lengths),
        )
        budget = -1 if model.spec.late is not None else tokens
        groups, useful = usual(drawn, shards, budget, platforms.of(mesh))
    most = model.spec.backbone.max_tokens
    groups = {
        side: Groups(plan.rows, tuple(min(width, most) for width in plan.widths))
        for side, plan in groups.items()
    }
    arguments, step_fn = train_arguments(
        model,
        config,
        loss,
        mesh,
        guide_width=guide_width,
        memory_bytes=memory_bytes,
        groups=groups,
    )
    trainable, optimizer_state, frozen, batch, _ = arguments
    pairs = [pair for plan in groups.values() for pair in zip(plan.rows, plan.widths, strict=True)]
    chunks = [(chunk_rows(tokens, width, count), width) for count, width in pairs]
    needed = sum(model.shape.training(shards * count, width) for count, width in pairs)
    parts = {
        "trained weights": bytes_per_chip(trainable),
        "optimizer": bytes_per_chip(optimizer_state),
        "frozen weights": bytes_per_chip(frozen),
        "batch": bytes_per_chip(batch),
    }
    return compile_step(
        step_fn,
        arguments,
        mesh,
        name=f"{title}: {model.describe()}",
        stage="train",
        calls=1,
        needed=needed / mesh.size,
        held={"weights as they were": parts["trained weights"]},
        parts=parts,
        items=(config.batch_size, "queries"),
        at_once=max(size * width for size, width in chunks),
        chosen=chosen(model) | ({"ring"} if loss.method == "ring" else set()),
        notes=(_train_note(model, config, passages, groups, chunks, useful),),
    )


def _train_note(
    model: Sketch,
    config: Training,
    passages: int,
    groups: Mapping[str, Groups],
    chunks: list[tuple[int, int]],
    useful: float | None,
) -> str:
    """A description of the batch and its encoding, with the widths for a step at usual widths."""
    sizes = [size for size, _ in chunks]
    how = "the batch at once"
    if sizes != [count for plan in groups.values() for count in plan.rows]:
        of = (f"{max(sizes[: len(groups['query'].rows)])} queries", f"{max(sizes)} passages")
        if useful is None:
            of = (f"{sizes[0]} queries", f"{sizes[1]} passages")
        how = f"chunks of {of[0]} and {of[1]}, computed again for the gradient"
    remat = model.options.remat
    layers = "" if remat == "none" else f", remat={remat!r}"
    tokens = {side: " and ".join(_shares(plan)) for side, plan in groups.items()}
    note = (
        f"  a batch of {config.batch_size:,} queries of {tokens['query']} tokens and "
        f"{config.batch_size:,} × {passages} passages of {tokens['passage']}; a chip encodes {how}"
        f"{layers}"
    )
    return note if useful is None else f"{note}; {useful:.0%} of the tokens computed are text"


def _shares(plan: Groups) -> list[str]:
    """The widths of a side, with their shares of the texts if there are several."""
    if len(plan.rows) == 1:
        return [str(plan.widths[0])]
    pairs = zip(plan.rows, plan.widths, strict=True)
    return [f"{width} ({rows / sum(plan.rows):.0%})" for rows, width in pairs]


def train_arguments(
    model: Sketch,
    config: Training,
    loss: Loss,
    mesh: Mesh,
    *,
    guide_width: int = 0,
    memory_bytes: int = 0,
    groups: Mapping[str, Groups] | None = None,
) -> tuple[tuple, Callable[..., Any]]:
    """(shapes of a training step's arguments, the step).

    `groups` are the widths of each side's texts; default: all at the longest. Shardings are those
    of the arrays that `training.loop.train` places.
    """
    optimizer = make_optimizer(config, _steps(config))
    adapters_drop = model.lora is not None and model.lora.dropout > 0
    with jax.set_mesh(mesh):
        graph, trainable, frozen = nnx.split(model.model, model.trainable, ...)
        state = jax.eval_shape(lambda t: init_optimizer(optimizer, loss, t), trainable)
        step_fn = make_step(
            graph,
            optimizer,
            mesh=mesh,
            loss=loss,
            chunk_tokens=config.chunk_tokens,
            recompute=config.recompute,
            gather=config.gather,
            memory_bytes=memory_bytes,
            dropout=config.dropout > 0 or adapters_drop,
            seed=0,
        )
    state = jax.tree.map(lambda leaf: _on(leaf, mesh), state)
    batch = _batch(model, config, loss, mesh, guide_width, groups or {})
    return (trainable, state, frozen, batch, jax.ShapeDtypeStruct((), jnp.uint32)), step_fn


def _steps(config: Training, lengths: Lengths | None = None) -> int:
    """The steps of a stage; the length of one given in epochs depends on its data."""
    if config.steps:
        return config.steps
    if lengths is None:
        return 2 * max(500, math.ceil(config.warmup))
    steps = max(1, math.floor(config.epochs * lengths.examples / config.batch_size))
    steps = max(steps, config.min_steps)
    return min(steps, config.max_steps or steps)


def _widths(model: Sketch) -> dict[str, int]:
    """The widths of batches of the longest texts, by side."""
    return {side: padded_width(length) for side, length in model.lengths.items()}


def _on(leaf: jax.ShapeDtypeStruct, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """A leaf of the optimizer's state, on the devices its sharding speaks of in the abstract."""
    spec = P() if leaf.sharding is None else leaf.sharding.spec
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def _batch(
    model: Sketch,
    config: Training,
    loss: Loss,
    mesh: Mesh,
    guide_width: int,
    groups: Mapping[str, Groups],
) -> dict[str, Any]:
    """Shapes of a stage's batches (`widths.Grouped`), as `to_devices` splits them."""
    width = {k: min(model.spec.backbone.max_tokens, w) for k, w in _widths(model).items()}
    width |= {side: plan.widths[-1] for side, plan in groups.items()}
    shapes = batch_shapes(
        config.batch_size,
        loss.num_positives + config.num_negatives + config.num_distilled,
        width,
        positives=max(1, loss.num_positives),
        teacher_scores=loss.needs_teacher_scores,
        weights=loss.weights,
        distilled=config.num_distilled > 0,
        guide_width=guide_width if loss.needs_guide else 0,
        unpooled=model.spec.prompt_in_pooling != "all",
        skiplist=model.spec.late is not None,
    )
    batch = {
        name: placed(shape, mesh, "batch", *(None,) * (len(shape.shape) - 1))
        for name, shape in shapes.items()
    }
    several = {f"{side}_groups": plan for side, plan in groups.items() if len(plan.rows) > 1}
    return batch | several
