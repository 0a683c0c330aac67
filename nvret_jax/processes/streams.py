"""Standard output and error that never end a run.

Output is not the result of a command: a pipe closed by its reader (`| head -1`), a closed terminal,
or an encoding without '×' must not cost hours of work. So characters missing from an encoding are
escaped, and unread output is discarded; the exit status still gives the outcome.

C++ libraries write directly to the file descriptors: `[Gloo] Rank 0 is connected to …`, and pages
of trace if another process of a run is lost. `only_python` redirects that.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from collections.abc import Callable

_GONE = (errno.EPIPE, errno.EIO)  # the reader closed its end; the terminal was lost


class _Raw(io.FileIO):
    """A file descriptor that discards its input once there is no reader."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # For libraries that write directly to the descriptor.
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return len(data)


def install() -> None:
    """Replaces sys.stdout and sys.stderr by streams that write to the same files.

    Call it before any file is opened: a descriptor closed at the start (`>&-`) would be reused for
        the next file, which would then be overwritten.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = _stream(sys.stdout, 1)
    sys.stderr = _stream(sys.stderr, 2)


def only_python(passes: Callable[[bytes], bool]) -> Callable[[], None]:
    """Keeps the output of C++ libraries off standard output and error.

    On standard output it is discarded; on standard error, `passes` decides line by line. Python's
    own streams are unchanged.

    Args:
        passes: whether a line is shown; called in a thread.

    Returns:
        A function that undoes it.
    """
    sys.stdout.flush(), sys.stderr.flush()
    kept = {1: os.dup(1), 2: os.dup(2)}
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _stream(sys.stdout, kept[1]), _stream(sys.stderr, kept[2])
    nothing = os.open(os.devnull, os.O_WRONLY)
    source, sink = os.pipe()
    os.dup2(nothing, 1)
    os.dup2(sink, 2)
    os.close(nothing)
    os.close(sink)

    def read() -> None:
        with os.fdopen(source, "rb") as lines:
            for line in lines:
                if passes(line):
                    os.write(kept[2], line)

    reader = threading.Thread(target=read, name="stderr", daemon=True)
    reader.start()

    def undo() -> None:
        sys.stdout.flush(), sys.stderr.flush()
        sys.stdout, sys.stderr = before
        os.dup2(kept[1], 1)
        os.dup2(kept[2], 2)  # closes the pipe's last end
        reader.join()
        for descriptor in kept.values():
            os.close(descriptor)

    return undo


def _stream(old: io.TextIOBase | None, descriptor: int) -> io.TextIOBase:
    """A stream like `old`, on a file descriptor."""
    buffered = io.BufferedWriter(_Raw(descriptor, "wb", closefd=False))
    encoding = getattr(old, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        buffered, encoding=encoding, errors="backslashreplace", line_buffering=True
    )
