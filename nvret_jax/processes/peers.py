"""Processes of one run monitor each other: what ends one ends all, with one line each.

JAX detects a lost process by heartbeats, after minutes, and then aborts with pages of trace. A
process that ends because of an error waits at its exit for the others, which wait for it in a
collective. So each process keeps a connection to process 0, and announces over it why it ends. If
the address of process 0 is known, the connections are made first, and JAX is started once all
processes are present (`meet`); a cluster gives the address only to JAX, so there they are made
afterwards. Their purpose:

- an error (such as bad input on one host): the others print which process failed and why, and end
  with the same status;
- a kill: its connection closes, and the others print that it is lost;
- a lost machine or network: the connection times out within a minute.

If JAX detects it first, its own output is suppressed (`hears`), and its abort is delayed until the
line is printed.

A thread monitors the connections, and ends the process at once. Artefacts are whole at any time, so
the same command continues. Process 0 forwards what it receives. Only the standard library is
imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from typing import Any

from nvret_jax.processes import stops

_WAIT = 5.0  # seconds for news of another process to arrive
_CONNECT = 20.0
_AGAIN = 0.2  # seconds between two tries to reach a process that has yet to start
_IDLE, _INTERVAL, _PROBES = 15, 5, 3  # of TCP: a peer that is silent for 30 s is lost
_LOST = 1  # the exit status if a process was lost
_CONTINUES = "the same command continues from what is finished"


@dataclasses.dataclass
class _Line:
    """A connection, and the incomplete line received on it."""

    socket: socket.socket
    peer: int = -1  # -1: has not identified itself
    rest: bytes = b""


class Peers:
    """The connections of this process. On process 0 to all others, elsewhere to process 0."""

    def __init__(self, index: int, count: int):
        self.index, self.count = index, count
        self._lines: dict[int, _Line] = {}
        self._finished: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._complete = threading.Event()
        self._token = ""
        self._opened: socket.socket | None = None  # the port that JAX uses later
        # has announced its end: others that end because of it are not reported
        self._ending = False

    def meet(self, host: str, port: int, seconds: float) -> list[int]:
        """Connects the processes at the port of process 0 that JAX is going to use.

        Process 0 holds the port until all are present; then it closes it and notifies the others.

        Returns:
            The numbers of those that did not join in time; on other processes, [0] if it is process
            0. Empty: all joined.

        Raises:
            OSError: process 0 cannot listen at the port.
            ValueError: process 0 does not expect this process, or already has it.
        """
        until = time.monotonic() + seconds
        if not self.index:
            self._opened = _server(self.count, port)
            self._selector.register(self._opened, selectors.EVENT_READ)
            self._start()
            self._complete.wait(seconds)
            return self._missing()
        while not self._reach(host, port, ""):
            if time.monotonic() > until:
                return [0]
            time.sleep(_AGAIN)
        self._complete.wait()  # process 0 reports it, or ends this process
        return []

    def listen(self) -> dict[str, Any]:
        """On process 0: opens a port. Returns what the others need to connect."""
        self._token = secrets.token_hex(16)
        server = _server(self.count)
        self._selector.register(server, selectors.EVENT_READ)
        self._start()
        port = server.getsockname()[1]
        return {"hosts": _addresses(), "port": port, "token": self._token}

    def connect(self, there: dict[str, Any]) -> bool:
        """On another process: connects to the result of `listen`."""
        until = time.monotonic() + _CONNECT
        return any(
            self._reach(host, there["port"], there["token"], max(0.1, until - time.monotonic()))
            for host in there["hosts"]
        )

    def wait(self) -> list[int]:
        """On process 0: waits for the others; the numbers of those that did not connect."""
        self._complete.wait(_CONNECT)
        return self._missing()

    def announce(self, status: int, why: str) -> None:
        """Informs the others that this process ends, and why."""
        self._ending = True
        self._send(_coded(ends=self.index, status=status, why=why))

    def finish(self) -> None:
        """Notifies the others that this process is done, so that its silence is not an error."""
        self._send(_coded(done=self.index))

    def _start(self) -> None:
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def _missing(self) -> list[int]:
        return sorted(set(range(1, self.count)) - set(self._lines))

    def _reach(self, host: str, port: int, token: str, within: float = _CONNECT) -> bool:
        """Connects to process 0; False if it is not there. ValueError: it rejects this process."""
        try:
            connection = socket.create_connection((host, port), min(3.0, within))
        except OSError:
            return False
        answer = b""
        with contextlib.suppress(OSError):
            # Something else may listen there: another machine may have this address locally.
            connection.settimeout(_CONNECT)
            connection.sendall(_coded(hello=self.index, of=self.count, token=token))
            answer = connection.recv(3)
        if answer != b"ok\n":
            connection.close()
            if answer == b"no\n":
                raise ValueError(f"process 0 has another process {self.index}, or another number")
            return False
        connection.settimeout(None)
        self._enter(_Line(connection, 0))
        self._start()
        return True

    def _send(self, text: bytes, *, but: int = -1) -> None:
        with self._lock:
            lines = [line for peer, line in self._lines.items() if peer != but]
        for line in lines:
            with contextlib.suppress(OSError):
                line.socket.sendall(text)

    def _enter(self, line: _Line) -> None:
        _keep_alive(line.socket)
        self._selector.register(line.socket, selectors.EVENT_READ, line)
        with self._lock:
            self._lines[line.peer] = line
            complete = not self.index and len(self._lines) == self.count - 1
        if complete:
            if self._opened is not None:  # JAX needs the port
                self._selector.unregister(self._opened)
                self._opened.close()
                self._send(_coded(complete=True))
            self._complete.set()

    def _watch(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._greet(key.fileobj)
                else:
                    self._read(key.data)

    def _greet(self, server: socket.socket) -> None:
        """Accepts peers that know the token; anyone may connect to a port."""
        connection = None
        try:
            connection, _ = server.accept()
            connection.settimeout(3.0)
            message = json.loads(connection.recv(200))
            if message["token"] != self._token:
                raise ValueError("not part of this run")
            peer = int(message["hello"])
            if message["of"] != self.count or peer not in self._missing():
                connection.sendall(b"no\n")
                raise ValueError("from another start, or started with another number")
            connection.sendall(b"ok\n")
            connection.settimeout(None)
            self._enter(_Line(connection, peer))
        except (OSError, ValueError, KeyError, TypeError):
            if connection is not None:
                connection.close()

    def _read(self, line: _Line) -> None:
        try:
            came = line.socket.recv(65536)
        except OSError:
            came = b""
        *whole, line.rest = (line.rest + came).split(b"\n")
        for text in whole:
            message = json.loads(text)
            if "done" in message:
                self._finished.add(message["done"])
                if line.peer:  # only process 0 hears from others
                    self._send(text + b"\n", but=line.peer)
            elif "complete" in message:
                self._complete.set()
            elif "ends" in message:
                self._end(message)
        if not came:
            self._selector.unregister(line.socket)
            if line.peer not in self._finished:
                self._end({"ends": line.peer, "status": _LOST, "why": ""})

    def _end(self, message: dict[str, Any]) -> None:
        """Ends this process because another one ended."""
        if self._ending:
            return
        peer, status, why = message["ends"], message["status"], message["why"]
        if not self.index:
            self._send(_coded(**message), but=peer)
        who = f"process {peer} of {self.count}"
        if why:
            line = f"{who}: {why}" if status > 128 else f"error: {who}: {why}"
        else:
            line = f"error: {who} is gone (killed, or its machine is lost); {_CONTINUES}"
        stops.end(status, line)


_peers: Peers | None = None
_several = False  # whether others may wait for this process
_joining = ""  # what the processes are waiting for, until they have found each other
_gave_up = threading.Event()


def joins(coordinator: str, seconds: int) -> None:
    """Before JAX searches for the other processes, for at most this many seconds.

    JAX aborts if it cannot find them or loses them. To leave time to print a line first, its abort
    sleeps: the handler of SIGABRT is the C library's `sleep`, which takes the signal's number, 6,
    as seconds.
    """
    global _joining, _several
    _several = True
    where = f" at {coordinator}" if coordinator else ""
    _joining = f"the processes did not find each other{where} within {seconds} s"
    with contextlib.suppress(OSError, AttributeError):  # no such C library
        library = ctypes.CDLL(None)
        library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def hears(line: bytes) -> bool:
    """Whether a line that a library prints is shown; JAX's final error ends the process."""
    if b"JAX distributed service detected fatal errors" in line:
        reason = line.rsplit(b"absl::Status: ", 1)[-1].decode(errors="replace").split(" [")[0]
        threading.Thread(target=_given_up, args=(reason.strip(),), daemon=True).start()
        return False
    return b"coordination_service" not in line and not _gave_up.is_set()


def _given_up(reason: str) -> None:
    _gave_up.set()
    if _joining:
        stops.end(_LOST, f"error: {_joining}; start all of them ({reason})")
    time.sleep(_WAIT / 2)  # the connection between the processes has the reason
    stops.end(_LOST, f"error: another process is lost ({reason}); {_CONTINUES}")


def missed(which: list[int], count: int) -> None:
    """Ends this process, because these others did not join."""
    who = f"process {', '.join(map(str, which[:5]))}{', …' if len(which) > 5 else ''} of {count}"
    line = f"{_joining}: {who} did not join; start all of them, or raise distributed.join_seconds"
    if _peers is not None:
        _peers.announce(_LOST, line)
    stops.end(_LOST, f"error: {line}")


def joined() -> None:
    """After the processes have found each other, before they are connected."""
    global _joining
    _joining = ""


def alone() -> None:
    """There are no other processes."""
    global _several
    _several = False
    signal.signal(signal.SIGABRT, signal.SIG_DFL)


def start(peers: Peers) -> None:
    """Makes the functions below use these peers."""
    global _peers, _several
    _peers, _several = peers, True
    stops.announce = peers.announce


def ends(status: int, why: str) -> None:
    """After an error was printed: notifies the other processes, and ends this one at once.

    A normal exit would wait for processes that wait for this one. Returns only if the run has one
    process.
    """
    if _peers is not None:
        _peers.announce(status, why)
    if _several:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def wait_for_news() -> None:
    """After an error that a lost process may have caused: waits for that news, which ends this."""
    if _several:
        time.sleep(_WAIT)


def leave() -> None:
    """Before the usual end of a process."""
    if _peers is not None:
        _peers.finish()


def _coded(**message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _server(backlog: int, port: int = 0) -> socket.socket:
    """Listens at a port (0: a free one), for IPv4 and IPv6 where the machine has both."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog
            )
    return socket.create_server(("", port), backlog=backlog)


def _addresses() -> list[str]:
    """Addresses at which other machines may reach this one, the likeliest first."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent; the system chooses the route
        found.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        found += [entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None)]
    return list(dict.fromkeys([*found, socket.gethostname(), "127.0.0.1"]))


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE),
        ("TCP_KEEPINTVL", _INTERVAL),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", 1000 * (_IDLE + _INTERVAL * _PROBES)),
    ):
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
