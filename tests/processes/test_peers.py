"""Processes of one run end together, each in one line that names which one failed and why."""

import json
import signal
import socket
import subprocess
import sys

import pytest

WORKER = """
import json, sys, time
from nvret_jax.processes import peers, stops
index, count = int(sys.argv[1]), int(sys.argv[2])
stops.install()
these = peers.Peers(index, count)
if index:
    assert these.connect(json.loads(sys.stdin.readline()))
    peers.start(these)
else:
    print(json.dumps(these.listen()), flush=True)
    peers.start(these)
    assert these.wait() == []
print('up', flush=True)
exec(sys.stdin.readline())
peers.leave()
time.sleep(float(sys.stdin.readline() or 0))
"""
HANGS = "time.sleep(100)\n"


def start(count):
    """Processes that found one another."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(index), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    there = processes[0].stdout.readline()
    assert json.loads(there)["port"]
    for process in processes[1:]:
        process.stdin.write(there)
        process.stdin.flush()
    for process in processes:
        assert process.stdout.readline() == "up\n"
    return processes, there


def send(process, line):
    process.stdin.write(line)
    process.stdin.flush()


def send_last(processes, last, line):
    """`line` to one process, once the others hang: it may end them as soon as it has read it."""
    for index, process in enumerate(processes):
        if index != last:
            send(process, HANGS)
    send(processes[last], line)


def ends(processes):
    return [(p.communicate(timeout=60)[1], p.returncode) for p in processes]


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_process_ends_the_others(killed):
    processes, _ = start(3)
    for process in processes:
        send(process, HANGS)
    processes[killed].kill()
    found = ends(processes)
    assert found.pop(killed)[1] == -signal.SIGKILL
    for errors, status in found:
        assert status == 1
        assert errors == (
            f"error: process {killed} of 3 is gone (killed, or its machine is lost); "
            "the same command continues from what is finished\n"
        )


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_ends_the_others_with_its_words_and_status(failing):
    processes, _ = start(3)
    send_last(processes, failing, "peers.ends(2, 'no such data')\n")
    found = ends(processes)
    assert found.pop(failing) == ("", 2)
    assert found == [(f"error: process {failing} of 3: no such data\n", 2)] * 2


@pytest.mark.parametrize("failing", [0, 1])
def test_others_that_leave_because_of_an_error_do_not_hide_it(failing):
    """However long the failing process takes to end after it has said why."""
    processes, _ = start(2)
    slow = "import os; end = os._exit; os._exit = lambda code: (time.sleep(1), end(code))\n"
    slow = slow.replace("\n", "; ") + "peers.ends(2, 'no such data')\n"
    send_last(processes, failing, slow)
    assert ends(processes)[failing] == ("", 2)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_ends_the_others_with_its_status(asked):
    processes, _ = start(2)
    for process in processes:
        send(process, HANGS)
    processes[asked].send_signal(signal.SIGTERM)
    found = ends(processes)
    assert found[asked] == ("stopped by SIGTERM\n", 143)
    assert found[1 - asked] == (f"process {asked} of 2: stopped by SIGTERM\n", 143)


@pytest.mark.parametrize("first", [0, 1])
def test_a_process_that_is_done_ends_nobody(first):
    processes, _ = start(2)
    send(processes[first], "pass\n")
    send(processes[first], "0\n")
    assert ends([processes[first]]) == [("", 0)]
    send(processes[1 - first], "time.sleep(0.3)\n")
    send(processes[1 - first], "0\n")
    assert ends([processes[1 - first]]) == [("", 0)]


def test_a_stranger_is_not_heard():
    processes, there = start(2)
    body = (
        "import socket, sys\n"
        "for text in sys.argv[2:]:\n"
        "    s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "    s.sendall(text.encode() + b'\\n'); assert s.recv(9) == b''"
    )
    texts = (json.dumps({"hello": 1, "token": "guess"}), "[]", "GET / HTTP/1.1")
    port = str(json.loads(there)["port"])
    assert subprocess.run([sys.executable, "-c", body, port, *texts]).returncode == 0
    for process in processes:
        send(process, "pass\n")
        send(process, "0\n")
    assert ends(processes) == [("", 0)] * 2


MEETING = """
import socket, sys, time
from nvret_jax import mesh
from nvret_jax.processes import peers, stops
port, index, count, seconds = map(int, sys.argv[1:])
stops.install()
enter = peers.Peers._enter
peers.Peers._enter = lambda self, line: (enter(self, line), print('hello', flush=True))
peers.joins(f'localhost:{port}', seconds)
try:
    mesh.meet(f'localhost:{port}', count, index, seconds)
except mesh.InputError as error:
    print(error, file=sys.stderr, flush=True)
    peers.ends(2, str(error))
if not index:
    socket.create_server(('', port)).close()  # JAX can have it
print('all', flush=True)
time.sleep(100)
"""


def meeting(*which, seconds=100):
    """(port, processes) that look for one another; `which`: (number, of how many) of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return port, [meets(port, *one, seconds) for one in which]


def meets(port, index, count, seconds=100):
    return subprocess.Popen(
        [sys.executable, "-c", MEETING, *map(str, (port, index, count, seconds))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_killed_while_others_are_waited_for_ends_those_that_came(killed):
    _, processes = meeting((0, 3), (1, 3))
    for process in processes:
        assert process.stdout.readline() == "hello\n"
    processes[killed].kill()
    ((errors, status),) = ends([processes[1 - killed]])
    ends([processes[killed]])
    assert status == 1
    assert errors.startswith(f"error: process {killed} of 3 is gone (killed, or its machine")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("asked", [0, 1])
def test_a_process_stopped_while_others_are_waited_for_says_so(asked):
    _, processes = meeting((0, 3), (1, 3))
    for process in processes:
        assert process.stdout.readline() == "hello\n"
    processes[asked].send_signal(signal.SIGTERM)
    assert ends(processes)[1 - asked] == (f"process {asked} of 3: stopped by SIGTERM\n", 143)


def test_processes_that_met_hear_of_one_another_and_leave_the_port():
    _, processes = meeting((0, 3), (1, 3), (2, 3))
    for process in processes:
        while process.stdout.readline() == "hello\n":
            pass
    processes[2].kill()
    for errors, status in ends(processes)[:2]:
        assert status == 1
        assert errors.startswith("error: process 2 of 3 is gone")


@pytest.mark.parametrize(("came", "missing"), [([0, 1], 2), ([1], 0)])
def test_a_process_that_never_comes_is_named(came, missing):
    port, processes = meeting(*((index, 3) for index in came), seconds=6)
    line = f"the processes did not find each other at localhost:{port} within 6 s"
    found = {(errors, status) for errors, status in ends(processes)}
    line += f": process {missing} of 3 did not join; start all of them, or raise "
    line += "distributed.join_seconds\n"
    assert found <= {(f"error: {who}{line}", 1) for who in ("", "process 0 of 3: ")}


def test_a_number_that_is_taken_and_another_count_are_refused_and_disturb_nobody():
    port, (first, second) = meeting((0, 3), (1, 3))
    assert second.stdout.readline() == "hello\n"
    late = [meets(port, 1, 3), meets(port, 2, 4), meets(port, 0, 3)]
    for (errors, status), words in zip(
        ends(late), ["another process 1", "or another number", "cannot listen at"], strict=True
    ):
        assert status == 2
        assert errors.startswith(f"distributed.coordinator='localhost:{port}': ")
        assert words in errors
        assert errors.count("\n") == 1
    third = meets(port, 2, 3)
    for process in (first, second, third):
        while process.stdout.readline() == "hello\n":
            pass
        assert process.poll() is None
    for process in (first, second, third):
        process.kill()
    ends([first, second, third])


@pytest.mark.parametrize(
    ("joining", "line", "expected"),
    [
        (True, "absl::Status: DEADLINE_EXCEEDED: late", "did not find each other at h:1 within 5"),
        (False, "absl::Status: UNAVAILABLE: Socket closed", "another process is lost (UNAVAIL"),
    ],
)
def test_what_the_runtime_says_before_it_aborts_takes_one_line(joining, line, expected):
    body = (
        "import os, sys, threading\n"
        "from nvret_jax.processes import peers, stops, streams\n"
        "streams.install(); undo = streams.only_python(peers.hears); peers.joins('h:1', 5)\n"
        f"{'' if joining else 'peers.joined()'}\n"
        "os.write(2, b'E1126 coordination_service_agent.cc:289] Polled an error\\n')\n"
        "os.write(2, b'F1126 Terminating process because the JAX distributed service detected "
        f"fatal errors. {line}\\n')\n"
        "os.write(2, b'*** Check failure stack trace: ***\\n')\n"
        "import ctypes; ctypes.CDLL(None).abort()"  # as a thread of the library does
    )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (only,) = done.stderr.splitlines()
    assert only.startswith("error: ")
    assert expected in only
