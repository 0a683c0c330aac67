"""What a command prints, in one place: lines of progress, warnings and errors.

`say` prints a line on standard output; warnings, which this package and its libraries log through
absl, and errors go to standard error. `configure` sends all of them to a file, too, and `quiet`
leaves out everything but warnings, errors and the answer a command was asked for.

A library does not configure logging by itself: in a notebook warnings appear as absl shows them.
"""

from __future__ import annotations

import logging
import os
import sys

from nvret_jax.errors import InputError

_logger = logging.getLogger("nvret_jax")
_logger.propagate = False  # `say` prints; a root logger would print the line again
_REMEMBERED = 10_000  # warnings
_quiet = False
_file: logging.Handler | None = None


def configure(*, quiet: bool = False, file: os.PathLike | str = "") -> None:
    """Sets what a command prints, and where.

    Args:
        quiet: print no lines of progress and no bars.
        file: every line is appended to it, with its time; '': no file.

    Raises:
        InputError: the file cannot be written.
    """
    from absl import flags
    from absl import logging as absl_logging

    global _quiet, _file
    close()
    _quiet = quiet
    flags.FLAGS.mark_as_parsed()  # none of absl's is used, and it would warn of that
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(_Line())
    # Orbax logs the trace of what it is about to raise; what is raised is reported in one line.
    handler.addFilter(_is_no_trace)
    for one in [one for one in handler.filters if isinstance(one, _Once)]:
        handler.removeFilter(one)
    handler.addFilter(_Once())
    if not file:
        return
    try:
        _file = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"--log_file={file}: cannot be written ({error.strerror})") from None
    _file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _file.addFilter(_is_no_trace)
    _file.addFilter(_Once())
    for logger in (_logger, logging.getLogger("absl")):
        logger.addHandler(_file)
    _logger.setLevel(logging.INFO)


def close() -> None:
    """Undoes `configure`."""
    global _quiet, _file
    _quiet = False
    if _file is not None:
        for logger in (_logger, logging.getLogger("absl")):
            logger.removeHandler(_file)
        _file.close()
        _file = None


def is_quiet() -> bool:
    """Whether lines of progress and bars are left out."""
    return _quiet


def say(text: str) -> None:
    """Prints a line of progress, at once."""
    if not _quiet:
        print(text, flush=True)
    if _file is not None:
        _logger.info(text)


def note(text: str) -> None:
    """Puts a line into the file alone, if there is one: progress that a terminal shows as a bar."""
    if _file is not None:
        _logger.info(text)


def error(text: str) -> None:
    """Prints a line on standard error."""
    print(text, file=sys.stderr, flush=True)
    keep(text)


def keep(text: str) -> None:
    """Puts an error, such as a trace that is printed elsewhere, into the file, if there is one."""
    if _file is not None:
        _logger.error(text)


class _Line(logging.Formatter):
    """`warning: …` in the place of date, thread and line of code."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


class _Once(logging.Filter):
    """Lets a warning pass once: a file that several stages read has the same ones each time."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        new = text not in self._seen
        if len(self._seen) < _REMEMBERED:
            self._seen.add(text)
        return new


def _is_no_trace(record: logging.LogRecord) -> bool:
    return not record.exc_info
