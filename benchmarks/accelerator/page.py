"""Results for people: a line per step, a table, and the section of docs/benchmarks.md."""

from __future__ import annotations

import pathlib

BEGIN, END = "<!-- accelerator: begin -->", "<!-- accelerator: end -->"


def line(name: str, result: dict) -> str:
    """One step in one line."""
    return f"{name:<18} {outcome(result)}"


def outcome(result: dict) -> str:
    """What a step found, in a few words."""
    for word in ("failed", "skipped"):
        if word in result:
            return f"{word}: {result[word]}"
    if "errors" in result:
        worst = max(
            result["limits"],
            key=lambda name: _share(result["errors"][name], result["limits"][name]),
        )
        state = "right" if result["ok"] else "WRONG"
        found, limit = result["errors"][worst], result["limits"][worst]
        return f"{state}; worst: {worst} {found:.2g} (at most {limit:.2g})"
    parts = []
    for key, unit in (
        ("matmul_tflops", "TFLOP/s bf16 products"),
        ("copy_gb_per_s", "GB/s copied"),
        ("texts_per_s", "texts/s"),
        ("tokens_per_s", "tokens/s"),
        ("tflops", "TFLOP/s"),
        ("mfu", "MFU"),
        ("memory_factor", "x predicted memory"),
        ("time_factor", "x predicted time"),
        ("measured_seconds", "s per step"),
    ):
        if isinstance(result.get(key), int | float):
            value = result[key]
            parts.append(f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}")
    for other, ratio in result.get("ratios", {}).items():
        if ratio is not None:
            parts.append(f"{ratio:.2f} x {other.replace('_', '-')}")
    for side, found in result.get("sides", {}).items():
        if "missing" in found:
            parts.append(f"{side}: {found['missing']}")
    for key, value in result.get("seconds", {}).items() if "what" in result else ():
        parts.append(f"{key}: {value:.3g} s")
    return "; ".join(parts) or "done"


def _share(found: float, limit: float) -> float:
    return found / limit if limit else found


def table(results: dict) -> str:
    """All steps as a Markdown table, with the machine above it."""
    where = results["steps"].get("where", {})
    versions = where.get("versions", {})
    said = ", ".join(f"{name} {value}" for name, value in versions.items())
    head = f"{where.get('devices', '?')} x {where.get('device', 'unknown device')}"
    lines = [
        f"{head}, {where.get('processor', 'unknown processor')}; {said}; "
        f"{results.get('seconds', 0):.0f} s in all"
        + (" (small sizes: a test of the steps, no measurement)" if results["small"] else "")
        + ".",
        "",
        "| step | what | found |",
        "|---|---|---|",
    ]
    for name, result in results["steps"].items():
        lines.append(f"| {name} | {result.get('what', '')} | {outcome(result)} |")
    return "\n".join(lines)


def insert(file: pathlib.Path, results: dict) -> None:
    """Puts the table between the markers of a Markdown file.

    Raises:
        SystemExit: the file has no markers.
    """
    text = file.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{file}: expected the lines {BEGIN!r} and {END!r}")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    file.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")
