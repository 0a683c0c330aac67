"""report.html: what a run did, on one page that needs nothing but itself.

No scripts, no fonts, no links to anywhere: charts are inline SVG, styles are in the page, and every
text of a data set goes through Jinja's autoescape. The page reads no clock, so the same data give
the same bytes; what was measured by one (times, speed) is in the last section alone. A section
whose data are missing is not there at all, and not in the contents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from etils import epath

from nvret_jax.artifacts import artifact
from nvret_jax.evaluation.retrieval import MEASURE_NAMES
from nvret_jax.mining.audit.audit import Row
from nvret_jax.mining.audit.risk_fit import Reliability
from nvret_jax.report import audit_figures, figures
from nvret_jax.report.content import Compared, Example, Mined, ReportData

# A passage longer than this many characters is folded, showing about this much of it.
FOLD_AT = 260


def write(data: ReportData, path: epath.PathLike) -> None:
    """Builds the page and writes it whole."""
    artifact.write_atomic(epath.Path(path), build(data).encode("utf-8"))


def build(data: ReportData) -> str:
    """The page as HTML text that encodes to UTF-8."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nvret_jax.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": lambda value: f"{value:.3f}",
        "metric": lambda value: f"{value:.4f}",
        "signed": lambda value: f"{value:+.4f}".replace("-", "−"),
        "count": lambda value: f"{value:,}",
        "lead": _lead,
        "svg": Markup,
        "share": lambda value: "–" if math.isnan(value) else f"{100 * value:.1f} %",
        "duration": _duration,
        "folded": lambda line: line.replace(" --", " \\\n  --"),
    }
    mined = [_drawn(one, number) for number, one in enumerate(data.mined)]
    training = data.training
    page = environment.get_template("page.html.j2").render(
        data=data,
        contents=_contents(data, mined),
        names=MEASURE_NAMES,
        mined=mined,
        curve=None if training is None else figures.training_curve(training),
        more=None
        if training is None
        else figures.small_curves("curves", training.others, training.bounds),
        speed=None
        if training is None
        else figures.small_curves("speed", training.speed, training.bounds),
        differences=_differences(data.compared),
        audits=_audits(data.audit),
        style=resources.files("nvret_jax.report").joinpath("page/style.css").read_text("utf-8"),
        risks=_risks(data.risks),
        fold_at=FOLD_AT,
        isfinite=math.isfinite,
    )
    # A text may hold what UTF-8 or HTML cannot: lone surrogates, NUL.
    return page.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _contents(data: ReportData, mined: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{id: heading} of the sections that are there, in order."""
    there = {
        "scores": ("Retrieval scores", data.scores),
        "queries": (
            "Test queries" if data.compared is None else _queries_heading(data.compared),
            data.compared,
        ),
        "training": ("Training", data.training),
        "mining": ("Mining", any(one["mining"] or one["histogram"] for one in mined)),
        "audit": ("False negatives", data.audit),
        "examples": ("Mined examples", any(one["examples"] for one in mined)),
        "data": ("Data", data.sizes),
        "cuts": ("Truncated texts", data.cuts),
        "use": ("Loading the model", data.snippets),
        "setup": (
            "How it was made",
            data.config or data.environment or data.commands or data.timings,
        ),
    }
    return {name: heading for name, (heading, content) in there.items() if content}


def _queries_heading(compared: Compared) -> str:
    return "Queries won and lost" if len(compared.differences) else "Test queries"


def _differences(compared: Compared | None) -> figures.Chart | None:
    if compared is None or not len(compared.differences):
        return None
    return figures.differences(compared.differences)


def _duration(seconds: float) -> str:
    """'1.4 s', '42 s', '7 min 43 s' or '3 h 5 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def _drawn(one: Mined, number: int) -> dict[str, Any]:
    """One set's part of the page, with its drawings; `number` distinguishes it from the others."""
    histogram, groups = None, one.teacher_scores
    if groups is not None and (len(groups.positive) or len(groups.negative)):
        histogram = figures.score_histogram(
            groups.positive,
            groups.negative,
            groups.dropped,
            groups.ceiling,
            name=f"histogram-{number}",
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


def _risks(rows: Sequence[Reliability]) -> list[tuple[str, figures.Chart]]:
    """Heading and chart of each data set and teacher."""
    blocks: dict[str, list[Reliability]] = {}
    for row in rows:
        blocks.setdefault(f"{row.dataset}, teacher {row.teacher}", []).append(row)
    return [
        (heading, audit_figures.reliability(block, f"risk-{number}"))
        for number, (heading, block) in enumerate(blocks.items())
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
