"""One list of negatives from several teachers' survivors (paper section 4.2), and their overlap.

    cross          one teacher is drawn for each query and gives all its negatives
    intra          the teachers take turns; each gives its best: repeats stay, and weigh double
                   in the loss (the paper's best)
    intra_dedup    the teachers take turns; each gives its best that is new
    union          all survivors, a passage once, by the best rank any teacher gave it
    rrf            all survivors, a passage once, by reciprocal rank fusion: sum of 1 / (60 + rank)

With as many negatives as teachers, `intra` is the paper's "top-1 from each of the four". Teachers
are in the configured order, the most accurate first. Ranks, unlike scores, mean the same for every
teacher, so scores of different teachers are never compared here.
"""

from __future__ import annotations

import numpy as np

from nvret_jax.data.hashing import uniform01
from nvret_jax.data.ragged import Ragged, join_rows
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.options import ENSEMBLES
from nvret_jax.mining.survivors import Pool
from nvret_jax.options import choice, mistake

RRF_CONSTANT = 60  # Cormack, Clarke and Buettcher, 2009
_TEACHER_DRAW = np.uint64(0x7465616368657273)  # separates this draw from those of passages


def chosen_teachers(teachers: int, seed: int, task_hash: np.ndarray) -> np.ndarray:
    """The teacher that `cross` draws for each task, int64 [R]."""
    draw = uniform01(seed, task_hash, _TEACHER_DRAW)
    return np.minimum((draw * teachers).astype(np.int64), teachers - 1)


def combine(
    pools: list[Pool],
    turns: list[np.ndarray],
    mode: str,
    num_negatives: int,
    *,
    seed: int = 0,
    task_hash: np.ndarray,
    texts: SameText | None = None,
) -> Pool:
    """The negatives of each task, from several teachers' survivors.

    Args:
        pools: one per teacher, over the same R tasks, best first.
        turns: for each pool the order in which a draw takes its entries (`sampling.priorities`).
        mode: one of `ENSEMBLES`.
        num_negatives: n.
        seed, task_hash: what the draw of `cross` depends on.
        texts: of the corpus; ids with the same text then count as one passage in all modes.

    Returns:
        At most n entries per task: for `cross`, `union` and `rrf` best first, otherwise in turn.

    Raises:
        InputError: `mode` is not known.
    """
    if mode == "cross":
        chosen = chosen_teachers(len(pools), seed, task_hash)
        return Pool.join(
            [
                pool.mask((turn < num_negatives) & (chosen[pool.rows.row_of] == number))
                for number, (pool, turn) in enumerate(zip(pools, turns, strict=True))
            ]
        )
    if mode in ("union", "rrf"):
        drawn = [p.mask(turn < num_negatives) for p, turn in zip(pools, turns, strict=True)]
        return _fused(Pool.join(drawn), mode, texts).head(num_negatives)
    both = Pool.join(pools)
    turn = join_rows(*(p.rows.like(t) for p, t in zip(pools, turns, strict=True))).values
    if mode == "intra":
        return both.sorted(turn, both.teachers.values).head(num_negatives)
    if mode == "intra_dedup":
        both = both.sorted(both.teachers.values, turn)
        return _in_turn(both, len(pools), num_negatives, texts)
    raise InputError(mistake("mining.ensemble", mode, choice(*ENSEMBLES)))


def overlaps(pools: list[Pool], num_negatives: int, texts: SameText | None = None) -> np.ndarray:
    """How much the teachers' negatives agree (paper Table 6).

    Args:
        pools: one per teacher, over the same tasks, best first.
        num_negatives: how many of the best of each are compared.
        texts: as in `combine`.

    Returns:
        float64 [T, T]: mean over tasks of |A ∩ B| / |A ∪ B|; tasks for which neither teacher has
            any do not count; NaN if no task is left.
    """
    tops = [pool.rows.head(num_negatives) for pool in pools]
    held = [Ragged.distinct(top.row_of, _text_of(top.values, texts), len(top)) for top in tops]
    out = np.full((len(pools), len(pools)), np.nan)
    for a, of_a in enumerate(held):
        for b, of_b in enumerate(held):
            common = of_a.counts - of_a.minus(of_b).counts
            union = of_a.counts + of_b.counts - common
            if union.any():
                out[a, b] = np.mean(common[union > 0] / union[union > 0])
    return out


def _text_of(rows: np.ndarray, texts: SameText | None) -> np.ndarray:
    """The first row with the text of each passage, or the passage itself if every id counts."""
    return rows if texts is None else texts.first_n[rows]


def _in_turn(pool: Pool, teachers: int, count: int, texts: SameText | None) -> Pool:
    """Each teacher in turn gives its first entry that no teacher gave before.

    `pool` has the entries of each task by (teacher, turn).
    """
    rows, teacher = _text_of(pool.rows.values, texts), pool.teachers.values
    row_of = pool.rows.row_of
    left = np.ones(len(rows), bool)
    order = np.full(len(rows), -1, np.int64)
    have = np.zeros(len(pool.rows), np.int64)
    span = int(rows.max(initial=0)) + 1
    key = row_of * span + rows
    idle, number = 0, 0
    while idle < teachers:  # until all teachers are exhausted
        candidates = np.flatnonzero(left & (teacher == number % teachers) & (have < count)[row_of])
        _, first = np.unique(row_of[candidates], return_index=True)
        given = candidates[first]
        order[given] = have[row_of[given]]
        have[row_of[given]] += 1
        left &= ~np.isin(key, key[given])
        idle = 0 if len(given) else idle + 1
        number += 1
    kept = pool.mask(order >= 0)
    return kept.sorted(order[order >= 0])


def _fused(pool: Pool, mode: str, texts: SameText | None) -> Pool:
    """Every passage once, best first by `union` or `rrf`, with its best teacher's entry."""
    # Ranks beyond the stored candidates are unknown: those entries come last, in their order.
    ranks = np.where(pool.ranks.values > 0, pool.ranks.values, np.inf)
    pool = pool.sorted(ranks, pool.teachers.values)
    ranks = np.where(pool.ranks.values > 0, pool.ranks.values, np.inf)
    span = int(pool.rows.values.max(initial=0)) + 1
    key = pool.rows.row_of * span + _text_of(pool.rows.values, texts)
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    keep = np.zeros(len(key), bool)
    keep[first] = True  # the first of a passage's entries has the best rank
    if mode == "union":
        return pool.mask(keep)
    score = np.bincount(group, 1.0 / (RRF_CONSTANT + ranks), minlength=len(first))
    return pool.mask(keep).sorted(-score[group][keep])


def counts_by_teacher(teachers: Ragged, names: tuple[str, ...]) -> dict[str, int]:
    """How many of the negatives each teacher gave."""
    found = np.bincount(teachers.values, minlength=len(names))
    return {name: int(count) for name, count in zip(names, found, strict=True)}
