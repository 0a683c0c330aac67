"""The options of mining, and a preset for the method of another implementation.

`compat` sets the choices that differ between implementations, not the values to tune:

    sentence_transformers    `mine_hard_negatives` (6.2): the lowest positive is the anchor, ranks
                             count survivors, equal scores are kept, only a window of candidates is
                             used without a second search, the query's own text may be a negative
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from nvret_jax import options as options_lib
from nvret_jax.data.options import ROWS
from nvret_jax.errors import InputError
from nvret_jax.mining.exclude import overlap
from nvret_jax.mining.rules import (
    MARGIN,
    MOST_RANKS,
    PERCENT,
    SHIFT,
    THRESHOLD,
    VALUES,
    Rule,
    skips_ranks,
)
from nvret_jax.models.options import DTYPES
from nvret_jax.options import (
    SEED,
    Anything,
    block,
    choice,
    flag,
    many,
    number,
    option,
    path,
    text,
    whole,
)

COMPAT = ("", "sentence_transformers")
SAMPLINGS = ("top", "uniform", "softmax", "top1_softmax")
ENSEMBLES = ("cross", "intra", "intra_dedup", "union", "rrf")
DOUBTFUL = ("drop", "weigh")
RISKS = ("", "auto", "labels", "ranks")
SHORT = ("ragged", "drop", "random")
OWN_TEXT = ("normalized", "strip", "off")
GIVEN_MODES = ("add", "only", "ignore")
VERDICT_MODES = ("relabel", "remove", "remove_query")
RESCORER_ORDERS = ("teacher", "rescored", "unchanged")
MOST_NEGATIVES = 10_000
COMPAT_TAKES = choice(*COMPAT)
TEACHER = text("a name", longest=200, without="/")

Conflicts = Iterator[Iterable[tuple[str, str]]]


@dataclasses.dataclass(frozen=True)
class Options:
    """How to mine: the options that the miner reads.

    Attributes:
        rule: which passages are allowed.
        num_negatives: per task (query, or query and positive).
        sampling, sample_from, sample_temperature: see `mining.sampling`.
        ensemble: see `mining.ensemble`; without effect for one teacher.
        second_search: whether there is a second search for tasks left short.
        short: how to treat a task for which the whole corpus has too few: 'ragged' keeps those
            found, 'drop' drops the task, 'random' fills up with random passages that are neither
            positives nor excluded.
        window: candidates considered per query, positives included; 0: all stored ones.
        seed: of every draw.
    """

    rule: Rule = block(Rule, flat=True)
    num_negatives: int = option(4, whole(1, MOST_NEGATIVES), "Hard negatives kept per query.")
    sampling: str = option(
        "top",
        choice(*SAMPLINGS),
        "Which survivors become negatives: the best, or a draw among the 'sample_from' best (paper "
        "section 4.3.2); softmax draws by the scores.",
        counts=lambda own: own.sampling != "top",
    )
    sample_from: int = option(
        10,
        whole(1, MOST_RANKS),
        "How many of the best survivors a draw chooses from.",
        counts=lambda own: own.sampling != "top",
    )
    sample_temperature: float = option(
        1.0,
        number(1e-6, 1e6),
        "softmax: divides the scores; smaller prefers the best.",
        counts=lambda own: "softmax" in own.sampling,
    )
    ensemble: str = option(
        "intra_dedup",
        choice(*ENSEMBLES),
        "How the negatives of several teachers become one list (paper section 4.2).",
    )
    risk: str = option(
        "",
        choice(*RISKS),
        "Estimate how likely each negative is false, and store it beside it: labels, from hidden "
        "positives of queries with several; ranks, from where known positives are found; auto: "
        "labels where enough queries have several positives; '': do not.",
        counts=lambda own: bool(own.risk),
    )
    risk_budget: float = option(
        0.0,
        number(0, 1, "a share, 0 for no budget", below=True),
        "Per query the hardest negatives whose expected share of false ones stays within this; "
        "beside the rule, of which 'naive' leaves the choice to the budget. 0: no budget.",
        counts=lambda own: bool(own.risk_budget),
    )
    num_distilled: int = option(
        0,
        whole(0, MOST_NEGATIVES),
        "Candidates per query that are stored beside the negatives for distillation alone "
        "(train.num_distilled); they may score above the ceiling.",
        counts=lambda own: own.num_distilled > 0,
    )
    second_search: bool = option(
        True, flag(), "Search below the ceiling for queries that the stored candidates leave short."
    )
    short: str = option(
        "ragged",
        choice(*SHORT),
        "A query for which the whole corpus has too few: ragged keeps those found, drop drops the "
        "query, random fills up at random.",
    )
    window: int = option(0, whole(0), key="", counts=False)
    seed: int = option(0, SEED, key="", counts=False)

    def __post_init__(self):
        """Raises InputError, one line, for invalid values."""
        options_lib.check(self, "mining.")

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Conflicts:
        """See `options.mistakes`."""
        yield _too_narrow(values)
        yield _no_risk(values)

    @property
    def pool_size(self) -> int:
        """Survivors per task and teacher that are needed."""
        few = self.sampling == "top"
        return self.num_negatives if few else max(self.num_negatives, self.sample_from)

    @property
    def draws(self) -> bool:
        """Whether anything is drawn, so that the seed counts."""
        return self.sampling != "top" or self.ensemble == "cross" or self.short == "random"


def _too_narrow(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A `max_rank` that leaves fewer ranks than negatives."""
    rule, wanted = values["rule"], values["num_negatives"]
    skipped = rule["shift"] if skips_ranks(rule["name"]) else 0
    room = rule["max_rank"] - skipped
    if rule["max_rank"] and room < wanted:
        yield (
            "rule.max_rank",
            f"leaves {max(0, room)} ranks after shift={skipped}, fewer than num_negatives={wanted}",
        )


def _no_risk(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if values["risk_budget"] and not values["risk"]:
        yield "risk_budget", "needs an estimate of the risk; set risk='auto'"


@dataclasses.dataclass(frozen=True)
class Exclude:
    """Which passages, in addition to judged positives, are never negatives of a query.

    Attributes:
        own_text: 'normalized', 'strip' (only space at the ends is ignored) or 'off'.
        same_text: equal normalised texts count as one passage: no copy of a positive is a negative,
            and a text occurs once among a query's negatives (`data.same_text`, `rankers.distinct`).
        cosine: excludes passages with at least this cosine to a positive, above 0 to 1; 0 is off.
        jaccard: excludes passages that share this much of their word 3-shingles with a positive,
            above 0 to 1; 0 is off.
        document_separator: a passage's document is its id up to the last occurrence of this; ''
            is off.
        document_map: passage id -> document id, or a file of two columns (see `documents.read`).
        seed: of MinHash.
    """

    own_text: str = option(
        "normalized",
        choice(*OWN_TEXT),
        "Passages with the query's own text: normalized ignores case, width and punctuation, "
        "strip ignores surrounding white space, off keeps them.",
    )
    same_text: bool = option(
        True,
        flag(),
        "Passages with a positive's normalised text. Each text is then mined once, whatever its "
        "ids, and equal queries share their positives.",
    )
    cosine: float = option(
        0.0,
        number(0, 1, "a cosine, 0 for off"),
        "Cosine to a positive from which on a passage counts as its copy; 0: off.",
        key="near_copy",
    )
    jaccard: float = option(
        0.0,
        number(overlap.LOWEST, 1, "a share of word triples", also={0: "off"}),
        "The same by words: the share of common word triples; 0: off.",
        key="minhash",
    )
    document_separator: str = option(
        "",
        text("the text after a document's id", empty=True, longest=64),
        "Passages from a positive's document: what separates document and part in a passage id, "
        "such as '#'; '': off.",
    )
    document_map: Mapping[str, str] | epath.PathLike | None = option(
        None,
        Anything("a file, or passage id -> document id", (str, os.PathLike, Mapping), unset=True),
        "The same by a file of passage id <tab> document id; '': off.",
        config=("", path("a file", empty=True)),
        counts=False,  # its content does
    )
    seed: int = option(0, SEED, key="", counts=False)

    def __post_init__(self):
        """Raises InputError, one line, for invalid values."""
        options_lib.check(self, "exclusions: ", by_key=False)
        if self.document_map == "":  # a config's word for none
            object.__setattr__(self, "document_map", None)

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Conflicts:
        """See `options.mistakes`."""
        yield _one_document(values)


def _one_document(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if values["document_separator"] and values["document_map"]:
        why = "document_separator is given, too, but a passage has one document: give only one"
        yield "document_map", why


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How the value of 'auto' is chosen."""

    target: float = option(
        0.05,
        number(0, 1, "a share", above=True, below=True),
        "auto: the least strict value whose share of false negatives stays below this.",
    )
    queries: int = option(2000, ROWS, "Queries that a calibration uses; 0: all.")


@dataclasses.dataclass(frozen=True)
class Positives:
    """Which positives are doubtful, and what becomes of them."""

    max_rank: int = option(
        0,
        whole(0, MOST_RANKS, "ranks, 0 for off"),
        "A positive that the first teacher ranks beyond this is doubtful: it is hard or wrong. "
        "Counted without other positives; at most search.depth. 0: off.",
        counts=lambda own: own.max_rank > 0,
    )
    doubtful: str = option(
        "drop",
        choice(*DOUBTFUL),
        "What becomes of a doubtful pair: drop leaves it out of training; weigh gives its row the "
        "weight below, where train.loss.weights is on.",
        counts=lambda own: own.max_rank > 0,
    )
    weight: float = option(
        0.1,
        number(0, 1, "a weight", above=True),
        "weigh: how much a row with a doubtful positive counts in the loss.",
        counts=lambda own: own.max_rank > 0 and own.doubtful == "weigh",
    )


@dataclasses.dataclass(frozen=True)
class Judge:
    """A judge's verdicts on pairs of query and passage, and their effect; see `verdicts`."""

    verdicts: str = option(
        "",
        path("a file", empty=True),
        "A judge's verdicts on pairs of query and passage: a jsonl, csv, tsv or parquet file; '': "
        "none.",
        counts=False,  # its content does
    )
    verdict_mode: str = option(
        "relabel",
        choice(*VERDICT_MODES),
        "Effect of verdicts: relabel a passage as positive or drop it, remove it, or remove_query.",
    )
    max_promoted: int = option(
        0,
        whole(0, what="0 for never"),
        "Drop a query with more negatives judged positive than this; 0: never.",
    )


@dataclasses.dataclass(frozen=True)
class Mining:
    """All options of mining in a run: those of the miner, and those around it."""

    options: Options = block(Options, flat=True)
    teachers: tuple[str, ...] = option(
        ("teacher",),
        many(TEACHER, least=1, distinct=True),
        "The teachers, the most accurate first: 'teacher' and names in 'teachers'.",
    )
    targets: tuple[str, ...] = option(
        (),
        many(TEACHER, distinct=True),
        "Whose scores distillation fits, if not those that mining ranked by: names as in "
        "'teachers', and 'rescorer'. Each is calibrated on the positives, then they are averaged.",
        counts=lambda own: bool(own.targets),
    )
    compat: str = option(
        "",
        COMPAT_TAKES,
        "sentence_transformers: a preset with the choices of its mine_hard_negatives, which "
        "overrides these values; '': none.",
        counts=False,  # the values it changes do
    )
    given: str = option(
        "add",
        choice(*GIVEN_MODES),
        "Negatives that come with the data: add alternates them with mined ones, only mines none, "
        "ignore leaves them out.",
        counts=False,  # if the data have any
    )
    judge: Judge = block(Judge, flat=True)
    positives: Positives = block(Positives)
    calibration: Calibration = block(Calibration)
    exclude: Exclude = block(Exclude)

    @property
    def exclusions(self) -> Exclude:
        """The exclusions, with the preset applied."""
        if self.compat == "sentence_transformers":
            return Exclude(own_text="off", same_text=False)
        return self.exclude


@dataclasses.dataclass(frozen=True)
class Rescorer:
    """A cross-encoder that rescores candidates."""

    model: str = option(
        "",
        path("a folder, a weights package or a hub id", empty=True),
        "A folder or a hub id; '': candidates keep the teacher's scores.",
        counts=False,  # its files do
    )
    depth: int = option(
        50, whole(1, MOST_RANKS), "Candidates per query that it may score, best first."
    )
    order: str = option(
        "teacher",
        choice(*RESCORER_ORDERS),
        "teacher: in the teacher's order, until enough negatives are found; rescored: all 'depth' "
        "candidates, ranked by the new scores; unchanged: mining keeps the teacher's scores, and "
        "'mining.targets' reads the new ones.",
    )
    length: int = option(
        0,
        whole(5, 1 << 20, "tokens", also={0: "the model's own"}),
        "Tokens kept of a pair of query and passage; 0: the model's own length.",
    )
    dtype: str = option("float32", choice(*DTYPES), "Arithmetic of the cross-encoder.")


@dataclasses.dataclass(frozen=True)
class Audit:
    """The rules that an audit tries, each with every value here."""

    percents: tuple[float, ...] = option(
        (0.8, 0.85, 0.9, 0.95, 0.98, 1.0, 1.05), many(PERCENT), "Values of perc_pos to try."
    )
    margins: tuple[float, ...] = option(
        (0.0, 0.05, 0.1, 0.15, 0.2), many(MARGIN), "Values of margin_pos to try."
    )
    thresholds: tuple[float, ...] = option(
        (0.4, 0.5, 0.6, 0.7, 0.8), many(THRESHOLD), "Values of abs to try."
    )
    shifts: tuple[int, ...] = option((5, 10, 20, 50), many(SHIFT), "Values of shifted to try.")
    queries: int = option(
        0, ROWS, "Queries that an audit uses; 0: all with at least two positives."
    )
    resamples: int = option(2000, whole(1, 100_000), "Resamples per interval.")

    @property
    def tried(self) -> dict[str, tuple]:
        """Rule -> the values to try."""
        return {name: getattr(self, f"{value}s") for name, value in VALUES.items() if value}


def calibrated(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The rules whose value is 'auto'.

    Args:
        values: of a config's block `mining`, or a part of it: `rule` and values of rules.
    """
    names = values["rule"].split("+")
    return tuple(n for n in names if VALUES[n] and values[VALUES[n]] == "auto")


def compatible(
    options: Options, compat: str, max_positives: int, *, rescored: bool = False
) -> Options:
    """`options` with the choices of a preset; see the module's docstring.

    Args:
        options: as configured.
        compat: one of `COMPAT`; '' changes nothing.
        max_positives: the most positives a query has, which sentence-transformers' window of
            candidates depends on.
        rescored: whether a cross-encoder rescores the candidates; the window is then wider if
            `min_score` is given, too.

    Raises:
        InputError: an unknown preset, or one that conflicts with the options.
    """
    if compat == "":
        return options
    wrong = options_lib.mistake("mining.compat", compat, COMPAT_TAKES)
    if wrong:
        raise InputError(wrong)
    wide = options.rule.has_ceiling or (rescored and options.rule.min_score > float("-inf"))
    skip = options.rule.ranks_to_skip
    # Its default: ten times as many candidates as negatives if a filter may remove some.
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
        # It draws among all survivors.
        sample_from=max_rank if options.sampling == "uniform" else options.sample_from,
    )
