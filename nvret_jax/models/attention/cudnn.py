"""Attention by cuDNN, as `jax.nn.dot_product_attention` calls it.

Padding goes in as lengths, the fast way, and not as a mask. All queries count as real: those behind
the end see the real keys too, as with 'xla' (late interaction asks for some of their vectors).

cuDNN knows windows to the left only; models with windows to both sides are refused
(`kernels.check_heads`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

MAX_HEAD_DIM = 256  # from Hopper on; on older GPUs 128, which jax refuses with its own words


def arguments(
    q_btngk: jax.Array,
    k_bsnk: jax.Array,
    v_bsnk: jax.Array,
    lengths_b: jax.Array,
    *,
    causal: bool,
) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
    """What `jax.nn.dot_product_attention` is called with: query heads of a group side by side."""
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
    """One device's share; arguments as of `kernels.fused`, where `window` is refused."""
    args, kwargs = arguments(q_btngk, k_bsnk, v_bsnk, lengths_b, causal=causal)
    out_bthk = jax.nn.dot_product_attention(*args, **kwargs, implementation="cudnn")
    return out_bthk.reshape(q_btngk.shape)
