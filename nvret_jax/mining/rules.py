"""The five rules of the paper (section 3.1), alone or combined, as one number per query: a ceiling.

A hard negative must score strictly below the ceiling of its query. A rule defines how the ceiling
follows from the anchor, a positive score of the query:

    naive        none                         keeps whatever ranks high
    shifted      none, but skips `shift` ranks
    abs          just above `threshold`       keeps scores up to and including the threshold
    margin_pos   anchor - margin
    perc_pos     anchor - |anchor| (1 - percent)

For a positive anchor the last line is the paper's `percent * anchor`. For a negative anchor the
plain product would be *above* the anchor and admit passages that outrank the positive; this form
never does. Rules combine, as in 'shifted+perc_pos+abs': the lowest ceiling wins, and `shift` skips
ranks if 'shifted' is among them.

A ceiling is a float32, rounded so that `score < ceiling` for a float32 score agrees exactly with
the rule in float64: the rounding of a threshold never decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from nvret_jax import options
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.options import option

MOST_RANKS = 1_000_000  # a rank is a position in a list of candidates, which is held in memory
MOST_SCORE = 1e6  # scores of any teacher, including BM25 and inner products
ANCHORS = ("own", "min", "max", "mean")
RANKS = ("raw", "survivors")
# Ranges for runs; only `Rule` also allows a share of 0 and negative margins, as other tools do.
PERCENT = options.number(0, 2, "a share of the anchor", above=True)
MARGIN = options.number(0, MOST_SCORE, "a distance between scores")
THRESHOLD = options.number(-MOST_SCORE, MOST_SCORE, "a score")
SHIFT = options.whole(0, MOST_RANKS, "ranks")
AUTO = ("auto", "calibrated for each teacher")


@dataclasses.dataclass(frozen=True)
class Kind:
    """The definition of one rule.

    Attributes:
        value: the name of the value it reads, or None.
        ceiling: from the whole rule and anchors [Q], float64, the score that every negative must
            stay below, float32 [Q]; None: no ceiling.
        needs_anchor: whether the ceiling depends on the anchors.
        skips_ranks: whether the value is a number of ranks that it skips.
        calibrated: how a calibration makes a value: from a strictness above 0, where 0 lets in what
            scores as high as the anchor, and the scale of the scores. None: it is not calibrated.
    """

    value: str | None
    ceiling: Callable[[Rule, np.ndarray], np.ndarray] | None = None
    needs_anchor: bool = False
    skips_ranks: bool = False
    calibrated: Callable[[float, float], float] | None = None


def _abs(rule: Rule, anchors_q: np.ndarray) -> np.ndarray:
    # With the next float32 up, "strictly below" means "at most the threshold".
    return np.full(anchors_q.shape, _next(np.float32(rule.threshold)))


def _margin_pos(rule: Rule, anchors_q: np.ndarray) -> np.ndarray:
    if rule.keep_equal:
        return _next(_largest_within(anchors_q.astype(np.float32), rule.margin))
    return _round_up(anchors_q - rule.margin)


def _perc_pos(rule: Rule, anchors_q: np.ndarray) -> np.ndarray:
    if rule.keep_equal:
        anchors_q = anchors_q.astype(np.float32)
        return _next(anchors_q - np.abs(anchors_q) * np.float32(1.0 - rule.percent))
    return _round_up(anchors_q - np.abs(anchors_q) * (1.0 - rule.percent))


NAIVE = "naive"  # what the other rules are compared with
# All rules. A new rule is a row here, and its value a field of `Rule`.
KINDS = {
    NAIVE: Kind(None),
    "shifted": Kind("shift", skips_ranks=True),
    "abs": Kind("threshold", _abs),
    "margin_pos": Kind(
        "margin",
        _margin_pos,
        needs_anchor=True,
        calibrated=lambda strictness, scale: float(f"{scale * strictness:.6g}"),
    ),
    "perc_pos": Kind(
        "percent",
        _perc_pos,
        needs_anchor=True,
        calibrated=lambda strictness, scale: round(1.0 - strictness, 2),
    ),
}
RULES = tuple(KINDS)
VALUES = {name: kind.value for name, kind in KINDS.items()}  # the value each rule reads
CALIBRATED = {name: kind.value for name, kind in KINDS.items() if kind.calibrated}


def skips_ranks(name: str) -> bool:
    """Whether one of the rules that a name combines skips ranks."""
    return any(KINDS[one].skips_ranks for one in name.split("+") if one in KINDS)


def _reads(value: str) -> Callable[[Rule], bool]:
    """Whether one of the rules in use reads a value."""
    return lambda rule: value in [VALUES[name] for name in rule.names]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule or several, with their values and the ranks they use.

    Attributes:
        name: naive, shifted, abs, margin_pos or perc_pos, or several joined by '+'.
        percent, margin, threshold, shift: the value of the rule that uses it; the paper's best
            values are the defaults (Table 3).
        anchor: which positive score counts if a query has several: min, max or mean of them; or
            own: each positive is mined for separately (a row of negatives for each).
        ranks: what `shift` and `max_rank` count: 'raw' the teacher's ranks (the paper), 'survivors'
            the ranks among the candidates that pass the ceiling and `min_score`
            (sentence-transformers). Neither counts positives or excluded passages.
        max_rank: ranks beyond this one are never negatives; 0: no bound.
        min_score: scores below this are never negatives.
        keep_equal: keep a score equal to the ceiling of margin_pos and perc_pos, with the
            comparison done in float32, as sentence-transformers does; the paper drops it.
    """

    name: str = option(
        "perc_pos",
        options.Combined(RULES),
        "naive, shifted, abs, margin_pos or perc_pos (paper section 3.1), or several joined by "
        "'+': the lowest ceiling wins.",
        key="rule",
    )
    percent: float = option(
        0.95,
        options.number(0, 2, "a share of the anchor"),
        "perc_pos: keep negatives that score below this share of the anchor; auto: calibrated for "
        "each teacher.",
        config=(0.95, options.or_word(PERCENT, *AUTO)),
        counts=_reads("percent"),
    )
    margin: float = option(
        0.05,
        options.number(-MOST_SCORE, MOST_SCORE, "a distance between scores"),
        "margin_pos: keep negatives that score below the anchor minus this; or auto.",
        config=(0.05, options.or_word(MARGIN, *AUTO)),
        counts=_reads("margin"),
    )
    threshold: float = option(
        0.70, THRESHOLD, "abs: keep negatives that score at most this.", counts=_reads("threshold")
    )
    shift: int = option(10, SHIFT, "shifted: ranks to skip.", counts=_reads("shift"))
    anchor: str = option(
        "min",
        options.choice(*ANCHORS),
        "Which positive score is the anchor: the min, max or mean of the query's, or own: each "
        "positive is mined for separately.",
        counts=lambda rule: rule.needs_anchor or rule.anchor == "own",
    )
    ranks: str = option(
        "raw",
        options.choice(*RANKS),
        "What shift and max_rank count: raw: the teacher's ranks; survivors: the ranks among the "
        "survivors.",
        key="",
        counts=lambda rule: rule.counts_ranks,
    )
    max_rank: int = option(
        0,
        options.whole(0, MOST_RANKS, "ranks, 0 for no bound"),
        "Passages beyond this rank are never negatives; 0: no bound.",
        counts=lambda rule: rule.counts_ranks,
    )
    min_score: float = option(
        -np.inf,
        options.number(-MOST_SCORE, MOST_SCORE, "a score", also={-np.inf: "no bound"}),
        "Passages that score below this are never negatives; unset: no bound.",
        config=(None, options.number(-MOST_SCORE, MOST_SCORE, "a score", unset=True)),
        counts=lambda rule: rule.min_score > -np.inf,
    )
    keep_equal: bool = option(
        False,
        options.flag(),
        "Keep a score that equals the ceiling (the paper does not).",
        key="",
        counts=lambda rule: rule.keep_equal and rule.needs_anchor,
    )

    def __post_init__(self):
        """Raises InputError for invalid values."""
        options.check(self, "mining.")

    @property
    def names(self) -> tuple[str, ...]:
        """The rules combined."""
        return tuple(self.name.split("+"))

    @property
    def needs_anchor(self) -> bool:
        """Whether the ceiling depends on a positive's score."""
        return any(KINDS[name].needs_anchor for name in self.names)

    @property
    def has_ceiling(self) -> bool:
        """Whether a score can be too high for a negative."""
        return any(KINDS[name].ceiling for name in self.names)

    @property
    def ranks_to_skip(self) -> int:
        """How many of the best ranks can never be negatives."""
        return self.shift if skips_ranks(self.name) else 0

    @property
    def counts_ranks(self) -> bool:
        """Whether anything depends on a rank."""
        return bool(self.ranks_to_skip or self.max_rank)

    def describe(self) -> str:
        """The rules with their values, such as 'perc_pos 0.95 + abs 0.7'."""
        values = {name: VALUES[name] for name in self.names}
        return " + ".join(f"{n} {getattr(self, v)}" if v else n for n, v in values.items())

    def ceilings(self, anchors_q: np.ndarray) -> np.ndarray:
        """The score every negative must stay below.

        Args:
            anchors_q: float [Q], a positive score for each query.

        Returns:
            float32 [Q]; +inf where no rule has a ceiling.
        """
        anchors_q = np.asarray(anchors_q, np.float64)
        lowest = np.full(anchors_q.shape, np.inf, np.float32)
        for name in self.names:
            if ceiling := KINDS[name].ceiling:
                lowest = np.minimum(lowest, ceiling(self, anchors_q))
        return lowest


def beyond_cosines(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) for values that are meaningless if all scores are cosines.

    Args:
        values: margin, threshold, or both; values that are not numbers are skipped.
    """
    for name, low, high in (("margin", 0, 2), ("threshold", -1, 1)):
        value = values.get(name)
        if isinstance(value, int | float) and not low <= value <= high:
            yield name, f"expected {options.number(low, high).words}, because scores are cosines"


def anchors(positive_scores: Ragged, which: str) -> np.ndarray:
    """One positive score per query.

    Args:
        positive_scores: float, a row per query, not empty.
        which: 'min' (the least similar positive decides: strictest, the default), 'max' or 'mean';
            'own' gives one for every positive.

    Returns:
        float64 [Q], for 'own' [number of positives].

    Raises:
        InputError: a query has no positive, or an unknown `which`.
    """
    if (positive_scores.counts == 0).any():
        row = int(np.argmin(positive_scores.counts))
        raise InputError(f"query number {row} has no positive, so no rule has an anchor for it")
    if which == "own":
        return positive_scores.values.astype(np.float64)
    if which == "min":
        return positive_scores.reduce(np.minimum, np.nan)
    if which == "max":
        return positive_scores.reduce(np.maximum, np.nan)
    if which == "mean":
        return positive_scores.reduce(np.add, np.nan) / positive_scores.counts
    raise InputError(options.mistake("mining.anchor", which, options.choice(*ANCHORS)))


def _next(x: np.ndarray) -> np.ndarray:
    """The next float32 up."""
    return np.nextafter(x, np.float32(np.inf))


def _round_up(x: np.ndarray) -> np.ndarray:
    """The smallest float32 that is not less."""
    near = np.asarray(x).astype(np.float32)
    return np.where(near < x, _next(near), near)


def _largest_within(anchors_q: np.ndarray, margin: float) -> np.ndarray:
    """The largest float32 s for which `s + margin`, added in float32, is at most the anchor.

    The sum is rounded, so s is not simply the rounded difference; it is found by bisection over the
    ordered float32 numbers.
    """
    margin = np.float32(margin)

    def number(x):  # float32 in their order <-> int64
        bits = x.view(np.int32).astype(np.int64)
        return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))

    def value(i):
        bits = np.where(i >= 0, i, -i | 0x80000000)
        return bits.astype(np.uint32).view(np.float32)

    spread = np.abs(anchors_q) + margin + np.float32(1)
    low, high = number(-2 * spread), number(2 * spread)  # low is within, high is not
    while (high - low > 1).any():
        middle = (low + high) // 2
        within = value(middle) + margin <= anchors_q
        low, high = np.where(within, middle, low), np.where(within, high, middle)
    return value(low)
