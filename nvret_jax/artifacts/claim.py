"""One writer at a time: the exclusive claim of a workdir while a run uses it.

Two mechanisms protect it, because neither is sufficient alone:

* A lock of the operating system (flock on the folder itself). It ends with the process, however
  that ends, so a crash leaves no trace. Some network file systems refuse it, and on some it is
  limited to one host.
* A record, `in_use.json`, created exclusively, which every file system does atomically. It names
  pid, host and start time, and is touched every few seconds. Seen from any host, a record that is
  being touched belongs to a live run.

A record left by a dead run is recognised at once if the kernel that grants the lock is the one that
ran the process; otherwise by watching: a record that is not touched for a minute is dead, and the
new run continues by itself. Ages are not compared across hosts, since their clocks differ.

All processes of one run share the claim of its main process. A run that lost its claim (for example
because its machine was suspended for minutes and another run took over) stops at its next write.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.mesh import say

try:
    import fcntl
except ImportError:  # a system without POSIX locks has only the record
    fcntl = None

RECORD = "in_use.json"
TOUCH_EVERY = 5.0  # seconds
DEAD_AFTER = 60.0  # seconds without a touch
LONG_DEAD = 3600.0  # seconds; clocks that are set at all differ by less
_SETTLE = 1.0  # seconds in which a competitor for a dead run's claim would show up
_POLL = 0.2  # seconds

Record = dict[str, Any]


@contextlib.contextmanager
def claimed(folder: os.PathLike | str) -> Iterator[Claim | None]:
    """Holds the claim of an existing folder, on the main process; the others wait for it.

    Yields:
        The claim; None on processes that share the main one's.

    Raises:
        InputError: another run uses the folder; on every process of this one.
    """
    held, wrong = None, ""
    if mesh_lib.is_main():
        try:
            held = Claim(os.fspath(folder))
        except InputError as error:
            wrong = str(error)
        except OSError as error:
            wrong = f"{folder} cannot be claimed: {error.strerror or error}"
    wrong = mesh_lib.from_main(wrong)
    if wrong:
        raise InputError(wrong)
    try:
        yield held
    finally:
        if held is not None:
            held.release()


class Claim:
    """A claim that is held, from construction to `release`."""

    def __init__(self, folder: str):
        """Claims `folder`.

        Raises:
            InputError: another run holds it.
        """
        self._folder, self._path = folder, os.path.join(folder, RECORD)
        self._id = uuid.uuid4().hex
        self._over = threading.Event()
        self._lost: str | None = None
        self._lock = _locked(folder)
        try:
            self._create()
        except BaseException:
            self._unlock()
            raise
        self._toucher = threading.Thread(target=self._keep_touching, daemon=True)
        self._toucher.start()

    def check(self) -> None:
        """Raises InputError if another run took over the folder; takes microseconds."""
        if self._lost is None:
            self._look()
        if self._lost is not None:
            raise InputError(self._lost)

    def release(self) -> None:
        """Releases the folder; may be called twice."""
        if self._over.is_set():
            return
        self._over.set()
        self._toucher.join()
        with contextlib.suppress(OSError):
            if (_read(self._path) or {}).get("id") == self._id:
                os.unlink(self._path)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _create(self) -> None:
        announced, taken_over = False, False
        while True:
            try:
                file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                pass
            else:
                with os.fdopen(file, "w") as out:
                    json.dump(_own_record(self._id, self._folder), out)
                if not taken_over:
                    return
                time.sleep(_SETTLE)  # others that found the same dead record are visible by now
                if (_read(self._path) or {}).get("id") == self._id:
                    return
                raise InputError(_refusal(self._folder, _read(self._path)))
            found, touched = _read(self._path), _touched(self._path)
            if touched is None:
                continue  # released meanwhile
            if not self._is_dead(found, touched):
                if not announced:
                    say(
                        f"{self._folder} was claimed by {_who(found)}; "
                        f"watching up to {DEAD_AFTER:.0f} s for signs of a live run"
                    )
                    announced = True
                if _lives(self._path, touched):
                    raise InputError(_refusal(self._folder, found))
                if _touched(self._path) is None:
                    continue
            taken_over = True
            self._move_away(found)

    def _is_dead(self, found: Record | None, touched: int) -> bool:
        if time.time() - touched / 1e9 > LONG_DEAD:
            return True
        if not found or not found.get("boot") or found.get("boot") != _boot():
            return False
        if self._lock is not None and found.get("device") == os.stat(self._folder).st_dev:
            # The kernel that granted this process the lock would have refused a second one.
            return True
        return not _runs(found)

    def _move_away(self, found: Record | None) -> None:
        """Removes a dead run's record, unless it belongs to a live one by now."""
        aside = f"{self._path}.{self._id}"
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return
        moved = _read(aside)
        if (moved or {}).get("id") != (found or {}).get("id"):
            with contextlib.suppress(OSError):
                os.link(aside, self._path)  # a competitor's: put back
        os.unlink(aside)

    def _keep_touching(self) -> None:
        while not self._over.wait(TOUCH_EVERY):
            with contextlib.suppress(OSError):
                self._look()
                if self._lost is not None:
                    return
                os.utime(self._path)  # takes no space, so it works on a full disk

    def _look(self) -> None:
        found = _read(self._path)
        if found is None or found.get("id") == self._id:
            return  # a record that is briefly unreadable, on a faulty file system, is not lost
        self._lost = f"{self._folder} was taken over by {_who(found)}; this run stops"


def holder(folder: os.PathLike | str) -> str:
    """The run that uses a folder ('pid 1 on host a since …'), or ''; changes nothing.

    A run on another host counts as long as its record was touched within the last minutes.
    """
    path = os.path.join(os.fspath(folder), RECORD)
    found, touched = _read(path), _touched(path)
    if not found or touched is None:
        return ""
    same_kernel = bool(found.get("boot")) and found.get("boot") == _boot()
    if same_kernel and found.get("pid_namespace") == _pid_namespace():
        alive = _runs(found)
    else:
        alive = time.time() - touched / 1e9 < LONG_DEAD
    return _who(found) if alive else ""


def _locked(folder: str) -> int | None:
    """A descriptor with the lock; None if the file system has no locks.

    Raises:
        InputError: another process has it.
    """
    if fcntl is None:
        return None
    file = os.open(folder, os.O_RDONLY)
    until = time.monotonic() + 2 * _SETTLE  # in which another starting process records its name
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            found = _read(os.path.join(folder, RECORD))
            named = found is not None and (found.get("boot") != _boot() or _runs(found))
            if named or time.monotonic() > until:
                os.close(file)
                raise InputError(_refusal(folder, found)) from None
            time.sleep(_POLL)
        except OSError:
            os.close(file)
            return None


def _lives(path: str, touched: int) -> bool:
    """Whether a record is touched while it is watched; also False if it disappears."""
    until = time.monotonic() + DEAD_AFTER
    while time.monotonic() < until:
        time.sleep(_POLL)
        now = _touched(path)
        if now is None:
            return False
        if now != touched:
            return True
    return False


def _refusal(folder: str, found: Record | None) -> str:
    return (
        f"{folder} is in use by {_who(found)}; wait until that run has ended, or use another "
        "--workdir"
    )


def _who(found: Record | None) -> str:
    if not found:
        return "another process"
    return f"pid {found.get('pid')} on host {found.get('host')} since {found.get('since')}"


def _read(path: str) -> Record | None:
    """The record at `path`; None if there is none, or none that can be read."""
    try:
        with open(path) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _touched(path: str) -> int | None:
    """When it was touched, ns; None if it is missing. Opening it makes NFS refresh."""
    try:
        with open(path) as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _own_record(identifier: str, folder: str) -> Record:
    return {
        "id": identifier,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "boot": _boot(),
        "device": os.stat(folder).st_dev,
        "pid_namespace": _pid_namespace(),
        "started": _started(os.getpid()),
    }


def _runs(found: Record) -> bool:
    """Whether the process of a record of this kernel runs; True if that is unknown."""
    pid = found.get("pid")
    if found.get("pid_namespace") != _pid_namespace() or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # exists, and belongs to another user
    return _started(pid) == found.get("started")


def _boot() -> str:
    """The id of this boot of this kernel; '' if the system does not give one."""
    return _line("/proc/sys/kernel/random/boot_id")


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in kernel ticks, so that a reused pid is detected."""
    text = _line(f"/proc/{pid}/stat")
    return text.rpartition(")")[2].split()[19] if text else ""


def _line(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
