"""report: what the run did, on one page."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from nvret_jax import __version__
from nvret_jax.artifacts import Artifact
from nvret_jax.mining.audit import read_csv
from nvret_jax.mining.exclusion import Reason
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.survivors import Verdict, judge
from nvret_jax.pipeline import exclusions, truncation
from nvret_jax.pipeline.evaluate import read_scores
from nvret_jax.pipeline.sets import MAIN_SET
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run
from nvret_jax.report import report
from nvret_jax.search.distinct import distinct
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
    stages, sets = run.config.stages, _titled(run)
    shares = _shares(run.config.report.examples, len(sets))
    what = "a text retriever" if run.trains or run.evaluates else "mining"
    audited = sets if "audit" in stages else {}
    return report.ReportData(
        title=f"{run.config.name}: {what}",
        lead=_lead(run),
        scores=[read_scores(run)] if run.evaluates else [],
        mined=[
            _mined(part, title, share)
            for (title, part), share in zip(sets.items(), shares, strict=True)
            if "mine" in stages
        ],
        training=_training(run) if run.trains else None,
        audit=[
            dataclasses.replace(row, dataset=title)
            for title, part in audited.items()
            for row in read_csv(run.need(part.audit()).path)
        ],
        cuts=[_cut(found) for found in truncation.of_run(run)],
        config=run.recipe(),
        environment={
            "nvret_jax": __version__,
            "jax": jax.__version__,
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        },
    )


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


def _mined(run: Run, title: str, shown: int) -> report.Mined:
    """What mining made of one set.

    Args:
        run: of the set.
        title: of the set.
        shown: greatest number of examples.
    """
    data, wanted = run.train_data, run.config.mining.num_negatives
    # The first teacher's candidates are shown; the ceilings are on its scale unless teachers are
    # drawn query by query.
    candidates, _ = distinct(run.read_candidates(run.teacher_names[0]), None, run.passage_texts)
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
        dataset=title,
        mining=report.Mining(
            rule=run.mining_rule,
            teacher=run.teacher_models,
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


STAGE = Stage(_report_artifacts, _make_report)
