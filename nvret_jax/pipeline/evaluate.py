"""evaluate: the student before and after, on the whole test corpus."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.data.dataset import Dataset
from nvret_jax.evaluation import comparison, output, retrieval
from nvret_jax.evaluation.comparison import Scores
from nvret_jax.evaluation.options import EvaluationOptions
from nvret_jax.evaluation.overlap import Overlap, overlap
from nvret_jax.files.atomic import remove
from nvret_jax.mesh import say
from nvret_jax.models.encoder import Encoder
from nvret_jax.options import blocks
from nvret_jax.pipeline import embed, trained, truncation
from nvret_jax.pipeline import parts as parts_lib
from nvret_jax.pipeline.encoders import Side
from nvret_jax.pipeline.made import need
from nvret_jax.pipeline.stage import Stage, begin_nothing
from nvret_jax.pipeline.state import Run, once
from nvret_jax.search.store import EmbeddingStore


@dataclasses.dataclass(frozen=True)
class Vectors:
    """What one encoder makes of the test texts.

    Attributes:
        passages_nd: of the corpus, or a store of them.
        queries_qd: of the queries that are scored.
        width: D.
    """

    passages_nd: Any
    queries_qd: np.ndarray
    width: int


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is evaluated.

    Attributes:
        data: the test data.
        split: of it.
        before: by the student as it starts.
        after: by the trained one; None where nothing is trained.
        mesh, backend: of the search.
        said: what else is known of the scores, by name.
    """

    data: Dataset
    split: str
    before: Vectors
    after: Vectors | None
    mesh: Mesh
    backend: str = "auto"
    said: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scored:
    """Rankings with their scores.

    Attributes:
        before, after: see `Inputs`.
        said: what is written beside the scores.
        table: for the terminal.
    """

    before: retrieval.Evaluation
    after: retrieval.Evaluation | None
    said: Mapping[str, Any]
    table: str


@once
def artifact(run: Run) -> Artifact:
    """Scores on the test split."""
    data, split = run.test_data, run.config.data.test_split
    roles = [run.start_role, *(["student"] if run.trains else [])]
    parts: dict[str, Any] = {
        f"{role} {table}": _vectors_of(run, role, table)
        for role in roles
        for table in ("passages", f"queries-{split}")
    }
    parts |= run.searching.parts()
    parts |= run.values_of(EvaluationOptions, "evaluation")
    parts["judgments"] = parts_lib.judgments_part(data.qrels[split], test=True)
    parts["data.test_split"] = split
    return run.workdir.evaluation(data.name, parts, run.about)


@once
def _vectors_of(run: Run, role: str, table: str) -> Artifact:
    """Vectors of the test texts, by the student as it starts or as it was trained."""
    if role != "student":
        return embed.artifact(run, role, run.test_data, table)
    return embed.artifact_of(run, role, run.test_data, table, trained.parts(run))


def _artifacts(run: Run) -> list[Artifact]:
    return [artifact(run)]


def _inputs(run: Run, artifact: Artifact) -> tuple[Inputs, EvaluationOptions]:
    before = _vectors(run, run.start_role, run.untrained.encoder)
    run.release_untrained()
    cuts = truncation.of_test(run)
    overlaps = _overlaps(run)
    inputs = Inputs(
        run.test_data,
        run.config.data.test_split,
        before,
        _vectors(run, "student", trained.student(run)) if run.trains else None,
        run.mesh,
        run.config.search.backend,
        {
            "encoder": run.untrained.config.model,
            "trained": run.trains,
            "truncated": {when: [c.record() for c in counts] for when, counts in cuts.items()},
            "overlap": [one.record() for one in overlaps],
            "measured": _measured(run),
        },
    )
    return inputs, blocks.read(EvaluationOptions, run.config.evaluation)


def _overlaps(run: Run) -> list[Overlap]:
    """What the test split has in common with each training set."""
    config, found = run.config.data, []
    for part in run.sets.values() if run.trains else ():
        one = overlap(
            part.train_data,
            run.test_data,
            train_split=part.config.data.train_split,
            test_split=config.test_split,
            min_relevance=part.config.data.min_relevance,
            test_min_relevance=run.config.evaluation.min_relevance,
        )
        say(f"evaluate  {one.line()}")
        found.append(one)
    return found


def _vectors(run: Run, role: str, encoder: Encoder) -> Vectors:
    """Embeddings of the test texts, made where they are missing."""
    data, split = run.test_data, run.config.data.test_split
    stores = []
    for table in ("passages", f"queries-{split}"):
        item = _vectors_of(run, role, table)
        reason = run.stores.stale(item)
        if reason:
            if reason.startswith("damaged"):
                say(f"evaluate  making {item.name} ({reason})")
            embed.STAGE.bring_from(item, *embed.inputs_with(run, item, role, data, encoder))
        stores.append(EmbeddingStore.open(item.path))
    passages, all_queries = stores
    ids, _ = retrieval.scored_queries(data, split, run.config.evaluation.min_relevance)
    row = data.split_queries(split).row
    queries_qd = np.asarray(all_queries[:])[[row[i] for i in ids]]
    return Vectors(
        run.searching.passages(passages), run.searching.queries(queries_qd), encoder.width
    )


def make(inputs: Inputs, options: EvaluationOptions) -> Scored:
    """Ranks the test corpus for each query, before and after training, and scores the rankings."""
    before = _evaluated(inputs, inputs.before, options)
    if inputs.after is None:
        table = comparison.evaluation_table([before])
        return Scored(before, None, inputs.said, comparison.table_text(table))
    after = _evaluated(inputs, inputs.after, options)
    compared = comparison.compare(before, after)
    table = comparison.comparison_table([compared])
    said = {
        **inputs.said,
        "before": before.metrics,
        "ndcg_cut_10_difference_interval": list(compared.interval),
    }
    return Scored(before, after, said, comparison.table_text(table))


def _evaluated(
    inputs: Inputs, vectors: Vectors, options: EvaluationOptions
) -> retrieval.Evaluation:
    return retrieval.evaluate_vectors(
        inputs.data,
        inputs.split,
        vectors.passages_nd,
        vectors.queries_qd,
        width=vectors.width,
        mesh=inputs.mesh,
        k=options.depth,
        min_relevance=options.min_relevance,
        exclude_self=options.exclude_self,
        backend=inputs.backend,
    )


def _write(artifact: Artifact, inputs: Inputs, scored: Scored) -> None:
    folder, name = artifact.path.parent, inputs.data.name
    after = scored.before if scored.after is None else scored.after
    if mesh_lib.is_main():
        earlier = folder / f"{name}.before.trec"
        if scored.after is None:
            remove(earlier)
        else:
            _write_run(earlier, scored.before)
        _write_run(folder / f"{name}.trec", after)
    artifact.write_file(lambda path: output.write_evaluation_json(path, after, scored.said))
    say(scored.table)
    say(scored.said["measured"])


def _write_run(path: epath.Path, result: retrieval.Evaluation) -> None:
    output.write_trec_run(
        path, result.query_ids, result.passage_ids, result.scores_qk, result.ids_qk
    )


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


def read_scores(run: Run) -> Scores:
    """What the stage wrote, for the model card and the report."""
    found = json.loads(need(artifact(run)).path.read_text())
    interval = found.get("ndcg_cut_10_difference_interval")
    return Scores(
        dataset=f"{found['dataset']} {found['split']}",
        queries=found["queries"],
        before=found.get("before"),
        after={name: found[name] for name in retrieval.MEASURES},
        interval=tuple(interval) if interval else None,
        measured=found.get("measured", "") if found["trained"] else "",
    )


STAGE = Stage(_artifacts, _inputs, make, _write, begin=begin_nothing)
