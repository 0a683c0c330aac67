"""mine: the hard negatives that a rule keeps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts import Artifact, write_atomic
from nvret_jax.console import say
from nvret_jax.data.ragged import Ragged, join_rows
from nvret_jax.errors import InputError
from nvret_jax.mining import given, verdicts
from nvret_jax.mining.calibrate import calibrate
from nvret_jax.mining.miner import MiningCounts, Teacher, mine
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.rules import VALUES, Rule
from nvret_jax.pipeline import exclusions
from nvret_jax.pipeline.ranked import ranked
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run
from nvret_jax.search.candidates import Candidates


def _mine_artifacts(run: Run) -> list[Artifact]:
    return [run.negatives()]


def _make_negatives(run: Run, artifact: Artifact) -> None:
    data, split = run.train_data, run.config.data.train_split
    queries = data.queries.select(run.positives())
    asked = [Teacher(name, *ranked(run, artifact, name)) for name in run.teacher_names]
    artifact.begin()
    chosen: list[dict[str, Any]] = []
    for number, teacher in enumerate(asked if run.calibrated else ()):
        rule, records = _calibrated(run, teacher, queries.ids)
        asked[number] = dataclasses.replace(teacher, rule=rule)
        chosen += records
    candidates = asked[0].candidates
    effect = exclusions.verdict_effect(run, candidates)
    excluded = exclusions.excluded_passages(
        run, candidates.query_rows, candidates.positive_rows, effect
    )
    negatives, counts = mine(
        asked,
        run.options,
        excluded=excluded.rows,
        query_ids=queries.ids,
        passage_ids=data.corpus.ids,
        texts=run.passage_texts,
    )
    told: dict[str, Any] = dataclasses.asdict(counts) | {"excluded": excluded.counts()}
    if len(run.given_rows().values):
        negatives, of_given = given.combine(
            negatives,
            run.given_rows(),
            run.mining.given,
            asked[0],
            excluded=excluded.rows,
            most=run.options.num_negatives,
            texts=run.passage_texts,
        )
        told["given"] = dataclasses.asdict(of_given)
        _say_given(of_given, run.mining.given)
    if chosen:
        told["calibration"] = chosen
    if effect is not None:
        negatives = _promoted(negatives, effect, asked[0], candidates)
        told["verdicts"] = dataclasses.asdict(effect.counts)
        if not len(negatives):
            raise InputError(f"{run.config.mining.verdicts}: no query is left after the verdicts")
    texts = run.passage_texts
    told["copies"] = 0 if texts is None else len(texts) - texts.count
    if told["copies"]:
        say(
            f"mine      {told['copies']:,} of {len(texts):,} passages repeat the text of another; "
            "a text counts once, whatever its ids"
        )
    _say(counts)
    if mesh_lib.is_main():
        path = artifact.path.parent / f"{split}.counts.json"
        write_atomic(path, json.dumps(told, indent=1, allow_nan=False))
    artifact.finish_file(lambda path: negatives.write(path, data.queries, data.corpus))


def _calibrated(
    run: Run, teacher: Teacher, query_ids: Sequence[str]
) -> tuple[Rule, list[dict[str, Any]]]:
    """The rule with values chosen for a teacher where they are 'auto', and how they were chosen."""
    candidates, records, rule = teacher.candidates, [], run.options.rule

    def excluded(numbers: np.ndarray, positive_rows: Ragged) -> Ragged:
        rows = candidates.query_rows[numbers]
        return exclusions.excluded_passages(run, rows, positive_rows).rows

    for name in run.calibrated:
        choice = calibrate(
            candidates,
            teacher.ranker,
            dataclasses.replace(run.options, rule=rule),  # a second value sees the first
            name,
            target=run.config.mining.calibration.target,
            max_queries=run.config.mining.calibration.queries,
            excluded=excluded,
            query_ids=query_ids,
            passage_ids=run.train_data.corpus.ids,
            seed=run.config.seed,
            teacher=teacher.name,
            texts=run.passage_texts,
        )
        rule = dataclasses.replace(rule, **{VALUES[name]: choice.value})
        records.append(choice.record)
        say(f"mine      {teacher.name}: {VALUES[name]} {choice.value:g}; {choice.record['why']}")
    return rule, records


def _promoted(
    negatives: Negatives, effect: verdicts.VerdictEffect, teacher: Teacher, candidates: Candidates
) -> Negatives:
    """The table without dropped queries, and with promoted passages among the positives."""
    place = np.full(int(candidates.query_rows.max()) + 1, -1, np.int64)
    place[candidates.query_rows] = np.arange(len(candidates))
    numbers = place[negatives.query_rows]
    stay = np.flatnonzero(~effect.dropped_queries[numbers])
    negatives, numbers = negatives.take(stay), numbers[stay]
    more = effect.promoted.take(numbers)
    changes = {"judged_rows": join_rows(negatives.judged_rows, more)}
    if negatives.positive_rows.counts.sum() == negatives.judged_rows.counts.sum():
        # Where each positive is its own anchor, a row has that one only.
        scores = more.like(teacher.ranker.score(numbers, more))
        changes["positive_rows"] = join_rows(negatives.positive_rows, more)
        changes["positive_scores"] = join_rows(negatives.positive_scores, scores)
    return dataclasses.replace(negatives, **changes)


def _say_given(counts: given.GivenCounts, mode: str) -> None:
    say(
        f"mine      {counts.queries:,} queries come with {counts.given:,} negatives "
        f"(mining.given='{mode}'): {counts.used:,} in the table, {counts.ruled_out:,} ruled out, "
        f"{counts.above:,} at or above the ceiling of the rule"
    )
    if mode == "only" and counts.without:
        say(f"mine      {counts.without:,} rows have no negative of the data set, and so none")


def _say(counts: MiningCounts) -> None:
    filled = counts.tasks - counts.short
    again = sum(c.searched_again for c in counts.teachers.values())
    found = sum(c.found_again for c in counts.teachers.values())
    unit = "queries" if counts.tasks == counts.queries else "pairs of query and positive"
    say(
        f"mine      {filled:,} of {counts.tasks:,} {unit} have all {counts.wanted} negatives; "
        f"{counts.total('above'):,} candidates lay above the ceiling; a second search below it "
        f"found {found:,} for {again:,} left short"
    )
    if counts.dropped or counts.filled_at_random:
        say(
            f"mine      {counts.dropped:,} dropped for lack of negatives, "
            f"{counts.filled_at_random:,} negatives filled in at random"
        )
    names = list(counts.teachers)
    for i, name in enumerate(names) if len(names) > 1 else ():
        row = "  ".join(f"{value:.3f}" for value in counts.overlap[i])
        say(f"mine      overlap of negatives (Jaccard)  {name:<16} {row}")


STAGE = Stage(_mine_artifacts, _make_negatives)
