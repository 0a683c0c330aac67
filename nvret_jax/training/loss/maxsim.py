"""MaxSim, the score of multi-vector (late interaction) models.

A text is a matrix, one vector per token. A query's score for a passage is the sum over the query's
tokens of the largest inner product with any token of the passage (Khattab & Zaharia 2020, eq. 3).
Padding is ignored on both sides. As in ColBERT, scores are not divided by the number of tokens;
with unit vectors they are between minus and plus the query's length, so a temperature near 1
corresponds to 0.05 for single vectors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Below any inner product, and still finite: a text without tokens scores low and gives no NaN.
LOWEST = -1e30


def max_sim(
    left_atd: jax.Array, right_csd: jax.Array, left_real_at: jax.Array, right_real_cs: jax.Array
) -> jax.Array:
    """MaxSim of every text on the left with every text on the right.

    Args:
        left_atd: float [A, T, D], the texts whose tokens are summed over.
        right_csd: float [C, S, D], the texts whose best token is taken.
        left_real_at: bool [A, T], which tokens count.
        right_real_cs: bool [C, S].

    Returns:
        float [A, C]. Allocates [A, C, T, S] internally: call it on tiles.
    """
    similar_acts = jnp.einsum(
        "atd,csd->acts", left_atd, right_csd, precision=jax.lax.Precision.HIGHEST
    )
    similar_acts = jnp.where(right_real_cs[None, :, None, :], similar_acts, LOWEST)
    return jnp.sum(jnp.where(left_real_at[:, None, :], jnp.max(similar_acts, axis=3), 0.0), axis=2)


def max_sim_own(
    queries_btd: jax.Array, passages_bgsd: jax.Array, real_bt: jax.Array, real_bgs: jax.Array
) -> jax.Array:
    """MaxSim of each query with the passages of its own row, float [B, G]."""
    similar_bgts = jnp.einsum(
        "btd,bgsd->bgts", queries_btd, passages_bgsd, precision=jax.lax.Precision.HIGHEST
    )
    similar_bgts = jnp.where(real_bgs[:, :, None, :], similar_bgts, LOWEST)
    return jnp.sum(jnp.where(real_bt[:, None, :], jnp.max(similar_bgts, axis=3), 0.0), axis=2)


def token_mask(lengths_n: jax.Array, width: int) -> jax.Array:
    """bool [N, T]: the first `lengths_n` tokens of each text."""
    return jnp.arange(width, dtype=lengths_n.dtype)[None, :] < lengths_n[:, None]
