"""One training step, compiled once per batch shape: encode, loss, gradient, update.

How a batch is encoded in chunks, and its gradient with it: encode.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.encode import Texts, encode_batch
from nvret_jax.training.losses import Loss, batch_loss
from nvret_jax.training.multivector import token_mask
from nvret_jax.training.preemption import FLAGS

Metrics = dict[str, jax.Array]


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
    recompute: bool = True,
) -> Callable[[Any, Any, Any, dict[str, jax.Array], jax.Array], tuple[Any, Any, Metrics]]:
    """Builds the compiled step.

    Args:
        graph: of the model, from `nnx.split`.
        optimizer: of the weights.
        mesh: the batch is split over it.
        loss: what is minimised; None: InfoNCE with `temperature` and `in_batch`.
        chunk_tokens: see `encode.chunk_rows`.
        dropout: whether the model gets dropout keys.
        seed: of the dropout.
        temperature, in_batch: only where `loss` is None.
        recompute: whether chunks are encoded again for their gradient.

    Returns:
        (trainable, optimizer_state, frozen, batch, step) -> (trainable, optimizer_state, metrics).
        The first two are donated; the second begins as `init_optimizer`. Metrics are float32
        scalars: loss, grad_norm, those of `batch_loss`, and a learned temperature; and where the
        batch carries `Preemption.flags`, their sum.
    """
    loss = Loss(temperature=temperature, in_batch=in_batch) if loss is None else loss

    def encode(weights, frozen, texts: Texts) -> jax.Array:
        keys = None if texts.keys is None else jax.random.wrap_key_data(texts.keys)
        more = {} if texts.skip is None else {"skip": texts.skip}
        model = nnx.merge(graph, weights, frozen)
        return model(texts.tokens, texts.lengths, dropout_keys_b=keys, **more)

    def loss_of(learned, frozen, batch, step):
        key = jax.random.key(seed)
        batch = dict(batch)

        def embed(side: str, index: int) -> jax.Array:
            tokens, lengths = batch[f"{side}_tokens"], batch[f"{side}_lengths"]
            keys = None
            if dropout:
                keys = jax.random.key_data(example_keys(key, step, tokens.shape[0], index))
            if loss.scores == "maxsim":
                batch.setdefault(f"{side}_real", token_mask(lengths, tokens.shape[1]))
            with jax.named_scope(f"encode_{side}"):
                return encode_batch(
                    encode,
                    learned["weights"],
                    frozen,
                    Texts(tokens, lengths, keys, batch.get(f"{side}_skip")),
                    groups=batch.pop(f"{side}_groups", None),
                    chunk_tokens=chunk_tokens,
                    mesh=mesh,
                    recompute=recompute,
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
                normalize=getattr(nnx.merge(graph, learned["weights"], frozen), "normalize", False),
            )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step_fn(trainable, optimizer_state, frozen, batch, step):
        batch = dict(batch)
        flags = batch.pop(FLAGS, None)
        learned = {"weights": trainable}
        of_weights = optimizer_state
        if loss.learned:
            learned["log_scale"] = optimizer_state["log_scale"]
            of_weights = optimizer_state["weights"]
        (value, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
            learned, frozen, batch, step
        )
        metrics = {"loss": value, **metrics, "grad_norm": optax.tree.norm(grads["weights"])}
        if flags is not None:
            metrics[FLAGS] = jnp.max(flags)
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
