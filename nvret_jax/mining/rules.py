"""The five rules of the paper (section 3.1) as one number per query: a ceiling.

A hard negative must score strictly below the ceiling of its query. What a rule is, is only how the
ceiling follows from the anchor, a positive score of the query:

    naive        none                         keeps whatever ranks high
    shifted      none, but skips `shift` ranks
    abs          just above `threshold`       keeps scores up to and including the threshold
    margin_pos   anchor - margin
    perc_pos     anchor - |anchor| (1 - percent)

For a positive anchor the last line is the paper's `percent * anchor`. For a negative anchor the
plain product would lie *above* the anchor and let in what outranks the positive; this form never
does.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError

RULES = ("naive", "shifted", "abs", "margin_pos", "perc_pos")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule with its value.

    Attributes:
        name: naive, shifted, abs, margin_pos or perc_pos.
        percent, margin, threshold, shift: the value of the rule that uses it; the paper's best
            values are the defaults (Table 3).
        anchor: which of several positive scores counts: min, max or mean.
    """

    name: str = "perc_pos"
    percent: float = 0.95
    margin: float = 0.05
    threshold: float = 0.70
    shift: int = 10
    anchor: str = "min"

    @property
    def ranks_to_skip(self) -> int:
        """How many of the best ranks, counted without positives, can never be negatives."""
        return self.shift if self.name == "shifted" else 0

    def ceilings(self, anchors_q: np.ndarray) -> np.ndarray:
        """The score every negative must stay below.

        Args:
            anchors_q: float [Q], a positive score for each query.

        Returns:
            float32 [Q]; +inf where the rule has no ceiling.

        Raises:
            InputError: the rule is not known.
        """
        anchors_q = np.asarray(anchors_q, np.float64)
        if self.name in ("naive", "shifted"):
            return np.full(anchors_q.shape, np.inf, np.float32)
        if self.name == "abs":
            # The next float32 up makes "strictly below" mean "at most the threshold".
            above = np.nextafter(np.float32(self.threshold), np.float32(np.inf))
            return np.full(anchors_q.shape, above, np.float32)
        if self.name == "margin_pos":
            return (anchors_q - self.margin).astype(np.float32)
        if self.name == "perc_pos":
            return (anchors_q - np.abs(anchors_q) * (1.0 - self.percent)).astype(np.float32)
        raise InputError(
            f"mining.rule={self.name!r} is not known; choose one of {', '.join(RULES)}"
        )


def anchors(positive_scores: Ragged, which: str) -> np.ndarray:
    """One positive score per query.

    Args:
        positive_scores: float, a row per query, none empty.
        which: 'min' (the least similar positive decides: strictest, the default), 'max' or 'mean'.

    Returns:
        float64 [Q].

    Raises:
        InputError: a query has no positive, or `which` is not known.
    """
    if (positive_scores.counts == 0).any():
        row = int(np.argmin(positive_scores.counts))
        raise InputError(f"query number {row} has no positive, so no rule has an anchor for it")
    if which == "min":
        return positive_scores.reduce(np.minimum, np.nan)
    if which == "max":
        return positive_scores.reduce(np.maximum, np.nan)
    if which == "mean":
        return positive_scores.reduce(np.add, np.nan) / positive_scores.counts
    raise InputError(f"mining.anchor={which!r} is not known; choose one of min, max, mean")
