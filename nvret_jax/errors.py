"""The one exception a user is meant to read.

Everything that goes wrong because of what the user gave us (a file, a key, a model, a mesh) is an
`InputError` whose message is a single line: what was expected, what came, and what to do about it.
`main` prints that line and exits with status 2; any other exception is a bug and keeps its trace.
"""

from __future__ import annotations

import errno
import os
import signal


class InputError(ValueError):
    """Bad input. `str(error)` is one line that names the file, line, key or id at fault."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in the place of a page of trace: the line."""
        return [f"{type(self).__name__}: {self}"]


class Preempted(Exception):
    """The run was asked to end by a signal and has saved what it had; no fault.

    `main` prints `str(error)` and exits with `status`, as a process that the signal ended does.

    Attributes:
        stage: the stage of training it stopped in.
        step: steps of that stage that are done, and saved.
        status: 128 plus the number of the signal.
    """

    def __init__(self, stage: str, step: int, steps: int, number: int = signal.SIGTERM):
        line = stopped(stage, step, steps)
        super().__init__(line.replace("{signal}", signal.Signals(number).name))
        self.stage, self.step, self.status = stage, step, 128 + number


def stopped(stage: str, step: int, steps: int) -> str:
    """The line of a stop of training; '{signal}' in it is the signal's name."""
    return (
        f"train: {{signal}}; stopped and saved after step {step} of {steps} of stage {stage!r}; "
        "the same command goes on from there"
    )


# What a file system, or a limit of the system, refuses: a user can mend it.
_SYSTEM = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES EDQUOT EFBIG EIO EISDIR ELOOP EMFILE ENAMETOOLONG ENFILE ENODEV ENOSPC ENOTDIR "
        "ENXIO EPERM EROFS ESTALE ETXTBSY"
    ).split()
    if hasattr(errno, name)
)
_REMEDY = {errno.EMFILE: "; raise the limit with ulimit -n"}


def from_system(error: BaseException, at: str = "") -> InputError | None:
    """An exception that the file system is behind, as the error of one line that it is.

    Args:
        error: an OSError, or what a storage library makes of one: an exception with its words.
        at: the path to name where the exception names none.

    Returns:
        None for all other exceptions.
    """
    if isinstance(error, InputError):
        return None
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if number not in _SYSTEM:
        number = next((code for code in _SYSTEM if os.strerror(code) in text), None)
    if number is None:
        return None
    named = isinstance(error, OSError) and isinstance(error.filename, (str, bytes, os.PathLike))
    where = os.fsdecode(error.filename) if named else at
    if len(where) > 200:
        where = f"{where[:100]}… ({len(where)} characters)"
    what = os.strerror(number) + _REMEDY.get(number, "")
    return InputError(f"{where}: {what}" if where else text if len(text) < 300 else what)
