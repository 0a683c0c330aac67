"""Processes of one run watch one another: what ends one ends all, in one line each.

JAX notices a lost process by heartbeats, after minutes, and then aborts with pages of trace. A
process that leaves because of an error waits at its exit for the others, which wait for it in a
collective. So each process keeps a connection to process 0, which says why it ends before it does:

- an error (bad input on one host, say): the others print which process failed and why, and end
  with the same status;
- killed: its connection closes, and the others say that it is gone;
- a machine or a network that is gone: the connection times out within a minute.

Where JAX is first to notice, its own words are held back (`hears`), and its abort is delayed until
the line is printed.

A thread does the watching, and ends the process at once. Artefacts are whole at any instant, so the
same command continues. Process 0 passes on what it hears. Only the standard library is imported.
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

from nvret_jax import stops

_WAIT = 5.0  # seconds for news of another process to arrive
_CONNECT = 20.0
_IDLE, _INTERVAL, _PROBES = 15, 5, 3  # of TCP: a peer that is silent for 30 s is gone
_LOST = 1  # the exit status where a process was lost
_CONTINUES = "the same command continues from what is finished"


@dataclasses.dataclass
class _Line:
    """A connection, and what came on it that is no whole line yet."""

    socket: socket.socket
    peer: int = -1  # -1: has not said who it is
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
        self._ending = False  # has said so: that others leave because of it is no news

    def listen(self) -> dict[str, Any]:
        """On process 0: opens a port. Gives what the others need to connect."""
        self._token = secrets.token_hex(16)
        server = _server(self.count)
        self._selector.register(server, selectors.EVENT_READ)
        self._start()
        port = server.getsockname()[1]
        return {"hosts": _addresses(), "port": port, "token": self._token}

    def connect(self, there: dict[str, Any], *first: str) -> bool:
        """On another process: connects to what `listen` gave; `first`: hosts to try first."""
        until = time.monotonic() + _CONNECT
        for host in (*first, *there["hosts"]):
            with contextlib.suppress(OSError):
                timeout = min(3.0, max(0.1, until - time.monotonic()))
                line = _Line(socket.create_connection((host, there["port"]), timeout), 0)
                # Another machine may have that address here.
                line.socket.sendall(_coded(hello=self.index, token=there["token"]))
                if line.socket.recv(3) != b"ok\n":
                    continue
                line.socket.settimeout(None)
                self._enter(line)
                self._start()
                return True
        return False

    def wait(self) -> list[int]:
        """On process 0: waits for the others; the numbers of those that did not connect."""
        self._complete.wait(_CONNECT)
        return sorted(set(range(1, self.count)) - set(self._lines))

    def tell(self, status: int, why: str) -> None:
        """Lets the others know that this process ends, and why."""
        self._ending = True
        self._send(_coded(ends=self.index, status=status, why=why))

    def finish(self) -> None:
        """Lets the others know that this process is done, and that its silence is no fault."""
        self._send(_coded(done=self.index))

    def _start(self) -> None:
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

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
            if len(self._lines) == self.count - 1:
                self._complete.set()

    def _watch(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._greet(key.fileobj)
                else:
                    self._read(key.data)

    def _greet(self, server: socket.socket) -> None:
        """Takes in who knows the token; anybody may connect to a port."""
        connection = None
        try:
            connection, _ = server.accept()
            connection.settimeout(3.0)
            message = json.loads(connection.recv(200))
            if message["token"] != self._token:
                raise ValueError("not of this run")
            connection.sendall(b"ok\n")
            connection.settimeout(None)
            self._enter(_Line(connection, int(message["hello"])))
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
            elif "ends" in message:
                self._end(message)
        if not came:
            self._selector.unregister(line.socket)
            if line.peer not in self._finished:
                self._end({"ends": line.peer, "status": _LOST, "why": ""})

    def _end(self, message: dict[str, Any]) -> None:
        """Ends this process because another one did."""
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
_joining = ""  # what the processes are waiting for, until they have found one another
_gave_up = threading.Event()


def joins(coordinator: str, seconds: int) -> None:
    """Before JAX looks for the other processes, for so many seconds at most.

    JAX aborts where it does not find or no longer finds them. For as long as it takes to print a
    line instead, its abort sleeps: the handler of SIGABRT is the C library's `sleep`, which takes
    the signal's number, 6, for seconds.
    """
    global _joining, _several
    _several = True
    where = f" at {coordinator}" if coordinator else ""
    _joining = f"the processes did not find one another{where} within {seconds} s"
    with contextlib.suppress(OSError, AttributeError):  # no such C library
        library = ctypes.CDLL(None)
        library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def hears(line: bytes) -> bool:
    """Whether a line that a library prints may be seen; JAX's last words end the process."""
    if b"JAX distributed service detected fatal errors" in line:
        reason = line.rsplit(b"absl::Status: ", 1)[-1].decode(errors="replace").split(" [")[0]
        threading.Thread(target=_given_up, args=(reason.strip(),), daemon=True).start()
        return False
    return b"coordination_service" not in line and not _gave_up.is_set()


def _given_up(reason: str) -> None:
    _gave_up.set()
    if _joining:
        stops.end(_LOST, f"error: {_joining}; start all of them ({reason})")
    time.sleep(_WAIT / 2)  # the connection between the processes knows more
    stops.end(_LOST, f"error: another process is lost ({reason}); {_CONTINUES}")


def joined() -> None:
    """After the processes have found one another, before they are connected."""
    global _joining
    _joining = ""


def alone() -> None:
    """There are no others after all."""
    global _several
    _several = False
    signal.signal(signal.SIGABRT, signal.SIG_DFL)


def start(peers: Peers) -> None:
    """Makes the functions below speak to these peers."""
    global _peers, _several
    _peers, _several = peers, True
    stops.announce = peers.tell


def ends(status: int, why: str) -> None:
    """After an error was printed: lets the other processes know, and ends this one at once.

    Leaving the usual way would wait for processes that wait for this one. Returns only where the
    run has one process.
    """
    if _peers is not None:
        _peers.tell(status, why)
    if _several:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def wait_for_news() -> None:
    """After an error that a lost process may have caused: time to hear of that, which ends this."""
    if _several:
        time.sleep(_WAIT)


def leave() -> None:
    """Before the usual end of a process."""
    if _peers is not None:
        _peers.finish()


def _coded(**message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _server(backlog: int) -> socket.socket:
    """Listens at a free port, for IPv4 and IPv6 where the machine has both."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog
            )
    return socket.create_server(("", 0), backlog=backlog)


def _addresses() -> list[str]:
    """Under which other machines may reach this one, the likeliest first."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent; the system picks the way out
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
