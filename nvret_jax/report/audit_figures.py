"""The audit's chart: the share of false negatives of each rule, over the hardness of its negatives.

One line per rule, through its values in order; naive mining is a separate point. The better a rule,
the further its line is to the lower right: harder negatives at fewer false ones. The bars are 95 %
intervals over queries. Each rule has a distinct marker, so that nothing depends on colour alone,
and values are next to their points. It is drawn in the report's style, see `figures`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from nvret_jax.mining.audit.audit import Row
from nvret_jax.mining.audit.risk_fit import Reliability
from nvret_jax.mining.rules import NAIVE, RULES
from nvret_jax.report import figures
from nvret_jax.report.figures import CEILING, DROPPED, INK, LINE, MUTED, NEGATIVE, POSITIVE, Chart

# (colour, marker) of the rules, in the order of `RULES` and again from the first on.
_LOOKS = ((INK, "D"), (DROPPED, "s"), (CEILING, "^"), (NEGATIVE, "v"), (POSITIVE, "o"))
_STYLES = dict(zip(RULES, itertools.cycle(_LOOKS), strict=False))
_COMBINED = (INK, "*")
# Lines of neighbouring rules often run close together: their values are on different sides.
_LEFT = RULES[1::2]
_NARROW = 500  # a figure of fewer pixels names only the ends of each line


def charts(rows: Sequence[Row]) -> list[tuple[str, Chart]]:
    """A chart for each data set and teacher, with its heading, in the order of `rows`."""
    blocks = list(dict.fromkeys((row.dataset, row.teacher) for row in rows))
    return [
        (
            f"{dataset}, teacher {teacher}",
            false_negatives(
                [row for row in rows if (row.dataset, row.teacher) == (dataset, teacher)],
                f"audit-{number}",
            ),
        )
        for number, (dataset, teacher) in enumerate(blocks)
    ]


def false_negatives(rows: Sequence[Row], name: str = "audit") -> Chart:
    """The share of false negatives over hardness, for the rows of one data set and teacher.

    Args:
        rows: of `mining.audit.audit`; those without negatives are left out.
        name: prefix of the drawing's ids, unique for each chart of a page.
    """
    rows = [row for row in rows if row.slots and np.isfinite(row.hardness)]
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.rule, []).append(row)

    def draw(figure):
        axes = figure.subplots()
        figures.plain_axes(axes)
        axes.grid(axis="x", color=LINE, lw=0.8)
        narrow = figure.get_figwidth() * 72 < _NARROW
        for rule, points in lines.items():
            _line(axes, rule, points, narrow)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.06)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.xaxis.get_major_locator().set_params(nbins=5 if narrow else 9)
        label = "hardness: score of a negative / score of the positive"
        axes.set_xlabel("hardness" if narrow else label, color=MUTED)
        axes.set_ylabel("false negatives", color=MUTED)
        if rows:
            figure.legend(
                loc="outside upper left",
                ncols=2 if narrow else len(lines),
                frameon=False,
                labelcolor=INK,
                handletextpad=0.4,
                columnspacing=1.6,
                borderaxespad=0.2,
            )

    return figures.chart_of(name, draw, 400, _words(rows))


def _line(axes, rule: str, rows: Sequence[Row], narrow: bool) -> None:
    colour, marker = _STYLES.get(rule, _COMBINED)
    x = np.array([row.hardness for row in rows])
    y = np.array([row.false_negative_share for row in rows])
    low, high = (np.array([getattr(row, end) for row in rows]) for end in ("low", "high"))
    axes.errorbar(
        x,
        y,
        # An interval may not contain its point if only a handful of queries decides.
        yerr=np.stack([np.maximum(y - low, 0), np.maximum(high - y, 0)]),
        color=colour,
        marker=marker,
        ms=9 if rule == NAIVE else 6,
        lw=1.6,
        elinewidth=1,
        label=rule,
        zorder=4 if rule == NAIVE else 3,
    )
    left = rule in _LEFT
    shown = {0, len(rows) - 1} if narrow else range(len(rows))
    for i in shown:
        axes.annotate(
            rows[i].value,
            (x[i], y[i]),
            xytext=(-6, 4) if left else (6, -4),
            textcoords="offset points",
            ha="right" if left else "left",
            va="bottom" if left else "top",
            color=colour,
            fontsize=10,
        )


def reliability(rows: Sequence[Reliability], name: str = "risk") -> Chart:
    """Predicted against counted risks of one data set and teacher, a line per method.

    Args:
        rows: of `risk_fit.reliability`; on the diagonal what is predicted is what is counted.
        name: prefix of the drawing's ids.
    """
    lines: dict[str, list[Reliability]] = {}
    for row in rows:
        lines.setdefault(row.method, []).append(row)

    def draw(figure):
        axes = figure.subplots()
        figures.plain_axes(axes)
        axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
        styles = ((POSITIVE, "o"), (NEGATIVE, "v"))
        for (method, points), (colour, marker) in zip(lines.items(), styles, strict=False):
            x, y = np.array([(p.predicted, p.counted) for p in points]).T
            low, high = np.array([(p.counted_low, p.counted_high) for p in points]).T
            bars = np.stack([np.maximum(y - low, 0), np.maximum(high - y, 0)])
            axes.errorbar(
                x, y, yerr=bars, color=colour, marker=marker, lw=1.6, elinewidth=1, label=method
            )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.set_xlabel("predicted", color=MUTED)
        axes.set_ylabel("counted", color=MUTED)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK)

    said = [f"{p.method} {p.predicted:.1%} predicted, {p.counted:.1%} counted" for p in rows]
    return figures.chart_of(name, draw, 360, "Risks of candidates: " + "; ".join(said) + ".")


def _words(rows: Sequence[Row]) -> str:
    """A description of the chart for readers who cannot see it."""
    if not rows:
        return "False negatives by rule: nothing was mined."
    said = [
        f"{row.rule}{' ' + row.value if row.value else ''}: {100 * row.false_negative_share:.1f} % "
        f"({100 * row.low:.1f} to {100 * row.high:.1f} %) at hardness {row.hardness:.2f}"
        for row in rows
    ]
    return "Share of false negatives against hardness. " + "; ".join(said) + "."
