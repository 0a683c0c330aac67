"""Encodes a batch of texts so that memory does not grow with the batch.

Texts are encoded in chunks: only embeddings are kept between the forward and the backward pass,
and each chunk is encoded once more for its gradient. That is GradCache (Gao et al. 2021): the loss
still sees the whole global batch, whatever the chunk. On a CPU a chunk that fits the cache also
makes a step faster than encoding the batch at once, recomputation included.

Where a batch says so (`widths.Groups`), short texts are encoded at a smaller width than long ones.

That backward pass is written out, as a custom VJP: one sum of gradients, as large as what is
trained, goes through all chunks of all groups. Left to JAX, every group would have its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.widths import Groups

# Tokens a device encodes at a time. A CPU is fastest when a chunk stays in its cache; on an
# accelerator 16,384 fill the matrix units and keep BERT-large's activations under some 25 GiB,
# where a whole batch of 160 × 256 tokens would take six times that.
CHUNK_TOKENS = {"cpu": 1024}
ACCELERATOR_CHUNK_TOKENS = 16384


class Texts(NamedTuple):
    """Some texts: int32 tokens [N, T] and lengths [N]; dropout keys and tokens not pooled, or None.

    Keys are raw data (`jax.random.key_data`), so that all of it can be cut and stacked.
    """

    tokens: jax.Array
    lengths: jax.Array
    keys: jax.Array | None = None
    skip: jax.Array | None = None


# (what is trained, what is not, texts) -> float32 embeddings [N, D] or [N, T, D]
Encode = Callable[[Any, Any, Texts], jax.Array]


def chunk_budget(tokens: int) -> int:
    """Tokens a device encodes at a time where a config says `tokens`; -1: all of them."""
    if tokens == 0:
        return CHUNK_TOKENS.get(jax.default_backend(), ACCELERATOR_CHUNK_TOKENS)
    return tokens


def chunk_rows(tokens: int, width: int, rows: int) -> int:
    """Sequences per chunk on one device: as few chunks as the budget allows, all of one size.

    Where they do not divide the rows (7 a chunk of 8 × 127, say), the last chunk is not full.

    Args:
        tokens: budget; 0: chosen for the device; -1: no chunks.
        width: tokens per sequence.
        rows: sequences this device has.
    """
    tokens = chunk_budget(tokens)
    if tokens < 0:
        return rows
    chunks = -(-rows // max(1, tokens // width))
    return -(-rows // chunks)


def encode_batch(
    encode: Encode,
    learned: Any,
    fixed: Any,
    texts: Texts,
    *,
    chunk_tokens: int,
    mesh: Mesh,
    groups: Groups | None = None,
    recompute: bool = True,
) -> jax.Array:
    """Embeds a batch, chunk by chunk.

    Args:
        encode: embeds texts; it gets no gradient through anything but `learned`.
        learned, fixed: its weights.
        texts: N of them, split over the batch axis.
        chunk_tokens: see `chunk_rows`.
        groups: widths of every device's own texts, with room for them; None: all at width T.
        recompute: keep nothing but the embeddings for the backward pass, and encode every chunk
            again. False: keep what the model itself keeps, of all chunks.

    Returns:
        What `encode` gives, N rows split over the batch axis, in the order of `texts`.
    """
    count, width = texts.tokens.shape
    parts = mesh_lib.shards(mesh, "batch")
    local = count // parts
    order = None
    if groups is None:
        if chunk_rows(chunk_tokens, width, local) == local:
            return encode(learned, fixed, texts)
        groups = Groups((local,), (width,))
    else:
        order = _sort(texts.lengths)
        texts = jax.tree.map(lambda x: _pick(x, order), texts)
    assert sum(groups.rows) == local, f"groups of {groups.rows} rows, but a device has {local}"
    by_part = jax.tree.map(lambda x: _by_part(x, parts), texts)
    stacks, first = [], 0
    for rows, group_width in zip(groups.rows, groups.widths, strict=True):
        last = first + rows
        some = jax.tree.map(lambda x, first=first, last=last: x[:, first:last], by_part)
        some = some._replace(tokens=some.tokens[:, :, :group_width])
        size = chunk_rows(chunk_tokens, group_width, rows)
        stacks.append(jax.tree.map(lambda x, size=size: _chunks(x, size), some))
        first = last
    run = _recomputed(encode) if recompute else functools.partial(_embed, encode)
    embedded = run(learned, fixed, tuple(stacks))
    whole = [_unchunked(e, parts, n) for e, n in zip(embedded, groups.rows, strict=True)]
    emb = whole[0] if len(whole) == 1 else jnp.concatenate(whole, axis=1)
    emb = jax.lax.reshape(emb, (count, *emb.shape[2:]), out_sharding=P(_batch()))
    return emb if order is None else _pick(emb, _sort(order))


def _embed(
    encode: Encode, learned: Any, fixed: Any, stacks: Sequence[Texts]
) -> tuple[jax.Array, ...]:
    """Embeddings of each stack of chunks."""
    run = functools.partial(encode, learned, fixed)
    return tuple(jax.lax.map(run, chunks) for chunks in stacks)


def _recomputed(encode: Encode):
    """`_embed` with a VJP of its own."""
    forward = functools.partial(_embed, encode)

    def kept(learned: Any, fixed: Any, stacks: Sequence[Texts]):
        return forward(learned, fixed, stacks), (learned, fixed, stacks)

    def backward(saved, cotangents):
        learned, fixed, stacks = saved

        def add(total, chunk):
            texts, cotangent = chunk
            _, pull = jax.vjp(lambda weights: encode(weights, fixed, texts), learned)
            return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

        total = jax.tree.map(jnp.zeros_like, learned)
        for chunks in zip(stacks, cotangents, strict=True):
            total, _ = jax.lax.scan(add, total, chunks)
        return total, None, None

    run = jax.custom_vjp(forward)
    run.defvjp(kept, backward)
    return run


def _batch() -> Any:
    return mesh_lib.spec("batch")[0]


# A device sorts and picks among its own texts alone, so nothing moves between devices.
def _pick(x: jax.Array, order_n: jax.Array) -> jax.Array:
    spec = P(_batch())
    return jax.shard_map(lambda x, o: x[o], in_specs=(spec, spec), out_specs=spec)(x, order_n)


def _sort(x: jax.Array) -> jax.Array:
    spec = P(_batch())
    own = lambda x: jnp.argsort(x, stable=True).astype(jnp.int32)  # noqa: E731
    return jax.shard_map(own, in_specs=spec, out_specs=spec)(x)


def _by_part(x: jax.Array, parts: int) -> jax.Array:
    """[N, …] -> [parts, N / parts, …]: every device's own stretch."""
    shape = (parts, x.shape[0] // parts, *x.shape[1:])
    return jax.lax.reshape(x, shape, out_sharding=P(_batch()))


def _chunks(x: jax.Array, size: int) -> jax.Array:
    """[parts, rows, …] -> [chunks, parts · size, …].

    Chunk c has rows c·size … of every device's own part, so nothing moves between devices. Rows
    behind the end of a part are copies of its first; their embeddings are dropped.
    """
    parts, rows, *rest = x.shape
    chunks = -(-rows // size)
    batch = _batch()
    if chunks * size > rows:
        again = jnp.broadcast_to(x[:, :1], (parts, chunks * size - rows, *rest))
        x = jnp.concatenate([x, jax.reshard(again, P(batch))], axis=1)
    x = jax.lax.reshape(x, (parts, chunks, size, *rest), out_sharding=P(batch))
    x = jnp.swapaxes(x, 0, 1)
    return jax.lax.reshape(x, (chunks, parts * size, *rest), out_sharding=P(None, batch))


def _unchunked(emb: jax.Array, parts: int, rows: int) -> jax.Array:
    """[chunks, parts · size, …] -> [parts, rows, …]."""
    chunks, together, *rest = emb.shape
    size = together // parts
    batch = _batch()
    emb = jax.lax.reshape(emb, (chunks, parts, size, *rest), out_sharding=P(None, batch))
    emb = jnp.swapaxes(emb, 0, 1)
    return jax.lax.reshape(emb, (parts, chunks * size, *rest), out_sharding=P(batch))[:, :rows]
