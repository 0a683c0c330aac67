"""`python -m nvret_jax.main --config=configs/quickstart.py --workdir=runs/quickstart`

`python -m nvret_jax.main convert SOURCE TARGET` turns training data of one tool into another's.
This file is how a command begins and ends: signals, streams, one line for a mistake, one set of
exit statuses. What the flags ask for is in `commands/train.py`, imported once signals
are handled.

    0        done
    1        a bug, with its trace; or another process of the run was lost
    2        bad input, in one line (`InputError`); of several processes, on whichever it happened
    128 + n  ended by signal n, as a shell reports it: 130 Ctrl-C, 143 SIGTERM
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence

from nvret_jax.errors import InputError, Preempted, from_system
from nvret_jax.processes import peers, stops, streams


def cli() -> None:
    """The console entry; also `python -m nvret_jax` and `python -m nvret_jax.main`."""
    process(run, sys.argv)


def process(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> None:
    """Runs a command as all that this process does, and ends the process with its status."""
    streams.install()
    stops.install()
    code = guarded(command, argv)
    peers.leave()
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """What a command line asks for; the exit status, unless it is an exception's.

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
    if argv[1:2] == ["convert"]:
        from nvret_jax.commands import convert

        return convert.main(argv[2:])
    from nvret_jax.commands import train

    return train.main(list(argv))


def guarded(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """The exit status of a command, after the one line of an error that a user can mend.

    Any other error is a bug, whose trace is worth reading, and has the status 1.
    """
    try:
        return command(argv)
    except InputError as error:
        return fail(error)
    except Preempted as stop:
        print(stop, file=sys.stderr, flush=True)
        return stop.status
    except Exception as error:
        peers.wait_for_news()  # a lost process makes others fail, each in the words of a library
        known = from_system(error)
        if known is not None:
            return fail(known)
        sys.stdout.flush()
        sys.excepthook(type(error), error, error.__traceback__)
        peers.ends(1, " ".join(f"{type(error).__name__}: {error}".split())[:300])
        return 1


def fail(error: InputError) -> int:
    """Prints the one line a user needs and returns the exit status."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    peers.ends(2, str(error))
    return 2


if __name__ == "__main__":
    cli()
