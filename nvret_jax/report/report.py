"""report.html: what a run did, on one page that needs nothing but itself.

No scripts, no fonts, no links to anywhere: charts are inline SVG, styles are in the page, and every
text of a data set goes through Jinja's autoescape. The page holds no time stamp, so the same data
give the same bytes. A section whose data are missing is not there at all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from etils import epath

from nvret_jax.artifacts import artifact
from nvret_jax.evaluation.comparison import Scores
from nvret_jax.evaluation.retrieval import MEASURE_NAMES
from nvret_jax.mining.audit.audit import Row
from nvret_jax.report import audit_figures, figures

# A passage longer than this many characters is folded, showing about this much of it.
FOLD_AT = 260


@dataclasses.dataclass(frozen=True)
class TeacherScores:
    """What the histogram shows: four groups of scores, any lengths, empty allowed.

    Attributes:
        positive: scores of judged positives.
        negative: scores of the negatives kept.
        dropped: scores of the candidates that the rule threw out.
        ceiling: one per query; +inf for rules without one.
    """

    positive: np.ndarray
    negative: np.ndarray
    dropped: np.ndarray
    ceiling: np.ndarray


@dataclasses.dataclass(frozen=True)
class Training:
    """The training curve: one loss a logged step, and nDCG@10 at the dev evaluations."""

    steps: Sequence[int]
    losses: Sequence[float]
    learning_rates: Sequence[float] = ()
    dev_steps: Sequence[int] = ()
    dev_ndcg: Sequence[float] = ()


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
        dropped: {reason: candidates thrown out}.
    """

    rule: str
    teacher: str
    queries: int
    filled: int
    underfilled: int
    negatives: int
    dropped: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Passage:
    """A passage beside a query.

    Attributes:
        id, text: from the corpus.
        score: the teacher's.
        rank: in the teacher's ranking, from 1; None or 0 where it is not known.
        teacher: who ranked it; '' when there is one teacher only.
        why: for a candidate thrown out, the reason in words.
    """

    id: str
    text: str
    score: float
    rank: int | None = None
    teacher: str = ""
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
    """One query with what mining made of it. `ceiling` is +inf for rules without one."""

    query_id: str
    query: str
    positives: Sequence[Passage]
    negatives: Sequence[Passage]
    dropped: Sequence[Passage]
    ceiling: float = math.inf


@dataclasses.dataclass(frozen=True)
class Mined:
    """What mining made of one training set.

    Attributes:
        dataset: its name; shown where there are several.
        mining, teacher_scores, examples: see their classes.
    """

    dataset: str
    mining: Mining | None = None
    teacher_scores: TeacherScores | None = None
    examples: Sequence[Example] = ()


@dataclasses.dataclass(frozen=True)
class Cut:
    """Texts of one table that are longer than an encoder keeps, in words.

    Attributes:
        encoder: whose.
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
class ReportData:
    """Everything on the page. All but the title may be missing.

    Attributes:
        title: heading of the page.
        lead: one or two sentences under it.
        scores: rows of the table, one a data set; the first one is the headline.
        audit: rows of the stage audit.
        mined: one entry for each training set.
        training: see its class.
        cuts: how many texts were cut, by encoder and table.
        config: {setting: value} worth showing.
        environment: {part: version or name}, such as jax, devices.
    """

    title: str
    lead: str = ""
    scores: Sequence[Scores] = ()
    mined: Sequence[Mined] = ()
    training: Training | None = None
    audit: Sequence[Row] = ()
    cuts: Sequence[Cut] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write(data: ReportData, path: epath.PathLike) -> None:
    """Builds the page and writes it whole."""
    artifact.write_atomic(epath.Path(path), build(data).encode("utf-8"))


def build(data: ReportData) -> str:
    """The page as HTML text that encodes to UTF-8."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "score": lambda value: f"{value:.3f}",
        "metric": lambda value: f"{value:.4f}",
        "signed": lambda value: f"{value:+.4f}".replace("-", "−"),
        "count": lambda value: f"{value:,}",
        "lead": _lead,
        "svg": Markup,
        "share": lambda value: "–" if math.isnan(value) else f"{100 * value:.1f} %",
    }
    template = resources.files("nvret_jax.report").joinpath("report.html.j2").read_text("utf-8")
    curve, run = None, data.training
    if run is not None and len(run.steps):
        curve = figures.training_curve(run.steps, run.losses, run.dev_steps, run.dev_ndcg)
    page = environment.from_string(template).render(
        data=data,
        names=MEASURE_NAMES,
        mined=[_drawn(one) for one in data.mined],
        curve=curve,
        audits=_audits(data.audit),
        fold_at=FOLD_AT,
        isfinite=math.isfinite,
    )
    # A text may hold what UTF-8 or HTML cannot: lone surrogates, NUL.
    return page.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _drawn(one: Mined) -> dict[str, Any]:
    """One set's part of the page, with its drawings."""
    histogram, groups = None, one.teacher_scores
    if groups is not None and (len(groups.positive) or len(groups.negative)):
        histogram = figures.score_histogram(
            groups.positive, groups.negative, groups.dropped, groups.ceiling
        )
    return {
        "dataset": one.dataset,
        "mining": one.mining,
        "scores": groups,
        "histogram": histogram,
        "has_ceiling": groups is not None and bool(np.isfinite(groups.ceiling).any()),
        "examples": one.examples,
        "strips": [_strip(example) for example in one.examples],
    }


def _audits(rows: Sequence[Row]) -> list[tuple[str, figures.Chart, list[Row]]]:
    """Heading, chart and rows of each data set and teacher."""
    blocks: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        blocks.setdefault((row.dataset, row.teacher), []).append(row)
    charts = audit_figures.charts(rows)
    return [
        (heading, chart, block)
        for (heading, chart), block in zip(charts, blocks.values(), strict=True)
    ]


def _lead(text: str) -> str:
    """The beginning of a long passage, on one line, cut between words."""
    flat = " ".join(text[: 4 * FOLD_AT].split())
    if len(flat) <= FOLD_AT:
        return flat
    return flat[:FOLD_AT].rsplit(" ", 1)[0] + " …"


def _strip(example: Example) -> dict[str, Any] | None:
    """Where the scores of an example lie on a line, in percent of its width."""
    marks = [
        (kind, p.score)
        for kind, passages in (
            ("dropped", example.dropped),
            ("negative", example.negatives),
            ("positive", example.positives),
        )
        for p in passages
        if math.isfinite(p.score)
    ]
    if not marks:
        return None
    values = [score for _, score in marks]
    if math.isfinite(example.ceiling):
        values.append(example.ceiling)
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 0.005)
    low, high = low - margin, high + margin

    def place(score: float) -> str:
        return f"{100 * (score - low) / (high - low):.2f}%"

    return {
        "marks": [(kind, place(score)) for kind, score in marks],
        "ceiling": place(example.ceiling) if math.isfinite(example.ceiling) else None,
    }
