"""Standard output and error that never end a run.

What a command prints is not what it makes: a pipe that its reader closed (`| head -1`), a terminal
that went away, or an encoding without '×' must not cost hours of work. So text that an encoding
lacks is escaped, and what nobody reads is discarded; the exit status still says how the run went.

Libraries in C++ write to the file descriptors themselves: `[Gloo] Rank 0 is connected to …`, and
pages of trace where another process of a run is lost. `only_python` takes the descriptors from
them.
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
    """A file descriptor that discards what it is given once nobody reads it."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # For libraries that write to the descriptor themselves.
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return len(data)


def install() -> None:
    """Replaces sys.stdout and sys.stderr by streams that write to the same places.

    To be called before any file is opened: one that is closed at the start (`>&-`) would leave its
    number to the next file, which would then be written over.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = _stream(sys.stdout, 1)
    sys.stderr = _stream(sys.stderr, 2)


def only_python(passes: Callable[[bytes], bool]) -> Callable[[], None]:
    """Keeps what libraries in C++ print by themselves off standard output and error.

    On output it is discarded; on error, `passes` decides line by line. Python's own streams lead
    where they led.

    Args:
        passes: whether a line may be seen; called in a thread.

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
