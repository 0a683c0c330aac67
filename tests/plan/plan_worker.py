"""Run by test_training_plan.py in a process of its own, on several devices.

    python plan_worker.py FOLDER DATA FSDP TENSOR

plans a training step of the model in FOLDER, places the real training state of it beside that, and
prints as JSON what each takes on a chip and whether the planned program runs on the real state.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvret_jax import config as config_lib
from nvret_jax import mesh as mesh_lib
from nvret_jax.models.encoder import Encoder, LoraConfig
from nvret_jax.options import blocks
from nvret_jax.plan import models, training
from nvret_jax.training.batches.examples import to_devices
from nvret_jax.training.optimizer import make_optimizer
from nvret_jax.training.options import Training
from nvret_jax.training.step import init_optimizer


def held(tree) -> int:
    """Bytes on one device of arrays that are there."""
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


def main(folder: str, data: int, fsdp: int, tensor: int) -> None:
    mesh = mesh_lib.make_mesh(data, fsdp, tensor)
    config = config_lib.base()
    config.student.model = folder
    config.student.query_length, config.student.passage_length = 16, 24
    config.student.lora_rank = 0 if "bert" in folder else 2
    config.train.batch_size, config.train.num_negatives = 16, 2
    config.train.chunk_tokens = 64
    config.train.loss.temperature_learning_rate = 1e-3
    sketch = models.read(config.student, mesh, key="student")
    planned = training.train_step(sketch, blocks.read(Training, config.train), mesh)

    lora = LoraConfig(rank=2) if config.student.lora_rank else None
    encoder = Encoder.from_pretrained(folder, mesh=mesh, max_length=24, lora=lora)
    train = blocks.read(Training, config.train)
    loss = train.loss_for(encoder.width)
    with jax.set_mesh(mesh):
        _, trainable, frozen = nnx.split(encoder.model, encoder.trainable, ...)
        state = init_optimizer(make_optimizer(train, 10), loss, trainable)
        rng = np.random.default_rng(0)
        batch = {
            "query_tokens": rng.integers(1, 20, (16, 16)),
            "query_lengths": rng.integers(2, 16, 16),
            "passage_tokens": rng.integers(1, 20, (48, 32)),
            "passage_lengths": rng.integers(2, 24, 48),
            "passage_ids": np.arange(48),
            "positive_ids": np.arange(0, 48, 3)[:, None],
        }
        batch = to_devices({k: v.astype(np.int32) for k, v in batch.items()}, mesh, 0, 16)
        real = (trainable, state, frozen, batch)
        sizes = [held(part) for part in real]
        metrics = planned.compiled(*real, jnp.uint32(1))[2]
    print(
        json.dumps(
            {
                "planned parts": [
                    planned.parts[name]
                    for name in ("trained weights", "optimizer", "frozen weights", "batch")
                ],
                "real parts": sizes,
                "arguments": planned.memory.arguments,
                "loss": float(metrics["loss"]),
                "temperature": float(metrics["temperature"]),
                "collectives": [c.kind for c in planned.network],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
