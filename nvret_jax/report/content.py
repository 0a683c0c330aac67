"""The content of a report, as values, independent of runs. `report.build` makes a page from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nvret_jax.evaluation.comparison import Scores
from nvret_jax.mining.audit.audit import Row
from nvret_jax.mining.audit.risk_fit import Reliability


@dataclasses.dataclass(frozen=True)
class TeacherScores:
    """The content of the histogram: four groups of scores of any length, possibly empty.

    Attributes:
        positive: scores of judged positives.
        negative: scores of the negatives kept.
        dropped: scores of the candidates that the rule rejected.
        ceiling: one per query; +inf for rules without one.
    """

    positive: np.ndarray
    negative: np.ndarray
    dropped: np.ndarray
    ceiling: np.ndarray


@dataclasses.dataclass(frozen=True)
class Curve:
    """One value over the steps of training.

    Attributes:
        name: in words.
        steps, values: of equal length.
    """

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Training:
    """The curves of training.

    Attributes:
        loss: one value per logged step.
        dev: nDCG@10 on the dev queries, the model before training at step 0.
        others: other logged values, except speed.
        speed: values that depend on the clock and the device, such as queries per second.
        bounds: last steps of all stages but the last.
        outcome: whether training helped on dev, a sentence; '' if unknown.
        helped: whether it did.
    """

    loss: Curve
    dev: Curve | None = None
    others: Sequence[Curve] = ()
    speed: Sequence[Curve] = ()
    bounds: Sequence[int] = ()
    outcome: str = ""
    helped: bool = True


@dataclasses.dataclass(frozen=True)
class Mining:
    """Counts of the mining stage.

    Attributes:
        rule: the rule and its value in words, such as 'perc_pos, 95 %'.
        teacher: name of the teacher.
        queries: queries mined for.
        filled: of those, how many got all negatives asked for.
        underfilled: how many got fewer.
        negatives: negatives kept in all.
        dropped: {reason: candidates rejected}.
        wanted: negatives asked for per query.
        used: how many of them training takes per query, in words; '' if nothing is trained.
        false_negatives: how many may be relevant, a sentence; '' if unknown.
    """

    rule: str
    teacher: str
    queries: int
    filled: int
    underfilled: int
    negatives: int
    dropped: Mapping[str, int]
    wanted: int = 0
    used: str = ""
    false_negatives: str = ""


@dataclasses.dataclass(frozen=True)
class Passage:
    """A passage of a query.

    Attributes:
        id, text: from the corpus.
        score: the teacher's.
        rank: in the teacher's ranking, from 1; None or 0 if unknown.
        teacher: that ranked it; '' if there is only one teacher.
        why: for a candidate that was rejected, the reason in words.
    """

    id: str
    text: str
    score: float
    rank: int | None = None
    teacher: str = ""
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
    """One query with the results of mining. `ceiling` is +inf for rules without one.

    `chosen`: why it is shown.
    """

    query_id: str
    query: str
    positives: Sequence[Passage]
    negatives: Sequence[Passage]
    dropped: Sequence[Passage]
    ceiling: float = math.inf
    chosen: str = ""


@dataclasses.dataclass(frozen=True)
class Mined:
    """The results of mining for one training set.

    Attributes:
        dataset: its name; shown if there are several.
        mining, teacher_scores, examples: see their classes.
    """

    dataset: str
    mining: Mining | None = None
    teacher_scores: TeacherScores | None = None
    examples: Sequence[Example] = ()


@dataclasses.dataclass(frozen=True)
class Hit:
    """A passage that a model ranks for a query; `relevant`: whether it is judged so."""

    id: str
    text: str
    rank: int
    relevant: bool


@dataclasses.dataclass(frozen=True)
class RankedQuery:
    """A test query with its first hits.

    Attributes:
        query_id, query: id and text.
        before, after: its nDCG@10; before is None if nothing was trained.
        first: {'before', 'after', 'BM25': rank of the first relevant hit}; None for none.
        hits_before, hits_after: best first; before is empty where nothing was trained.
    """

    query_id: str
    query: str
    before: float | None
    after: float
    first: Mapping[str, int | None]
    hits_before: Sequence[Hit]
    hits_after: Sequence[Hit]


@dataclasses.dataclass(frozen=True)
class Compared:
    """Test queries before and after training.

    Attributes:
        dataset: name and split.
        better, same, worse: how many queries have a higher, equal or lower nDCG@10 after training.
        differences: after - before, for every query; empty if nothing was trained.
        groups: {heading: queries}, chosen by interest.
    """

    dataset: str
    better: int
    same: int
    worse: int
    differences: np.ndarray
    groups: Mapping[str, Sequence[RankedQuery]]


@dataclasses.dataclass(frozen=True)
class Cut:
    """Texts of one table that are longer than an encoder keeps, in words.

    Attributes:
        encoder: its name.
        texts: data set and table.
        length: tokens kept of a text.
        share: '42 %'.
        counts: '587 of 1,398'.
    """

    encoder: str
    texts: str
    length: int
    share: str
    counts: str


@dataclasses.dataclass(frozen=True)
class Size:
    """A data set in numbers.

    Attributes:
        role: such as 'training' or 'test'.
        name: of the data set.
        source: from the config.
        passages: in its corpus.
        queries: {split: judged queries}.
        positives: {split: relevant judgments per query, on average}.
    """

    role: str
    name: str
    source: str
    passages: int
    queries: Mapping[str, int]
    positives: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Timing:
    """The newest work of a stage: its name, seconds, and when it ended."""

    stage: str
    seconds: float
    ended: str


@dataclasses.dataclass(frozen=True)
class ReportData:
    """The content of the page. Everything except the title may be missing.

    Attributes:
        title: heading of the page.
        lead: one or two sentences under it.
        scores: rows of the table, one per data set; the first one is the headline.
        compared: of the test queries.
        audit: rows of the stage audit.
        risks: rows of its check of risks.
        mined: one entry for each training set.
        training: see its class.
        cuts: how many texts were cut, by encoder and table.
        sizes: of the data sets.
        snippets: {program: Python code that loads the exported model}.
        config: {setting: value} worth showing.
        environment: {part: version or name}, such as jax, devices.
        commands: the command lines that made the run, the newest last.
        timings: of the stages.
    """

    title: str
    lead: str = ""
    scores: Sequence[Scores] = ()
    compared: Compared | None = None
    mined: Sequence[Mined] = ()
    training: Training | None = None
    audit: Sequence[Row] = ()
    risks: Sequence[Reliability] = ()
    cuts: Sequence[Cut] = ()
    sizes: Sequence[Size] = ()
    snippets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    commands: Sequence[str] = ()
    timings: Sequence[Timing] = ()
