"""The exception for users' mistakes.

Every error caused by the user's input (a file, a key, a model, a mesh) is an `InputError` whose
message is a single line: what was expected, what was found, and what to do about it. `main` prints
that line and exits with status 2; any other exception is a bug and keeps its trace.
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
    """A signal ended the run after it had saved its work; not an error.

    `main` prints `str(error)` and exits with `status`, like a process ended by the signal.

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
        "the same command continues from there"
    )


# Errors of a file system, or of a system limit, that a user can fix.
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
    """The one-line error for an exception caused by the file system.

    Args:
        error: an OSError, or a storage library's exception with its text.
        at: the path to name if the exception names none.

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
