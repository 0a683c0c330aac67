"""The history of a workdir: time, command, versions and devices of each stage that ran.

One line of `history.jsonl` per stage that made something, written when it ends. It is not an
artefact: nothing depends on it, and a report shows its content at the time of the report.
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


def note(folder: epath.Path, stage: str, seconds: float) -> None:
    """Appends a line about a stage that has made something; on the main process.

    Args:
        folder: the workdir.
        stage: its name.
        seconds: how long it took.
    """
    if not mesh_lib.is_main():
        return
    line = {
        "stage": stage,
        "seconds": round(seconds, 3),
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(),
        "versions": versions(),
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "processes": mesh_lib.process_count(),
    }
    with (epath.Path(folder) / FILE).open("a") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read(folder: epath.Path) -> list[dict[str, Any]]:
    """The lines of a workdir, oldest first; those that cannot be read are left out."""
    path, found = epath.Path(folder) / FILE, []
    try:
        texts = path.read_text().splitlines()
    except (OSError, ValueError):
        return []
    for text in texts:
        try:
            line = json.loads(text)
            line["stage"], float(line["seconds"]), line["ended"], dict(line["versions"])
        except (ValueError, KeyError, TypeError):
            continue
        found.append(line)
    return found


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
