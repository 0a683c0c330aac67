"""report: what the run did, on one page."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from nvret_jax import __version__, teachers
from nvret_jax.artifacts import Artifact
from nvret_jax.mining.audit import read_csv
from nvret_jax.mining.exclusion import Reason
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.survivors import Verdict, judge
from nvret_jax.report import report
from nvret_jax.run import Run
from nvret_jax.stages import exclusions
from nvret_jax.stages.evaluate import read_scores
from nvret_jax.stages.stage import Stage
from nvret_jax.training.writer import read_metrics

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


def _report_artifacts(run: Run) -> list[Artifact]:
    return [run.report()]


def _make_report(run: Run, artifact: Artifact) -> None:
    data = gather(run)
    artifact.write_file(lambda path: report.write(data, path))


def gather(run: Run) -> report.ReportData:
    """Everything the page shows, from the artefacts of earlier stages."""
    stages = run.config.stages
    mined: dict[str, Any] = {}
    if "mine" in stages:
        mined = _mined(run.shown)
    what = "a text retriever" if run.trains or run.evaluates else "mining"
    return report.ReportData(
        title=f"{run.config.name}: {what}",
        lead=_lead(run),
        scores=[read_scores(run)] if run.evaluates else [],
        training=_training(run) if run.trains else None,
        audit=read_csv(run.need(run.shown.audit()).path) if "audit" in stages else [],
        config=run.recipe(),
        environment={
            "nvret_jax": __version__,
            "jax": jax.__version__,
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        },
        **mined,
    )


def _lead(run: Run) -> str:
    if "audit" in run.config.stages and not run.trains:
        return f"{teachers.describe(run.shown)}, audited on {run.shown.train_data.name}."
    if not run.trains:
        return f"{run.config.student.model}, as it is."
    names = list(dict.fromkeys(run.trained_on.values()))
    where = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return (
        f"{run.untrained.config.model}, trained on {where} with hard negatives that "
        f"{teachers.describe(run.shown)} ranked and the rule {run.shown.config.mining.rule} kept."
    )


def _training(run: Run) -> report.Training:
    run.need(run.checkpoints())
    lines = read_metrics(run.workdir.metrics)
    losses = [line for line in lines if "loss" in line]
    dev = [line for line in lines if "dev_ndcg_cut_10" in line]
    return report.Training(
        steps=[int(line["step"]) for line in losses],
        losses=[line["loss"] for line in losses],
        learning_rates=[line["learning_rate"] for line in losses],
        dev_steps=[int(line["step"]) for line in dev],
        dev_ndcg=[line["dev_ndcg_cut_10"] for line in dev],
    )


def _mined(run: Run) -> dict[str, Any]:
    data, wanted = run.train_data, run.config.mining.num_negatives
    # The first teacher's candidates are shown; the ceilings are on its scale unless teachers are
    # drawn query by query.
    candidates = run.read_candidates(run.teacher_names[0])
    negatives = Negatives.read(run.need(run.negatives()).path, data.queries, data.corpus)
    excluded = exclusions.of_candidates(run, candidates)
    place = {int(row): number for number, row in enumerate(candidates.query_rows)}
    numbers_r = np.array([place[int(row)] for row in negatives.query_rows], np.int64)
    ceilings_q, options = negatives.ceilings, run.options
    verdicts_qk, ranks_qk = judge(
        candidates, numbers_r, ceilings_q, options.rule, excluded.rows, options.window
    )
    scores_qk = candidates.scores.take(numbers_r).padded(-np.inf)
    rows_qk = candidates.passage_rows.take(numbers_r).padded(-1)
    reasons_qk = excluded.take(numbers_r).reason_of(rows_qk)
    if len(run.teacher_names) > 1 and options.ensemble == "cross":
        verdicts_qk[:] = Verdict.EMPTY
    thrown_qk = np.isin(verdicts_qk, [*_WHY, Verdict.EXCLUDED])

    def why(q: int, k: int) -> str:
        verdict = Verdict(int(verdicts_qk[q, k]))
        if verdict == Verdict.EXCLUDED:
            return _WHY_EXCLUDED[Reason(int(reasons_qk[q, k]))]
        return _WHY[verdict]

    kept = negatives.negative_rows.counts
    # Evenly spread over the queries, so that the examples are of all kinds.
    count = min(run.config.report.examples, len(negatives))
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

    return {
        "mining": report.Mining(
            rule=run.mining_rule,
            teacher=teachers.describe(run),
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
        "teacher_scores": report.TeacherScores(
            positive=negatives.positive_scores.values,
            negative=negatives.negative_scores.values,
            dropped=scores_qk[thrown_qk],
            ceiling=ceilings_q,
        ),
        "examples": [example(int(q)) for q in numbers],
    }


STAGE = Stage(_report_artifacts, _make_report)
