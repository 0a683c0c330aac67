"""From token vectors to one vector a text.

Which pooling a model wants is part of the model: it was trained with it, and its folder says so
(`1_Pooling/config.json`). Sums run in float32 over the real tokens only; the special tokens count,
as they do in sentence-transformers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nvret_jax.errors import InputError


def _mean(hidden_btd: jax.Array, lengths_b: jax.Array) -> jax.Array:
    real_bt = jnp.arange(hidden_btd.shape[1])[None, :] < lengths_b[:, None]
    # where, not a product with the mask: 0 × inf would let a padded position through as NaN.
    kept_btd = jnp.where(real_bt[:, :, None], hidden_btd.astype(jnp.float32), 0.0)
    return kept_btd.sum(axis=1) / jnp.maximum(lengths_b, 1)[:, None].astype(jnp.float32)


def _cls(hidden_btd: jax.Array, lengths_b: jax.Array) -> jax.Array:
    del lengths_b  # the first token is always real
    return hidden_btd[:, 0].astype(jnp.float32)


POOLINGS = {"mean": _mean, "cls": _cls}


def check_pooling(mode: str, where: str = "pooling") -> str:
    """`mode`, if `pool` knows it; otherwise InputError that begins with `where`."""
    if mode not in POOLINGS:
        raise InputError(f"{where}: mode {mode!r} is not supported; known: {', '.join(POOLINGS)}")
    return mode


def pool(hidden_btd: jax.Array, lengths_b: jax.Array, mode: str) -> jax.Array:
    """One vector per sequence.

    Args:
        hidden_btd: [B, T, D], any float dtype.
        lengths_b: int32 [B], real tokens per sequence; the rest is padding on the right.
        mode: 'mean' over the real tokens, or 'cls': the first token.

    Returns:
        float32 [B, D], not normalised.

    Raises:
        InputError: unknown mode.
    """
    return POOLINGS[check_pooling(mode)](hidden_btd, lengths_b)


def l2_normalize(emb_bd: jax.Array) -> jax.Array:
    """Rows at unit length; a zero row stays zero (the floor of 1e-12 is torch's)."""
    norm_b1 = jnp.sqrt(jnp.sum(jnp.square(emb_bd), axis=-1, keepdims=True))
    return emb_bd / jnp.maximum(norm_b1, 1e-12)
