"""SIGTERM, Ctrl-C and a lost terminal end a command with one line, whatever it is doing.

Python runs the handler of a signal between two bytecodes of the main thread. That does not happen
during a compilation, which may take minutes, and an exception raised there surfaces in whatever
code happens to run, such as a callback of a library that swallows it. So the handlers here do
nothing: the number of the signal goes through a pipe to a thread, which prints the line and ends
the process at once. No work is lost, because every artefact appears whole or not at all, and long
ones continue at their last finished chunk.

Training has more to save. While steps run, it defers the end (`deferred`): the first signal is a
request, which the loop reads after its step; a second one ends the process at once.

The exit status is 128 plus the number of the signal, as in a shell. This module imports only the
standard library, because a signal may arrive while everything else is being imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# Seconds within which a second signal repeats the first: a scheduler and a launcher may both send
# SIGTERM. A second Ctrl-C is intentional.
_SAME, _SAME_KEY = 1.0, 0.3

# Called with exit status and line before a stop, to notify other processes.
announce: Callable[[int, str], None] | None = None

_lock = threading.RLock()  # a handler may run where it is held
_installed = False
_stage = ""  # what is being made
_deferring: list[Deferral] = []  # the innermost last
_requested: int | None = None
_requested_at = 0.0


def install() -> None:
    """Makes this process end with one line on a signal; call once, in the main thread.

    An ignored signal stays ignored: nohup ignores SIGHUP, and a shell ignores SIGINT for background
        processes.
    """
    global _installed
    if _installed:
        return
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    threading.Thread(target=_watch, args=(wake,), name="stops", daemon=True).start()
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _nothing)
    _installed = True


def status(number: int) -> int:
    """The exit status of a process that this signal ended."""
    return 128 + number


def name(number: int) -> str:
    """'SIGTERM' for 15."""
    return signal.Signals(number).name


@contextlib.contextmanager
def during(stage: str) -> Iterator[None]:
    """Names what is being made, for the line that a stop prints."""
    global _stage
    before, _stage = _stage, stage
    try:
        yield
    finally:
        _stage = before


class Deferral:
    """Signals work that has more to save that it should end.

    Attributes:
        saved: while this is a line, all work is saved, so that a signal ends the process at once,
            with that line; '{signal}' in it becomes the signal's name. None: there is something to
            save.
    """

    def __init__(self):
        self.saved: str | None = None
        self.heard = 0

    def asked(self) -> int:
        """The number of the received signal, or 0."""
        self.heard = _requested or 0
        return self.heard


@contextlib.contextmanager
def deferred() -> Iterator[Deferral]:
    """Inside, the first signal is only recorded; a second one, a moment later, ends the process.

    If `install` was not called (a notebook), only SIGTERM is recorded, and only in the main thread,
    the only one in which Python handles signals.

    A signal that was not read by the end of the block takes effect then.
    """
    global _requested
    before = None
    if not _installed and threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, lambda number, _: _received(number))
    deferral = Deferral()
    _deferring.append(deferral)
    try:
        yield deferral
    finally:
        with _lock:
            _deferring.remove(deferral)
            late = _requested if not deferral.heard and not _deferring else None
            if not _deferring:
                _requested = None
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        if late is not None and sys.exc_info()[0] is None:
            os.kill(os.getpid(), late)
            if _installed:
                threading.Event().wait()  # the watching thread ends the process


def end(code: int, line: str) -> None:
    """Prints a line on stderr and ends the process at once, from any thread."""
    with contextlib.suppress(Exception):
        descriptor = sys.stderr.fileno()
        # On a terminal, overwrites a progress bar.
        text = f"\r\x1b[K{line}\n" if os.isatty(descriptor) else f"{line}\n"
        os.write(descriptor, text.encode(sys.stderr.encoding, "backslashreplace"))
    os._exit(code)


def _nothing(number: int, frame: object) -> None:
    """The handler of every signal; the watching thread does the work."""


def _watch(wake: int) -> None:
    while True:
        for number in os.read(wake, 64):
            if number in _SIGNALS:
                _received(number)


def _received(number: int) -> None:
    global _requested, _requested_at
    saved = None
    with _lock:
        now = time.monotonic()
        if _deferring and _requested is None:
            saved = _deferring[-1].saved if _installed else None
            if saved is None:
                _requested, _requested_at = number, now
                return
        same = _SAME_KEY if number == signal.SIGINT else _SAME
        if _deferring and saved is None and now - _requested_at < same:
            return
    goes_on = f"{_stage}: " if _stage else ""
    line = f"{goes_on}stopped by {name(number)}"
    if saved is not None:
        line = saved.replace("{signal}", name(number))
    elif _stage:
        line += "; the same command continues from what is finished"
    if announce is not None:
        with contextlib.suppress(Exception):
            announce(status(number), line)
    end(status(number), line)
