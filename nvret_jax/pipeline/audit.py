"""audit: how many mined negatives are positives that were hidden, for every rule and teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts.artifact import Artifact, write_atomic
from nvret_jax.data.dataset import Dataset
from nvret_jax.data.ragged import Ragged
from nvret_jax.evaluation.comparison import table_text
from nvret_jax.mesh import say
from nvret_jax.mining.audit import audit, risk_fit
from nvret_jax.mining.audit.risk_fit import Reliability
from nvret_jax.mining.miner import Teacher
from nvret_jax.mining.options import Audit, Options
from nvret_jax.options import blocks
from nvret_jax.pipeline import exclusions
from nvret_jax.pipeline.exclusions import Excluder
from nvret_jax.pipeline.ranked import mined_from, ranked
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run, once


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of an audit.

    Attributes:
        data: the queries and the corpus.
        query_ids: of the queries with a positive.
        teachers: candidates and ranker of each.
        excluder: of passages that can never be negatives.
        mining: how negatives would be mined; its seed decides which positives are hidden.
    """

    data: Dataset
    query_ids: Sequence[str]
    teachers: Sequence[Teacher]
    excluder: Excluder
    mining: Options


@once
def artifact(run: Run) -> Artifact:
    """How many false negatives each rule admits."""
    parts = {
        **mined_from(run),
        **run.values_of(Audit, "audit"),
        "seed": run.config.seed,
    }
    return run.workdir.audit(parts, run.about)


def _artifacts(run: Run) -> list[Artifact]:
    return [artifact(run)]


def _inputs(run: Run, artifact: Artifact) -> tuple[Inputs, Audit]:
    inputs = Inputs(
        run.train_data,
        tuple(run.positives()),
        [Teacher(name, *ranked(run, artifact, name)) for name in run.teacher_names],
        exclusions.opened(run),
        run.options,
    )
    return inputs, blocks.read(Audit, run.config.audit)


@dataclasses.dataclass(frozen=True)
class Audited:
    """What an audit finds: false negatives by rule, and how true risks are."""

    rows: list[audit.Row]
    reliability: list[Reliability]


def make(inputs: Inputs, options: Audit) -> Audited:
    """How many false negatives each rule admits, for each teacher."""
    corpus, seed = inputs.data.corpus, inputs.mining.seed
    rules = audit.rules_to_try(inputs.mining, options.tried)
    rows: list[audit.Row] = []
    reliability: list[Reliability] = []
    excluded: Ragged | None = None
    for teacher in inputs.teachers:
        candidates = teacher.candidates
        visible = audit.visible_positives(
            candidates.positive_rows, inputs.query_ids, corpus.ids, seed
        )
        # the same for all teachers: copies depend only on the visible positives
        if excluded is None:
            shown = audit.visible_rows(candidates.positive_rows, visible)
            excluded = inputs.excluder.of(candidates.query_rows, shown).rows
        rows += audit.audit(
            candidates,
            teacher.ranker,
            inputs.mining,
            rules,
            visible=visible,
            excluded=excluded,
            query_ids=inputs.query_ids,
            passage_ids=corpus.ids,
            dataset=inputs.data.name,
            teacher=teacher.name,
            max_queries=options.queries,
            resamples=options.resamples,
            seed=seed,
            texts=inputs.excluder.texts,
        )
        reliability += risk_fit.cross_checked(
            candidates,
            visible=visible,
            excluded=excluded,
            query_ids=inputs.query_ids,
            dataset=inputs.data.name,
            teacher=teacher.name,
            max_queries=options.queries,
            resamples=options.resamples,
            seed=seed,
            texts=inputs.excluder.texts,
        )
    return Audited(rows, reliability)


def _write(artifact: Artifact, inputs: Inputs, found: Audited) -> None:
    if mesh_lib.is_main():
        beside = artifact.path.parent / "audit.risk.csv"
        write_atomic(beside, audit.csv_text(found.reliability, Reliability))
    text = audit.csv_text(found.rows)
    artifact.finish_file(lambda path: path.write_text(text))
    say(table_text(audit.audit_table(found.rows)))
    if found.reliability:
        say(table_text(risk_fit.reliability_table(found.reliability)))


STAGE = Stage(_artifacts, _inputs, make, _write)
