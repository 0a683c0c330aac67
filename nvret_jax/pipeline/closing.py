"""The closing lines of a run: its duration, the place of its results, and next steps."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from nvret_jax.pipeline.state import Run
from nvret_jax.pipeline.trained import dev_outcome


def lines(run: Run, plan: Sequence[str], asked: Sequence[str], seconds: float) -> list[str]:
    """The closing lines of a run.

    Args:
        run: the last of its rounds.
        plan: the stages of its config.
        asked: those that were run.
        seconds: how long it took.
    """
    path = shlex.quote(str(run.workdir.path))
    out = [f"finished  in {duration(seconds)}; everything is in {path}"]
    found = dev_outcome(run) if run.trains and "train" in asked else None
    if found is not None:
        out.insert(0, f"dev       {found}")
    if "export" in asked:
        out.append(f"export    {path}/export, loaded by nvret_jax and sentence-transformers")
    if "report" in asked:
        out.append(f"report    {path}/report.html, for a browser")
    rest = [name for name in plan if name not in asked and plan.index(name) > plan.index(asked[-1])]
    if rest:
        out.append(f"next      the same command with --stages={','.join(rest)}")
    elif "export" in asked and run.trains:
        data = run.config.data.test or run.config.data.train or "DATA"
        out += [
            "next      search with it, next to the model it started from:",
            f"          python -m nvret_jax search {path} {shlex.quote(data)} --web",
            "          score it on other data:",
            f"          python -m nvret_jax evaluate {path} beir:DIR",
        ]
    return out


def duration(seconds: float) -> str:
    """'42 s', '7 min 43 s' or '3 h 5 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"
