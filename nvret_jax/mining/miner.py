"""Candidates and a rule in, hard negatives out.

One pass over the stored candidates decides most queries. Where a strict ceiling leaves a query
short, a second search below its ceiling, which skips what was already looked at, finds what the
stored depth did not reach: no rule starves a query unless the corpus itself has nothing below the
ceiling. What is then still missing stays missing (rows are ragged) and is counted.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.rules import Rule, anchors
from nvret_jax.search.candidates import Candidates

# (query numbers [S], k, ceilings_s, exclude: a list of row arrays) -> scores_sk, rows_sk
SearchBelow = Callable[
    [np.ndarray, int, np.ndarray, list[np.ndarray]], tuple[np.ndarray, np.ndarray]
]


class Verdict(enum.IntEnum):
    """What became of one candidate."""

    EMPTY = 0  # behind the end of the query's list
    POSITIVE = 1  # a judged positive of the query
    OWN_TEXT = 2  # the query itself, found as a passage
    SKIPPED = 3  # among the ranks the shifted rule skips
    ABOVE = 4  # at or above the ceiling: too close to the positive to be trusted
    KEPT = 5
    SPARE = 6  # would do, but enough better ones were kept


@dataclasses.dataclass(frozen=True)
class MiningCounts:
    """What happened, in numbers of queries and of candidates.

    Attributes:
        queries: queries mined for.
        wanted: negatives asked for per query.
        verdicts: candidates by `Verdict` name, lower case.
        searched_again: queries that the stored candidates left short.
        found_again: negatives that the second search added.
        short: queries that still have fewer than `wanted`.
        missing: negatives missing over all short queries.
    """

    queries: int
    wanted: int
    verdicts: dict[str, int]
    searched_again: int
    found_again: int
    short: int
    missing: int


def own_text_rows(query_texts: Sequence[str], corpus_texts: Sequence[str]) -> Ragged:
    """For each query the passages whose text is the query's own (surrounding space aside)."""
    wanted: dict[str, list[int]] = {text.strip(): [] for text in query_texts}
    for row, text in enumerate(corpus_texts):
        rows = wanted.get(text.strip())
        if rows is not None:
            rows.append(row)
    return Ragged.from_rows([wanted[text.strip()] for text in query_texts], np.int32)


def judge(
    candidates: Candidates,
    rule: Rule,
    num_negatives: int,
    own_text: Ragged,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Applies a rule to stored candidates.

    Args:
        candidates: Q queries.
        rule: what is too close to the positive.
        num_negatives: best survivors that are kept per query.
        own_text: passages equal to the query, a row per query.

    Returns:
        verdicts_qk (int8, values of `Verdict`), ranks_qk (int32, from 1, positives and own text
        not counted; 0 for those), ceilings_q (float32).
    """
    rows_qk = candidates.passage_rows.padded(-1)
    scores_qk = candidates.scores.padded(-np.inf)
    there_qk = rows_qk >= 0
    positive_qk = there_qk & _contained(rows_qk, candidates.positive_rows)
    own_qk = there_qk & ~positive_qk & _contained(rows_qk, own_text)
    free_qk = there_qk & ~positive_qk & ~own_qk
    ranks_qk = np.where(free_qk, np.cumsum(free_qk, axis=1), 0).astype(np.int32)
    ceilings_q = rule.ceilings(anchors(candidates.positive_scores, rule.anchor))
    skipped_qk = free_qk & (ranks_qk <= rule.ranks_to_skip)
    above_qk = free_qk & ~skipped_qk & (scores_qk >= ceilings_q[:, None])
    survivor_qk = free_qk & ~skipped_qk & ~above_qk
    kept_qk = survivor_qk & (np.cumsum(survivor_qk, axis=1) <= num_negatives)
    verdicts_qk = np.select(
        [positive_qk, own_qk, skipped_qk, above_qk, kept_qk, survivor_qk],
        [
            Verdict.POSITIVE,
            Verdict.OWN_TEXT,
            Verdict.SKIPPED,
            Verdict.ABOVE,
            Verdict.KEPT,
            Verdict.SPARE,
        ],
        Verdict.EMPTY,
    ).astype(np.int8)
    return verdicts_qk, ranks_qk, ceilings_q


def mine(
    candidates: Candidates,
    *,
    rule: Rule,
    num_negatives: int,
    own_text: Ragged,
    corpus_size: int,
    search_below: SearchBelow,
    teacher: str = "teacher",
) -> tuple[Negatives, MiningCounts]:
    """Takes the hardest negatives that a rule allows.

    Args:
        candidates: from `search.candidates`, Q queries.
        rule: see `mining.rules`.
        num_negatives: how many to keep per query.
        own_text: passages equal to the query, from `own_text_rows`.
        corpus_size: passages in the corpus.
        search_below: asked once, for the queries that the stored candidates leave short.
        teacher: the name written beside each negative.

    Raises:
        InputError: there is no query, a query has no positive, or a candidate has no finite score.
    """
    if not len(candidates):
        raise InputError("mining: no training query has a positive")
    finite = np.isfinite(candidates.scores.values)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise InputError(
            f"mining: the teacher's score of passage row {candidates.passage_rows.values[bad]} is "
            f"{candidates.scores.values[bad]}; embeddings must be finite"
        )
    verdicts_qk, ranks_qk, ceilings_q = judge(candidates, rule, num_negatives, own_text)
    rows_qk = candidates.passage_rows.padded(-1)
    scores_qk = candidates.scores.padded(-np.inf)
    kept_qk = verdicts_qk == Verdict.KEPT
    have_q = kept_qk.sum(axis=1)

    # Only a list that was cut at its depth can be short of what the corpus holds.
    unseen_q = corpus_size - candidates.passage_rows.counts > 0
    again = np.flatnonzero((have_q < num_negatives) & unseen_q)
    rows_sk = np.full((len(candidates), num_negatives), -1, np.int32)
    extra_scores = np.full((len(candidates), num_negatives), -np.inf, np.float32)
    if len(again):
        seen_q = (ranks_qk > 0).sum(axis=1)
        # A shift deeper than the stored list goes on counting in the second search.
        to_skip = np.maximum(0, rule.ranks_to_skip - seen_q[again])
        exclude = [
            np.unique(
                np.concatenate(
                    [candidates.passage_rows[q], candidates.positive_rows[q], own_text[q]]
                )
            )
            for q in again
        ]
        k = min(int(num_negatives + to_skip.max()), corpus_size)
        new_scores, new_rows = search_below(again, k, ceilings_q[again], exclude)
        missing = num_negatives - have_q[again]
        column = np.arange(new_rows.shape[1])[None, :]
        taken = (column >= to_skip[:, None]) & (column < (to_skip + missing)[:, None])
        taken &= new_rows >= 0
        slot = np.cumsum(taken, axis=1) - 1
        at_row, at_column = np.nonzero(taken)
        target = (again[at_row], slot[at_row, at_column])
        rows_sk[target] = new_rows[at_row, at_column]
        extra_scores[target] = new_scores[at_row, at_column]

    extra = rows_sk >= 0
    all_rows = np.concatenate([rows_qk, rows_sk], axis=1)
    all_scores = np.concatenate([scores_qk, extra_scores], axis=1)
    all_ranks = np.concatenate([ranks_qk, np.zeros_like(rows_sk)], axis=1)
    keep = np.concatenate([kept_qk, extra], axis=1)
    negative_rows = Ragged.from_mask(all_rows, keep)
    short_q = num_negatives - negative_rows.counts
    counts = MiningCounts(
        queries=len(candidates),
        wanted=num_negatives,
        verdicts={
            verdict.name.lower(): int((verdicts_qk == verdict).sum())
            for verdict in Verdict
            if verdict is not Verdict.EMPTY
        },
        searched_again=len(again),
        found_again=int(extra.sum()),
        short=int((short_q > 0).sum()),
        missing=int(short_q.sum()),
    )
    return (
        Negatives(
            query_rows=candidates.query_rows,
            positive_rows=candidates.positive_rows,
            positive_scores=candidates.positive_scores,
            negative_rows=negative_rows,
            negative_scores=Ragged.from_mask(all_scores, keep),
            negative_ranks=Ragged.from_mask(all_ranks, keep),
            teachers=(teacher,),
            negative_teachers=Ragged(
                negative_rows.offsets, np.zeros(len(negative_rows.values), np.int32)
            ),
            ceilings=ceilings_q,
        ),
        counts,
    )


def _contained(rows_qk: np.ndarray, lists: Ragged) -> np.ndarray:
    """Whether each entry of a row stands in that row's list, bool [Q, K]."""
    # (row, value) pairs as single numbers, so that one isin answers for all rows.
    span = np.int64(max(rows_qk.max(initial=0), lists.values.max(initial=0)) + 1)
    keys_qk = np.arange(len(rows_qk), dtype=np.int64)[:, None] * span + rows_qk
    listed = lists.row_of * span + lists.values
    return np.isin(keys_qk, listed) & (rows_qk >= 0)
