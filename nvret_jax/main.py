"""`python -m nvret_jax COMMAND …`, and `python -m nvret_jax.main --config=FILE --workdir=DIR`.

The second is the command `train`. This file is how a command begins and ends: signals, streams, one
line for a mistake, one set of exit statuses. What a command does is in `commands/`, imported once
signals are handled.

    0        done
    1        a bug, with its trace; or another process of the run was lost
    2        bad input, in one line (`InputError`), on any process
    3        a plan that does not fit, with a line for each step that does not
    128 + n  ended by signal n, as a shell reports it: 130 Ctrl-C, 143 SIGTERM
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Sequence

from nvret_jax.errors import InputError, Preempted, from_system
from nvret_jax.processes import log, peers, stops, streams


def cli() -> None:
    """The console entry; also `python -m nvret_jax` and `python -m nvret_jax.main`."""
    process(run, sys.argv)


def process(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> None:
    """Runs a command, and ends the process with its exit status."""
    streams.install()
    stops.install()
    code = guarded(command, argv)
    peers.leave()
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit status, unless an exception decides it.

    Args:
        argv: with the program's name first.
    """
    if "--version" in argv[1:]:
        from importlib import metadata

        from nvret_jax import __version__

        python = ".".join(map(str, sys.version_info[:3]))
        print(f"nvret_jax {__version__} (jax {metadata.version('jax')}, Python {python})")
        return 0
    for argument in argv[1:]:
        if match := re.fullmatch(r"--?help_config(?:=(.*))?", argument, re.DOTALL):
            from nvret_jax.config import reference

            print(reference.text(match[1] or ""))
            return 0
    from nvret_jax import commands

    given = _with_flag_files(argv[1:])
    if not given:
        return commands.run("help", [])
    if not given[0].startswith("-"):
        return commands.run(given[0], given[1:])
    return commands.run("train", given)


def _with_flag_files(argv: Sequence[str]) -> list[str]:
    """A command line with the lines of `--flagfile=FILE` in its place."""
    if not any(re.match(r"--?flagfile\b", argument) for argument in argv):
        return list(argv)
    from absl import flags

    try:
        return flags.FLAGS.read_flags_from_files(["", *argv], force_gnu=False)[1:]
    except flags.Error as error:
        raise InputError(f"flags: {error}") from None


def guarded(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """The exit status of a command, after the one line of an error that a user can fix.

    Any other error is a bug, is shown with its trace, and has status 1.
    """
    try:
        return command(argv)
    except InputError as error:
        return fail(error)
    except Preempted as stop:
        log.error(str(stop))
        return stop.status
    except Exception as error:
        peers.wait_for_news()  # a lost process makes others fail, with errors of various libraries
        known = from_system(error)
        if known is not None:
            return fail(known)
        sys.stdout.flush()
        log.keep("".join(traceback.format_exception(error)))
        sys.excepthook(type(error), error, error.__traceback__)
        peers.ends(1, " ".join(f"{type(error).__name__}: {error}".split())[:300])
        return 1


def fail(error: InputError) -> int:
    """Prints the one line a user needs and returns the exit status."""
    log.error(f"error: {error}")
    peers.ends(2, str(error))
    return 2


if __name__ == "__main__":
    cli()
