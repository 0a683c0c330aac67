"""Passages that can never be negatives of the training queries, and a judge's verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.exclude import exclusion, neighbours, verdicts
from nvret_jax.mining.options import Exclude, Judge
from nvret_jax.pipeline import embed
from nvret_jax.pipeline import parts as parts_lib
from nvret_jax.pipeline.state import Run
from nvret_jax.search.candidates import Candidates


@dataclasses.dataclass(frozen=True)
class Excluder:
    """Passages that can never be negatives of training queries, as configured.

    Attributes:
        queries, corpus: their texts.
        settings: what is excluded.
        judge: whose verdicts count.
        texts: which passages have equal texts; None: every id is a distinct text.
        passages_nd: unit vectors of the corpus, if near copies are excluded.
        make_index: a search index over such vectors.
    """

    queries: TextTable
    corpus: TextTable
    settings: Exclude
    judge: Judge = dataclasses.field(default_factory=Judge)
    texts: SameText | None = None
    passages_nd: Any = None
    make_index: Callable[[Any], Any] | None = None

    def of(
        self,
        query_rows: np.ndarray,
        positive_rows: Ragged,
        effect: verdicts.VerdictEffect | None = None,
    ) -> exclusion.Exclusions:
        """Passages that can never be negatives of some queries.

        Args:
            query_rows: int [S], rows of `queries`.
            positive_rows: their known positives, whose copies are excluded.
            effect: of a judge's verdicts on these queries.
        """
        vectors: dict[str, Any] = {}
        if self.passages_nd is not None:
            index = self.make_index(self.passages_nd)
            vectors = {"passages_nd": self.passages_nd, "search": index.search}
        ruled_out = None
        if effect is not None:
            ruled_out = exclusion.combine(
                [(exclusion.Reason.VERDICT, rows) for rows in (effect.promoted, effect.dropped)],
                positive_rows,
            ).rows
        return exclusion.build(
            [self.queries.texts[row] for row in query_rows],
            self.corpus,
            positive_rows,
            self.settings,
            verdict_rows=ruled_out,
            texts=self.texts,
            **vectors,
        )

    def of_candidates(self, candidates: Candidates) -> exclusion.Exclusions:
        """The same for the queries of candidates, verdicts included."""
        effect = self.effect(candidates)
        return self.of(candidates.query_rows, candidates.positive_rows, effect)

    def effect(self, candidates: Candidates) -> verdicts.VerdictEffect | None:
        """The effect of a judge's file, or None if there is none; equal queries share it."""
        if not self.judge.verdicts:
            return None
        read = verdicts.read_verdicts(self.judge.verdicts, self.queries, self.corpus)
        effect = read.for_queries(
            candidates.query_rows,
            candidates.positive_rows,
            mode=self.judge.verdict_mode,
            max_promoted=self.judge.max_promoted,
        )
        if self.texts is None:
            return effect
        queries = SameText.of([self.queries.texts[row] for row in candidates.query_rows])
        shared = {name: queries.share(getattr(effect, name)) for name in ("promoted", "dropped")}
        return dataclasses.replace(effect, **shared)


def parts(run: Run) -> dict[str, Any]:
    """The parts that decide which passages are never negatives."""
    found = parts_lib.exclusion_parts(run.mining)
    if run.exclusions.own_text != "off" or run.exclusions.same_text:
        data, split = run.train_data, run.config.data.train_split
        found["passages"] = run.texts(data, "passages")
        found["queries"] = run.texts(data, f"queries-{split}")
    if run.exclusions.cosine and run.guide:
        found["near copies"] = embed.artifact(run, run.guide, run.train_data, "passages")
    return found


def opened(run: Run) -> Excluder:
    """The opened inputs of the exclusions of a run's training queries."""
    data, settings, passages_nd = run.train_data, run.exclusions, None
    if settings.cosine:
        if not run.guide:
            raise InputError(
                f"mining.exclude.near_copy={settings.cosine} needs a teacher that is an encoder; "
                "use mining.exclude.minhash"
            )
        passages_nd = embed.opened(run, run.guide, data, "passages")
        if not run.block(run.guide).normalize:
            passages_nd = neighbours.UnitRows(passages_nd)
    return Excluder(
        data.queries,
        data.corpus,
        settings,
        run.mining.judge,
        run.passage_texts,
        passages_nd,
        run.searching.index,
    )
