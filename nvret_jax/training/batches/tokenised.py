"""Training examples as an encoder tokenises them: its prompts, its lengths, what it pools."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nvret_jax.mining.negatives import Negatives
from nvret_jax.models.encoder import Encoder
from nvret_jax.training.batches.clusters import Clusters
from nvret_jax.training.batches.examples import Examples
from nvret_jax.training.options import Training


def examples(
    encoder: Encoder,
    negatives: Negatives,
    queries: Sequence[str],
    passages: Sequence[str],
    block: Training,
    *,
    loss: Any,
    lengths: Mapping[str, int],
    num_negatives: int,
    seed: int,
    guide: tuple[np.ndarray, np.ndarray] | None = None,
    clusters: Clusters | None = None,
) -> Examples:
    """Tokenises what a table of negatives names.

    Args:
        encoder: the student, with the prompts of this data set.
        negatives: rows of `queries` and `passages`.
        queries, passages: all texts of the data set.
        block: of the stage.
        loss: says how many positives a row has, and whether it reads the teacher's scores, or
            weights.
        lengths: tokens kept, by kind of text.
        num_negatives: hard negatives per row.
        seed: of the stage.
        guide: vectors of all queries and passages, where the loss reads them.
        clusters: of rows of `negatives`, where batches consist of them.

    Raises:
        InputError: see `Examples.build`.
    """

    def tokenizer(kind: str):
        return lambda texts: encoder.tokenize(texts, kind=kind, max_length=lengths[kind])

    kinds = ("query", "passage")
    late = encoder.spec.late is not None
    return Examples.build(
        negatives,
        queries,
        passages,
        tokenizer("query"),
        tokenizer("passage"),
        batch_size=block.batch_size,
        num_negatives=num_negatives,
        pad_id=encoder.tokenizer.pad_id,
        seed=seed,
        num_positives=loss.num_positives,
        teacher_scores=bool(loss.distillation),
        guide=guide,
        unpooled={kind: functools.partial(encoder.unpooled, kind=kind) for kind in kinds}
        if encoder.spec.prompt_in_pooling != "all"
        else None,
        skiplist={kind: encoder.skiplist(kind) for kind in kinds} if late else None,
        expand_query=(lambda tokens: encoder.expand(tokens, "query")) if late else None,
        draw=block.draw,
        weights=loss.weights,
        num_distilled=block.num_distilled if loss.distillation else 0,
        clusters=clusters,
    )
