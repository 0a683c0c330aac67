"""The terms of the loss: which pairs are contrasted, and which are not negatives.

A term has *anchors* (queries, or positive passages) and *columns* (passages, or queries, of the
whole global batch). A pair of the two is a negative unless a mask says otherwise. The same masks
run on the whole score matrix and on a tile of it, so both ways to compute the loss (ring.py) agree.

The data for masks travels with the vectors, as a dictionary of arrays, one entry per row:

    row       int32, the row of the batch a text belongs to; a row is never its own negative
    id        int32, corpus row of a passage; -1: an empty slot
    judged    int32 [., J], corpus rows of all judged positives of the row's query; -1: padding
    slots     int32 [., P], ids of the row's positives in the batch (queries only)
    own       int32 [., G], ids of all the row's passages; only where own duplicates are masked
    ceiling   float, scores at or above are not negatives; only if scores are masked
    guide     float [., Dg], a guide model's vector; only if it judges instead of the student
    real      bool, whether the slot has a text
    tokens    bool [., T], which token vectors count; only for multi-vector students
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nvret_jax.training.loss.maxsim import max_sim

Features = dict[str, jax.Array]

# Represents log 0. Finite, so that a query without negatives has a loss and a gradient of zero;
# minus infinity would give inf - inf.
NO_NEGATIVES = -1e30


class Masks(NamedTuple):
    """For each pair: a negative; masked by id; masked by score. bool [A, C] each."""

    allowed_ac: jax.Array
    known_ac: jax.Array
    above_ac: jax.Array


class Contrast(NamedTuple):
    """The sums of a term for each anchor.

    Attributes:
        lse_a: float, log Σ exp(score / temperature) over its negatives; `NO_NEGATIVES` without any.
        best_a: float, the highest score among them; -inf without any.
        allowed_a, known_a, above_a: int32, how many pairs each of `Masks` has.
    """

    lse_a: jax.Array
    best_a: jax.Array
    allowed_a: jax.Array
    known_a: jax.Array
    above_a: jax.Array


@dataclasses.dataclass(frozen=True)
class Term:
    """One kind of pairs.

    Attributes:
        name: one of `TERMS`: anchors 'to' columns.
        scores: one of `SCORES`.
    """

    name: str
    scores: str = "inner"

    def score(
        self, anchors: jax.Array, columns: jax.Array, left: Features, right: Features
    ) -> jax.Array:
        """Scores [A, C] of [A, (T,) D] with [C, (S,) D], in at least float32."""
        if self.scores == "inner":
            return jnp.einsum("ad,cd->ac", anchors, columns, precision=jax.lax.Precision.HIGHEST)
        # The query's tokens are summed over, whichever side the query is on.
        if self.name == "passage_to_query":
            return max_sim(columns, anchors, right["tokens"], left["tokens"]).T
        return max_sim(anchors, columns, left["tokens"], right["tokens"])

    def masks(self, scores_ac: jax.Array, left: Features, right: Features) -> Masks:
        """Which pairs are negatives."""
        others_ac = right["real"][None, :] & (left["row"][:, None] != right["row"][None, :])
        known_ac = others_ac & self._known(left, right, others_ac & False)
        allowed_ac = others_ac & ~known_ac
        if "own" in left and self.name == "query_to_passage":
            allowed_ac &= ~_listed(right["id"], left["own"], allowed_ac & False)
        above_ac = allowed_ac & False
        if "ceiling" in left:
            judge_ac = jax.lax.stop_gradient(scores_ac)
            if "guide" in left:
                judge_ac = jnp.einsum(
                    "ad,cd->ac",
                    left["guide"],
                    right["guide"],
                    precision=jax.lax.Precision.HIGHEST,
                )
            above_ac = allowed_ac & (judge_ac >= left["ceiling"][:, None])
            allowed_ac &= ~above_ac
        return Masks(allowed_ac, known_ac, above_ac)

    def _known(self, left: Features, right: Features, none_ac: jax.Array) -> jax.Array:
        """Pairs that are judged relevant, or that are the same passage."""
        if self.name == "query_to_passage":
            return _listed(right["id"], left["judged"], none_ac)
        if self.name == "passage_to_query":
            return _listed(left["id"], right["judged"], none_ac.T).T
        if self.name == "passage_to_passage":
            same_ac = left["id"][:, None] == right["id"][None, :]
            return same_ac | _listed(right["id"], left["judged"], none_ac)
        # Two queries: a positive of one that is in the batch is judged positive for the other.
        found_ac = none_ac
        for slot in range(left["slots"].shape[1]):
            found_ac |= _listed(right["slots"][:, slot], left["judged"], none_ac)
            found_ac |= _listed(left["slots"][:, slot], right["judged"], none_ac.T).T
        return found_ac


def _listed(ids_c: jax.Array, lists_aj: jax.Array, none_ac: jax.Array) -> jax.Array:
    """Whether each id is in each list, bool [A, C]; padding (-1) never is."""

    def collect(found_ac, wanted_a):
        return found_ac | (ids_c[None, :] == wanted_a[:, None]), None

    found_ac, _ = jax.lax.scan(collect, none_ac, jnp.swapaxes(lists_aj, 0, 1))
    return found_ac & (ids_c >= 0)[None, :]
