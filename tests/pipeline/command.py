"""The command, run inside this process or in one of its own, and what a failed run may leave."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import subprocess
import sys
from unittest import mock

import tiny_project
import virtual_devices

from nvret_jax import main

CONFIG = f"--config={tiny_project.ROOT / 'configs' / 'quickstart.py'}"


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended and what it printed."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line of a run that was refused; AssertionError if it ended in another way."""
        said = f"status {self.status}\n{self.stdout[-1500:]}\n{self.stderr[-3000:]}"
        assert self.status == 2, said
        assert "Traceback" not in self.stdout + self.stderr, said
        lines = self.stderr.rstrip("\n").split("\n")
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], said
        return lines[-1]


def flags_of(project: pathlib.Path) -> list[str]:
    """A tiny run without the names of config file and workdir."""
    more = {
        "train.steps": 2,
        "train.checkpoint_every": 0,
        "train.eval_every": 0,
        "train.chunk_tokens": -1,  # compiles in half the time
    }
    return [
        *tiny_project.overrides(project),
        *(f"--config.{key}={value}" for key, value in more.items()),
        "--config.distributed.mode=off",  # a cluster can only be looked for in a fresh process
    ]


def inside(*argv: str) -> Result:
    """`python -m nvret_jax.main *argv` without a new process."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        mock.patch.object(sys, "argv", ["nvret_jax.main", *argv]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = main.guarded(main.run, sys.argv)
        except SystemExit as end:
            status = end.code or 0
    return Result(status, out.getvalue(), err.getvalue())


def alone(*argv: str, devices: int = 1, file_size: int | None = None) -> Result:
    """`python -m nvret_jax.main *argv`; no file can grow beyond `file_size` bytes."""
    start = [sys.executable, "-m", "nvret_jax.main"]
    if file_size is not None:
        program = (
            "import resource, runpy\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_size}, {file_size}))\n"
            "runpy.run_module('nvret_jax.main', run_name='__main__')"
        )
        start = [sys.executable, "-c", program]
    done = subprocess.run(
        [*start, *argv],
        cwd=tiny_project.ROOT,
        env=virtual_devices.environment(devices, HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def assert_only_whole_artefacts(workdir: pathlib.Path, earlier: pathlib.Path | None = None) -> None:
    """Every file under an artefact's name is part of a finished artefact, as long as written.

    Where the workdir began as a copy of `earlier`, what still stands as it stood is whole too.
    """
    files = set()
    for path in workdir.rglob("*") if workdir.is_dir() else ():
        name = path.relative_to(workdir)
        aside = any(part.endswith(".partial") for part in name.parts)
        # A run that did not come to its end may have begun what is recorded with its artefact.
        beside = name.parts[0] in (
            "fingerprints",
            "config.json",
            "config.json.sum",
            "history.jsonl",
            "metrics.jsonl",
            "tensorboard",
        )
        beside |= name.name.endswith((".counts.json", ".trec"))
        if path.is_file() and not aside and not beside:
            files.add(path)
    for record in (workdir / "fingerprints").rglob("*.json"):
        artefact = workdir / record.relative_to(workdir / "fingerprints").with_suffix("")
        for name, (size, sha) in json.loads(record.read_text())["files"].items():
            path = artefact / name if name else artefact
            path = workdir / name[3:] if name.startswith("../") else path
            assert path.stat().st_size == size, path
            assert sha is None or hashlib.sha256(path.read_bytes()).hexdigest() == sha, path
            files.discard(path)
    for path in list(files) if earlier else ():
        before = earlier / path.relative_to(workdir)
        if before.is_file() and before.read_bytes() == path.read_bytes():
            files.discard(path)
    assert not files, f"not part of a finished artefact: {sorted(map(str, files))}"
