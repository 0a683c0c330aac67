"""Rescoring of candidates by a slower and better model, such as a cross-encoder.

The teacher chose the candidates; their scores, and those of the positives, are replaced. Anchors,
ceilings and margins are then on the new scale. Passages beyond the end of the list have no score on
it, so mining must not search again (`Teacher.ranker` is None).

    rescore   scores the first `depth` candidates of every query. Order 'rescored' ranks by the new
              scores (as sentence-transformers does), order 'teacher' keeps the teacher's ranks and
              only compares the new scores with the ceilings.
    rescore_lazily
              keeps the teacher's order and scores only what is needed: the positives, for the
              ceiling; then candidates from the top, until enough of a query's survive. Mining takes
              the same negatives from it as from `rescore` in the teacher's order; the cost is
              reported.

The caller provides the scoring: `ScorePairs` is any function of pairs. A round takes the next
candidates of all queries that still need some, so the function gets a few large batches of mixed
lengths and can distribute them over devices. Pairs are scored in chunks whose content depends only
on the input, and a `ChunkStore` may keep each one: after a kill the same chunks are requested, and
stored ones are not scored again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.search.candidates import Candidates

ORDERS = ("rescored", "teacher")
CHUNK_PAIRS = 32768  # scored between two saves
LEAST = 4  # least candidates of a query scored in one round

# int64 pairs [M, 2] (row of the query, row of the passage, in the data set) -> float32 [M]
ScorePairs = Callable[[np.ndarray], np.ndarray]
# positive scores, a row per query -> float32 [Q], the score every negative must stay below
Ceilings = Callable[[Ragged], np.ndarray]


class ChunkStore(Protocol):
    """Keeps chunks of scored pairs for a run that is killed and restarted."""

    def load(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(pairs [M, 2], scores [M]) of chunk `number`, from 0; None if it was never saved."""
        ...

    def save(self, number: int, pairs: np.ndarray, scores: np.ndarray) -> None:
        """Keeps chunk `number`, durably."""
        ...


@dataclasses.dataclass(frozen=True)
class RescoringCounts:
    """What rescoring did.

    Attributes:
        queries: how many.
        scored: pairs scored, including positives and stored pairs.
        possible: pairs needed to score everything down to `depth`.
        rounds: passes over the queries after the positives.
        full: queries for which enough candidates survive; all of them if no ceiling was applied.
    """

    queries: int
    scored: int
    possible: int
    rounds: int
    full: int


def text_scorer(
    score: Callable[[list[tuple[str, str]]], np.ndarray],
    query_texts: Sequence[str],
    corpus_texts: Sequence[str],
) -> ScorePairs:
    """`ScorePairs` from a function of texts, such as `CrossEncoder.score`."""

    def score_pairs(pairs: np.ndarray) -> np.ndarray:
        return score([(query_texts[q], corpus_texts[p]) for q, p in pairs.tolist()])

    return score_pairs


def rescore(
    candidates: Candidates,
    score_pairs: ScorePairs,
    depth: int,
    order: str = "rescored",
    *,
    store: ChunkStore | None = None,
    chunk_pairs: int = CHUNK_PAIRS,
) -> tuple[Candidates, RescoringCounts]:
    """New scores for the first `depth` candidates of each query and for all its positives.

    Args:
        candidates: a teacher's, Q queries; lists may be empty.
        score_pairs: called with each (query, passage) once.
        depth: candidates per query, including positives; the rest is dropped.
        order: 'rescored' sorts by new score descending, then row; 'teacher' leaves the order.
        store, chunk_pairs: see the module's docstring.

    Raises:
        InputError: an unknown order, a depth below 1, scores that are not finite, or a store with
            the chunks of another run.
    """
    if order not in ORDERS:
        raise InputError(f"rescoring: order {order!r}; expected one of {', '.join(ORDERS)}")
    _check(depth=depth, chunk_pairs=chunk_pairs)
    rows, positives = candidates.passage_rows.head(depth), candidates.positive_rows
    chunks = Chunked(score_pairs, store, chunk_pairs)
    table = _Table(candidates.query_rows, _keys(rows, positives))
    table.fill(slice(None), chunks)
    scores = rows.like(table[_keys(rows)])
    if order == "rescored":
        best_first = np.lexsort((rows.values, -scores.values, rows.row_of))
        rows = rows.like(rows.values[best_first])
        scores = scores.like(scores.values[best_first])
    rescored = dataclasses.replace(
        candidates,
        passage_rows=rows,
        scores=scores,
        positive_scores=positives.like(table[_keys(positives)]),
    )
    size = len(candidates)
    return rescored, RescoringCounts(size, chunks.scored, len(table.keys), 1, size)


def rescore_lazily(
    candidates: Candidates,
    score_pairs: ScorePairs,
    depth: int,
    *,
    ceilings: Ceilings,
    num_negatives: int,
    excluded: Ragged | None = None,
    ranks_to_skip: int = 0,
    min_score: float = -np.inf,
    least: int = LEAST,
    store: ChunkStore | None = None,
    chunk_pairs: int = CHUNK_PAIRS,
) -> tuple[Candidates, RescoringCounts]:
    """New scores where they are needed, in the teacher's order.

    Args:
        candidates: a teacher's, Q queries; lists may be empty.
        score_pairs: called with each (query, passage) at most once.
        depth: how far down a list to go, counting positives and excluded passages.
        ceilings: of a rule, from the new positive scores; if every positive is its own anchor, the
            lowest of a query's ceilings, since what survives that one survives all.
        num_negatives: survivors per query that are needed: the pool to draw from, not the draw. A
            rule that skips survivors needs that many more.
        excluded: passages that are never negatives, a row per query; they are neither scored nor
            returned.
        ranks_to_skip: of the teacher's ranks (not counting positives and excluded passages);
            scored, because lower ranks are counted from them, but not survivors.
        min_score: passages that score below it are not survivors.
        least: least candidates of a query scored in one round. 1 scores none in vain, 4 makes fewer
            rounds of larger batches.
        store, chunk_pairs: see the module's docstring.

    Returns:
        Candidates with the new scores: the scored part of each list, and positives.

    Raises:
        InputError: as `rescore`; a query without a positive if the rule needs one.
    """
    _check(depth=depth, num_negatives=num_negatives, least=least, chunk_pairs=chunk_pairs)
    rows, positives = candidates.passage_rows.head(depth), candidates.positive_rows
    if excluded is not None:
        rows = rows.minus(excluded.minus(positives))
    chunks = Chunked(score_pairs, store, chunk_pairs)
    keys = _keys(rows)
    table = _Table(candidates.query_rows, _keys(rows, positives))
    table.fill(np.isin(table.keys, _keys(positives)), chunks)
    positive_scores = positives.like(table[_keys(positives)])
    ceiling_q = np.asarray(ceilings(positive_scores))
    if ceiling_q.shape != (len(candidates),):
        raise InputError(
            f"rescoring: ceilings of shape {ceiling_q.shape}; expected one per query, "
            f"({len(candidates)},)"
        )

    query = rows.row_of
    free = ~positives.contains(query, rows.values)
    # The rank of each free candidate within its query, from 1; for a positive, that of the
    # candidate before it.
    total = np.concatenate([[0], np.cumsum(free)])
    rank = total[1:] - total[rows.offsets[:-1]][query]
    last_q = np.diff(total[rows.offsets])
    done_q, have_q = np.zeros_like(last_q), np.zeros_like(last_q)
    rounds = 0
    while (open_q := (have_q < num_negatives) & (done_q < last_q)).any():
        missing_q = np.maximum(num_negatives - have_q, least)
        until_q = np.minimum(np.maximum(done_q, ranks_to_skip) + missing_q, last_q)
        until_q = np.where(open_q, until_q, done_q)
        at = np.flatnonzero(free & (rank > done_q[query]) & (rank <= until_q[query]))
        table.fill(np.searchsorted(table.keys, np.sort(keys[at])), chunks)
        scores = table[keys[at]]
        survives = (scores < ceiling_q[query[at]]) & (scores >= np.float32(min_score))
        survives &= rank[at] > ranks_to_skip
        have_q += np.bincount(query[at][survives], minlength=len(have_q))
        done_q = until_q
        rounds += 1

    seen = rank <= done_q[query]
    rows = rows.mask(seen)
    rescored = dataclasses.replace(
        candidates,
        passage_rows=rows,
        scores=rows.like(table[keys[seen]]),
        positive_scores=positive_scores,
    )
    full = int((have_q >= num_negatives).sum())
    return rescored, RescoringCounts(len(candidates), chunks.scored, len(table.keys), rounds, full)


class _Table:
    """Scores of pairs, by key; NaN for a pair that was not scored.

    Attributes:
        keys: int64, ascending, unique.
        scores: float32.
    """

    def __init__(self, query_rows: np.ndarray, keys: np.ndarray):
        self._query_rows = np.asarray(query_rows, np.int64)
        self.keys = np.unique(keys)
        self.scores = np.full(len(self.keys), np.nan, np.float32)

    def __getitem__(self, keys: np.ndarray) -> np.ndarray:
        return self.scores[np.searchsorted(self.keys, keys)]

    def fill(self, which, chunks: Chunked) -> None:
        """Scores some of the pairs, in the order of their keys."""
        keys = self.keys[which]
        pairs = np.stack([self._query_rows[keys >> 32], keys & 0xFFFFFFFF], axis=1)
        self.scores[which] = chunks.score(pairs)


class Chunked:
    """Calls `score_pairs` chunk by chunk, or takes a chunk from the store.

    Attributes:
        scored: pairs so far.
    """

    def __init__(
        self,
        score_pairs: ScorePairs,
        store: ChunkStore | None = None,
        size: int = CHUNK_PAIRS,
    ):
        self._score_pairs, self._store, self._size = score_pairs, store, size
        self._number = self.scored = 0

    def score_lists(self, query_rows: np.ndarray, lists: Ragged) -> np.ndarray:
        """The scores of a list of passages per query, each pair scored once.

        Args:
            query_rows: int64 [R], rows of the data set; a query may have several lists.
            lists: rows of passages.

        Returns:
            float32 [len(lists.values)].
        """
        keys = (query_rows[lists.row_of] << 32) | lists.values.astype(np.int64)
        once, place = np.unique(keys, return_inverse=True)
        return self.score(np.stack([once >> 32, once & 0xFFFFFFFF], axis=1))[place]

    def score(self, pairs: np.ndarray) -> np.ndarray:
        """Scores of pairs [M, 2] of rows of the data set, float32 [M]."""
        parts = [
            self._chunk(pairs[start : start + self._size])
            for start in range(0, len(pairs), self._size)
        ]
        self.scored += len(pairs)
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _chunk(self, pairs: np.ndarray) -> np.ndarray:
        number, self._number = self._number, self._number + 1
        kept = None if self._store is None else self._store.load(number)
        if kept is not None:
            if not np.array_equal(kept[0], pairs):
                raise InputError(
                    f"rescoring: chunk {number} on disk holds {len(kept[0])} pairs that differ "
                    f"from the {len(pairs)} expected; delete the chunks of the earlier run"
                )
            return _finite(pairs, kept[1])
        scores = _finite(pairs, self._score_pairs(pairs))
        if self._store is not None:
            self._store.save(number, pairs, scores)
        return scores


def _keys(*lists: Ragged) -> np.ndarray:
    """(query number, passage row) of every entry as one int64."""
    return np.concatenate([(rows.row_of << 32) | rows.values.astype(np.int64) for rows in lists])


def _finite(pairs: np.ndarray, scores) -> np.ndarray:
    """Scores as float32, one for each pair, or InputError."""
    scores = np.asarray(scores)
    if scores.shape != (len(pairs),):
        raise InputError(
            f"rescoring: {len(pairs)} pairs got scores of shape {scores.shape}; expected one each"
        )
    scores = scores.astype(np.float32)
    bad = ~np.isfinite(scores)
    if bad.any():
        at = int(np.argmax(bad))
        raise InputError(
            f"rescoring: the score of query row {pairs[at, 0]} with passage row {pairs[at, 1]} is "
            f"{scores[at]}; expected a finite number"
        )
    return scores


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise InputError(f"rescoring: {name}={value}; must be positive")
