"""Everything that decides which negatives are mined, in one value; and two presets of others' ways.

`compat` presets set the choices that differ between implementations, not the values one tunes:

    paper                    arXiv 2407.15831: every positive is its own anchor, raw ranks, a score
                             equal to the ceiling is dropped
    sentence_transformers    `mine_hard_negatives` (6.2): the lowest positive is the anchor, ranks
                             count survivors, equal scores are kept, only a window of candidates is
                             looked at and nothing is searched again, the query's own text may be a
                             negative
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nvret_jax import options as options_lib
from nvret_jax.choices import COMPAT, ENSEMBLES, MAX_SEED, SAMPLINGS, SHORT
from nvret_jax.errors import InputError
from nvret_jax.mining.rules import MOST_RANKS, Rule
from nvret_jax.mining.sampling import pool_size
from nvret_jax.options import choice, flag, number, option, whole

MOST_NEGATIVES = 10_000
COMPAT_TAKES = choice(*COMPAT)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to mine.

    Attributes:
        rule: which passages are allowed.
        num_negatives: per task (query, or query and positive).
        sampling, sample_from, sample_temperature: see `mining.sampling`.
        ensemble: see `mining.ensemble`; with one teacher it does not matter.
        short: what becomes of a task for which the whole corpus has too few: 'ragged' keeps what
            there is, 'drop' drops the task, 'random' fills up with random passages that are neither
            positives nor excluded.
        second_search: whether tasks left short are searched for again.
        window: candidates looked at per query, positives included; 0: all that are stored.
        seed: of every draw.
    """

    rule: Rule = dataclasses.field(default_factory=Rule)
    num_negatives: int = option(4, whole(1, MOST_NEGATIVES))
    sampling: str = option("top", choice(*SAMPLINGS))
    sample_from: int = option(10, whole(1, MOST_RANKS))
    sample_temperature: float = option(1.0, number(1e-6, 1e6))
    ensemble: str = option("intra_dedup", choice(*ENSEMBLES))
    short: str = option("ragged", choice(*SHORT))
    second_search: bool = option(True, flag())
    window: int = option(0, whole(0))
    seed: int = option(0, whole(0, MAX_SEED))

    def __post_init__(self):
        """Raises InputError, one line, for values that cannot be."""
        options_lib.check(self, "mining.")
        wrong = too_narrow(vars(self.rule), self.num_negatives)
        if wrong:
            raise InputError(options_lib.conflict("mining.max_rank", self.rule.max_rank, wrong))

    @property
    def pool_size(self) -> int:
        """Survivors per task and teacher that are needed."""
        return pool_size(self.sampling, self.num_negatives, self.sample_from)


def too_narrow(rule: Mapping[str, Any], num_negatives: int) -> str | None:
    """What is wrong with a rule's `max_rank`, where it leaves fewer ranks than negatives.

    Args:
        rule: the values of a `Rule`, each right by itself.
    """
    skipped = rule["shift"] if "shifted" in rule["name"].split("+") else 0
    room = rule["max_rank"] - skipped
    if not rule["max_rank"] or room >= num_negatives:
        return None
    return (
        f"leaves {max(0, room)} ranks after shift={skipped}, and num_negatives={num_negatives} "
        "are asked for"
    )


def compatible(
    options: Options, compat: str, max_positives: int, *, rescored: bool = False
) -> Options:
    """`options` with the choices of a preset; see the module's docstring.

    Args:
        options: what was asked for.
        compat: one of `COMPAT`; '' changes nothing.
        max_positives: the most positives a query has, which sentence-transformers' window of
            candidates depends on.
        rescored: whether a cross-encoder scores the candidates again; its window is then wider
            where `min_score` is given, too.

    Raises:
        InputError: the preset is not known, or asks for what the options rule out.
    """
    if compat == "":
        return options
    if compat == "paper":
        rule = dataclasses.replace(options.rule, anchor="own", ranks="raw", keep_equal=False)
        return dataclasses.replace(options, rule=rule)
    wrong = options_lib.mistake("mining.compat", compat, COMPAT_TAKES)
    if wrong:
        raise InputError(wrong)
    names = set(options.rule.names)
    wide = bool(names & {"abs", "margin_pos", "perc_pos"})
    wide |= rescored and options.rule.min_score > float("-inf")
    skip = options.rule.ranks_to_skip
    # Its own default: ten times as many candidates as negatives where a filter may remove some.
    max_rank = options.rule.max_rank or (
        skip + options.num_negatives * (10 if wide else 1) + max_positives
    )
    rule = dataclasses.replace(
        options.rule, anchor="min", ranks="survivors", keep_equal=True, max_rank=max_rank
    )
    return dataclasses.replace(
        options,
        rule=rule,
        second_search=False,
        window=max_rank + max_positives,
        # It draws among all that survive.
        sample_from=max_rank if options.sampling == "uniform" else options.sample_from,
    )
