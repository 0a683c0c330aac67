"""evaluate: the student before and after, on the whole test corpus."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts import Artifact
from nvret_jax.console import say
from nvret_jax.evaluation import comparison, retrieval, runs
from nvret_jax.evaluation.comparison import Scores
from nvret_jax.files import remove
from nvret_jax.models.encoder import Encoder
from nvret_jax.pipeline import truncation
from nvret_jax.pipeline.embed import embed_with
from nvret_jax.pipeline.encoders import Side
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run
from nvret_jax.search.store import EmbeddingStore


def _evaluate_artifacts(run: Run) -> list[Artifact]:
    return [run.evaluation()]


def _make_evaluation(run: Run, artifact: Artifact) -> None:
    before = _evaluate(run, run.start_role, run.untrained.encoder)
    folder, name = artifact.path.parent, run.test_data.name
    extra: dict[str, Any] = {"encoder": run.untrained.config.model, "trained": run.trains}
    after = before
    run.release_untrained()
    if run.trains:
        after = _evaluate(run, "student", run.trained_student)
        compared = comparison.compare(before, after)
        extra["before"] = before.metrics
        extra["ndcg_cut_10_difference_interval"] = list(compared.interval)
        table = comparison.comparison_table([compared])
    else:
        table = comparison.evaluation_table([after])
    cuts = truncation.of_test(run)
    extra["truncated"] = {when: [c.record() for c in counts] for when, counts in cuts.items()}
    extra["measured"] = _measured(run)
    if mesh_lib.is_main():
        for result, suffix in ((before, ".before"), (after, "")):
            path = folder / f"{name}{suffix}.trec"
            if result is before and not run.trains and suffix:
                remove(path)
                continue
            runs.write_trec_run(
                path, result.query_ids, result.passage_ids, result.scores_qk, result.ids_qk
            )
    artifact.write_file(lambda path: runs.write_evaluation_json(path, after, extra))
    say(comparison.table_text(table))
    say(extra["measured"])


def _measured(run: Run) -> str:
    """What the scores are scores of: whose lengths and prompts."""
    if not run.trains:
        return f"{run.untrained.config.model}: {_cut_at(run.untrained)}"
    return (
        f"before: {run.untrained.config.model} with its own settings, "
        f"{_cut_at(run.untrained)}; after: as exported, {_cut_at(run.served)}"
    )


def _cut_at(side: Side) -> str:
    query, passage = side.length("query"), side.length("passage")
    if query == passage:
        return f"texts cut at {query} tokens"
    return f"queries cut at {query} tokens and passages at {passage}"


def _evaluate(run: Run, role: str, encoder: Encoder) -> retrieval.Evaluation:
    data, split = run.test_data, run.config.data.test_split
    vectors = []
    for table in ("passages", f"queries-{split}"):
        item = run.embeddings(role, data, table)
        reason = run.vectors_stale(item)
        if reason:
            if reason.startswith("damaged"):
                say(f"evaluate  making {item.name} ({reason})")
            embed_with(run, item, role, data, encoder)
        vectors.append(EmbeddingStore.open(item.path))
    passages, all_queries = vectors
    ids, _ = retrieval.scored_queries(data, split, run.config.evaluation.min_relevance)
    row = data.split_queries(split).row
    return retrieval.evaluate(
        encoder,
        data,
        split,
        k=run.config.evaluation.depth,
        min_relevance=run.config.evaluation.min_relevance,
        exclude_self=run.config.evaluation.exclude_self,
        backend=run.config.search.backend,
        passage_embeddings=run.searched(passages),
        query_embeddings=run.asked(np.asarray(all_queries[:])[[row[i] for i in ids]]),
    )


def read_scores(run: Run) -> Scores:
    """What the stage wrote, for the model card and the report."""
    found = json.loads(run.need(run.evaluation()).path.read_text())
    interval = found.get("ndcg_cut_10_difference_interval")
    return Scores(
        dataset=f"{found['dataset']} {found['split']}",
        queries=found["queries"],
        before=found.get("before"),
        after={name: found[name] for name in retrieval.MEASURES},
        interval=tuple(interval) if interval else None,
        measured=found.get("measured", "") if found["trained"] else "",
    )


STAGE = Stage(_evaluate_artifacts, _make_evaluation)
