"""Attention in which query heads share key and value heads, and some keys may be masked.

In addition to padding, given by lengths as in `attention`, two rules define the keys that a token
sees: `causal`, none after itself; `window`, none further away than that many tokens. Query heads
are grouped by the key head they share, [kv heads, group], so that no key is ever copied and the
tensor axis of the mesh splits both the same way.

Softmax and its sum are as in `attention.py`: float32, heads before tokens, divided after the second
product. Long texts are processed in blocks of queries, each recomputed in the backward pass: the
scores of 8 texts of 8,192 tokens and 32 heads would otherwise take 64 GiB.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nvret_jax.models.attention.kernels import chosen, fused
from nvret_jax.models.products import product

QUERY_BLOCK = 1024  # queries whose scores exist at a time


def grouped_attention(
    q_btngk: jax.Array,
    k_bsnk: jax.Array,
    v_bsnk: jax.Array,
    lengths_b: jax.Array,
    *,
    causal: bool = False,
    window: int | jax.Array | None = None,
    implementation: str = "xla",
    precision: jax.lax.Precision | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
    recompute: bool = False,
) -> jax.Array:
    """softmax(q·k / sqrt(K)) · v, over the keys each token sees.

    Args:
        q_btngk: [B, T, kv heads, group, K], any float dtype; kv heads may be sharded.
        k_bsnk, v_bsnk: [B, T, kv heads, K].
        lengths_b: int32 [B], real keys per sequence, at least 1.
        causal: a token sees itself and earlier tokens.
        window: a token sees keys at most this far away, on either side; a number or an int32
            scalar (so that layers of one scan may differ). Kernels need the number.
        implementation: of `options.ATTENTION`.
        precision: of the two products; None is the backend's default. Kernels have their own.
        dropout: applied to the probabilities [B, kv heads, group, T, S] (up to a factor for each
            query). With it, texts are not processed in blocks.
        recompute: recompute the probabilities in the backward pass instead of keeping them; kernels
            and blocks always do.

    Returns:
        [B, T, kv heads, group, K] in the dtype of v; 0 for a token that sees nothing.

    Raises:
        InputError: an unknown implementation, or one that does not support the request.
    """
    drops = dropout is not None
    implementation = chosen(implementation, q_btngk, window=window, drops=drops)
    if implementation != "xla":
        inputs = (q_btngk, k_bsnk, v_bsnk, lengths_b)
        return fused(implementation, *inputs, causal=causal, window=window, drops=drops)
    tokens = q_btngk.shape[1]
    scale = jnp.asarray(q_btngk.shape[-1] ** -0.5, q_btngk.dtype)
    q_bngtk = jnp.transpose(q_btngk * scale, (0, 2, 3, 1, 4))
    k_bnsk, v_bnsk = jnp.swapaxes(k_bsnk, 1, 2), jnp.swapaxes(v_bsnk, 1, 2)

    def attend(q_bngtk: jax.Array, first: int | jax.Array) -> jax.Array:
        return _attend(
            q_bngtk, k_bnsk, v_bnsk, lengths_b, first, causal, window, precision, dropout
        )

    if tokens <= QUERY_BLOCK or dropout is not None:
        run = jax.checkpoint(attend, static_argnums=1) if recompute else attend
        mixed_bngtk = run(q_bngtk, 0)
    else:
        blocks = -(-tokens // QUERY_BLOCK)
        filled = ((0, 0),) * 3 + ((0, blocks * QUERY_BLOCK - tokens), (0, 0))
        cut = jnp.split(jnp.pad(q_bngtk, filled), blocks, axis=3)
        firsts = jnp.arange(blocks) * QUERY_BLOCK
        run = jax.checkpoint(attend)
        mixed = jax.lax.map(lambda block: run(*block), (jnp.stack(cut), firsts))
        mixed_bngtk = jnp.concatenate([mixed[i] for i in range(blocks)], axis=3)[:, :, :, :tokens]
    return jnp.transpose(mixed_bngtk, (0, 3, 1, 2, 4)).astype(v_bsnk.dtype)


def _attend(
    q_bngtk: jax.Array,
    k_bnsk: jax.Array,
    v_bnsk: jax.Array,
    lengths_b: jax.Array,
    first: int | jax.Array,
    causal: bool,
    window: int | jax.Array | None,
    precision: jax.lax.Precision | None,
    dropout: Callable[[jax.Array], jax.Array] | None,
) -> jax.Array:
    """Some of the queries, from position `first` on, over all keys; float32."""
    scores_bngts = product(
        "bngtk,bnsk->bngts",
        q_bngtk,
        k_bnsk,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    at_t1 = first + jnp.arange(q_bngtk.shape[3])[:, None]
    at_1s = jnp.arange(k_bnsk.shape[2])[None, :]
    seen_bts = (at_1s < lengths_b[:, None])[:, None]
    if causal:
        seen_bts = seen_bts & (at_1s <= at_t1)
    if window is not None:
        seen_bts = seen_bts & (jnp.abs(at_t1 - at_1s) <= window)
    # The lowest finite number, not -inf: a row that sees no key would be NaN otherwise.
    scores_bngts = jnp.where(
        seen_bts[:, None, None], scores_bngts, jnp.finfo(scores_bngts.dtype).min
    )
    highest = jax.lax.stop_gradient(scores_bngts.max(axis=-1, keepdims=True))
    weights_bngts = jnp.exp(scores_bngts - highest)
    if window is not None:
        # A padded position far past the end sees no real token. It gets 0, as from torch's kernels,
        # and not a mean over padding: late interaction may use its vector.
        weights_bngts = jnp.where(seen_bts[:, None, None], weights_bngts, 0.0)
    total_bngt1 = weights_bngts.sum(axis=-1, keepdims=True)
    total_bngt1 = jnp.where(total_bngt1 == 0.0, 1.0, total_bngt1)
    weights_bngts = weights_bngts.astype(v_bnsk.dtype)
    if dropout is not None:
        weights_bngts = dropout(weights_bngts)
    mixed_bngtk = product(
        "bngts,bnsk->bngtk",
        weights_bngts,
        v_bnsk,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return mixed_bngtk / total_bngt1
