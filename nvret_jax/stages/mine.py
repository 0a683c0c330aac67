"""mine: the hard negatives that a rule keeps."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from nvret_jax import mesh as mesh_lib
from nvret_jax import teachers
from nvret_jax.artifacts import Artifact, write_atomic
from nvret_jax.console import say
from nvret_jax.data.ragged import join_rows
from nvret_jax.errors import InputError
from nvret_jax.mining import verdicts
from nvret_jax.mining.miner import MiningCounts, Teacher, mine
from nvret_jax.mining.negatives import Negatives
from nvret_jax.run import Run
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.ranker import ListRanker, Ranker
from nvret_jax.stages import exclusions
from nvret_jax.stages.stage import Stage


def _mine_artifacts(run: Run) -> list[Artifact]:
    return [run.negatives()]


def _make_negatives(run: Run, artifact: Artifact) -> None:
    data, split = run.train_data, run.config.data.train_split
    queries = data.queries.select(run.positives())
    artifact.begin()
    asked = [Teacher(name, *_ranked(run, artifact, name)) for name in run.teacher_names]
    candidates = asked[0].candidates
    effect = exclusions.verdict_effect(run, candidates)
    excluded = exclusions.excluded_passages(run, candidates, effect)
    negatives, counts = mine(
        asked,
        run.options,
        excluded=excluded.rows,
        query_ids=queries.ids,
        passage_ids=data.corpus.ids,
    )
    told: dict[str, Any] = dataclasses.asdict(counts) | {"excluded": excluded.counts()}
    if effect is not None:
        negatives = _promoted(negatives, effect, asked[0], candidates)
        told["verdicts"] = dataclasses.asdict(effect.counts)
        if not len(negatives):
            raise InputError(f"{run.config.mining.verdicts}: no query is left after the verdicts")
    _say(counts)
    if mesh_lib.is_main():
        path = artifact.path.parent / f"{split}.counts.json"
        write_atomic(path, json.dumps(told, indent=1, allow_nan=False))
    artifact.finish_file(lambda path: negatives.write(path, data.queries, data.corpus))


def _ranked(run: Run, artifact: Artifact, name: str) -> tuple[Candidates, Ranker]:
    """A teacher's candidates, rescored where that is configured, and what ranks beyond them."""
    rescored = run.rescored(name)
    if rescored is None:
        ranker = teachers.open_ranker(run, name, artifact.partial / "lists")
        return run.read_candidates(name), ranker
    data = run.train_data
    candidates = Candidates.read(run.need(rescored).path, data.queries, data.corpus)

    def score_pairs(pairs: np.ndarray) -> np.ndarray:  # loads the model only if it is asked
        return run.rescorer.score_pairs(pairs)

    return candidates, ListRanker(candidates.query_rows, len(data.corpus), score_pairs)


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
