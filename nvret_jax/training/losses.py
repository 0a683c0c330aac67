"""The contrastive loss: a query against its positive, its hard negatives and everybody else's.

Ids travel to the loss. A passage of the global batch that carries the id of any judged positive of
a query is masked out for that query, wherever on the mesh it was encoded, and an empty slot of a
ragged row is masked for all. Nothing is ever a negative just because it was short of an id check.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nvret_jax import mesh as mesh_lib


def info_nce(
    queries_bd: jax.Array,
    passages_nd: jax.Array,
    passage_ids_n: jax.Array,
    positive_ids_bp: jax.Array,
    *,
    temperature: float,
    in_batch: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """InfoNCE over hard and in-batch negatives (paper section 2; Oord et al. 2018).

    Row b's own passages are columns b·G … b·G + G - 1 of `passages_nd`, G = N / B; the first of
    them is its positive, the others its hard negatives. Must run under a mesh whose batch axis
    splits both inputs; the passages of the whole global batch are gathered.

    Args:
        queries_bd: float32 [B, D].
        passages_nd: float32 [N, D].
        passage_ids_n: int32 [N], the corpus row of each passage; -1: an empty slot.
        positive_ids_bp: int32 [B, P], corpus rows of every judged positive; -1 behind the end.
        temperature: divides the scores.
        in_batch: also contrast with other rows' passages; False: own hard negatives alone.

    Returns:
        The mean loss over the global batch and scalar metrics: accuracy (the positive scores
        highest), positive (mean score of positives), negatives (mean number per query), masked
        (mean number of false in-batch negatives removed per query).
    """
    batch, passages = queries_bd.shape[0], passages_nd.shape[0]
    group = passages // batch
    everywhere = mesh_lib.spec(None, None)
    passages_nd = jax.reshard(passages_nd, everywhere)
    ids_n = jax.reshard(passage_ids_n, mesh_lib.spec(None))
    row_b = jax.reshard(jnp.arange(batch, dtype=jnp.int32), mesh_lib.spec("batch"))

    scores_bn = jnp.einsum(
        "bd,nd->bn", queries_bd, passages_nd, precision=jax.lax.Precision.HIGHEST
    )
    column_n = jnp.arange(passages, dtype=jnp.int32)
    own_bn = column_n[None, :] == row_b[:, None] * group
    real_n = ids_n >= 0

    def known_positive(found_bn, positive_b):
        return found_bn | (ids_n[None, :] == positive_b[:, None]), None

    judged_bn, _ = jax.lax.scan(known_positive, own_bn & False, jnp.swapaxes(positive_ids_bp, 0, 1))
    judged_bn &= real_n[None, :]  # an empty slot has the id of the padding in positive_ids
    allowed_bn = real_n[None, :] & ~judged_bn & ~own_bn
    others_bn = column_n[None, :] // group != row_b[:, None]
    if not in_batch:
        allowed_bn &= ~others_bn

    logits_bn = jnp.where(allowed_bn | own_bn, scores_bn / temperature, -jnp.inf)
    positive_b = jnp.sum(jnp.where(own_bn, scores_bn, 0.0), axis=1)
    loss_b = jax.nn.logsumexp(logits_bn, axis=1) - positive_b / temperature
    best_negative_b = jnp.max(jnp.where(allowed_bn, scores_bn, -jnp.inf), axis=1)
    count = jnp.float32(batch)
    metrics = {
        "accuracy": jnp.sum(positive_b > best_negative_b) / count,
        "positive": jnp.sum(positive_b) / count,
        "negatives": jnp.sum(allowed_bn) / count,
        "masked": jnp.sum(judged_bn & ~own_bn) / count,
    }
    return jnp.sum(loss_b) / count, metrics
