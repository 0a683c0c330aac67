"""audit: how many mined negatives are positives that were hidden, for every rule and teacher."""

from __future__ import annotations

from nvret_jax import blocks
from nvret_jax.artifacts import Artifact
from nvret_jax.console import say
from nvret_jax.data.ragged import Ragged
from nvret_jax.evaluation.comparison import table_text
from nvret_jax.mining import audit
from nvret_jax.mining.options import Audit
from nvret_jax.pipeline.exclusions import excluded_passages
from nvret_jax.pipeline.ranked import ranked
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run


def _audit_artifacts(run: Run) -> list[Artifact]:
    return [run.audit()]


def _make_audit(run: Run, artifact: Artifact) -> None:
    data, config = run.train_data, blocks.read(Audit, run.config.audit)
    query_ids = tuple(run.positives())
    rules = audit.rules_to_try(run.options, config.tried)
    rows: list[audit.Row] = []
    excluded: Ragged | None = None
    asked = [(name, *ranked(run, artifact, name)) for name in run.teacher_names]
    artifact.begin()
    for name, candidates, ranker in asked:
        visible = audit.visible_positives(
            candidates.positive_rows, query_ids, data.corpus.ids, run.config.seed
        )
        if excluded is None:  # the same for all teachers: what is visible decides what is a copy
            shown = audit.visible_rows(candidates.positive_rows, visible)
            excluded = excluded_passages(run, candidates.query_rows, shown).rows
        rows += audit.audit(
            candidates,
            ranker,
            run.options,
            rules,
            visible=visible,
            excluded=excluded,
            query_ids=query_ids,
            passage_ids=data.corpus.ids,
            dataset=data.name,
            teacher=name,
            max_queries=config.queries,
            resamples=config.resamples,
            seed=run.config.seed,
            texts=run.passage_texts,
        )
    text = audit.csv_text(rows)
    artifact.finish_file(lambda path: path.write_text(text))
    say(table_text(audit.audit_table(rows), width=130))


STAGE = Stage(_audit_artifacts, _make_audit)
