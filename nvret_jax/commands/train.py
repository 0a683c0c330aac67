"""`python -m nvret_jax train --config=FILE --workdir=DIR`: a run, or the plan of one.

`python -m nvret_jax.main --config=FILE --workdir=DIR` is the same.
"""

from __future__ import annotations

import resource
from typing import Any

from ml_collections import ConfigDict

from nvret_jax import mesh
from nvret_jax.commands.options import Train
from nvret_jax.commands.parser import Asked, Command
from nvret_jax.config import STAGES, checks, flat_keys, overrides
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.processes import peers, streams

_OWN = ("distributed.process_id", "distributed.coordinator")  # keys in which processes may differ
_FILES, _LEAST_FILES = 4096, 64  # files that may be open at once
_MORE = f"""\
Stages: {", ".join(STAGES)}.
`python -m nvret_jax options` lists the keys of a config, `python -m nvret_jax
help` all commands, such as `convert SOURCE TARGET` for files of other tools.
For example
  python -m nvret_jax train --config=configs/own.py --workdir=runs/own \\
    --config.data.train=faq.csv --config.data.test=faq.csv"""


def run(asked: Asked) -> int:
    """Runs the stages of a config in a workdir, or plans them.

    Returns:
        The exit status.

    Raises:
        InputError: any mistake in the arguments; one line.
        Preempted: a signal ended the run, which has saved.
    """
    given = asked.options
    config, misread = overrides.read_arguments(asked.config)
    if given.plan:
        checks.validate(config, misread)
        from nvret_jax.plan import command

        return command.run(
            config,
            given.plan,
            stages=given.stages,
            passages=given.plan_passages,
            data=given.plan_data,
        )
    if given.plan_data:
        raise InputError("--plan_data: nothing is planned without --plan=TOPOLOGY")
    if not given.workdir:
        raise InputError("--workdir is missing; give a folder, such as --workdir=runs/quickstart")
    if given.workdir.startswith("--"):  # of `--workdir=$UNSET--dry_run`
        raise InputError(f"--workdir={given.workdir}: a flag instead of a folder; give a folder")
    _allow_files()
    workdir = str(paths.local(given.workdir, "--workdir"))
    wrong = [*misread.values(), *checks.mistakes(config)]
    # Once it has joined them, this process reports its mistakes to the others.
    joinable = checks.has_all_keys(config) and not any(w.startswith("distributed.") for w in wrong)
    met = _meet(config) if joinable else None
    # Seconds of imports, after the checks of flags.
    from nvret_jax import pipeline

    if joinable:
        _join(config, met, given)
    if wrong:
        raise InputError(checks.as_one_line(pipeline.mistakes(config, workdir), misread))
    pipeline.run(config, workdir, stages=given.stages, dry_run=given.dry_run)
    return 0


def _allow_files() -> None:
    """Raises the limit on open files to the system's maximum.

    Raises:
        InputError: too few for the libraries that read and write stores, which would then fail
            anywhere.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < _LEAST_FILES:
        raise InputError(
            f"this process may open {soft} files, but a run needs at least {_LEAST_FILES}; raise "
            f"the limit, as with ulimit -n {_FILES}"
        )


def _meet(config: ConfigDict) -> peers.Peers | None:
    """Connects the processes of the run if they are known, as early as possible."""
    distributed = config.distributed
    if distributed.mode == "off" or not distributed.coordinator:
        return None
    peers.joins(distributed.coordinator, distributed.join_seconds)
    return mesh.meet(
        distributed.coordinator,
        distributed.num_processes,
        distributed.process_id,
        distributed.join_seconds,
    )


def _join(config: ConfigDict, met: peers.Peers | None, given: Train) -> None:
    """Finds the other processes of the run, if it has several, and the devices.

    A dry run computes nothing: it joins others only if they are given.
    """
    distributed = config.distributed
    needless = given.dry_run and distributed.mode == "auto" and not distributed.coordinator
    if needless or distributed.mode == "off":
        mesh.check_devices()
        return
    restore = streams.only_python(peers.hears)
    seconds = distributed.join_seconds if distributed.coordinator else mesh.CLUSTER_SECONDS
    peers.joins(distributed.coordinator, seconds)
    mesh.start_distributed(
        distributed.mode,
        distributed.coordinator or None,
        distributed.num_processes or None,
        distributed.process_id if distributed.coordinator else None,
        seconds,
    )
    peers.joined()
    mesh.check_devices()
    if mesh.process_count() == 1:
        peers.alone()
        restore()
        return
    keys = [key for key in flat_keys(config) if key not in _OWN]
    values = {key: _value(config, key) for key in keys}
    flags_given = {"--stages": given.stages, "--dry_run": given.dry_run}
    mesh.agree(values | flags_given, met)


def _value(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


COMMAND = Command(
    "Mines, trains, evaluates and exports by a config, in a workdir. Stages that are up to date "
    "are skipped, and an interrupted run continues.",
    (),
    Train,
    run,
    _MORE,
    config=True,
)
