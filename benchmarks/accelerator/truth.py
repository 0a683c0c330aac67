"""Is the plan right: predicted and measured memory and time of a step.

The plan compiles the very step that is measured, for the devices that are here; its time is a
roofline with the chip's data-sheet rates, so that measured over predicted is how far the roofline
is from what runs.
"""

from __future__ import annotations

import os
import pathlib

from benchmarks.accelerator import folders
from benchmarks.accelerator.side import InOrder, fastest_attention
from benchmarks.accelerator.sizes import Sizes
from benchmarks.accelerator.where import best


def chip_of(kind: str):
    """The data-sheet figures of a device by its name; None for one that is not in the table."""
    from nvret_jax.plan.chips import CHIPS

    name = kind.lower().replace(" ", "")
    spelled = {"v5lite": "v5e", "v5litepod": "v5e", "v6lite": "v6e"}
    for said, version in spelled.items():
        if said in name:
            return CHIPS[version]
    return next((chip for version, chip in CHIPS.items() if version in name), None)


def plan(sizes: Sizes, place: pathlib.Path) -> dict:
    """A training step of BERT-base as planned, and as it runs on these devices."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from nvret_jax import config as config_lib
    from nvret_jax import mesh as mesh_lib
    from nvret_jax.models.encoder import Encoder
    from nvret_jax.options import blocks
    from nvret_jax.plan import models, training
    from nvret_jax.training.batches.examples import to_devices
    from nvret_jax.training.options import Training

    batch = sizes.training["bert-base"]
    folder = folders.make(place, "bert-base", sizes.models["bert-base"], batch.length)
    whole = config_lib.base()
    whole.student.model = os.fspath(folder)
    whole.student.dtype, whole.student.attention = "bfloat16", fastest_attention()
    whole.student.query_length = whole.student.passage_length = batch.length
    whole.train.update({"batch_size": batch.queries, "steps": 100, "num_negatives": 1})
    config = blocks.read(Training, whole.train)
    mesh = mesh_lib.make_mesh()
    sketch = models.read(whole.student, mesh, key="student")
    planned = training.train_step(sketch, config, mesh)
    encoder = Encoder.from_pretrained(
        os.fspath(folder), mesh=mesh, dtype="bfloat16", attention=fastest_attention()
    )
    loss = config.loss_for(encoder.width)
    arguments, step_fn = training.train_arguments(sketch, config, loss, mesh)
    drawn = InOrder({"queries": batch.queries, "length": batch.length, "steps": 1}, print, 30_000)
    with jax.set_mesh(mesh):
        _, trainable, frozen = nnx.split(encoder.model, encoder.trainable, ...)
        state = [jax.tree.map(jnp.copy, trainable)]
        state.append(_zeros(arguments[1]))
        on = to_devices(drawn.batch(0), mesh, 0, batch.queries)

        def step():
            state[0], state[1], metrics = step_fn(state[0], state[1], frozen, on, jnp.uint32(1))
            return metrics

        seconds = best(step, rounds=3, repeats=batch.steps)
    stats = jax.local_devices()[0].memory_stats() or {}
    out = {
        "what": f"bert-base, a training step: {batch.queries} queries, 1 + 1 passages each, "
        f"{batch.length} tokens",
        "predicted_peak_bytes": planned.peak,
        "measured_peak_bytes": stats.get("peak_bytes_in_use"),
        "measured_seconds": seconds,
    }
    if out["measured_peak_bytes"]:
        out["memory_factor"] = out["measured_peak_bytes"] / planned.peak
    chip = chip_of(jax.devices()[0].device_kind)
    if chip is not None:
        out["predicted_seconds"] = max(planned.seconds(chip).values())
        out["time_factor"] = seconds / out["predicted_seconds"]
        out["mfu"] = planned.needed / seconds / chip.flops
    out["goals"] = {"memory_factor": 1.15, "time_factor": 1.5, "mfu": 0.4}
    return out


def _zeros(shapes):
    """An optimizer's state, as it begins, from its shapes."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(
        lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding), shapes
    )
