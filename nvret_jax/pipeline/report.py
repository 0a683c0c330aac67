"""report: the run on one page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.config import sets
from nvret_jax.config.sets import MAIN_SET
from nvret_jax.data import interchange
from nvret_jax.data.dataset import Dataset
from nvret_jax.evaluation.comparison import Scores
from nvret_jax.export import model_card
from nvret_jax.mesh import process_count
from nvret_jax.mining.audit.audit import Row, read_csv
from nvret_jax.mining.audit.estimate import Estimate
from nvret_jax.mining.audit.risk_fit import Reliability
from nvret_jax.options import blocks
from nvret_jax.pipeline import (
    audit,
    evaluate,
    exclusions,
    mine,
    provenance,
    ranked,
    recipe,
    trained,
    truncation,
)
from nvret_jax.pipeline import export as export_stage
from nvret_jax.pipeline.inputs import need
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run
from nvret_jax.report import content, mined, queries, report
from nvret_jax.report.mined import MinedSet
from nvret_jax.report.options import Report
from nvret_jax.search.rankers.distinct import distinct
from nvret_jax.training.checkpoint import SCORE
from nvret_jax.training.metric_writer import read_metrics
from nvret_jax.training.outcome import Outcome

_COMMANDS = 3  # of the newest, those shown
_SPEED = {
    "examples_per_second": "queries per second",
    "tokens_per_second": "tokens per second",
    "mfu": "MFU: share of the device's peak",
    "memory_gib": "device memory, GiB",
}
# Logged values by name, as people see them; others go by their own names.
_CURVES = {
    "learning_rate": "learning rate",
    "grad_norm": "norm of the gradient",
    "accuracy": "accuracy: the positive scores highest in its batch",
    "temperature": "temperature",
    "positive": "mean score of positives",
    "negatives": "passages a query is contrasted with",
    "masked": "passages masked per query, by id",
    "masked_by_score": "passages masked per query, by score",
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The content of the page.

    Attributes:
        title, lead: the name of the run, and a sentence about it.
        scores: of the evaluation.
        ranked: reads the rankings of the test queries; None where nothing was evaluated.
        sets: number of training sets that were mined.
        mined: each of them, opened on demand.
        metrics: lines of the training; None if nothing is trained.
        outcome: whether training helped on dev; None where nothing says so.
        audit: rows of the audits, by the title of their set.
        risks: how true their risks are, likewise.
        cuts: how many texts were cut.
        sizes: of the data sets.
        snippets: code that loads the export, by program.
        recipe: choices by name.
        environment: versions and devices by name.
        history: what made the workdir, a line per stage.
        stages: of the run, in order.
    """

    title: str
    lead: str
    scores: Sequence[Scores] = ()
    ranked: Callable[[], queries.Ranked] | None = None
    sets: int = 0
    mined: Iterable[MinedSet] = ()
    metrics: Sequence[Mapping[str, Any]] | None = None
    outcome: Outcome | None = None
    audit: Mapping[str, Sequence[Row]] = dataclasses.field(default_factory=dict)
    risks: Mapping[str, Sequence[Reliability]] = dataclasses.field(default_factory=dict)
    cuts: Sequence[truncation.Truncation] = ()
    sizes: Sequence[content.Size] = ()
    snippets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    stages: Sequence[str] = ()


def make(inputs: Inputs, options: Report) -> content.ReportData:
    """The content of the page."""
    shares = _shares(options.examples, inputs.sets) if inputs.sets else []
    return content.ReportData(
        title=inputs.title,
        lead=inputs.lead,
        scores=list(inputs.scores),
        compared=_compared(inputs, options),
        mined=[mined.mined(one, share) for one, share in zip(inputs.mined, shares, strict=True)],
        training=_training(inputs.metrics, inputs.outcome) if inputs.metrics else None,
        audit=_named(inputs.audit),
        risks=_named(inputs.risks),
        cuts=[_cut(found) for found in inputs.cuts],
        sizes=list(inputs.sizes),
        snippets=dict(inputs.snippets),
        config=dict(inputs.recipe),
        environment=dict(inputs.environment),
        commands=_commands(inputs.history),
        timings=_timings(inputs.history, inputs.stages),
    )


def _write(artifact: Artifact, inputs: Inputs, data: content.ReportData) -> None:
    artifact.write_file(lambda path: report.write(data, path))


def _compared(inputs: Inputs, options: Report) -> content.Compared | None:
    return None if inputs.ranked is None else queries.compare(inputs.ranked(), options.queries)


def _shares(examples: int, sets: int) -> list[int]:
    """The number of examples from each set; each gets one if there are any."""
    return [max(min(1, examples), (examples + i) // sets) for i in reversed(range(sets))]


def _cut(found: truncation.Truncation) -> content.Cut:
    return content.Cut(
        encoder=found.encoder,
        texts=f"{found.dataset} {found.table}",
        length=found.length,
        share=truncation.percent(found.share),
        counts=found.counts,
    )


def _training(
    lines: Sequence[Mapping[str, Any]], outcome: Outcome | None
) -> content.Training | None:
    """The curves of all that was logged."""
    curves: dict[str, content.Curve] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "stage"):
                curve = curves.setdefault(name, content.Curve(_name(name), [], []))
                curve.steps.append(int(line["step"]))
                curve.values.append(float(value))
    if "loss" not in curves:
        return None
    stages = [line["stage"] for line in lines if "loss" in line]
    ends = [
        int(step)
        for step, stage, following in zip(curves["loss"].steps, stages, stages[1:], strict=False)
        if stage != following
    ]
    rest = curves.keys() - _CURVES.keys() - _SPEED.keys() - {"loss", SCORE}
    order = [*_CURVES, *sorted(rest)]
    return content.Training(
        loss=curves["loss"],
        dev=curves.get(SCORE),
        others=[curves[name] for name in order if name in curves],
        speed=[curves[name] for name in _SPEED if name in curves],
        bounds=ends,
        outcome="" if outcome is None else str(outcome),
        helped=outcome is None or outcome.helped,
    )


def _name(metric: str) -> str:
    """What people call a metric."""
    return {**_CURVES, **_SPEED}.get(metric, metric)


def _commands(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The newest command lines, each once, the newest last."""
    found = dict.fromkeys(line.get("command", "") for line in reversed(lines))
    return [line for line in list(found)[:_COMMANDS] if line][::-1]


def _timings(lines: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> list[content.Timing]:
    """The newest work of each stage that ended, in order."""
    newest = {line["stage"]: line for line in lines if "ended" in line}
    return [
        content.Timing(name, float(newest[name]["seconds"]), _when(newest[name]["ended"]))
        for name in stages
        if name in newest and name != "report"
    ]


def _when(ended: str) -> str:
    return ended[:16].replace("T", " ")


# --- what is read of a run -----------------------------------------------------------------------


def artifact(run: Run) -> Artifact:
    """report.html."""
    parts = {**trained.parts(run), **run.values_of(Report, "report")}
    parts["said"] = recipe.part(run)
    for stage, made in (("audit", audit.artifact), ("mine", mine.artifact)):
        for name, set_run in run.sets.items() if stage in run.config.stages else ():
            of = "" if name == MAIN_SET else f"{name}:"
            parts[f"{of}{'negatives' if stage == 'mine' else stage}"] = made(set_run)
    return run.workdir.report(parts | evaluate.scores_parts(run), run.about)


def _artifacts(run: Run) -> list[Artifact]:
    return [artifact(run)]


def _inputs(run: Run, artifact: Artifact) -> tuple[Inputs, Report]:
    stages, titled = run.config.stages, _titled(run)
    what = "a text retriever" if run.trains or run.evaluates else "mining"
    audited = titled if "audit" in stages else {}
    of_mining = titled if "mine" in stages else {}
    metrics = outcome = None
    if run.trains:
        need(trained.artifact(run))
        metrics, outcome = read_metrics(run.workdir.metrics), trained.dev_outcome(run)
    inputs = Inputs(
        title=f"{run.config.name}: {what}",
        lead=_lead(run),
        scores=[evaluate.read_scores(run)] if run.evaluates else [],
        ranked=(lambda: _ranked(run)) if run.evaluates else None,
        sets=len(of_mining),
        mined=(_opened(run, name, title) for title, name in _names(run, of_mining)),
        metrics=metrics,
        outcome=outcome,
        audit={
            title: read_csv(need(audit.artifact(set_run)).path)
            for title, set_run in audited.items()
        },
        risks={title: _risks(set_run) for title, set_run in audited.items()},
        cuts=truncation.of_run(run),
        sizes=_sizes(run),
        snippets=_snippets(run) if "export" in stages else {},
        recipe=recipe.of(run),
        environment={
            **provenance.versions(),
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            "processes": str(process_count()),
        },
        history=provenance.read(run.workdir.path),
        stages=list(stages),
    )
    return inputs, blocks.read(Report, run.config.report)


def _names(run: Run, titled: Mapping[str, Run]) -> list[tuple[str, str]]:
    """(title, name) of each training set."""
    return list(zip(titled, run.sets, strict=True)) if titled else []


def _opened(run: Run, name: str, title: str) -> MinedSet:
    """What mining read and made of one set of a run."""
    set_run = run.sets[name]
    data = set_run.train_data
    # The first teacher's candidates are shown.
    candidates, _ = distinct(
        ranked.read_candidates(set_run, set_run.teacher_names[0]), None, set_run.passage_texts
    )
    made = need(mine.artifact(set_run))
    counts = json.loads(made.path.with_suffix(".counts.json").read_text())
    found = counts.get("false_negatives")
    wanted = set_run.config.mining.num_negatives
    return MinedSet(
        title,
        data,
        candidates,
        mine.read(set_run),
        exclusions.opened(set_run).of_candidates(candidates),
        set_run.options,
        recipe.rule(set_run),
        set_run.teacher_models,
        # They are not if a teacher is drawn for each query.
        has_one_scale=len(set_run.teacher_names) == 1 or set_run.options.ensemble != "cross",
        wanted=wanted,
        used=_used(run, name, wanted) if run.trains else "",
        false_negatives="" if not found else str(Estimate(**found)),
    )


def _used(run: Run, name: str, wanted: int) -> str:
    """How many of the negatives of a set training takes, in words."""
    of_stages = [
        min(stage.num_negatives, wanted)
        for stage in run.training_stages.values()
        if name in sets.sets_of(run.config, stage.sets)
    ]
    least, most = min(of_stages), max(of_stages)
    if least == wanted:
        return "all of them"
    if most == 0:
        return "none of them"
    return f"{least} of them per query" if least == most else f"{least} to {most} of them per query"


def _ranked(run: Run) -> queries.Ranked:
    """The rankings of the test queries, and their scores."""
    path = need(evaluate.artifact(run)).path
    found = json.loads(path.read_text())

    def scores(per_query: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        return {query: values["ndcg_cut_10"] for query, values in per_query.items()}

    def ranking(at: epath.Path) -> dict[str, list[str]]:
        return {query: list(hits) for query, hits in interchange.read_run(at).items()}

    more: dict[str, Any] = {}
    if found["trained"]:
        before = path.with_suffix(".before.trec")
        more |= {"before": scores(found["per_query_before"]), "ranking_before": ranking(before)}
    baseline = evaluate.baseline_artifact(run)
    bm25 = None if baseline is None else json.loads(need(baseline).path.read_text())
    if bm25 is not None:
        of = ranking(baseline.path.with_suffix(".trec"))
        more |= {"bm25": scores(bm25["per_query"]), "ranking_bm25": of}
    return queries.Ranked(
        run.test_data,
        run.config.data.test_split,
        run.config.evaluation.min_relevance,
        scores(found["per_query"]),
        ranking(path.with_suffix(".trec")),
        **more,
    )


def _sizes(run: Run) -> list[content.Size]:
    """All data sets of the run in numbers."""
    out = []
    uses_training = run.trains or {"mine", "audit", "search", "embed"} & set(run.config.stages)
    for title, set_run in _titled(run).items() if uses_training else ():
        data = set_run.config.data
        splits = [data.train_split, *([run.dev_split] if set_run is run and run.dev_split else [])]
        out.append(_size("training", title, set_run.train_data, data.train, splits))
    if run.evaluates:
        data = run.config.data
        out.append(_size("test", run.test_data.name, run.test_data, data.test, [data.test_split]))
    return out


def _size(role: str, name: str, data: Dataset, source: str, splits: Sequence[str]) -> content.Size:
    counts, positives = {}, {}
    for split in splits:
        judged = data.qrels[split].values()
        counts[split] = len(judged)
        relevant = sum(grade > 0 for one in judged for grade in one.values())
        positives[split] = relevant / max(1, len(judged))
    return content.Size(role, name, source, len(data.corpus), counts, positives)


def _snippets(run: Run) -> dict[str, str]:
    return model_card.loading(run.student.spec, str(export_stage.artifact(run).path))


def _named(by_title: Mapping[str, Sequence[Any]]) -> list[Any]:
    """All rows, each with the title of its set."""
    return [
        dataclasses.replace(row, dataset=title) for title, rows in by_title.items() for row in rows
    ]


def _risks(set_run: Run) -> list[Reliability]:
    (beside,) = audit.artifact(set_run).beside
    return read_csv(set_run.workdir.path / beside, Reliability)


def _titled(run: Run) -> dict[str, Run]:
    """The run of each training set by a title: the set's name and its data's.

    One name is used for both if they are the same, or if the set is the main one; titles are
    unique.
    """
    titled: dict[str, Run] = {}
    for name, set_run in run.sets.items():
        data = set_run.train_data.name
        title = data if name in (MAIN_SET, data) and data not in titled else f"{name} ({data})"
        titled[title] = set_run
    return titled


def _lead(run: Run) -> str:
    """A sentence about the run that is true for all of its sets, stages and rounds."""
    set_runs = _titled(run)
    if "audit" in run.config.stages and not run.trains:
        by = list(dict.fromkeys(set_run.teacher_models for set_run in set_runs.values()))
        return f"{_listed(by)}, audited on {_listed(list(set_runs))}."
    if not run.trains:
        return f"{run.config.student.model}, evaluated without training."
    # Sets that were mined in the same way are listed together.
    alike: dict[tuple[str, str], list[str]] = {}
    for title, set_run in set_runs.items():
        how = (set_run.teacher_models, set_run.config.mining.rule)
        alike.setdefault(how, []).append(title)
    of_mining = [
        f"on {_listed(titles)} with hard negatives that {teacher} ranked and the rule {rule} kept"
        for (teacher, rule), titles in alike.items()
    ]
    stages = f" in {len(run.training_stages)} stages" if len(run.training_stages) > 1 else ""
    rounds = ""
    if run.config.rounds > 1:
        rounds = f" This page shows the last of {run.config.rounds} rounds of mining and training."
    return f"{run.untrained.config.model}, trained{stages} {_listed(of_mining)}.{rounds}"


def _listed(names: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


STAGE = Stage(_artifacts, _inputs, make, _write, begin=None)
