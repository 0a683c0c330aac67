"""Attention by cuDNN, as `jax.nn.dot_product_attention` calls it.

Padding is passed as lengths, which is fast, and not as a mask. All queries count as real: those
past the end also attend to the real keys, as with 'xla' (late interaction uses some of their
vectors).

cuDNN supports windows to the left only; models with windows to both sides are refused
(`kernels.check_heads`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

MAX_HEAD_DIM = 256  # from Hopper on; on older GPUs 128, for which JAX raises its own error
AMPERE, HOPPER = 8.0, 9.0  # compute capabilities; older GPUs than Ampere have no such kernel


def arguments(
    q_btngk: jax.Array,
    k_bsnk: jax.Array,
    v_bsnk: jax.Array,
    lengths_b: jax.Array,
    *,
    causal: bool,
) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
    """Arguments of `jax.nn.dot_product_attention`: query heads of a group next to each other."""
    batch, tokens, shared, group, width = q_btngk.shape
    q_bthk = q_btngk.reshape(batch, tokens, shared * group, width)
    lengths = {
        "query_seq_lengths": jnp.full((batch,), tokens, jnp.int32),
        "key_value_seq_lengths": lengths_b.astype(jnp.int32),
    }
    return (q_bthk, k_bsnk, v_bsnk), {"is_causal": causal, **lengths}


def attend(
    q_btngk: jax.Array,
    k_bsnk: jax.Array,
    v_bsnk: jax.Array,
    lengths_b: jax.Array,
    *,
    causal: bool,
    window: None,
) -> jax.Array:
    """One device's share; arguments as in `kernels.fused`; `window` is refused there."""
    args, kwargs = arguments(q_btngk, k_bsnk, v_bsnk, lengths_b, causal=causal)
    out_bthk = jax.nn.dot_product_attention(*args, **kwargs, implementation="cudnn")
    return out_bthk.reshape(q_btngk.shape)
