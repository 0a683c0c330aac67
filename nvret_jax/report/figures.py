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
from collections.abc import Mapping, Sequence

import numpy as np

from nvret_jax.report.content import Curve, Training

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
_NARROW = 500  # a figure of fewer pixels is for a phone
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
    name: str = "histogram",
) -> Chart:
    """Teacher scores of positives over those of kept and rejected candidates, on one axis.

    Args:
        positive: scores of the judged positives (any shape); empty arrays draw nothing.
        negative: scores of the negatives kept.
        dropped: scores of the candidates a rule rejected.
        ceiling: one ceiling per query; infinite ones (rules without a ceiling) are left out.
        name: prefix of the drawing's ids, its own for each chart of a page.

    Every curve is the share of its own group per bin, so groups of different size compare.
    """
    groups = {
        group: _finite(values)
        for group, values in (
            ("positives", positive),
            ("negatives kept", negative),
            ("rejected", dropped),
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
        _outline(bottom, groups["rejected"], bins, DROPPED, "-")
        for axes in (top, bottom):
            plain_axes(axes)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
            if median is not None:
                axes.axvline(median, color=CEILING, lw=1, ls=":")
        bottom.set_xlabel("teacher score", color=MUTED)

    words = [
        f"{group}: {len(values):,}, median {np.median(values):.3f}"
        for group, values in groups.items()
        if len(values)
    ]
    return chart_of(name, draw, 330, "Histogram of teacher scores. " + "; ".join(words) + ".")


def training_curve(training: Training) -> Chart | None:
    """Training loss over steps, smoothed; below it nDCG@10 on the dev queries, if there is any."""
    if not len(training.loss.steps):
        return None
    steps, losses = _points(training.loss)
    dev_steps, dev_scores = _points(training.dev) if training.dev else (np.zeros(0), np.zeros(0))

    def draw(figure):
        rows = 2 if len(dev_steps) else 1
        axes = np.atleast_1d(
            figure.subplots(rows, 1, sharex=True, height_ratios=[3, 2][:rows], squeeze=True)
        )
        _smoothed(axes[0], steps, losses, INK)
        axes[0].set_ylabel("loss", color=MUTED)
        if rows == 2:
            _dev(axes[1], dev_steps, dev_scores)
        for one in axes:
            plain_axes(one)
            _bounds(one, training.bounds)
        axes[-1].set_xlabel("step", color=MUTED)
        axes[-1].xaxis.get_major_locator().set_params(integer=True)

    words = "Training curve."
    if len(losses):
        words += f" Loss from {losses[0]:.3f} at step {steps[0]:.0f} to {losses[-1]:.3f}"
        words += f" at step {steps[-1]:.0f}."
    if len(dev_scores):
        words += f" Dev nDCG@10 from {dev_scores[0]:.4f} to {dev_scores[-1]:.4f}."
    return chart_of("training", draw, 320 if len(dev_steps) else 220, words)


def _dev(axes, steps: np.ndarray, scores: np.ndarray) -> None:
    """Dev scores, the best one named; a dotted line at the score before training."""
    axes.plot(steps, scores, color=POSITIVE, lw=1.4, marker="o", ms=5)
    axes.set_ylabel("dev nDCG@10", color=MUTED)
    if steps[0] == 0:
        axes.axhline(scores[0], color=POSITIVE, lw=1, ls=":")
    spread = max(np.ptp(scores), 0.004)
    axes.set_ylim(scores.min() - 0.2 * spread, scores.max() + 0.7 * spread)
    best = int(np.argmax(scores))
    axes.annotate(
        f"{scores[best]:.4f}",
        (steps[best], scores[best]),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color=POSITIVE,
    )


def small_curves(name: str, of: Sequence[Curve], bounds: Sequence[int] = ()) -> Chart | None:
    """A small panel for each curve: two abreast on a desktop, one on a phone.

    Args:
        name: prefix of the drawing's ids, its own for each chart of a page.
        of: the curves; those without a finite value are left out.
        bounds: steps at which stages of training end.
    """
    curves = [(curve.name, *_points(curve)) for curve in of]
    curves = [curve for curve in curves if len(curve[1])]
    if not curves:
        return None

    def draw(figure):
        columns = 1 if figure.get_figwidth() * 72 < _NARROW else 2
        rows = -(-len(curves) // columns)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, steps, values) in zip(panels, curves, strict=False):
            _smoothed(axes, steps, values, CEILING)
            plain_axes(axes)
            _bounds(axes, bounds)
            axes.set_title(title, color=MUTED, fontsize=12, loc="left")
            axes.yaxis.get_major_locator().set_params(nbins=3)
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        for axes in panels[len(curves) :]:
            axes.set_axis_off()

    said = [f"{title} from {v[0]:.3g} to {v[-1]:.3g}" for title, _, v in curves]
    height = {"wide": 135 * -(-len(curves) // 2) + 10, "narrow": 120 * len(curves) + 10}
    return chart_of(name, draw, height, "Curves of training. " + "; ".join(said) + ".")


def differences(values: np.ndarray) -> Chart:
    """nDCG@10 after minus before of every test query, from the largest gain to the largest loss."""
    ordered = np.sort(np.asarray(values, np.float64))[::-1]
    at = np.arange(len(ordered), dtype=float)
    shown_at, shown = _thin(at, ordered)

    def draw(figure):
        axes = figure.subplots()
        plain_axes(axes)
        axes.fill_between(shown_at, shown, where=shown >= 0, color=POSITIVE, lw=0, step="mid")
        axes.fill_between(shown_at, shown, where=shown <= 0, color=NEGATIVE, lw=0, step="mid")
        axes.axhline(0, color=INK, lw=0.8)
        most = max(float(np.abs(ordered).max(initial=0.0)), 0.01)
        axes.set_ylim(-1.08 * most, 1.08 * most)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.2f}".replace("-", "−"))
        axes.set_xlabel("test queries, the largest gain first", color=MUTED)
        axes.set_ylabel("nDCG@10, after − before", color=MUTED)
        axes.xaxis.get_major_locator().set_params(integer=True)

    words = (
        f"Difference of nDCG@10 for each of {len(ordered):,} test queries: "
        f"{int((ordered > 0).sum()):,} above zero, {int((ordered < 0).sum()):,} below."
    )
    return chart_of("differences", draw, 220, words)


def _points(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    return _thin(np.asarray(curve.steps, float), np.asarray(curve.values, float))


def _smoothed(axes, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    """A line; of many points a running mean over them, which is what one looks for."""
    width = len(values) // 12
    if width < 3:
        axes.plot(steps, values, color=colour, lw=1.4)
        return
    axes.plot(steps, values, color=colour, lw=0.8, alpha=0.35)
    weights = np.ones(width)
    mean = np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same")
    axes.plot(steps, mean, color=colour, lw=1.8)


def _bounds(axes, steps: Sequence[int]) -> None:
    """Where stages of training end."""
    for step in steps:
        axes.axvline(step + 0.5, color=MUTED, lw=0.8, ls="--")


def chart_of(name: str, draw, height: int | Mapping[str, int], description: str) -> Chart:
    """A drawing in each of its widths.

    Args:
        name: prefix of its ids, unique on a page.
        draw: draws into a figure.
        height: in pixels, of both widths or as {'wide': …, 'narrow': …}.
        description: what it shows, for those who do not see it.
    """
    heights = dict.fromkeys(_WIDTHS, height) if isinstance(height, int) else height
    svgs = {
        kind: _svg(f"{name}-{kind}", draw, width, heights[kind], description)
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
    """Percent of `values` in each bin; values outside count in the outermost bins."""
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
