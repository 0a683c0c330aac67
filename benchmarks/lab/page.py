"""What a grid found, as text: tables of differences with intervals, charts, and a page of docs."""

from __future__ import annotations

import io
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks.lab import mined
from benchmarks.lab import results as results_lib
from benchmarks.lab.grid import Grid
from benchmarks.lab.results import Block, Result
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import write_atomic

_ORACLE = "oracle"  # the level that shows what is left to gain, in grids that have it
_COLOURS = ("#1b6ca8", "#c2571a", "#2f7d32", "#7b4ea3", "#8a6d00", "#a02c50", "#4a5a6a", "#00798c")


def write(
    name: str, grid: Grid, cells: Sequence[Any], out: pathlib.Path, page: pathlib.Path | None
) -> None:
    """Writes NAME.csv, NAME.md and charts into `out`; into a page of docs, too, if asked.

    Args:
        name: of the grid.
        grid: of the cells.
        cells: of the command; each has a label and a result.
        out: folder of the results.
        page: a Markdown file, whose part between the marks of the grid is replaced; the CSV and the
            charts go into the folder lab beside it.

    Where no cell has finished, nothing is written.

    Raises:
        InputError: the page is missing or lacks the marks, or no cell has finished.
    """
    found = results_lib.load([(cell.label, cell.result(out)) for cell in cells])
    if not found:
        if page is None:
            print("No cell has finished.")
            return
        raise InputError(f"{out}: no cell of {name} has finished; run it without --page first")
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    if page is not None:
        if not page.is_file():
            raise InputError(f"--page {page}: no such file; give one with the lines {begin}, {end}")
        before, at, rest = page.read_text().partition(begin)
        _, until, after = rest.partition(end)
        if not at or not until:
            raise InputError(f"--page {page}: add the lines {begin} and {end} where tables belong")
    text = mined.tables(grid, found) if grid.until == "mine" else tables(grid, found)
    print(text)
    drawn = {} if grid.until == "mine" else charts(grid, found)
    folder = out if page is None else page.parent / "lab"
    folder.mkdir(exist_ok=True)
    write_atomic(folder / f"{name}.csv", results_lib.long_csv(found))
    for what, svg in drawn.items():
        write_atomic(folder / f"{name}_{what}.svg", svg)
    if page is None:
        write_atomic(out / f"{name}.md", text + "\n")
        return
    shown = [text, *(f"![{what} of {name}](lab/{name}_{what}.svg)" for what in drawn)]
    shown.append(f"[Values of all cells](lab/{name}.csv)")
    write_atomic(page, f"{before}{begin}\n\n" + "\n\n".join(shown) + f"\n\n{end}{after}")


def tables(grid: Grid, found: Sequence[Result]) -> str:
    """A table for each data set and combination of the other axes, then means over data sets."""
    axis, baseline = grid.baseline
    parts = list(results_lib.blocks(found, axis))
    out = []
    for rest, block in parts:
        start = next(iter(next(iter(block.values())).values()))["before"]["ndcg_cut_10"]
        title = ", ".join(rest.values())
        out.append(f"**{title}** (untrained student {start:.4f})\n\n" + _table(grid, block))
    levels = [level for level in grid.axes[axis] if level != baseline]
    rows = []
    for level in levels:
        for key, (sets, one) in results_lib.over_sets(parts, baseline, level).items():
            if sets > 1:
                where = ", ".join(value for _, value in key)
                rows.append(f"| {level} | {where} | {sets} | {one.seeds} | {one} |")
    if rows:
        head = f"| {axis} | | data sets | seeds | against {baseline} |\n|---|---|---|---|---|"
        out.append("**Mean over data sets**\n\n" + "\n".join([head, *rows]))
    return "\n\n".join(out) if out else "No cell has finished."


def _table(grid: Grid, block: Block) -> str:
    axis, baseline = grid.baseline
    against = [level for level in (baseline, grid.second) if level in block]
    head = [axis, "seeds", "nDCG@10", *(f"against {level}" for level in against)]
    head += [
        "oracle's gain",
        "false negatives",
        "relative score",
        f"steps to {baseline}'s best, as a share",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for level in (name for name in grid.axes[axis] if name in block):
        cells = block[level]
        row = [level, str(len(cells)), f"{results_lib.mean_of(cells, 'ndcg_cut_10'):.4f}"]
        for other in against:
            one = None if other == level else results_lib.difference(block[other], cells)
            row.append("" if one is None else str(one))
        row.append(_share(block, baseline, level))
        for measure in ("false_negative_share", "hardness"):
            row.append(_number(results_lib.mean_of(cells, measure), ".3f"))
        row.append("" if level == baseline else _steps_share(block.get(baseline, {}), cells))
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _steps_share(one: dict[str, Result], other: dict[str, Result]) -> str:
    found = results_lib.steps_ratio(one, other)
    if found is None:
        return "none: its best is before training" if one else ""
    mean, low, high = ("never" if math.isinf(value) else f"{value:.2f}" for value in found)
    return f"{mean} ({low} … {high})"


def _share(block: Block, baseline: str, level: str) -> str:
    """Which part of the oracle's gain a level has; '' where the oracle gains nothing."""
    if level in (baseline, _ORACLE) or baseline not in block or _ORACLE not in block:
        return ""
    whole = results_lib.difference(block[baseline], block[_ORACLE])
    part = results_lib.difference(block[baseline], block[level])
    if whole is None or part is None or whole.low <= 0:
        return ""
    return f"{100 * part.mean / whole.mean:.0f} %"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""


def charts(grid: Grid, found: Sequence[Result]) -> dict[str, str]:
    """Name -> SVG: the differences with their intervals, and dev scores by step."""
    parts = list(results_lib.blocks(found, grid.baseline[0]))
    if not parts:
        return {}
    return {"differences": _differences(grid, parts), "steps": _steps(grid, parts)}


def _differences(grid: Grid, parts: Sequence[tuple[dict[str, str], Block]]) -> str:
    axis, baseline = grid.baseline
    levels = [level for level in grid.axes[axis] if level != baseline]

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
        for one, (rest, block) in zip(axes, parts, strict=True):
            for at, level in enumerate(levels):
                if baseline not in block or level not in block:
                    continue
                gain = results_lib.difference(block[baseline], block[level])
                if gain is None:
                    continue
                colour = _COLOURS[at % len(_COLOURS)]
                one.plot([gain.low, gain.high], [at, at], color=colour, lw=2)
                one.plot(gain.mean, at, "o", color=colour)
            one.axvline(0, color="#888888", lw=1)
            one.set_title(", ".join(rest.values()), fontsize=10)
            one.xaxis.get_major_locator().set_params(nbins=4)
        axes[0].set_yticks(range(len(levels)), levels)
        axes[0].invert_yaxis()
        figure.supxlabel(f"nDCG@10 against {baseline}, 95 % interval", fontsize=10)

    return _svg("differences", draw, 260 * len(parts) + 60, 60 + 32 * len(levels))


def _steps(grid: Grid, parts: Sequence[tuple[dict[str, str], Block]]) -> str:
    levels = list(grid.axes[grid.baseline[0]])

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(parts), squeeze=False)[0]
        for one, (rest, block) in zip(axes, parts, strict=True):
            for at, level in enumerate(levels):
                points = results_lib.curve(block[level]) if level in block else []
                if points:
                    colour = _COLOURS[at % len(_COLOURS)]
                    one.plot(*zip(*points, strict=True), color=colour, marker=".", label=level)
            one.set_title(", ".join(rest.values()), fontsize=10)
        figure.legend(*_entries(axes), loc="outside lower center", ncols=len(levels), frameon=False)
        axes[0].set_ylabel("dev nDCG@10")
        figure.supxlabel("step", fontsize=10)

    return _svg("steps", draw, 280 * len(parts) + 60, 300)


def _entries(axes: Sequence[Any]) -> tuple[list[Any], list[str]]:
    named: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    return list(named.values()), list(named)


def _svg(name: str, draw: Any, width: int, height: int) -> str:
    """A drawing on white; the same data give the same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", facecolor="white", metadata=nothing)
    return out.getvalue()
