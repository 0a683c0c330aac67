"""The hardest passages that a rule allows, from one teacher's candidates.

One pass over the stored candidates decides most queries. If a strict ceiling leaves a query short,
a second search below the ceiling, without the passages already considered, reaches beyond the
stored depth: no rule starves a query unless the corpus itself has no passage below the ceiling.

The unit of mining is a *task*: a query or, if each positive is its own anchor, a query with one of
its positives. Tasks are judged in blocks, so memory does not grow with their number.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from nvret_jax.data.ragged import Ragged, join_rows
from nvret_jax.errors import InputError
from nvret_jax.mining.rules import Rule
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers.ranker import Ranker

CELLS = 1 << 22  # candidates judged at a time


class Fate(enum.IntEnum):
    """The outcome for one candidate."""

    EMPTY = 0  # past the end of the query's list
    POSITIVE = 1  # a judged positive of the query
    EXCLUDED = 2  # see mining.exclusion: the query itself, a copy of a positive, …
    SKIPPED = 3  # among the ranks the shifted rule skips
    ABOVE = 4  # at or above the ceiling: too close to the positive to be trusted
    BELOW = 5  # under `min_score`
    BEYOND = 6  # behind `max_rank`
    SURVIVOR = 7


@dataclasses.dataclass(frozen=True)
class Tasks:
    """R tasks to mine for.

    Attributes:
        numbers: int64 [R], query numbers in the candidates.
        positives: int64 ragged, for each task the positions of its positives in the candidates'
            flat list of positives: all of its query's, or its own one.
    """

    numbers: np.ndarray
    positives: Ragged

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(cls, positive_rows: Ragged, anchor: str) -> Tasks:
        """A task per query, or, with anchor 'own', per query and positive."""
        places = np.arange(len(positive_rows.values), dtype=np.int64)
        if anchor == "own":
            offsets = np.arange(len(places) + 1, dtype=np.int64)
            return cls(positive_rows.row_of, Ragged(offsets, places))
        return cls(np.arange(len(positive_rows), dtype=np.int64), positive_rows.like(places))


@dataclasses.dataclass(frozen=True)
class Pool:
    """Passages that may become negatives of each task, best first; every list has the same rows.

    Attributes:
        rows: int32, corpus rows.
        scores: float32, the teacher's.
        ranks: int32, the teacher's rank, from 1, positives and excluded passages not counted; 0 for
            one found beyond the stored candidates.
        ceilings: float32, the ceiling that each is below.
        teachers: int32, the teacher of each.
    """

    rows: Ragged
    scores: Ragged
    ranks: Ragged
    ceilings: Ragged
    teachers: Ragged

    def _each(self, change) -> Pool:
        return Pool(*(change(getattr(self, f.name)) for f in dataclasses.fields(self)))

    def mask(self, keep: np.ndarray) -> Pool:
        """The entries that a mask keeps."""
        return self._each(lambda ragged: ragged.mask(keep))

    def head(self, most: int) -> Pool:
        """The first entries of each task."""
        return self._each(lambda ragged: ragged.head(most))

    def sorted(self, *keys: np.ndarray) -> Pool:
        """Entries of each task by keys, the first key first; ties keep their order."""
        order = np.lexsort((*keys[::-1], self.rows.row_of))
        return self._each(lambda ragged: ragged.like(ragged.values[order]))

    @staticmethod
    def join(pools: list[Pool]) -> Pool:
        """Task i of each pool, concatenated."""
        fields = [f.name for f in dataclasses.fields(Pool)]
        return Pool(*(join_rows(*(getattr(p, name) for p in pools)) for name in fields))


@dataclasses.dataclass(frozen=True)
class TeacherCounts:
    """What happened to one teacher's candidates.

    Attributes:
        verdicts: candidates by `Fate` name, lower case; one in the lists of several tasks counts
            for each.
        searched_again: tasks that the stored candidates left short.
        found_again: passages that the second search added.
    """

    verdicts: dict[str, int]
    searched_again: int
    found_again: int


def judge(
    candidates: Candidates,
    numbers: np.ndarray,
    ceilings_r: np.ndarray,
    rule: Rule,
    excluded: Ragged,
    window: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Applies a rule to stored candidates.

    Args:
        candidates: of Q queries.
        numbers: int [R], the queries of the tasks.
        ceilings_r: float32 [R].
        rule: for its ranks and `min_score`.
        excluded: int32, per query (of all Q) the passages that are never negatives.
        window: candidates considered of each list, positives included; 0: all.

    Returns:
        fates_rk (int8, values of `Fate`) and ranks_rk (int32, from 1, positives and excluded
        passages not counted; 0 for those).
    """
    lists = candidates.passage_rows.take(numbers)
    scores = candidates.scores.take(numbers)
    if window:
        lists, scores = lists.head(window), scores.head(window)
    rows_rk, scores_rk = lists.padded(-1), scores.padded(-np.inf)
    there_rk = rows_rk >= 0
    at_r1 = np.arange(len(rows_rk))[:, None]
    positive_rk = there_rk & candidates.positive_rows.take(numbers).contains(at_r1, rows_rk)
    excluded_rk = there_rk & ~positive_rk & excluded.take(numbers).contains(at_r1, rows_rk)
    free_rk = there_rk & ~positive_rk & ~excluded_rk
    ranks_rk = np.where(free_rk, np.cumsum(free_rk, axis=1), 0).astype(np.int32)
    above_rk = free_rk & (scores_rk >= ceilings_r[:, None])
    below_rk = free_rk & (scores_rk < np.float32(rule.min_score))
    if rule.ranks == "raw":
        counted_rk, counts_rk = free_rk, ranks_rk
    else:
        counted_rk = free_rk & ~above_rk & ~below_rk
        counts_rk = np.cumsum(counted_rk, axis=1)
    skipped_rk = counted_rk & (counts_rk <= rule.ranks_to_skip)
    beyond_rk = counted_rk & (counts_rk > rule.max_rank) & bool(rule.max_rank)
    fates_rk = np.select(
        [positive_rk, excluded_rk, skipped_rk, beyond_rk, above_rk, below_rk, free_rk],
        [
            Fate.POSITIVE,
            Fate.EXCLUDED,
            Fate.SKIPPED,
            Fate.BEYOND,
            Fate.ABOVE,
            Fate.BELOW,
            Fate.SURVIVOR,
        ],
        Fate.EMPTY,
    ).astype(np.int8)
    return fates_rk, ranks_rk


def survivors(
    candidates: Candidates,
    tasks: Tasks,
    ceilings_r: np.ndarray,
    rule: Rule,
    want: int,
    *,
    excluded: Ragged,
    ranker: Ranker | None = None,
    window: int = 0,
    teacher: int = 0,
) -> tuple[Pool, TeacherCounts]:
    """The `want` best passages of each task that a rule allows.

    Args:
        candidates: one teacher's, of Q queries.
        tasks: R tasks.
        ceilings_r: float32 [R].
        rule: for its ranks and `min_score`; ceilings are given.
        want: passages per task.
        excluded: int32, per query the passages that are never negatives.
        ranker: called once (twice if a window of ranks is deeper than the stored candidates) for
            the tasks left short; None: they stay short.
        window: see `judge`.
        teacher: the number recorded with each passage.

    Raises:
        InputError: a candidate's score is not finite.
    """
    finite = np.isfinite(candidates.scores.values)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise InputError(
            f"mining: the teacher's score of passage row {candidates.passage_rows.values[bad]} is "
            f"{candidates.scores.values[bad]}; embeddings must be finite"
        )
    # If survivors are counted, the skipped ones are found first and removed at the end.
    by_survivors = rule.ranks == "survivors"
    need = want + (rule.ranks_to_skip if by_survivors else 0)
    whole = dataclasses.replace(rule, shift=0, max_rank=0) if by_survivors else rule
    found, totals = [], np.zeros(len(Fate), np.int64)
    free_r = np.zeros(len(tasks), np.int64)
    width = max(1, int(candidates.passage_rows.counts.max(initial=0)))
    step = max(1, CELLS // width)
    for start in range(0, max(1, len(tasks)), step):
        block = slice(start, start + step)
        numbers = tasks.numbers[block]
        fates, ranks = judge(candidates, numbers, ceilings_r[block], whole, excluded, window)
        totals += np.bincount(fates.ravel(), minlength=len(Fate))
        free_r[block] = (ranks > 0).sum(axis=1)
        keep = fates == Fate.SURVIVOR
        keep &= np.cumsum(keep, axis=1) <= need
        shape = fates.shape[1]
        rows = candidates.passage_rows.take(numbers).padded(-1, shape)
        scores = candidates.scores.take(numbers).padded(-np.inf, shape)
        found.append((keep.sum(axis=1), rows[keep], scores[keep], ranks[keep]))
    counts, rows, scores, ranks = (np.concatenate(part) for part in zip(*found, strict=True))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    parts = [tuple(Ragged(offsets, values) for values in (rows, scores, ranks))]
    again = 0
    if ranker is not None and ranker.deep:
        more, again = _search_again(
            candidates, tasks, ceilings_r, whole, need - counts, free_r, excluded, ranker, window
        )
        parts += more
    rows, scores, ranks = (join_rows(*lists) for lists in zip(*parts, strict=True))
    pool = Pool(
        rows,
        scores,
        ranks,
        rows.like(ceilings_r[rows.row_of]),
        rows.like(np.full(len(rows.values), teacher, np.int32)),
    )
    if by_survivors:
        place = rows.position
        inside = (place >= rule.ranks_to_skip) & ((place < rule.max_rank) | (not rule.max_rank))
        pool = pool.mask(inside)
    names = {fate.name.lower(): int(totals[fate]) for fate in Fate if fate}
    extra = sum(len(part[0].values) for part in parts[1:])
    return pool.head(want), TeacherCounts(names, again, extra)


def _search_again(
    candidates, tasks, ceilings_r, rule, short_r, free_r, excluded, ranker, window
) -> tuple[list[tuple[Ragged, Ragged, Ragged]], int]:
    """Passages beyond the stored candidates, for the tasks that are short.

    Returns:
        (rows, scores, ranks) of one or two further searches, and how many tasks were searched for.
    """
    listed = candidates.passage_rows.counts[tasks.numbers]
    unseen_r = (np.minimum(listed, window) if window else listed) < ranker.passages
    # Ranks count from the top, so a window of ranks is first followed to its end.
    to_rank = max(rule.ranks_to_skip, rule.max_rank)
    open_r = (short_r > 0) & unseen_r & ((rule.max_rank == 0) | (free_r < rule.max_rank))
    again = np.flatnonzero(open_r)
    if not len(again):
        return [], 0
    numbers = tasks.numbers[again]
    known = join_rows(
        *(r.take(numbers) for r in (candidates.passage_rows, candidates.positive_rows, excluded))
    )
    known = [np.unique(row) for row in known]
    out, short = [], short_r[again].copy()
    ahead = np.maximum(0, to_rank - free_r[again])
    if ahead.any():
        at = np.flatnonzero(ahead)
        k = int(min(ahead.max(), ranker.passages))
        scores, rows = ranker.rank(numbers[at], k, exclude=[known[i] for i in at])
        ranks = free_r[again][at, None] + 1 + np.arange(k)
        there = (rows >= 0) & (ranks <= to_rank)
        ok = there & (ranks > rule.ranks_to_skip) & _allowed(scores, ceilings_r[again[at]], rule)
        ok &= np.cumsum(ok, axis=1) <= short[at, None]
        out.append(_spread(len(tasks), again[at], ok, rows, scores, ranks))
        short[at] -= ok.sum(axis=1)
        for i, row, is_there in zip(at, rows, there, strict=True):
            known[i] = np.union1d(known[i], row[is_there])
    at = np.flatnonzero(short > 0)
    if len(at) and not rule.max_rank:
        k = int(min(short[at].max(), ranker.passages))
        ceilings = ceilings_r[again[at]]
        scores, rows = ranker.rank(
            numbers[at], k, ceiling_q=ceilings, exclude=[known[i] for i in at]
        )
        ok = (rows >= 0) & (np.arange(k) < short[at, None]) & _allowed(scores, ceilings, rule)
        out.append(_spread(len(tasks), again[at], ok, rows, scores, np.zeros_like(rows)))
    return out, len(again)


def _allowed(scores_rk, ceilings_r, rule: Rule) -> np.ndarray:
    return (scores_rk < ceilings_r[:, None]) & (scores_rk >= np.float32(rule.min_score))


def _spread(tasks: int, at: np.ndarray, keep, rows, scores, ranks):
    """Kept entries of some tasks, as (rows, scores, ranks) over all tasks."""
    counts = np.zeros(tasks, np.int64)
    counts[at] = keep.sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    kinds = ((rows, np.int32), (scores, np.float32), (ranks, np.int32))
    return tuple(Ragged(offsets, values[keep].astype(kind)) for values, kind in kinds)
