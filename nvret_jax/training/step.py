"""One training step, compiled once per batch shape.

Texts are encoded in chunks under `jax.checkpoint`: only embeddings are kept between the forward
and the backward pass, and each chunk is encoded once more for its gradient. That is GradCache
(Gao et al. 2021): the loss still sees the whole global batch, whatever the chunk. On a CPU a chunk
that fits the cache also makes a step faster than encoding the batch at once, recomputation
included. Where a batch says so (`widths.Groups`), short texts are encoded at a smaller width than
long ones.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.losses import Loss, batch_loss
from nvret_jax.training.multivector import token_mask
from nvret_jax.training.widths import Groups

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


def chunk_budget(tokens: int) -> int:
    """Tokens a device encodes at a time where a config says `tokens`; -1: all of them."""
    if tokens == 0:
        return CHUNK_TOKENS.get(jax.default_backend(), ACCELERATOR_CHUNK_TOKENS)
    return tokens


def chunk_rows(tokens: int, width: int, rows: int) -> int:
    """Sequences per chunk on one device.

    The largest divisor of `rows` within the budget. Where that is less than half of what the budget
    allows (7 rows a chunk of 8 × 127, say), as many equal chunks as the budget asks for, the last
    of them not full.

    Args:
        tokens: budget; 0: chosen for the device; -1: no chunks.
        width: tokens per sequence.
        rows: sequences this device has.
    """
    tokens = chunk_budget(tokens)
    if tokens < 0:
        return rows
    most = min(max(1, tokens // width), rows)
    divisor = next(size for size in range(most, 0, -1) if rows % size == 0)
    return divisor if 2 * divisor >= most else -(-rows // -(-rows // most))


def encode_in_chunks(
    model: nnx.Module,
    tokens_nt: jax.Array,
    lengths_n: jax.Array,
    keys_n: jax.Array | None,
    skip_n: jax.Array | None = None,
    *,
    chunk_tokens: int,
    mesh: Mesh,
) -> jax.Array:
    """Embeds a batch chunk by chunk, keeping nothing but the embeddings for the backward pass.

    Args:
        model: tokens, lengths, keys -> float32 embeddings [., D] or [., T, D].
        tokens_nt: int32 [N, T], split over the batch axis.
        lengths_n: int32 [N].
        keys_n: dropout keys [N], or None.
        skip_n: int32 [N], tokens at the beginning that are not pooled, or None.
        chunk_tokens: see `chunk_rows`.

    Returns:
        float32 [N, D] or [N, T, D], split over the batch axis.
    """
    count, width = tokens_nt.shape
    parts = mesh_lib.shards(mesh, "batch")
    local = count // parts
    size = chunk_rows(chunk_tokens, width, local)

    def run(tokens, lengths, keys, skip):
        more = {} if skip is None else {"skip": skip}
        return model(tokens, lengths, dropout_keys_b=keys, **more)

    if size == local:
        return run(tokens_nt, lengths_n, keys_n, skip_n)
    chunks = -(-local // size)
    padded = chunks * size
    (batch,) = mesh_lib.spec("batch")

    # Chunk c takes rows c·size … of every device's own part, so nothing moves between devices.
    # Rows behind the end of a part are copies of its first; their embeddings are dropped.
    def cut(x: jax.Array) -> jax.Array:
        rest = x.shape[1:]
        x = jax.lax.reshape(x, (parts, local, *rest), out_sharding=P(batch))
        if padded > local:
            again = jnp.broadcast_to(x[:, :1], (parts, padded - local, *rest))
            x = jnp.concatenate([x, jax.reshard(again, P(batch))], axis=1)
        x = jax.lax.reshape(x, (parts, chunks, size, *rest), out_sharding=P(batch))
        x = jnp.swapaxes(x, 0, 1)
        return jax.lax.reshape(x, (chunks, parts * size, *rest), out_sharding=P(None, batch))

    @jax.checkpoint
    def encode(chunk):
        tokens, lengths, keys, skip = chunk
        if keys is not None:
            keys = jax.random.wrap_key_data(keys)
        return run(tokens, lengths, keys, skip)

    key_data = None if keys_n is None else cut(jax.random.key_data(keys_n))
    skip = None if skip_n is None else cut(skip_n)
    emb = jax.lax.map(encode, (cut(tokens_nt), cut(lengths_n), key_data, skip))
    rest = emb.shape[2:]
    emb = jax.lax.reshape(emb, (chunks, parts, size, *rest), out_sharding=P(None, batch))
    emb = jnp.swapaxes(emb, 0, 1)
    emb = jax.lax.reshape(emb, (parts, padded, *rest), out_sharding=P(batch))[:, :local]
    return jax.lax.reshape(emb, (count, *rest), out_sharding=P(batch))


def encode_in_groups(
    model: nnx.Module,
    tokens_nt: jax.Array,
    lengths_n: jax.Array,
    keys_n: jax.Array | None,
    skip_n: jax.Array | None = None,
    *,
    groups: Groups | None,
    chunk_tokens: int,
    mesh: Mesh,
) -> jax.Array:
    """Embeds a batch group by group, each chunk by chunk at the group's width.

    Args:
        model: as of `encode_in_chunks`, an `nnx.Module`.
        groups: of every device's own texts, with room for them; None: all at width T.
        tokens_nt, lengths_n, keys_n, skip_n, chunk_tokens: as of `encode_in_chunks`.

    Returns:
        float32 [N, D], split over the batch axis, in the order of `tokens_nt`.
    """
    encode = functools.partial(encode_in_chunks, chunk_tokens=chunk_tokens, mesh=mesh)
    if groups is None:
        return encode(model, tokens_nt, lengths_n, keys_n, skip_n)
    count, parts = len(lengths_n), mesh_lib.shards(mesh, "batch")
    (batch,) = mesh_lib.spec("batch")

    # A device sorts and picks among its own texts alone, so nothing moves between devices.
    @functools.partial(jax.shard_map, in_specs=P(batch), out_specs=P(batch))
    def pick(x, order):
        return x[order]

    @functools.partial(jax.shard_map, in_specs=P(batch), out_specs=P(batch))
    def sort(x):
        return jnp.argsort(x, stable=True).astype(jnp.int32)

    def by_part(x: jax.Array) -> jax.Array:
        return jax.lax.reshape(x, (parts, len(x) // parts, *x.shape[1:]), out_sharding=P(batch))

    def flat(x: jax.Array) -> jax.Array:
        return jax.lax.reshape(x, (parts * x.shape[1], *x.shape[2:]), out_sharding=P(batch))

    order_n = sort(lengths_n)
    key_data = None if keys_n is None else jax.random.key_data(keys_n)
    operands = [
        None if x is None else by_part(pick(x, order_n))
        for x in (tokens_nt, lengths_n, key_data, skip_n)
    ]
    graph, weights = nnx.split(model)
    embedded, first = [], 0
    for rows, width in zip(groups.rows, groups.widths, strict=True):
        tokens, lengths, keys, skip = (
            None if x is None else flat(x[:, first : first + rows]) for x in operands
        )
        keys = None if keys is None else jax.random.wrap_key_data(keys)
        emb = encode(nnx.merge(graph, weights), tokens[:, :width], lengths, keys, skip)
        # One group after the other, backwards too: each has a sum of gradients as large as the
        # model, and only one of those should be in memory.
        weights, emb = jax.lax.optimization_barrier((weights, emb))
        embedded.append(by_part(emb))
        first += rows
    emb_nd = flat(jnp.concatenate(embedded, axis=1))
    assert len(emb_nd) == count, f"groups have {first * parts} rows, the batch has {count}"
    return pick(emb_nd, sort(order_n))


def example_keys(seed_key: jax.Array, step: jax.Array, count: int, side: int) -> jax.Array:
    """A dropout key per example of a batch, the same on any mesh. `side`: 0 query, 1 passage."""
    key = jax.random.fold_in(jax.random.fold_in(seed_key, step), side)
    index = jax.reshard(jnp.arange(count, dtype=jnp.uint32), mesh_lib.spec("batch"))
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def init_optimizer(optimizer: optax.GradientTransformation, loss: Loss, trainable: Any) -> Any:
    """What a step updates beside the weights.

    Returns:
        optax's state of the weights; with a learned temperature a dict of it ('weights'), of
        log(1 / temperature) ('log_scale') and of the latter's own Adam ('log_scale_adam').
    """
    weights = jax.jit(optimizer.init)(trainable)
    if not loss.learned:
        return weights
    log_scale = jnp.float32(math.log(loss.scale))
    return {
        "weights": weights,
        "log_scale": log_scale,
        "log_scale_adam": _temperature_optimizer(loss).init(log_scale),
    }


def _temperature_optimizer(loss: Loss) -> optax.GradientTransformation:
    """No schedule, no decay, no part in the clipping: the gradient is of another size."""
    return optax.adam(loss.temperature_learning_rate)


def make_step(
    graph: Any,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    loss: Loss | None = None,
    chunk_tokens: int,
    dropout: bool,
    seed: int,
    temperature: float = 0.05,
    in_batch: bool = True,
) -> Callable[[Any, Any, Any, dict[str, jax.Array], jax.Array], tuple[Any, Any, Metrics]]:
    """Builds the compiled step.

    Args:
        graph: of the model, from `nnx.split`.
        optimizer: of the weights.
        mesh: the batch is split over it.
        loss: what is minimised; None: InfoNCE with `temperature` and `in_batch`.
        chunk_tokens: see `chunk_rows`.
        dropout: whether the model gets dropout keys.
        seed: of the dropout.
        temperature, in_batch: only where `loss` is None.

    Returns:
        (trainable, optimizer_state, frozen, batch, step) -> (trainable, optimizer_state, metrics).
        The first two are donated; the second begins as `init_optimizer`. Metrics are float32
        scalars: loss, grad_norm, those of `batch_loss`, and a learned temperature.
    """
    loss = Loss(temperature=temperature, in_batch=in_batch) if loss is None else loss

    def loss_of(learned, frozen, batch, step):
        model = nnx.merge(graph, learned["weights"], frozen)
        key = jax.random.key(seed)
        batch = dict(batch)

        def embed(side: str, index: int) -> jax.Array:
            tokens, lengths = batch[f"{side}_tokens"], batch[f"{side}_lengths"]
            keys = example_keys(key, step, tokens.shape[0], index) if dropout else None
            if loss.scores == "maxsim":
                batch.setdefault(f"{side}_real", token_mask(lengths, tokens.shape[1]))
            with jax.named_scope(f"encode_{side}"):
                return encode_in_groups(
                    model,
                    tokens,
                    lengths,
                    keys,
                    batch.get(f"{side}_skip"),
                    groups=batch.pop(f"{side}_groups", None),
                    chunk_tokens=chunk_tokens,
                    mesh=mesh,
                )

        queries, passages = embed("query", 0), embed("passage", 1)
        with jax.named_scope("loss"):
            return batch_loss(
                loss,
                queries,
                passages,
                batch,
                mesh=mesh,
                scale=jnp.exp(learned["log_scale"]) if loss.learned else None,
                normalize=getattr(model, "normalize", False),
            )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step_fn(trainable, optimizer_state, frozen, batch, step):
        learned = {"weights": trainable}
        of_weights = optimizer_state
        if loss.learned:
            learned["log_scale"] = optimizer_state["log_scale"]
            of_weights = optimizer_state["weights"]
        (value, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
            learned, frozen, batch, step
        )
        metrics = {"loss": value, **metrics, "grad_norm": optax.global_norm(grads["weights"])}
        with jax.named_scope("update"):
            updates, of_weights = optimizer.update(grads["weights"], of_weights, trainable)
            trainable = optax.apply_updates(trainable, updates)
            if not loss.learned:
                return trainable, of_weights, metrics
            metrics["temperature"] = jnp.exp(-learned["log_scale"])
            update, adam = _temperature_optimizer(loss).update(
                grads["log_scale"], optimizer_state["log_scale_adam"]
            )
            log_scale = jnp.minimum(learned["log_scale"] + update, -math.log(loss.temperature_min))
        state = {"weights": of_weights, "log_scale": log_scale, "log_scale_adam": adam}
        return trainable, state, metrics

    return step_fn
