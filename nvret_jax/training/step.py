"""One training step, compiled once per batch shape.

Texts are encoded in chunks under `jax.checkpoint`: only embeddings are kept between the forward
and the backward pass, and each chunk is encoded once more for its gradient. That is GradCache
(Gao et al. 2021): the loss still sees the whole global batch, whatever the chunk. On a CPU a chunk
that fits the cache also makes a step faster than encoding the batch at once, recomputation
included.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.losses import info_nce

# Tokens a device encodes at a time. A CPU is fastest when a chunk stays in its cache; on an
# accelerator 16,384 fill the matrix units and keep BERT-large's activations under some 25 GiB,
# where a whole batch of 160 × 256 tokens would take six times that.
CHUNK_TOKENS = {"cpu": 1024}
ACCELERATOR_CHUNK_TOKENS = 16384

Metrics = dict[str, jax.Array]


@dataclasses.dataclass
class TrainState:
    """What a step changes. `frozen` is what it does not.

    Attributes:
        trainable, frozen: states of the model, from `nnx.split`.
        optimizer: optax state of `trainable`.
        step: steps done.
    """

    trainable: Any
    frozen: Any
    optimizer: Any
    step: int


def chunk_rows(tokens: int, width: int, rows: int) -> int:
    """Sequences per chunk on one device: the largest divisor of `rows` within the budget.

    Args:
        tokens: budget; 0: chosen for the device; -1: no chunks.
        width: tokens per sequence.
        rows: sequences this device has.
    """
    if tokens == 0:
        tokens = CHUNK_TOKENS.get(jax.default_backend(), ACCELERATOR_CHUNK_TOKENS)
    if tokens < 0:
        return rows
    most = max(1, tokens // width)
    return next(size for size in range(min(most, rows), 0, -1) if rows % size == 0)


def encode_in_chunks(
    model: nnx.Module,
    tokens_nt: jax.Array,
    lengths_n: jax.Array,
    keys_n: jax.Array | None,
    *,
    chunk_tokens: int,
    mesh: Mesh,
) -> jax.Array:
    """Embeds a batch chunk by chunk, keeping nothing but the embeddings for the backward pass.

    Args:
        model: tokens, lengths, keys -> float32 embeddings.
        tokens_nt: int32 [N, T], split over the batch axis.
        lengths_n: int32 [N].
        keys_n: dropout keys [N], or None.
        chunk_tokens: see `chunk_rows`.

    Returns:
        float32 [N, D], split over the batch axis.
    """
    count, width = tokens_nt.shape
    parts = mesh_lib.shards(mesh, "batch")
    local = count // parts
    size = chunk_rows(chunk_tokens, width, local)
    if size == local:
        return model(tokens_nt, lengths_n, dropout_keys_b=keys_n)
    chunks = local // size
    (batch,) = mesh_lib.spec("batch")

    # Chunk c takes rows c·size … of every device's own part, so nothing moves between devices.
    def cut(x: jax.Array) -> jax.Array:
        rest = x.shape[1:]
        x = jax.lax.reshape(x, (parts, chunks, size, *rest), out_sharding=P(batch))
        x = jnp.swapaxes(x, 0, 1)
        return jax.lax.reshape(x, (chunks, parts * size, *rest), out_sharding=P(None, batch))

    @jax.checkpoint
    def encode(chunk):
        tokens, lengths, keys = chunk
        if keys is not None:
            keys = jax.random.wrap_key_data(keys)
        return model(tokens, lengths, dropout_keys_b=keys)

    key_data = None if keys_n is None else cut(jax.random.key_data(keys_n))
    emb = jax.lax.map(encode, (cut(tokens_nt), cut(lengths_n), key_data))
    dim = emb.shape[-1]
    emb = jax.lax.reshape(emb, (chunks, parts, size, dim), out_sharding=P(None, batch))
    emb = jnp.swapaxes(emb, 0, 1)
    return jax.lax.reshape(emb, (count, dim), out_sharding=P(batch))


def example_keys(seed_key: jax.Array, step: jax.Array, count: int, side: int) -> jax.Array:
    """A dropout key per example of a batch, the same on any mesh. `side`: 0 query, 1 passage."""
    key = jax.random.fold_in(jax.random.fold_in(seed_key, step), side)
    index = jax.reshard(jnp.arange(count, dtype=jnp.uint32), mesh_lib.spec("batch"))
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def make_step(
    graph: Any,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    temperature: float,
    in_batch: bool,
    chunk_tokens: int,
    dropout: bool,
    seed: int,
) -> Callable[[Any, Any, Any, dict[str, jax.Array], jax.Array], tuple[Any, Any, Metrics]]:
    """Builds the compiled step.

    Returns:
        (trainable, optimizer_state, frozen, batch, step) -> (trainable, optimizer_state, metrics).
        The first two are donated. Metrics are float32 scalars: loss, accuracy, positive,
        negatives, masked, grad_norm.
    """

    def loss_of(trainable, frozen, batch, step):
        model = nnx.merge(graph, trainable, frozen)
        key = jax.random.key(seed)

        def embed(side: str, index: int) -> jax.Array:
            tokens, lengths = batch[f"{side}_tokens"], batch[f"{side}_lengths"]
            keys = example_keys(key, step, tokens.shape[0], index) if dropout else None
            with jax.named_scope(f"encode_{side}"):
                return encode_in_chunks(
                    model, tokens, lengths, keys, chunk_tokens=chunk_tokens, mesh=mesh
                )

        queries_bd, passages_nd = embed("query", 0), embed("passage", 1)
        with jax.named_scope("info_nce"):
            return info_nce(
                queries_bd,
                passages_nd,
                batch["passage_ids"],
                batch["positive_ids"],
                temperature=temperature,
                in_batch=in_batch,
            )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step_fn(trainable, optimizer_state, frozen, batch, step):
        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
            trainable, frozen, batch, step
        )
        with jax.named_scope("update"):
            updates, optimizer_state = optimizer.update(grads, optimizer_state, trainable)
            trainable = optax.apply_updates(trainable, updates)
        metrics = {"loss": loss, **metrics, "grad_norm": optax.global_norm(grads)}
        return trainable, optimizer_state, metrics

    return step_fn
