"""Bidirectional attention over right-padded sequences.

Padding is given by lengths, never by a mask from the caller: with right padding a length is
sufficient, the fused kernels of GPUs and TPUs take it, and it cannot be inconsistent. A padded key
gets probability exactly 0, so it has no influence; a padded query gets some finite vector that
pooling ignores.

The implementation is chosen by name: 'xla' is here, `kernels.py` has the kernels. A name that is
unknown, or does not support the request, is refused: a silent fallback would silently change speed
or numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nvret_jax.models.attention.kernels import chosen, fused
from nvret_jax.models.products import product

Dropout = Callable[[jax.Array], jax.Array]


def _xla(q_bthk, k_bshk, v_bshk, lengths_b, precision, dropout: Dropout | None) -> jax.Array:
    """Plain einsums; XLA chooses the kernels. Softmax in float32 for any inputs.

    Two choices for speed, which saved 9 to 12 % of the CPU time of a MiniLM-sized stack of layers
    (8 x 128 and 4 x 256 tokens): heads are moved before tokens, so that both products are batches
    of contiguous matrices, and the softmax is divided by its sum after the second product, which
    has fewer numbers by a factor of K / T.
    """
    scale = q_bthk.shape[-1] ** -0.5
    # The scale is applied to q, which is smaller than the scores by T / head width.
    q_bhtk = jnp.swapaxes(q_bthk * jnp.asarray(scale, q_bthk.dtype), 1, 2)
    k_bhsk, v_bhsk = jnp.swapaxes(k_bshk, 1, 2), jnp.swapaxes(v_bshk, 1, 2)
    scores_bhts = product(
        "bhtk,bhsk->bhts",
        q_bhtk,
        k_bhsk,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    real_bs = jnp.arange(k_bshk.shape[1])[None, :] < lengths_b[:, None]
    # The lowest finite number, not -inf: a row without a real key would be NaN otherwise.
    scores_bhts = jnp.where(
        real_bs[:, None, None, :], scores_bhts, jnp.finfo(scores_bhts.dtype).min
    )
    # Softmax does not depend on the subtracted value, so no gradient need pass through the max.
    highest_bht1 = jax.lax.stop_gradient(scores_bhts.max(axis=-1, keepdims=True))
    weights_bhts = jnp.exp(scores_bhts - highest_bht1)
    total_bht1 = weights_bhts.sum(axis=-1, keepdims=True)
    weights_bhts = weights_bhts.astype(v_bshk.dtype)
    if dropout is not None:
        weights_bhts = dropout(weights_bhts)
    mixed_bhtk = product(
        "bhts,bhsk->bhtk",
        weights_bhts,
        v_bhsk,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return jnp.swapaxes(mixed_bhtk / total_bht1, 1, 2).astype(v_bshk.dtype)


def attention(
    q_bthk: jax.Array,
    k_bshk: jax.Array,
    v_bshk: jax.Array,
    lengths_b: jax.Array,
    *,
    implementation: str = "xla",
    precision: jax.lax.Precision | None = None,
    dropout: Dropout | None = None,
    recompute: bool = False,
) -> jax.Array:
    """softmax(q·k / sqrt(head width)) · v, over the first `lengths_b` keys of each sequence.

    Args:
        q_bthk, k_bshk, v_bshk: [B, T, H, head width], any float dtype. B and H may be sharded, the
            same way in all three; T may not.
        lengths_b: int32 [B], real keys per sequence, at least 1.
        implementation: of `options.ATTENTION`.
        precision: of the two products; None is the backend's default. Kernels have their own.
        dropout: applied to the probabilities [B, H, T, S] (up to a factor for each query).
        recompute: recompute the probabilities in the backward pass instead of keeping them; kernels
            always do.

    Returns:
        [B, T, H, head width] in the dtype of v.

    Raises:
        InputError: an unknown implementation, or one that does not support the request.
    """
    drops = dropout is not None
    implementation = chosen(implementation, q_bthk, window=None, drops=drops)
    if implementation != "xla":
        q_bthgk = q_bthk[:, :, :, None]
        return fused(implementation, q_bthgk, k_bshk, v_bshk, lengths_b, drops=drops)[:, :, :, 0]
    run = functools.partial(_xla, precision=precision, dropout=dropout)
    if recompute:
        run = jax.checkpoint(run)
    return run(q_bthk, k_bshk, v_bshk, lengths_b)
