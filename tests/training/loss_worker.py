"""Run by test_ring.py and test_step.py in processes of its own, on several devices.

    python loss_worker.py OUT CASES DEVICES[,DEVICES...] [PORT PROCESS PROCESSES]

writes OUT, an npz with losses and gradients of each case on each mesh, whole on every process.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from loss_reference import make_batch

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.batches.length_groups import Groups, profile
from nvret_jax.training.loss.losses import Loss, batch_loss
from nvret_jax.training.step import init_optimizer, make_step

TERMS = ("query_to_passage", "passage_to_query", "query_to_query")
# name: options, what the batch is like
LOSSES = {
    "masks": (
        {
            "terms": TERMS,
            "num_positives": 2,
            "score_mask": "margin",
            "margin": -0.3,
            "mask_by": "guide",
            "mask_own_duplicates": True,
            "distillation": "kl",
        },
        {"positives": 2, "guide": 5},
    ),
    "maxsim": ({"scores": "maxsim", "temperature": 1.0}, {"tokens": 3}),
    "vectors": (
        {"vectors": "cosine", "vectors_weight": 2.0, "terms": TERMS, "num_positives": 2},
        {"positives": 2, "guide": 8},
    ),
    "no contrast": (
        {"vectors": "squared", "contrastive_weight": 0.0, "distillation": "kl"},
        {"guide": 8, "hard": 1},
    ),
    "weights": ({"weights": True, "num_positives": 2}, {"positives": 2}),
    "hardness": ({"hardness": 0.5, "terms": TERMS, "num_positives": 2}, {"positives": 2}),
}
ROWS = 24  # 3 on each of 8 devices: no tile fits evenly


def put(mesh, x):
    x = np.asarray(x)
    if x.dtype == np.float64:
        x = x.astype(np.float32)
    sharding = mesh_lib.sharding(mesh, "batch", *[None] * (x.ndim - 1))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def whole(x):
    spec = jax.sharding.PartitionSpec(*[None] * x.ndim)
    return np.asarray(jax.jit(lambda x: jax.reshard(x, spec))(x))


def losses(mesh):
    """(name, array) of every case and way to compute it."""
    for name, (options, kind) in LOSSES.items():
        q, p, batch = make_batch(7, rows=ROWS, **kind)
        q, p, batch = jax.tree.map(lambda x: put(mesh, x), (q, p, batch))
        for method in ("gather", "ring"):
            loss = Loss(method=method, tile_pairs=49 if name != "maxsim" else 12 * 49, **options)

            def of(q, p, scale, batch, loss=loss):
                return batch_loss(loss, q, p, batch, mesh=mesh, scale=scale)[0]

            run = jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))
            value, grads = run(q, p, jnp.float32(loss.scale), batch)
            for part, x in zip(("loss", "q", "p", "scale"), (value, *grads), strict=True):
                yield f"{name}/{method}/{part}", whole(x)


class Words(nnx.Module):
    """The mean of word vectors, or all of them; a row's dropout key scales it."""

    def __init__(self, vectors, *, pooled):
        self.vectors = nnx.Param(jnp.asarray(vectors, jnp.float32))
        self.pooled, self.normalize = pooled, True

    def __call__(self, tokens_bt, lengths_b, dropout_keys_b=None):
        spec = None if mesh_lib.manual_axes() else mesh_lib.spec("batch", None, None)
        word_btd = self.vectors[...].at[tokens_bt].get(out_sharding=spec)
        if dropout_keys_b is not None:
            word_btd *= jax.vmap(lambda key: jax.random.uniform(key))(dropout_keys_b)[:, None, None]
        if self.pooled:
            real_bt = jnp.arange(word_btd.shape[1])[None] < lengths_b[:, None]
            word_btd = jnp.sum(jnp.where(real_bt[:, :, None], word_btd, 0.0), axis=1)
        norm = jnp.sqrt(jnp.sum(word_btd**2, axis=-1, keepdims=True))
        return word_btd / norm


# name: options, chunk_tokens. Tokens are 4 wide: 20 are 5 rows, of 24 queries and 72 passages.
STEPS = {
    "whole": ({"temperature_learning_rate": 0.01}, -1),
    "ring, chunks": (
        {"temperature_learning_rate": 0.01, "method": "ring", "tile_pairs": 25},
        20,
    ),
    "groups": ({"temperature_learning_rate": 0.01}, 8),
    "tokens": ({"scores": "maxsim", "temperature": 1.0}, -1),
    "tokens, ring, chunks": ({"scores": "maxsim", "temperature": 1.0, "method": "ring"}, 8),
}


def steps(mesh):
    """Weights, temperature and loss after three steps of every case."""
    rng = np.random.default_rng(0)
    _, _, ids = make_batch(7, rows=ROWS)
    batch = {
        "query_tokens": rng.integers(0, 40, (ROWS, 4)).astype(np.int32),
        "query_lengths": rng.integers(1, 5, ROWS).astype(np.int32),
        "passage_tokens": rng.integers(0, 40, (3 * ROWS, 4)).astype(np.int32),
        "passage_lengths": rng.integers(1, 5, 3 * ROWS).astype(np.int32),
        **{name: ids[name] for name in ("passage_ids", "positive_ids")},
    }
    longest_r = profile(batch["passage_lengths"], mesh_lib.shards(mesh, "batch"))
    widths, rows = np.unique(longest_r, return_counts=True)
    batch = {name: put(mesh, x) for name, x in batch.items()}
    vectors = rng.normal(size=(40, 8))
    for name, (options, chunk_tokens) in STEPS.items():
        loss = Loss(**options)
        model = Words(vectors, pooled=loss.scores == "inner")
        graph, weights, rest = nnx.split(model, nnx.Param, ...)
        optimizer = optax.sgd(0.5)
        state = init_optimizer(optimizer, loss, weights)
        step_fn = make_step(
            graph,
            optimizer,
            mesh=mesh,
            loss=loss,
            chunk_tokens=chunk_tokens,
            dropout=True,
            seed=3,
        )
        if name == "groups":
            groups = {"passage_groups": Groups(tuple(rows.tolist()), tuple(widths.tolist()))}
        else:
            groups = {}
        for step in range(3):
            weights, state, metrics = step_fn(
                weights, state, rest, batch | groups, jnp.uint32(step)
            )
        yield f"{name}/weights", whole(weights["vectors"][...])
        yield f"{name}/loss", whole(metrics["loss"])
        if loss.learned:
            yield f"{name}/temperature", np.exp(-whole(state["log_scale"]))


def memory(mesh):
    """Temporary bytes a device needs for loss and gradients of 4,096 × 5 passages, width 256."""
    rows, group, width = 4096, 5, 256
    for method in ("gather", "ring"):
        loss = Loss(method=method)

        def of(q, p, ids, known, loss=loss):
            batch = {"passage_ids": ids, "positive_ids": known}
            return batch_loss(loss, q, p, batch, mesh=mesh)[0]

        def shape(*sizes, dtype=jnp.float32):
            spec = mesh_lib.sharding(mesh, "batch", *[None] * (len(sizes) - 1))
            return jax.ShapeDtypeStruct(sizes, dtype, sharding=spec)

        compiled = (
            jax.jit(jax.value_and_grad(of, argnums=(0, 1)))
            .lower(
                shape(rows, width),
                shape(rows * group, width),
                shape(rows * group, dtype=jnp.int32),
                shape(rows, 2, dtype=jnp.int32),
            )
            .compile()
        )
        yield method, np.int64(compiled.memory_analysis().temp_size_in_bytes)


CASES = {"losses": losses, "steps": steps, "memory": memory}


def main(out, cases, devices, port=None, process=0, processes=1):
    if port:
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    answers = {}
    for count in map(int, devices.split(",")):
        # fsdp above 1, so that the ring goes over both axes of the batch.
        mesh = mesh_lib.make_mesh(-1, 2 if count >= 4 else 1, devices=jax.devices()[:count])
        with jax.set_mesh(mesh):
            for name, value in CASES[cases](mesh):
                answers[f"{count}/{name}"] = value
    np.savez(out, **answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
