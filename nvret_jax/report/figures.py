"""The charts of the report as inline SVG.

Each chart is drawn twice, for a desktop and for a phone, because scaling one drawing down makes its
text unreadable; the page shows the one that fits. Colours are written as CSS variables of the page
(so that a chart follows light and dark), text stays text in the page's own font, ids are prefixed
so that several charts share one page, and nothing depends on the clock or on global pyplot state:
the same data give the same bytes.
"""

from __future__ import annotations

import dataclasses
import html
import io
import re
from collections.abc import Sequence

import numpy as np

# Stand-ins that matplotlib accepts -> CSS variables of the page.
_COLOURS = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--line",
    "#040404": "--positive",
    "#050505": "--negative",
    "#060606": "--dropped",
    "#070707": "--ceiling",
}
INK, MUTED, LINE, POSITIVE, NEGATIVE, DROPPED, CEILING = _COLOURS
# CSS pixels. Matplotlib writes points at 72 a unit, so one unit of the drawing is one pixel.
_WIDTHS = {"wide": 1000, "narrow": 340}
# More points than this in a curve are averaged in groups.
_MAX_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Chart:
    """The two drawings of one chart and what they show in words."""

    wide: str
    narrow: str
    description: str


def score_histogram(
    positive: np.ndarray,
    negative: np.ndarray,
    dropped: np.ndarray,
    ceiling: np.ndarray,
) -> Chart:
    """Teacher scores of positives over those of kept and thrown-out candidates, on one axis.

    Args:
        positive: scores of the judged positives (any shape); empty arrays draw nothing.
        negative: scores of the negatives kept.
        dropped: scores of the candidates a rule threw out.
        ceiling: one ceiling per query; infinite ones (rules without a ceiling) are left out.

    Every curve is the share of its own group per bin, so groups of different size compare.
    """
    groups = {
        name: _finite(values)
        for name, values in (
            ("positives", positive),
            ("negatives kept", negative),
            ("thrown out", dropped),
            ("ceilings", ceiling),
        )
    }
    everything = np.concatenate(list(groups.values()))
    low, high = (0.0, 1.0) if not len(everything) else np.percentile(everything, [0.1, 99.9])
    pad = max(0.02 * (high - low), 0.01)
    bins = np.linspace(low - pad, high + pad, 49)
    median = float(np.median(groups["ceilings"])) if len(groups["ceilings"]) else None

    def draw(figure):
        top, bottom = figure.subplots(2, 1, sharex=True)
        _fill(top, groups["positives"], bins, POSITIVE)
        _outline(top, groups["ceilings"], bins, CEILING, "--")
        _fill(bottom, groups["negatives kept"], bins, NEGATIVE)
        _outline(bottom, groups["thrown out"], bins, DROPPED, "-")
        for axes in (top, bottom):
            plain_axes(axes)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
            if median is not None:
                axes.axvline(median, color=CEILING, lw=1, ls=":")
        bottom.set_xlabel("teacher score", color=MUTED)

    words = [
        f"{name}: {len(values):,}, median {np.median(values):.3f}"
        for name, values in groups.items()
        if len(values)
    ]
    return chart_of("scores", draw, 330, "Histogram of teacher scores. " + "; ".join(words) + ".")


def training_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    dev_steps: Sequence[int] = (),
    dev_scores: Sequence[float] = (),
) -> Chart:
    """Training loss over steps; below it nDCG@10 on the dev queries where it was measured."""
    steps, losses = _thin(np.asarray(steps, float), np.asarray(losses, float))
    dev_steps, dev_scores = np.asarray(dev_steps, float), np.asarray(dev_scores, float)

    def draw(figure):
        rows = 2 if len(dev_steps) else 1
        axes = np.atleast_1d(
            figure.subplots(rows, 1, sharex=True, height_ratios=[3, 2][:rows], squeeze=True)
        )
        axes[0].plot(steps, losses, color=INK, lw=1.4)
        axes[0].set_ylabel("loss", color=MUTED)
        if rows == 2:
            axes[1].plot(dev_steps, dev_scores, color=POSITIVE, lw=1.4, marker="o", ms=5)
            axes[1].set_ylabel("dev nDCG@10", color=MUTED)
            spread = max(np.ptp(dev_scores), 0.004)
            axes[1].set_ylim(dev_scores.min() - 0.2 * spread, dev_scores.max() + 0.7 * spread)
            best = int(np.argmax(dev_scores))
            axes[1].annotate(
                f"{dev_scores[best]:.4f}",
                (dev_steps[best], dev_scores[best]),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=POSITIVE,
            )
        for one in axes:
            plain_axes(one)
        axes[-1].set_xlabel("step", color=MUTED)
        axes[-1].xaxis.get_major_locator().set_params(integer=True)

    words = "Training curve."
    if len(losses):
        words += f" Loss from {losses[0]:.3f} at step {steps[0]:.0f} to {losses[-1]:.3f}"
        words += f" at step {steps[-1]:.0f}."
    if len(dev_scores):
        words += f" Dev nDCG@10 from {dev_scores[0]:.4f} to {dev_scores[-1]:.4f}."
    return chart_of("training", draw, 320 if len(dev_steps) else 220, words)


def chart_of(name: str, draw, height: int, description: str) -> Chart:
    """A drawing in each of its widths.

    Args:
        name: prefix of its ids, unique on a page.
        draw: draws into a figure.
        height: in pixels.
        description: what it shows, for those who do not see it.
    """
    svgs = {
        kind: _svg(f"{name}-{kind}", draw, width, height, description)
        for kind, width in _WIDTHS.items()
    }
    return Chart(svgs["wide"], svgs["narrow"], description)


def _svg(prefix: str, draw, width: int, height: int, description: str) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.size": 12,
        "axes.linewidth": 1,
        "path.simplify": True,
    }
    out = io.StringIO()
    with mpl.rc_context(style):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _inline(out.getvalue(), prefix, width, height, description)


def _inline(svg: str, prefix: str, width: int, height: int, description: str) -> str:
    """A standalone SVG document made fit to stand inside the page."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(
        r"<svg[^>]*>",
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{html.escape(description)}">',
        svg,
        count=1,
    )
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    # The page's own font, at the size drawn.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    for stand_in, variable in _COLOURS.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(r"\n\s*", "\n", svg)


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64).ravel()
    return values[np.isfinite(values)]


def _shares(values: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Percent of `values` in each bin; what lies outside counts in the outermost bins."""
    counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
    return 100 * counts / max(len(values), 1)


def _fill(axes, values: np.ndarray, bins: np.ndarray, colour: str) -> None:
    if len(values):
        axes.stairs(_shares(values, bins), bins, fill=True, color=colour, alpha=0.75, lw=0)


def _outline(axes, values: np.ndarray, bins: np.ndarray, colour: str, style: str) -> None:
    if len(values):
        axes.stairs(_shares(values, bins), bins, color=colour, lw=1.6, ls=style)


def plain_axes(axes) -> None:
    """Little ink: no box, a light grid behind, muted tick labels."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINE, lw=0.8)
    axes.tick_params(colors=MUTED, length=0, pad=6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.yaxis.get_major_locator().set_params(nbins=4)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MAX_POINTS` points: means over equal groups. Non-finite values are left out."""
    keep = np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= _MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MAX_POINTS)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])
