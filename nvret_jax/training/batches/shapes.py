"""What a batch consists of: the arrays by name with their shapes, for a step that is only planned.

`Examples.fill` makes these arrays. A plan compiles the training step for shapes alone, and takes
them from here, so that it compiles what a run runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

_BUCKET = 16  # the widths of batches are multiples of this


def padded_width(tokens: int) -> int:
    """The width of a batch whose longest text has this many tokens."""
    return -(-tokens // _BUCKET) * _BUCKET


def batch_shapes(
    queries: int,
    group: int,
    widths: Mapping[str, int],
    *,
    positives: int = 1,
    teacher_scores: bool = False,
    weights: bool = False,
    distilled: bool = False,
    guide_width: int = 0,
    unpooled: bool = False,
    skiplist: bool = False,
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch, as `Examples.batch` describes them.

    Args:
        queries: B, of the global batch.
        group: G, passages of a query.
        widths: tokens of a 'query' and of a 'passage'.
        positives: J, known passages that a row has room for.
        teacher_scores: whether the loss reads a teacher's scores.
        weights: whether the loss weighs passages.
        distilled: whether some passages are for distillation alone.
        guide_width: D of a guide's vectors; 0: there is no guide.
        unpooled: whether prompts are left out of the pooling.
        skiplist: whether some tokens' vectors do not count, in a late-interaction model.
    """
    rows = {"query": queries, "passage": queries * group}
    found = {
        "passage_ids": ((rows["passage"],), jnp.int32),
        "positive_ids": ((queries, positives), jnp.int32),
    }
    for side, count in rows.items():
        found[f"{side}_tokens"] = ((count, widths[side]), jnp.int32)
        found[f"{side}_lengths"] = ((count,), jnp.int32)
        if guide_width:
            found[f"{side}_guide"] = ((count, guide_width), jnp.float32)
        if unpooled:
            found[f"{side}_unpooled"] = ((count,), jnp.int32)
        if skiplist:
            found[f"{side}_real"] = ((count, widths[side]), jnp.bool_)
    if teacher_scores:
        found["teacher_scores"] = ((queries, group), jnp.float32)
    if distilled:
        found["passage_distilled"] = ((rows["passage"],), jnp.bool_)
    if weights:
        found["passage_weights"] = ((queries, group), jnp.float32)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in found.items()}
