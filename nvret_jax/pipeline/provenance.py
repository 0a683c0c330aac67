"""The history of a workdir: time, command, versions and devices of each stage that ran.

A stage that makes something adds a line to `history.jsonl` when it begins and another when it ends,
so a stage that was killed is in it, too. It is not an artefact: nothing depends on it, and a report
shows its content at the time of the report.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Any

import jax
from etils import epath

import nvret_jax
from nvret_jax import mesh as mesh_lib

FILE = "history.jsonl"
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_GIT_SECONDS = 10


def begin(folder: epath.Path, stage: str) -> None:
    """Appends a line about a stage that is about to make something; on the main process."""
    _append(
        folder,
        {
            "stage": stage,
            "begun": _now(),
            "command": command(),
            "versions": versions(),
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            "processes": mesh_lib.process_count(),
        },
    )


def end(folder: epath.Path, stage: str, seconds: float) -> None:
    """Appends that this stage ended, after `seconds`; on the main process."""
    _append(folder, {"stage": stage, "ended": _now(), "seconds": round(seconds, 3)})


def read(folder: epath.Path) -> list[dict[str, Any]]:
    """What the stages of a workdir did, oldest first.

    Returns:
        What `begin` wrote, with `ended` and `seconds` where the stage ended. Lines that cannot be
        read are left out.
    """
    path, found = epath.Path(folder) / FILE, []
    try:
        texts = path.read_text().splitlines()
    except (OSError, ValueError):
        return []
    for text in texts:
        try:
            line = json.loads(text)
            if "begun" in line:
                line["stage"], dict(line["versions"])
                found.append(line)
                continue
            ended = {"ended": line["ended"], "seconds": float(line["seconds"])}
            of_stage = [begun for begun in found if begun["stage"] == line["stage"]]
        except (ValueError, KeyError, TypeError):
            continue
        if of_stage:
            of_stage[-1].update(ended)
    return found


def _append(folder: epath.Path, line: dict[str, Any]) -> None:
    if mesh_lib.is_main():
        epath.Path(folder).mkdir(parents=True, exist_ok=True)
        with (epath.Path(folder) / FILE).open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command() -> str:
    """The command line of this process, to be typed again; '' if it is not a command."""
    program = pathlib.PurePath(sys.argv[0] if sys.argv else "")
    if program.name == "nvret_jax.main" or program.parts[-2:] == ("nvret_jax", "main.py"):
        module = "nvret_jax.main"
    elif program.name in ("nvret_jax", "nvret-jax") or program.parts[-2:] == (
        "nvret_jax",
        "__main__.py",
    ):
        module = "nvret_jax"
    else:
        return ""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


@functools.cache
def versions() -> dict[str, str]:
    """{part: version} of this package, with the commit it runs from, Python and libraries."""
    own = nvret_jax.__version__
    if found := _commit():
        own = f"{own} ({found})"
    out = {"nvret_jax": own, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in _LIBRARIES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def _commit() -> str:
    """'commit 1a2b3c4d5e6f', '… with changes' in a checkout that has some, or '' where unknown."""
    folder = pathlib.Path(nvret_jax.__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            check=True,
        )
        return done.stdout.strip()

    try:
        # A package that is installed below some other checkout is not of that.
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() == folder.parent:
            changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder))
            commit = git("rev-parse", "--short=12", "HEAD")
            return f"commit {commit}{' with changes' if changed else ''}"
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        text = importlib.metadata.distribution("nvret_jax").read_text("direct_url.json")
        commit = json.loads(text or "{}")["vcs_info"]["commit_id"]
        return f"commit {commit[:12]}"
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return ""
