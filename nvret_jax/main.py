"""`python -m nvret_jax.main --config=configs/quickstart.py --workdir=runs/quickstart`

`python -m nvret_jax.main convert SOURCE TARGET` turns training data of one tool into another's.
Flags, logging and the multi-host start; everything else is importable and lives elsewhere.
"""

from __future__ import annotations

import logging as std_logging
import os
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from nvret_jax import checks, mesh, overrides
from nvret_jax.choices import STAGES
from nvret_jax.errors import InputError, Preempted
from nvret_jax.options import INT32

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; ':smoke' behind its name shrinks it to a one-minute run."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything the run makes.")
_STAGES = flags.DEFINE_list("stages", [], f"Only these stages, out of {', '.join(STAGES)}.")
_PLAN = flags.DEFINE_string(
    "plan", None, "Compile for a topology such as v5p:4x4x4 and print what fits; run nothing."
)
_PLAN_PASSAGES = flags.DEFINE_integer(
    "plan_passages", 0, "Passages that --plan reckons with.", lower_bound=0, upper_bound=INT32
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print which stages are out of date and why.")


def _main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}; flags look like --workdir=DIR")
    if _CONFIG.value is None:
        raise InputError(overrides.NO_CONFIG)
    if _PLAN.value is not None:
        checks.validate(_CONFIG.value)
        from nvret_jax.plan import command

        return command.run(_CONFIG.value, _PLAN.value, passages=_PLAN_PASSAGES.value)
    if not _WORKDIR.value:
        raise InputError("--workdir is missing; name a folder, such as --workdir=runs/quickstart")
    config = _CONFIG.value
    wrong = checks.mistakes(config)
    # Seconds of imports, which a mistyped flag need not wait for.
    from nvret_jax import pipeline

    if wrong:
        raise InputError(checks.told(pipeline.mistakes(config, _WORKDIR.value)))

    distributed = config.distributed
    mesh.start_distributed(
        distributed.mode,
        distributed.coordinator or None,
        distributed.num_processes or None,
        distributed.process_id if distributed.coordinator else None,
    )
    pipeline.run(config, _WORKDIR.value, stages=_STAGES.value, dry_run=_DRY_RUN.value)
    return 0


def _parse(argv: list[str]) -> list[str]:
    """Flags, with every mistake in them as an InputError instead of a page of help."""
    argv, unset = overrides.check(overrides.located(argv))
    try:
        left = app.parse_flags_with_usage(argv) if "--help" in argv else flags.FLAGS(argv)
        overrides.unset(_CONFIG.value, unset)
        return left
    except flags.Error as error:
        raise InputError(f"flags: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"config: {error}") from None


def _guarded(argv: list[str]) -> int:
    try:
        return _main(argv)
    except InputError as error:
        return fail(error)
    except Preempted as stop:
        print(stop, file=sys.stderr, flush=True)
        return 143  # as a shell tells of a process that SIGTERM ended


def _converted(convert: Callable[[list[str]], int], argv: list[str]) -> int:
    """`python -m nvret_jax.main convert …`: no config, no workdir, no devices."""
    try:
        return convert(argv)
    except InputError as error:
        return fail(error)


def fail(error: InputError) -> int:
    """Prints the one line a user needs and returns the exit status."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    return 2


def cli() -> None:
    """The console entry; also `python -m nvret_jax.main`."""
    if sys.argv[1:2] == ["convert"]:
        from nvret_jax import convert

        sys.exit(_converted(convert.main, sys.argv[2:]))
    # A fixed place for compiled programs: the second run of a command starts at once.
    cache = os.path.join(os.path.expanduser("~"), ".cache", "nvret_jax", "xla")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    logging.set_verbosity(logging.WARNING)
    # Orbax logs the trace of what it is about to raise; what is raised is told in one line.
    logging.get_absl_handler().addFilter(_is_no_trace)
    app.run(_guarded, flags_parser=_parse_or_exit)


def _is_no_trace(record: std_logging.LogRecord) -> bool:
    return not record.exc_info


def _parse_or_exit(argv: list[str]) -> list[str]:
    try:
        return _parse(argv)
    except InputError as error:
        sys.exit(fail(error))


if __name__ == "__main__":
    cli()
