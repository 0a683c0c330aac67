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

from nvret_jax.errors import InputError
from nvret_jax.mining.ensemble import ENSEMBLES
from nvret_jax.mining.rules import Rule
from nvret_jax.mining.sampling import SAMPLINGS, pool_size

SHORT = ("ragged", "drop", "random")
COMPAT = ("", "paper", "sentence_transformers")


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
    num_negatives: int = 4
    sampling: str = "top"
    sample_from: int = 10
    sample_temperature: float = 1.0
    ensemble: str = "intra_dedup"
    short: str = "ragged"
    second_search: bool = True
    window: int = 0
    seed: int = 0

    def __post_init__(self):
        """Raises InputError, one line, for values that cannot be."""
        for name, known in (("sampling", SAMPLINGS), ("ensemble", ENSEMBLES), ("short", SHORT)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(
                    f"mining.{name}={value!r} is not known; choose one of {', '.join(known)}"
                )
        if self.num_negatives < 1:
            raise InputError(f"mining.num_negatives={self.num_negatives}: must be positive")
        if not self.sample_temperature > 0:
            raise InputError(
                f"mining.sample_temperature={self.sample_temperature}: must be positive"
            )
        room = self.rule.max_rank - self.rule.ranks_to_skip
        if self.rule.max_rank and room < self.num_negatives:
            raise InputError(
                f"mining.max_rank={self.rule.max_rank} leaves {max(0, room)} ranks after "
                f"shift={self.rule.ranks_to_skip}; {self.num_negatives} negatives are asked for"
            )

    @property
    def pool_size(self) -> int:
        """Survivors per task and teacher that are needed."""
        return pool_size(self.sampling, self.num_negatives, self.sample_from)


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
    if compat != "sentence_transformers":
        known = ", ".join(map(repr, COMPAT))
        raise InputError(f"mining.compat={compat!r} is not known; choose one of {known}")
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
