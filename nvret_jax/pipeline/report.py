"""report: what the run did, on one page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nvret_jax import __version__
from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.config.sets import MAIN_SET
from nvret_jax.data.dataset import Dataset
from nvret_jax.evaluation.comparison import Scores
from nvret_jax.mining.audit.audit import Row, read_csv
from nvret_jax.mining.exclude.exclusion import Exclusions, Reason
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Options
from nvret_jax.mining.survivors import Verdict, judge
from nvret_jax.options import blocks
from nvret_jax.pipeline import audit, evaluate, exclusions, mine, ranked, said, trained, truncation
from nvret_jax.pipeline.made import need
from nvret_jax.pipeline.stage import Stage, begin_nothing
from nvret_jax.pipeline.state import Run
from nvret_jax.report import report
from nvret_jax.report.options import Report
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers.distinct import distinct
from nvret_jax.training.metric_writer import read_metrics

_WHY = {
    Verdict.ABOVE: "at or above the ceiling",
    Verdict.SKIPPED: "among the ranks skipped",
    Verdict.BEYOND: "behind the last rank allowed",
    Verdict.BELOW: "below the least score",
}
_WHY_EXCLUDED = {
    Reason.OWN_TEXT: "the query's own text",
    Reason.SAME_TEXT: "a positive's text under another id",
    Reason.NEAR_COPY: "a near copy of a positive",
    Reason.SAME_DOCUMENT: "from a positive's document",
    Reason.VERDICT: "ruled out by a judge",
}
_DROPPED_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class MinedSet:
    """What mining read and made of one training set.

    Attributes:
        title: of the set, for people.
        data: its queries and corpus.
        candidates: of the first teacher, each text once.
        negatives: what was kept.
        excluded: what could never be a negative of the candidates' queries.
        options: how it was mined.
        rule, teachers: for people.
        has_one_scale: whether the ceilings are on the scale of the candidates' scores.
        wanted: negatives asked for per query.
    """

    title: str
    data: Dataset
    candidates: Candidates
    negatives: Negatives
    excluded: Exclusions
    options: Options
    rule: str
    teachers: str
    has_one_scale: bool
    wanted: int


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the page shows.

    Attributes:
        title, lead: what the run is, and what it was in a sentence.
        scores: of the evaluation.
        sets: number of training sets that were mined.
        mined: each of them, opened when it is asked for.
        metrics: lines of the training; None where nothing is trained.
        audit: rows of the audits, by the title of their set.
        cuts: how many texts were cut.
        recipe: choices by name.
        environment: versions and devices by name.
    """

    title: str
    lead: str
    scores: Sequence[Scores] = ()
    sets: int = 0
    mined: Iterable[MinedSet] = ()
    metrics: Sequence[Mapping[str, Any]] | None = None
    audit: Mapping[str, Sequence[Row]] = dataclasses.field(default_factory=dict)
    cuts: Sequence[truncation.Truncation] = ()
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def artifact(run: Run) -> Artifact:
    """report.html."""
    parts = {**trained.parts(run), **run.values_of(Report, "report")}
    parts["said"] = said.part(run)
    for stage, made in (("audit", audit.artifact), ("mine", mine.artifact)):
        for name, part in run.sets.items() if stage in run.config.stages else ():
            of = "" if name == MAIN_SET else f"{name}:"
            parts[f"{of}{'negatives' if stage == 'mine' else stage}"] = made(part)
    if run.evaluates:
        parts["evaluation"] = evaluate.artifact(run)
    return run.workdir.report(parts, run.about)


def _artifacts(run: Run) -> list[Artifact]:
    return [artifact(run)]


def _inputs(run: Run, artifact: Artifact) -> tuple[Inputs, Report]:
    stages, sets = run.config.stages, _titled(run)
    what = "a text retriever" if run.trains or run.evaluates else "mining"
    audited = sets if "audit" in stages else {}
    mined = sets if "mine" in stages else {}
    metrics = None
    if run.trains:
        need(trained.artifact(run))
        metrics = read_metrics(run.workdir.metrics)
    inputs = Inputs(
        title=f"{run.config.name}: {what}",
        lead=_lead(run),
        scores=[evaluate.read_scores(run)] if run.evaluates else [],
        sets=len(mined),
        mined=(_opened(part, title) for title, part in mined.items()),
        metrics=metrics,
        audit={title: read_csv(need(audit.artifact(part)).path) for title, part in audited.items()},
        cuts=truncation.of_run(run),
        recipe=said.recipe(run),
        environment={
            "nvret_jax": __version__,
            "jax": jax.__version__,
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        },
    )
    return inputs, blocks.read(Report, run.config.report)


def _opened(run: Run, title: str) -> MinedSet:
    """What mining read and made of the set of a run."""
    data = run.train_data
    # The first teacher's candidates are shown.
    candidates, _ = distinct(
        ranked.read_candidates(run, run.teacher_names[0]), None, run.passage_texts
    )
    return MinedSet(
        title,
        data,
        candidates,
        mine.read(run),
        exclusions.opened(run).of_candidates(candidates),
        run.options,
        said.rule(run),
        run.teacher_models,
        # They are not where teachers are drawn query by query.
        has_one_scale=len(run.teacher_names) == 1 or run.options.ensemble != "cross",
        wanted=run.config.mining.num_negatives,
    )


def make(inputs: Inputs, options: Report) -> report.ReportData:
    """Everything the page shows."""
    shares = _shares(options.examples, inputs.sets) if inputs.sets else []
    return report.ReportData(
        title=inputs.title,
        lead=inputs.lead,
        scores=list(inputs.scores),
        mined=[_mined(one, share) for one, share in zip(inputs.mined, shares, strict=True)],
        training=None if inputs.metrics is None else _training(inputs.metrics),
        audit=[
            dataclasses.replace(row, dataset=title)
            for title, rows in inputs.audit.items()
            for row in rows
        ],
        cuts=[_cut(found) for found in inputs.cuts],
        config=dict(inputs.recipe),
        environment=dict(inputs.environment),
    )


def _write(artifact: Artifact, inputs: Inputs, data: report.ReportData) -> None:
    artifact.write_file(lambda path: report.write(data, path))


def _titled(run: Run) -> dict[str, Run]:
    """The run of each training set by a title for people: the set's name and its data's.

    One name serves for both where they are the same, or where the set is the main one; no two
    titles are equal.
    """
    titled: dict[str, Run] = {}
    for name, part in run.sets.items():
        data = part.train_data.name
        title = data if name in (MAIN_SET, data) and data not in titled else f"{name} ({data})"
        titled[title] = part
    return titled


def _shares(examples: int, sets: int) -> list[int]:
    """How many of the examples are of each set; each gets one if there are any."""
    return [max(min(1, examples), (examples + i) // sets) for i in reversed(range(sets))]


def _cut(found: truncation.Truncation) -> report.Cut:
    return report.Cut(
        encoder=found.encoder,
        texts=f"{found.dataset} {found.table}",
        length=found.length,
        share=truncation.percent(found.share),
        counts=found.counts,
    )


def _lead(run: Run) -> str:
    """What the run was, in a sentence that holds for all of its sets, stages and rounds."""
    parts = _titled(run)
    if "audit" in run.config.stages and not run.trains:
        by = list(dict.fromkeys(part.teacher_models for part in parts.values()))
        return f"{_listed(by)}, audited on {_listed(list(parts))}."
    if not run.trains:
        return f"{run.config.student.model}, evaluated without training."
    # Sets that were mined alike are named together.
    alike: dict[tuple[str, str], list[str]] = {}
    for title, part in parts.items():
        how = (part.teacher_models, part.config.mining.rule)
        alike.setdefault(how, []).append(title)
    mined = [
        f"on {_listed(titles)} with hard negatives that {teacher} ranked and the rule {rule} kept"
        for (teacher, rule), titles in alike.items()
    ]
    stages = f" in {len(run.stages)} stages" if len(run.stages) > 1 else ""
    rounds = ""
    if run.config.rounds > 1:
        rounds = f" This page shows the last of {run.config.rounds} rounds of mining and training."
    return f"{run.untrained.config.model}, trained{stages} {_listed(mined)}.{rounds}"


def _listed(names: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _training(lines: Sequence[Mapping[str, Any]]) -> report.Training:
    losses = [line for line in lines if "loss" in line]
    dev = [line for line in lines if "dev_ndcg_cut_10" in line]
    return report.Training(
        steps=[int(line["step"]) for line in losses],
        losses=[line["loss"] for line in losses],
        learning_rates=[line["learning_rate"] for line in losses],
        dev_steps=[int(line["step"]) for line in dev],
        dev_ndcg=[line["dev_ndcg_cut_10"] for line in dev],
    )


def _mined(of: MinedSet, shown: int) -> report.Mined:
    """What mining made of one set; `shown`: greatest number of examples."""
    data, wanted, options = of.data, of.wanted, of.options
    candidates, negatives, excluded = of.candidates, of.negatives, of.excluded
    place = {int(row): number for number, row in enumerate(candidates.query_rows)}
    numbers_r = np.array([place[int(row)] for row in negatives.query_rows], np.int64)
    ceilings_q = negatives.ceilings
    verdicts_qk, ranks_qk = judge(
        candidates, numbers_r, ceilings_q, options.rule, excluded.rows, options.window
    )
    scores_qk = candidates.scores.take(numbers_r).padded(-np.inf)
    rows_qk = candidates.passage_rows.take(numbers_r).padded(-1)
    reasons_qk = excluded.take(numbers_r).reason_of(rows_qk)
    if not of.has_one_scale:
        verdicts_qk[:] = Verdict.EMPTY
    thrown_qk = np.isin(verdicts_qk, [*_WHY, Verdict.EXCLUDED])

    def why(q: int, k: int) -> str:
        verdict = Verdict(int(verdicts_qk[q, k]))
        if verdict == Verdict.EXCLUDED:
            return _WHY_EXCLUDED[Reason(int(reasons_qk[q, k]))]
        return _WHY[verdict]

    kept = negatives.negative_rows.counts
    # Evenly spread over the queries, so that the examples are of all kinds.
    count = min(shown, len(negatives))
    numbers = np.linspace(0, len(negatives) - 1, count).astype(int) if count else []

    def passage(row: int, score: float, **more: Any) -> report.Passage:
        return report.Passage(data.corpus.ids[row], data.corpus.texts[row], float(score), **more)

    def example(q: int) -> report.Example:
        thrown = np.flatnonzero(thrown_qk[q])[:_DROPPED_SHOWN]
        ranks = negatives.negative_ranks[q].tolist()
        return report.Example(
            query_id=data.queries.ids[negatives.query_rows[q]],
            query=data.queries.texts[negatives.query_rows[q]],
            positives=[
                passage(row, score)
                for row, score in zip(
                    negatives.positive_rows[q][:5], negatives.positive_scores[q][:5], strict=True
                )
            ],
            negatives=[
                passage(row, score, rank=rank or None)
                for row, score, rank in zip(
                    negatives.negative_rows[q], negatives.negative_scores[q], ranks, strict=True
                )
            ],
            dropped=[
                passage(
                    rows_qk[q, k],
                    scores_qk[q, k],
                    rank=int(ranks_qk[q, k]) or None,
                    why=why(q, int(k)),
                )
                for k in thrown
            ],
            ceiling=float(ceilings_q[q]) if np.isfinite(ceilings_q[q]) else math.inf,
        )

    return report.Mined(
        dataset=of.title,
        mining=report.Mining(
            rule=of.rule,
            teacher=of.teachers,
            queries=len(negatives),
            filled=int((kept >= wanted).sum()),
            underfilled=int((kept < wanted).sum()),
            negatives=int(kept.sum()),
            dropped={
                words: int(count)
                for words, count in (
                    *((_WHY[v], (verdicts_qk == v).sum()) for v in _WHY),
                    *(
                        (_WHY_EXCLUDED[r], ((reasons_qk == r) & thrown_qk).sum())
                        for r in _WHY_EXCLUDED
                    ),
                )
                if count
            },
        ),
        teacher_scores=report.TeacherScores(
            positive=negatives.positive_scores.values,
            negative=negatives.negative_scores.values,
            dropped=scores_qk[thrown_qk],
            ceiling=ceilings_q,
        ),
        examples=[example(int(q)) for q in numbers],
    )


STAGE = Stage(_artifacts, _inputs, make, _write, begin=begin_nothing)
