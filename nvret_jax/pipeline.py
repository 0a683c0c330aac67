"""The stages in order: which are up to date, which are not and why, and running those.

A stage declares its artefacts (`stages/`); this file compares their fingerprints with what lies
in the workdir. A stage that holds is skipped and says so. One that does not is made again, and
says what changed. A stage that was not asked for but is needed and out of date is an error, never
quietly made or quietly used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

from nvret_jax import config as config_lib
from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts import Workdir
from nvret_jax.console import say
from nvret_jax.errors import InputError
from nvret_jax.run import Run
from nvret_jax.stages import STAGES
from nvret_jax.training.loop import check_batch, loss_of

_FULL = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)  # the disk takes no more


def run(
    config: ConfigDict,
    workdir: str,
    *,
    stages: Sequence[str] = (),
    dry_run: bool = False,
) -> None:
    """Runs a config in a workdir.

    Args:
        config: from a file in `configs/` or `config.base()`.
        workdir: its folder; made if missing, continued if it holds an earlier run of the config.
        stages: only these; empty: all the config names.
        dry_run: print what would be done and why, and do nothing.

    Raises:
        InputError: anything wrong with what was given; one line.
    """
    config_lib.validate(config)
    plan = [name for name in config_lib.STAGES if name in config.stages]
    unknown = [name for name in stages if name not in plan]
    if unknown:
        raise InputError(f"--stages={unknown[0]}: this config has the stages {', '.join(plan)}")
    asked = [name for name in plan if not stages or name in stages]
    with _files_errors(workdir):
        place = Workdir.open(workdir, config.to_dict(), write=not dry_run)
        state = Run(config, place)
        if dry_run:
            _print_plan(state, plan, asked)
            return
        _check_inputs(state, asked)
        say(
            f"devices: {jax.device_count()} × {jax.devices()[0].device_kind}, "
            f"{jax.process_count()} process(es)"
        )
        for name in asked:
            _run_stage(state, name)


def _check_inputs(state: Run, asked: Sequence[str]) -> None:
    """Finds what is wrong with mesh, data and models of any stage before the first one runs."""
    if set(asked) - {"report"}:
        shards = mesh_lib.shards(state.mesh, "batch")
        if "train" in asked:
            check_batch(state.config.train, shards)
            loss_of(state.config.train, state.student.spec.width)
    for name in asked:
        STAGES[name].artifacts(state)


def _run_stage(state: Run, name: str) -> None:
    stage = STAGES[name]
    begun = time.perf_counter()
    pending = [(item, item.stale()) for item in stage.artifacts(state)]
    mesh_lib.barrier(f"looked at {name}")  # nobody writes before everybody has looked
    if not any(reason for _, reason in pending):
        say(f"{name:<9} up to date")
        return
    for item, reason in pending:
        if reason:
            say(f"{name:<9} making {item.name} ({reason})")
            stage.make(state, item)
    say(f"{name:<9} done in {time.perf_counter() - begun:.1f} s")


def _print_plan(state: Run, plan: Sequence[str], asked: Sequence[str]) -> None:
    for name in plan:
        for item in STAGES[name].artifacts(state):
            reason = item.stale()
            if reason is None:
                verdict = "up to date"
            elif name in asked:
                verdict = f"would be made: {reason}"
            else:
                verdict = f"out of date, not asked for: {reason}"
            say(f"{name:<9} {item.name:<44} {verdict}")


@contextlib.contextmanager
def _files_errors(workdir: str) -> Iterator[None]:
    """Turns what the file system refuses into one line."""
    try:
        yield
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{error.filename or workdir}: {error.strerror or error}") from error
    except OSError as error:
        text = str(error)
        if error.errno in _FULL or any(os.strerror(code) in text for code in _FULL):
            raise InputError(f"{error.filename or workdir}: {error.strerror or text}") from error
        raise
    except (ValueError, RuntimeError) as error:  # what storage libraries make of it
        text = str(error)
        known = any(os.strerror(code) in text for code in _FULL)
        if isinstance(error, InputError) or not known:
            raise
        raise InputError(f"{workdir}: {text.split(' [', 1)[0]}") from error
