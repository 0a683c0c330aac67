"""A loss that a caller brings along: a function of the batch's embeddings.

    def hinge(queries_bd, passages_bgd, batch):
        scores_bg = jnp.einsum("bd,bgd->bg", queries_bd, passages_bgd)
        there_bh = batch["passage_ids"][:, 1:] >= 0  # a row may have fewer negatives
        loss_bh = jnp.maximum(0.0, 0.2 - scores_bg[:, :1] + scores_bg[:, 1:])
        return jnp.where(there_bh, loss_bh, 0.0).mean()

It is plain JAX on arrays of the whole batch, on any mesh: inside of it the axes of the mesh are
automatic, and the compiler splits the work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from nvret_jax.errors import InputError

# (queries [B, D], passages [B, G, D], batch) -> a loss, or a loss and metrics by name.
Function = Callable[[jax.Array, jax.Array, dict[str, jax.Array]], Any]


@dataclasses.dataclass(frozen=True)
class Own:
    """A caller's loss, in the place of `options.Loss`.

    Attributes:
        function: gets queries, float [B, D]; passages, float [B, G, D], of each row its positives
            and then its hard negatives; and a dict of the batch's other arrays: `passage_ids`
            int32 [B, G] (-1: an empty slot), `positive_ids` int32 [B, J] (what is known to be no
            negative of the row; -1 behind the end), `teacher_scores` float32 [B, G] (-inf: none),
            `passage_distilled` bool [B, G] (no negatives: only to be fitted to the teacher's
            scores).
            It returns a scalar, or a scalar and a dict of scalars.
        num_positives: positives of a row in a batch.
        scored: whether batches have the teacher's scores.
    """

    function: Function
    num_positives: int = 1
    scored: bool = False

    learned = False
    scores = "inner"
    weights = False

    @property
    def distillation(self) -> bool:
        """Whether batches carry the teacher's scores."""
        return self.scored

    def of_batch(
        self, queries: jax.Array, passages: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a global batch, and its metrics; arguments as of `losses.batch_loss`.

        Raises:
            InputError: the function does not return a scalar (at trace time).
        """
        rows = len(queries)
        names = ("passage_ids", "positive_ids", "teacher_scores", "passage_distilled")
        known = {name: batch[name] for name in names if name in batch}

        def call(queries, passages, known):
            shaped = passages.reshape(rows, -1, passages.shape[-1])
            found = self.function(
                queries, shaped, {name: one.reshape(rows, -1) for name, one in known.items()}
            )
            value, metrics = found if isinstance(found, tuple) else (found, {})
            _check(value, metrics)
            return jnp.float32(value), {name: jnp.float32(one) for name, one in metrics.items()}

        automatic = jax.sharding.auto_axes(call, out_sharding=P())
        return automatic(queries, passages, known)


def _check(value: Any, metrics: Any) -> None:
    if not hasattr(value, "shape") or value.shape != ():
        raise InputError(
            f"loss: the function returned {getattr(value, 'shape', type(value).__name__)}; "
            "expected a scalar, or a scalar and a dict of scalars"
        )
    if not isinstance(metrics, dict):
        raise InputError(f"loss: expected a dict of metrics, got {type(metrics).__name__}")
    for name, one in metrics.items():
        if getattr(one, "shape", ()) != ():
            raise InputError(f"loss: metric {name!r} has the shape {one.shape}; expected a scalar")
