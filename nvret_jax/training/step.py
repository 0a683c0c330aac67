"""One training step, compiled once per batch shape: encode, loss, gradient, update.

gradcache.py encodes a batch in chunks and computes its gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.gradcache import Texts, encode_sides, fsdp_way, whole_weights
from nvret_jax.training.loss.losses import Loss, batch_loss
from nvret_jax.training.loss.maxsim import token_mask
from nvret_jax.training.loss.own import Own
from nvret_jax.training.preemption import FLAGS

Metrics = dict[str, jax.Array]
SIDES = ("query", "passage")


def example_keys(seed_key: jax.Array, step: jax.Array, count: int, side: int) -> jax.Array:
    """A dropout key per example of a batch, the same on any mesh. `side`: 0 query, 1 passage."""
    key = jax.random.fold_in(jax.random.fold_in(seed_key, step), side)
    index = jax.reshard(jnp.arange(count, dtype=jnp.uint32), mesh_lib.spec("batch"))
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def init_optimizer(
    optimizer: optax.GradientTransformation, loss: Loss | Own, trainable: Any
) -> Any:
    """The state that a step updates in addition to the weights.

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


def _merged(graph: Any, weights: Any, frozen: Any, whole: Sequence[tuple[str, ...]]) -> Any:
    """The model, whose modules know which of their weights are not split along fsdp."""
    model = nnx.merge(graph, weights, frozen)
    for *path, name in whole:
        module = functools.reduce(getattr, path, model)
        module.whole = (*module.whole, name)
    return model


def _temperature_optimizer(loss: Loss) -> optax.GradientTransformation:
    """No schedule, no decay, no clipping: the gradient has another scale."""
    return optax.adam(loss.temperature_learning_rate)


def make_step(
    graph: Any,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    loss: Loss | Own | None = None,
    chunk_tokens: int,
    dropout: bool,
    seed: int,
    temperature: float = 0.05,
    in_batch: bool = True,
    recompute: bool = True,
    gather: str = "auto",
    memory_bytes: int = 0,
) -> Callable[[Any, Any, Any, dict[str, jax.Array], jax.Array], tuple[Any, Any, Metrics]]:
    """Builds the compiled step.

    Args:
        graph: of the model, from `nnx.split`.
        optimizer: of the weights.
        mesh: the batch is split over it.
        loss: to minimise; None: InfoNCE with `temperature` and `in_batch`.
        chunk_tokens: see `gradcache.chunk_rows`.
        dropout: whether the model gets dropout keys.
        seed: of the dropout.
        temperature, in_batch: only if `loss` is None.
        recompute: whether chunks are encoded again for their gradient.
        gather: when weights split along fsdp are gathered and reduced, one of `options.GATHER`.
        memory_bytes: of a device, for 'auto'; 0: unknown.

    Returns:
        (trainable, optimizer_state, frozen, batch, step) -> (trainable, optimizer_state, metrics).
        The first two are donated; the second is initially `init_optimizer`. Metrics are float32
        scalars: loss, grad_norm, those of `batch_loss`, and a learned temperature; and where the
        batch carries `Preemption.flags`, their sum.
    """
    loss = Loss(temperature=temperature, in_batch=in_batch) if loss is None else loss

    def embed(weights, frozen, batch, keys):
        """Both sides; `keys`: a dropout key for each text, by side."""
        backbone = getattr(nnx.merge(graph, weights, frozen), "backbone", None)
        dtype = None if backbone is None else backbone.options.dtype
        fsdp = fsdp_way(gather, weights, dtype, memory_bytes)
        whole = whole_weights(weights, fsdp)

        def encode(weights, frozen, texts: Texts) -> jax.Array:
            keys = None if texts.keys is None else jax.random.wrap_key_data(texts.keys)
            more = {} if texts.unpooled is None else {"unpooled": texts.unpooled}
            model = _merged(graph, weights, frozen, whole)
            return model(texts.tokens, texts.lengths, dropout_keys_b=keys, **more)

        texts = [
            Texts(
                batch[f"{side}_tokens"],
                batch[f"{side}_lengths"],
                keys.get(side),
                batch.get(f"{side}_unpooled"),
            )
            for side in SIDES
        ]
        with jax.named_scope("encode"):
            return encode_sides(
                encode,
                weights,
                frozen,
                texts,
                groups=[batch.pop(f"{side}_groups", None) for side in SIDES],
                chunk_tokens=chunk_tokens,
                mesh=mesh,
                recompute=recompute,
                dtype=dtype,
                fsdp=fsdp,
            )

    def loss_of(learned, frozen, batch, step):
        batch, keys = dict(batch), {}
        for index, side in enumerate(SIDES):
            tokens, lengths = batch[f"{side}_tokens"], batch[f"{side}_lengths"]
            if dropout:
                own = example_keys(jax.random.key(seed), step, tokens.shape[0], index)
                keys[side] = jax.random.key_data(own)
            if loss.scores == "maxsim":
                batch.setdefault(f"{side}_real", token_mask(lengths, tokens.shape[1]))
        queries, passages = embed(learned["weights"], frozen, batch, keys)
        if isinstance(loss, Own):
            with jax.named_scope("loss"):
                return loss.of_batch(queries, passages, batch)
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
