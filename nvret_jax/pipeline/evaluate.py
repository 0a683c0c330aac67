"""evaluate: the student before and after, and BM25, on the whole test corpus."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.artifacts.fingerprints import Digest
from nvret_jax.data.dataset import Dataset
from nvret_jax.errors import InputError
from nvret_jax.evaluation import baseline, comparison, output, retrieval
from nvret_jax.evaluation.comparison import Scores
from nvret_jax.evaluation.options import EvaluationOptions
from nvret_jax.evaluation.overlap import Overlap
from nvret_jax.files.atomic import remove, write_atomic
from nvret_jax.mesh import say
from nvret_jax.models.encoder import Encoder
from nvret_jax.options import blocks
from nvret_jax.pipeline import embed, overlaps, trained, truncation
from nvret_jax.pipeline import parts as parts_lib
from nvret_jax.pipeline.encoders import ConfiguredEncoder
from nvret_jax.pipeline.inputs import need
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run, once
from nvret_jax.search.rankers import teachers
from nvret_jax.search.store import EmbeddingStore


@dataclasses.dataclass(frozen=True)
class Vectors:
    """One encoder's vectors of the test texts.

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
    """The inputs of an evaluation.

    Attributes:
        data: the test data.
        split: of that data.
        before: by the student before training.
        after: by the trained one; None if nothing is trained.
        mesh, backend: of the search.
        teacher_nd: the guide's vectors of the corpus, or a store of them, which the student's
            queries are scored with, too; None: they are not.
        said: what else is known of the scores, by name.
        bm25: means of BM25 on the same queries; None where there are none.
    """

    data: Dataset
    split: str
    before: Vectors
    after: Vectors | None
    mesh: Mesh
    backend: str = "auto"
    teacher_nd: Any = None
    said: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bm25: Mapping[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What BM25 is evaluated on: test data and a split of it."""

    data: Dataset
    split: str


@dataclasses.dataclass(frozen=True)
class Scored:
    """Rankings with their scores.

    Attributes:
        before, after: see `Inputs`.
        asymmetric: of the student's queries with the guide's passages, or None.
        said: what is written beside the scores.
        table: for the terminal.
    """

    before: retrieval.Evaluation
    after: retrieval.Evaluation | None
    asymmetric: retrieval.Evaluation | None
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
    if run.config.evaluation.teacher_passages and run.guide:
        parts[f"{run.guide} passages"] = _vectors_of(run, run.guide, "passages")
    parts |= run.searching.parts() | _scoring_parts(run)
    common = overlaps.artifact(run)
    parts |= {} if common is None else {"overlap": common}
    return run.workdir.evaluation(data.name, parts, run.about)


@once
def baseline_artifact(run: Run) -> Artifact | None:
    """Scores of BM25 on the test split; None where they are not wanted."""
    if not run.evaluates:
        return None
    data, split = run.test_data, run.config.data.test_split
    options = blocks.read(EvaluationOptions, run.config.evaluation)
    if not baseline.is_wanted(options, len(data.corpus)):
        return None
    tables = {"passages": "passages", "queries": f"queries-{split}"}
    parts = {what: run.texts(data, table) for what, table in tables.items()}
    parts |= teachers.bm25_parts() | _scoring_parts(run)
    return run.workdir.baseline(data.name, parts, run.about)


def _scoring_parts(run: Run) -> dict[str, Any]:
    """What decides the scores of a ranking of the test split."""
    data, split = run.test_data, run.config.data.test_split
    return {
        **run.values_of(EvaluationOptions, "evaluation"),
        "judgments": parts_lib.judgments_part(data.qrels[split], test=True),
        "data.test_split": split,
    }


def scores_parts(run: Run) -> dict[str, Any]:
    """The scores that a model card and a report state."""
    if not run.evaluates:
        return {}
    found = {"evaluation": artifact(run), "BM25": baseline_artifact(run)}
    found = {name: made for name, made in found.items() if made is not None}
    stated = Digest("BM25" in found, "whether BM25 is scored", ("evaluation.bm25",))
    return {**found, "scored": stated}


@once
def _vectors_of(run: Run, role: str, table: str) -> Artifact:
    """Vectors of the test texts, by the student before or after training."""
    if role != "student":
        return embed.artifact(run, role, run.test_data, table)
    return embed.artifact_of(run, role, run.test_data, table, trained.parts(run))


def _artifacts(run: Run) -> list[Artifact]:
    made = [baseline_artifact(run), overlaps.artifact(run), artifact(run)]
    return [item for item in made if item is not None]


def _inputs(
    run: Run, artifact: Artifact
) -> tuple[Inputs | Baseline | overlaps.Inputs, EvaluationOptions]:
    options = blocks.read(EvaluationOptions, run.config.evaluation)
    if artifact.kind == "baseline":
        return Baseline(run.test_data, run.config.data.test_split), options
    if artifact.kind == "overlap":
        return overlaps.inputs(run), options
    before = _vectors(run, run.start_role, run.untrained.encoder)
    run.release_untrained()
    teacher_nd = _teacher_passages(run) if options.teacher_passages else None
    cuts = truncation.of_test(run)
    common = overlaps.read(run)
    for one in common:
        say(f"evaluate  {one.line()}")
    inputs = Inputs(
        run.test_data,
        run.config.data.test_split,
        before,
        _vectors(run, "student", trained.student(run)) if run.trains else None,
        run.mesh,
        run.config.search.backend,
        teacher_nd,
        {
            "encoder": run.untrained.config.model,
            "trained": run.trains,
            "truncated": {when: [c.record() for c in counts] for when, counts in cuts.items()},
            "overlap": [one.counts() for one in common],
            "measured": _measured(run),
        },
        read_bm25(run),
    )
    return inputs, options


def _vectors(run: Run, role: str, encoder: Encoder) -> Vectors:
    """Embeddings of the test texts, made if they are missing."""
    data, split = run.test_data, run.config.data.test_split
    passages, all_queries = (
        _store(run, role, table, lambda: encoder) for table in ("passages", f"queries-{split}")
    )
    ids, _ = retrieval.scored_queries(data, split, run.config.evaluation.min_relevance)
    row = data.split_queries(split).row
    queries_qd = np.asarray(all_queries[:])[[row[i] for i in ids]]
    return Vectors(
        run.searching.passages(passages), run.searching.queries(queries_qd), encoder.width
    )


def _store(run: Run, role: str, table: str, encoder: Callable[[], Encoder]) -> EmbeddingStore:
    """Embeddings of one table of the test texts, made if they are missing."""
    item = _vectors_of(run, role, table)
    reason = run.stores.stale(item)
    if reason:
        if reason.startswith("damaged"):
            say(f"evaluate  making {item.name} ({reason})")
        given = embed.inputs_with(run, item, role, run.test_data, encoder())
        embed.STAGE.bring_from(item, *given)
    return EmbeddingStore.open(item.path)


def _teacher_passages(run: Run) -> Any:
    """The guide's vectors of the test corpus, by an encoder that is not kept."""
    store = _store(run, run.guide, "passages", lambda: run.encoders[run.guide].encoder)
    run.release_teachers()
    return run.searching.passages(store)


def make(
    inputs: Inputs | Baseline | overlaps.Inputs, options: EvaluationOptions
) -> Scored | list[Overlap] | None:
    """Ranks the test corpus for each query and scores the rankings.

    Args:
        inputs: of the student, before and after training, or of BM25; or what is compared for the
            overlap of training and test.
        options: of the evaluation.

    Returns:
        Scores, or overlaps. None where BM25 has nothing to rank by, and on processes that do not
        write its scores or overlaps.
    """
    if isinstance(inputs, overlaps.Inputs):
        return overlaps.make(inputs) if mesh_lib.is_main() else None
    if isinstance(inputs, Baseline):
        return _baseline(inputs, options)
    before = _evaluated(inputs, inputs.before, options)
    after = None if inputs.after is None else _evaluated(inputs, inputs.after, options)
    asymmetric, said = _asymmetric(inputs, after or before, options)
    beside = {
        "bm25": [inputs.bm25],
        "asymmetric": [None if asymmetric is None else asymmetric.metrics],
    }
    width = 80 if asymmetric is None else 96
    if after is None:
        table = comparison.evaluation_table([before], **beside)
        text = comparison.table_text(table, width)
        return Scored(before, None, asymmetric, {**inputs.said, **said}, text)
    compared = comparison.compare(before, after)
    table = comparison.comparison_table([compared], **beside)
    said = {
        **inputs.said,
        **said,
        "before": before.metrics,
        "ndcg_cut_10_difference_interval": list(compared.interval),
        "per_query_before": before.per_query,
    }
    return Scored(before, after, asymmetric, said, comparison.table_text(table, width))


def _asymmetric(
    inputs: Inputs, own: retrieval.Evaluation, options: EvaluationOptions
) -> tuple[retrieval.Evaluation | None, dict[str, Any]]:
    """The student's queries scored with the guide's passages, and what is written of that.

    Args:
        inputs: of the stage.
        own: the same queries with the student's passages.
        options: of the evaluation.
    """
    if inputs.teacher_nd is None:
        return None, {}
    of = inputs.before if inputs.after is None else inputs.after
    found = _evaluated(inputs, dataclasses.replace(of, passages_nd=inputs.teacher_nd), options)
    interval = comparison.bootstrap_interval(own.per_query, found.per_query)
    return found, {
        "asymmetric": found.metrics,
        "ndcg_cut_10_asymmetric_interval": list(interval),
        "per_query_asymmetric": found.per_query,
    }


def _baseline(inputs: Baseline, options: EvaluationOptions) -> Scored | None:
    if not mesh_lib.is_main():  # it needs no device, and one process writes it
        return None
    try:
        found = baseline.evaluate_bm25(inputs.data, inputs.split, options, progress=True)
    except InputError as error:  # no query has a word of the corpus, say
        say(f"evaluate  no scores of BM25: {error}")
        return None
    means = ", ".join(
        f"{retrieval.MEASURE_NAMES[name]} {found.metrics[name]:.4f}"
        for name in ("ndcg_cut_10", "recip_rank_10", "recall_100")
    )
    line = f"evaluate  BM25 on {inputs.data.name} {inputs.split}: {means}"
    return Scored(found, None, None, {"encoder": "BM25", "trained": False}, line)


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


def _write(
    artifact: Artifact,
    inputs: Inputs | Baseline | overlaps.Inputs,
    scored: Scored | list[Overlap] | None,
) -> None:
    if isinstance(inputs, overlaps.Inputs):
        overlaps.write(artifact, scored)
        return
    if isinstance(inputs, Baseline):
        _write_baseline(artifact, scored)
        return
    folder, name = artifact.path.parent, inputs.data.name
    after = scored.before if scored.after is None else scored.after
    if mesh_lib.is_main():
        others = {
            f"{name}.before.trec": None if scored.after is None else scored.before,
            f"{name}.asymmetric.trec": scored.asymmetric,
        }
        for file, other in others.items():
            if other is None:
                remove(folder / file)
            else:
                _write_run(folder / file, other)
        _write_run(folder / f"{name}.trec", after)
    artifact.write_file(lambda path: output.write_evaluation_json(path, after, scored.said))
    say(scored.table)
    say(scored.said["measured"])


def _write_baseline(artifact: Artifact, scored: Scored | None) -> None:
    if mesh_lib.is_main():
        ranking = artifact.path.with_suffix(".trec")
        remove(ranking)
        if scored is not None:
            _write_run(ranking, scored.before)

    def write(path: epath.Path) -> None:
        if scored is None:
            write_atomic(path, "null\n")
        else:
            output.write_evaluation_json(path, scored.before, scored.said)

    artifact.write_file(write)
    if scored is not None:
        say(scored.table)


def _write_run(path: epath.Path, result: retrieval.Evaluation) -> None:
    output.write_trec_run(
        path, result.query_ids, result.passage_ids, result.scores_qk, result.rows_qk
    )


def _measured(run: Run) -> str:
    """A description of what was scored, with lengths and prompts."""
    other = ""
    if run.config.evaluation.teacher_passages:
        guide = run.encoders[run.guide]
        other = f"; teacher's passages: by {guide.config.model}, cut at {guide.length('passage')}"
    if not run.trains:
        return f"{run.untrained.config.model}: {_cut_at(run.untrained)}{other}"
    return (
        f"before: {run.untrained.config.model} with its own settings, "
        f"{_cut_at(run.untrained)}; after: as exported, {_cut_at(run.served)}{other}"
    )


def _cut_at(encoder: ConfiguredEncoder) -> str:
    query, passage = encoder.length("query"), encoder.length("passage")
    if query == passage:
        return f"texts cut at {query} tokens"
    return f"queries cut at {query} tokens and passages at {passage}"


def read_scores(run: Run) -> Scores:
    """The files of the stage, for the model card and the report."""
    found = json.loads(need(artifact(run)).path.read_text())
    interval = found.get("ndcg_cut_10_difference_interval")
    return Scores(
        dataset=f"{found['dataset']} {found['split']}",
        queries=found["queries"],
        before=found.get("before"),
        after={name: found[name] for name in retrieval.MEASURES},
        interval=tuple(interval) if interval else None,
        measured=found.get("measured", "") if found["trained"] else "",
        bm25=read_bm25(run),
        asymmetric=found.get("asymmetric"),
        overlaps=[one.sentence() for one in overlaps.read(run)],
    )


def read_bm25(run: Run) -> dict[str, float] | None:
    """Means of BM25 on the test split, by trec name; None where there are none."""
    item = baseline_artifact(run)
    found = None if item is None else json.loads(need(item).path.read_text())
    return None if found is None else {name: found[name] for name in retrieval.MEASURES}


STAGE = Stage(_artifacts, _inputs, make, _write, begin=None)
