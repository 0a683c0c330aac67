"""The flags of a run, and what they ask for: a plan, or the stages in a workdir.

How a command begins and ends is in `main.py`; everything else is importable and lives elsewhere.
"""

from __future__ import annotations

import logging as std_logging
import os
import re
import resource
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from nvret_jax import mesh
from nvret_jax.config import STAGES, checks, flat_keys, overrides
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.options import INT32
from nvret_jax.processes import peers, streams

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; ':smoke' behind its name shrinks it to a one-minute run."
)
flags.FLAGS["config"].parser = overrides.File()  # a folder's name may hold colons
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything the run makes.")
_STAGES = flags.DEFINE_list("stages", [], f"Only these stages, out of {', '.join(STAGES)}.")
_PLAN = flags.DEFINE_string(
    "plan", None, "Compile for a topology such as v5p:4x4x4 and print what fits; run nothing."
)
_PLAN_PASSAGES = flags.DEFINE_integer(
    "plan_passages", 0, "Passages that --plan assumes.", lower_bound=0, upper_bound=INT32
)
_PLAN_DATA = flags.DEFINE_bool(
    "plan_data", False, "Plan training at the lengths of the config's texts, too: reads its data."
)
_OWN = ("distributed.process_id", "distributed.coordinator")  # what processes may differ in
_FILES, _LEAST_FILES = 4096, 64  # that may be open at once
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print which stages are out of date and why.")
flags.DEFINE_string("help_config", None, "Print all options, or those of a block such as mining.")
flags.DEFINE_bool("version", False, "Print the versions of this package, JAX and Python.")
_HELP = frozenset(("-h", "-help", "--help", "--helpshort", "--helpfull"))
_SHOWN = (
    "--config=FILE",
    "--workdir=DIR",
    "--stages=STAGE,…",
    "--dry_run",
    "--plan=TOPOLOGY",
    "--plan_passages=N",
    "--plan_data",
    "--help_config[=BLOCK]",
    "--version",
)
_USAGE = """\
usage: python -m nvret_jax.main --config=FILE --workdir=DIR [flags]
       python -m nvret_jax.main convert SOURCE TARGET    (convert --help lists the formats)

"""


def main(argv: list[str]) -> int:
    """Reads the flags and does what they ask for.

    Args:
        argv: with the program's name first.

    Returns:
        The exit status.

    Raises:
        InputError: anything wrong with what was given; one line.
        Preempted: the run was asked to end, and has saved.
    """
    # A fixed place for compiled programs: the second run of a command starts at once.
    if cache := paths.cache("xla"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    handler = logging.get_absl_handler()
    handler.setFormatter(_Line())
    # Orbax logs the trace of what it is about to raise; what is raised is reported in one line.
    handler.addFilter(_is_no_trace)
    if _HELP.intersection(argv[1:]):
        print(help_text())
        return 0
    left = parse(argv)
    if len(left) > 1:
        raise InputError(f"unexpected argument {left[1]!r}; flags look like --workdir=DIR")
    return _run()


def help_text() -> str:
    """Usage, and a line for each flag."""
    lines = [(shown, flags.FLAGS[re.match(r"\w+", shown[2:])[0]].help) for shown in _SHOWN]
    lines.insert(1, ("--config.KEY=VALUE", "Another value for a key; None unsets it."))
    lines.append(("--help", "Print this."))
    width = max(len(shown) for shown, _ in lines)
    return _USAGE + "\n".join(f"  {shown:<{width}}  {text}" for shown, text in lines)


def parse(argv: list[str]) -> list[str]:
    """Flags, with every mistake in them as an InputError instead of a page of help.

    Returns:
        What is left of the command line, the program's name first.
    """
    argv, unset = overrides.check(overrides.located(argv))
    try:
        left = flags.FLAGS(argv)
        overrides.unset(_CONFIG.value, unset)
        return left
    except flags.Error as error:
        said = re.sub(r"\('(.*)', .*\)$", r"\1", str(error))  # absl shows a tuple
        raise InputError(f"flags: {said}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"config: {error}") from None


def _run() -> int:
    config = _CONFIG.value
    if config is None:
        raise InputError(overrides.NO_CONFIG)
    if _PLAN.value is not None:
        checks.validate(config)
        from nvret_jax.plan import command

        return command.run(
            config, _PLAN.value, passages=_PLAN_PASSAGES.value, data=_PLAN_DATA.value
        )
    if _PLAN_DATA.value:
        raise InputError("--plan_data: nothing is planned without --plan=TOPOLOGY")
    if not _WORKDIR.value:
        raise InputError("--workdir is missing; name a folder, such as --workdir=runs/quickstart")
    if _WORKDIR.value.startswith("--"):  # of `--workdir $UNSET --dry_run`
        raise InputError(f"--workdir={_WORKDIR.value}: a flag in the place of a folder; name one")
    _allow_files()
    workdir = str(paths.local(_WORKDIR.value, "--workdir"))
    wrong = checks.mistakes(config)
    # Others hear of a mistake that only this process was given once it has joined them.
    joinable = checks.has_all_keys(config) and not any(w.startswith("distributed.") for w in wrong)
    met = _meet(config) if joinable else None
    # Seconds of imports, which a mistyped flag need not wait for.
    from nvret_jax import pipeline

    if joinable:
        _join(config, met)
    if wrong:
        raise InputError(checks.told(pipeline.mistakes(config, workdir)))
    pipeline.run(config, workdir, stages=_STAGES.value, dry_run=_DRY_RUN.value)
    return 0


def _allow_files() -> None:
    """Takes as many open files as the system allows.

    Raises:
        InputError: too few for the libraries that read and write stores, which then fail anywhere.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < _LEAST_FILES:
        raise InputError(
            f"this process may open {soft} files, and a run needs {_LEAST_FILES} at least; raise "
            f"the limit, as with ulimit -n {_FILES}"
        )


def _meet(config: ConfigDict) -> peers.Peers | None:
    """Connects the processes of the run where it is known who they are; as early as can be."""
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


def _join(config: ConfigDict, met: peers.Peers | None) -> None:
    """Finds the other processes of the run, if it has several, and the devices.

    A dry run computes nothing: it joins others only where it was told which.
    """
    distributed = config.distributed
    needless = _DRY_RUN.value and distributed.mode == "auto" and not distributed.coordinator
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
    given = {key: _value(config, key) for key in keys}
    flags_given = {"--stages": _STAGES.value, "--dry_run": _DRY_RUN.value}
    mesh.agree(given | flags_given, met)


def _value(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


class _Line(std_logging.Formatter):
    """`warning: …` instead of date, thread and line of code."""

    def format(self, record: std_logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def _is_no_trace(record: std_logging.LogRecord) -> bool:
    return not record.exc_info
