"""What can never be a negative of the training queries, and what a judge has said of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining import exclusion, neighbours, verdicts
from nvret_jax.pipeline.state import Run
from nvret_jax.search.candidates import Candidates


def excluded_passages(
    run: Run,
    query_rows: np.ndarray,
    positive_rows: Ragged,
    effect: verdicts.VerdictEffect | None = None,
) -> exclusion.Exclusions:
    """What can never be a negative of some queries, as configured.

    Args:
        query_rows: int [S], rows of the training data's queries.
        positive_rows: their known positives, which decide what a copy of one is.
        effect: what a judge has said of these queries.
    """
    data, settings = run.train_data, run.exclusions
    vectors: dict[str, Any] = {}
    if settings.cosine:
        if not run.guide:
            raise InputError(
                f"mining.exclude.near_copy={settings.cosine} needs a teacher that is an encoder; "
                "use mining.exclude.minhash"
            )
        passages_nd = run.open(run.guide, data, "passages")
        if not run.block(run.guide).normalize:
            passages_nd = neighbours.UnitRows(passages_nd)
        index = run.make_index(passages_nd)
        vectors = {"passages_nd": passages_nd, "search": index.search}
    ruled_out = None
    if effect is not None:
        ruled_out = exclusion.combine(
            [(exclusion.Reason.VERDICT, rows) for rows in (effect.promoted, effect.dropped)],
            positive_rows,
        ).rows
    return exclusion.build(
        [data.queries.texts[row] for row in query_rows],
        data.corpus,
        positive_rows,
        settings,
        verdict_rows=ruled_out,
        texts=run.passage_texts,
        **vectors,
    )


def of_candidates(run: Run, candidates: Candidates) -> exclusion.Exclusions:
    """The same for all training queries, verdicts included."""
    effect = verdict_effect(run, candidates)
    return excluded_passages(run, candidates.query_rows, candidates.positive_rows, effect)


def verdict_effect(run: Run, candidates: Candidates) -> verdicts.VerdictEffect | None:
    """What a judge's file changes, or None where there is none; equal queries share it."""
    mining, data = run.config.mining, run.train_data
    if not mining.verdicts:
        return None
    read = verdicts.read_verdicts(mining.verdicts, data.queries, data.corpus)
    effect = read.for_queries(
        candidates.query_rows,
        candidates.positive_rows,
        mode=mining.verdict_mode,
        max_promoted=mining.max_promoted,
    )
    if run.passage_texts is None:
        return effect
    queries = SameText.of([data.queries.texts[row] for row in candidates.query_rows])
    shared = {name: queries.share(getattr(effect, name)) for name in ("promoted", "dropped")}
    return dataclasses.replace(effect, **shared)
