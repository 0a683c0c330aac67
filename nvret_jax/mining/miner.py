"""Teachers' candidates in, hard negatives out.

Per teacher: anchors, ceilings, survivors (`survivors.py`, with the second search). Then a draw
among the survivors (`sampling.py`), one list from several teachers' (`ensemble.py`), and finally
the handling of tasks that stay short. Every step is a pure function of its inputs and of (seed,
query id, passage id), so results do not depend on the mesh or the order of queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nvret_jax.data.hashing import mix, stable_hash
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining import ensemble, risk, sampling
from nvret_jax.mining.negatives import RANDOM, Negatives
from nvret_jax.mining.options import Options
from nvret_jax.mining.risk import RiskModel
from nvret_jax.mining.rules import Rule, anchors
from nvret_jax.mining.survivors import Pool, Tasks, TeacherCounts, survivors
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers.ranker import Ranker


@dataclasses.dataclass(frozen=True)
class Teacher:
    """One teacher in mining.

    Attributes:
        name: recorded with its negatives.
        candidates: of Q queries; all teachers have the same queries and positives.
        ranker: for passages beyond the candidates; None: only the candidates are used.
        rule: a rule (with a calibrated value) that replaces the options' for this teacher.
        risk: how likely its candidates are relevant, where there is a budget for that.
    """

    name: str
    candidates: Candidates
    ranker: Ranker | None = None
    rule: Rule | None = None
    risk: RiskModel | None = None


@dataclasses.dataclass(frozen=True)
class MiningCounts:
    """What happened, in numbers of tasks and of candidates.

    Attributes:
        queries: queries mined for.
        tasks: rows mined: one per query, or one per positive if each is its own anchor.
        wanted: negatives asked for per task.
        teachers: by name.
        given: negatives by the teacher that gave them.
        short: tasks for which fewer than `wanted` were found.
        missing: negatives missing over all short tasks.
        dropped: tasks dropped because they were short.
        filled_at_random: negatives drawn at random to fill them.
        overlap: mean Jaccard overlap of the teachers' own negatives, [T][T]; empty for one teacher.
    """

    queries: int
    tasks: int
    wanted: int
    teachers: dict[str, TeacherCounts]
    given: dict[str, int]
    short: int
    missing: int
    dropped: int
    filled_at_random: int
    overlap: list[list[float]]

    def total(self, fate: str) -> int:
        """Candidates with one fate, over all teachers."""
        return sum(counts.verdicts[fate] for counts in self.teachers.values())


def mine(
    teachers: Sequence[Teacher],
    options: Options,
    *,
    excluded: Ragged,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    texts: SameText | None = None,
) -> tuple[Negatives, MiningCounts]:
    """Takes the hardest negatives that a rule allows.

    Args:
        teachers: at least one, the most accurate first.
        options: how to mine.
        excluded: int32, per query the passages that are never negatives, apart from judged
            positives.
        query_ids: of the Q queries of the candidates; draws depend on them.
        passage_ids: of all N passages.
        texts: of the corpus, with teachers over its distinct texts (`rankers.distinct`): no task
            has a text twice, except where an ensemble repeats negatives on which teachers agree.
            None: every id is a distinct text.

    Returns:
        One row per task, in the order of queries and positives; and what happened.

    Raises:
        InputError: there is no query, a query has no positive, a candidate has no finite score, or
            the teachers' candidates are of different queries.
    """
    first = teachers[0].candidates
    if not len(first):
        raise InputError("mining: no training query has a positive")
    for teacher in teachers[1:]:
        _check_same(teachers[0], teacher)
    tasks = Tasks.of(first.positive_rows, options.rule.anchor)
    pools, ceilings, counts = [], [], {}
    for number, teacher in enumerate(teachers):
        rule = teacher.rule or options.rule
        ceilings_r = rule.ceilings(anchors(teacher.candidates.positive_scores, rule.anchor))
        if options.risk_budget and teacher.risk is not None:
            ceilings_r = risk.ceilings(
                teacher.risk,
                teacher.candidates,
                tasks,
                ceilings_r,
                rule,
                excluded=excluded,
                budget=options.risk_budget,
                count=options.num_negatives,
                window=options.window,
            )
        pool, counts[teacher.name] = survivors(
            teacher.candidates,
            tasks,
            ceilings_r,
            rule,
            options.pool_size,
            excluded=excluded,
            ranker=teacher.ranker if options.second_search else None,
            window=options.window,
            teacher=number,
        )
        pools.append(pool)
        ceilings.append(ceilings_r)
    task_hash = _task_hash(tasks, first, options, query_ids, passage_ids)
    pool = _draw(pools, options, task_hash, passage_ids, texts)
    found = pool.rows.counts
    scale = np.zeros(len(tasks), np.int64)
    if len(teachers) > 1 and options.ensemble == "cross":
        scale = ensemble.chosen_teachers(len(teachers), options.seed, task_hash)
    names = tuple(teacher.name for teacher in teachers)
    filled = 0
    if options.short == "random" and (found < options.num_negatives).any():
        pool = _fill(pool, teachers, tasks, options, task_hash, excluded, len(passage_ids), texts)
        names, filled = (*names, RANDOM), int(pool.rows.counts.sum() - found.sum())
    negatives = Negatives(
        query_rows=first.query_rows[tasks.numbers],
        positive_rows=tasks.positives.like(first.positive_rows.values[tasks.positives.values]),
        positive_scores=_scores_on(scale, teachers, tasks),
        judged_rows=first.positive_rows.take(tasks.numbers),
        negative_rows=pool.rows,
        negative_scores=pool.scores,
        negative_ranks=pool.ranks,
        teachers=names,
        negative_teachers=pool.teachers,
        negative_ceilings=pool.ceilings,
        ceilings=np.stack(ceilings)[scale, np.arange(len(tasks))],
    )
    short_r = found < options.num_negatives
    dropped = short_r & (pool.rows.counts < options.num_negatives) & (options.short == "drop")
    if dropped.any():
        negatives = negatives.take(np.flatnonzero(~dropped))
    overlap = []
    if len(pools) > 1:
        overlap = ensemble.overlaps(pools, options.num_negatives, texts).tolist()
    return negatives, MiningCounts(
        queries=len(first),
        tasks=len(tasks),
        wanted=options.num_negatives,
        teachers=counts,
        given=ensemble.counts_by_teacher(negatives.negative_teachers, names),
        short=int(short_r.sum()),
        missing=int((options.num_negatives - found)[short_r].sum()),
        dropped=int(dropped.sum()),
        filled_at_random=filled,
        overlap=overlap,
    )


def _draw(pools: list[Pool], options: Options, task_hash, passage_ids, texts) -> Pool:
    """The negatives of each task, from its survivors."""
    passage_hash = np.zeros(len(passage_ids), np.uint64)
    if options.sampling != "top":
        used = np.unique(np.concatenate([pool.rows.values for pool in pools]))
        passage_hash[used] = stable_hash([passage_ids[row] for row in used])
    turns = [
        sampling.priorities(
            pool,
            options.sampling,
            sample_from=options.sample_from,
            temperature=options.sample_temperature,
            seed=options.seed,
            task_hash=task_hash,
            passage_hash=passage_hash,
        )
        for pool in pools
    ]
    if len(pools) == 1:
        return pools[0].mask(turns[0] < options.num_negatives)
    return ensemble.combine(
        pools,
        turns,
        options.ensemble,
        options.num_negatives,
        seed=options.seed,
        task_hash=task_hash,
        texts=texts,
    )


def _task_hash(tasks, candidates, options, query_ids, passage_ids) -> np.ndarray:
    """What a draw for a task depends on: the query's id, and that of a positive as anchor."""
    hashes = stable_hash(query_ids)[tasks.numbers]
    if options.rule.anchor != "own":
        return hashes
    rows = candidates.positive_rows.values[tasks.positives.values]
    return mix(hashes, stable_hash([passage_ids[row] for row in rows]))


def _scores_on(scale: np.ndarray, teachers: Sequence[Teacher], tasks: Tasks) -> Ragged:
    """Each task's positive scores by the teacher numbered in `scale`."""
    scores = np.stack([teacher.candidates.positive_scores.values for teacher in teachers])
    whose = np.repeat(scale, tasks.positives.counts)
    return tasks.positives.like(scores[whose, tasks.positives.values])


def _fill(pool, teachers, tasks, options, task_hash, excluded, passages, texts) -> Pool:
    """Adds random passages to the tasks that are short; the first teacher scores them."""
    teacher = teachers[0]
    at = np.flatnonzero(pool.rows.counts < options.num_negatives)
    judged = teacher.candidates.positive_rows
    drawn: list[list[int]] = [[] for _ in range(len(tasks))]
    for r in at:
        number = tasks.numbers[r]
        forbidden = {*judged[number].tolist(), *excluded[number].tolist(), *pool.rows[r].tolist()}
        count = options.num_negatives - len(pool.rows[r])
        drawn[r] = sampling.random_rows(
            passages, count, forbidden, options.seed, task_hash[r], texts
        )
    rows = Ragged.from_rows(drawn, np.int32)
    scores = np.full(len(rows.values), -np.inf, np.float32)
    if teacher.ranker is not None:
        scores = teacher.ranker.score(tasks.numbers, rows)
    zeros = np.zeros(len(rows.values), np.int32)
    more = Pool(
        rows,
        rows.like(scores),
        rows.like(zeros),
        rows.like(np.full(len(zeros), np.inf, np.float32)),
        rows.like(np.full(len(zeros), len(teachers), np.int32)),
    )
    return Pool.join([pool, more])


def _check_same(one: Teacher, other: Teacher) -> None:
    a, b = one.candidates, other.candidates
    same = len(a) == len(b) and np.array_equal(a.query_rows, b.query_rows)
    same = same and np.array_equal(a.positive_rows.values, b.positive_rows.values)
    if not (same and np.array_equal(a.positive_rows.offsets, b.positive_rows.offsets)):
        raise InputError(
            f"mining: the candidates of teacher {other.name!r} ({len(b)} queries) do not have the "
            f"queries and positives of teacher {one.name!r} ({len(a)} queries)"
        )
