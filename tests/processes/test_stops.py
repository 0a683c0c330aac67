"""Signals end a process in one line and the right status, whatever it is doing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from nvret_jax.processes import stops

START = (
    "import sys, time; from nvret_jax.processes import stops; stops.install(); "
    "print('up', flush=True)\n"
)
# Work of minutes inside one call of a C function.
LONG = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)"
# A library that swallows what is raised in its callback.
SWALLOWS = """
while True:
    try:
        time.sleep(0.01)
    except BaseException:
        print('swallowed', flush=True)
"""
DEFERS = """
with stops.deferred() as work:
    print('deferred', flush=True)
    while not work.asked():
        time.sleep(0.01)
    print('saved after', work.asked(), flush=True)
sys.exit(7)
"""


def start(body, **options):
    process = subprocess.Popen(
        [sys.executable, "-c", START + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline() == "up\n"
    return process


def end_of(process):
    """(status, output, errors)"""
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize("body", [LONG, SWALLOWS, "with stops.during('embed'):\n    " + LONG])
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_one_line_and_the_status_of_a_shell(body, number, status):
    process = start(body)
    time.sleep(0.1)
    process.send_signal(number)
    line = f"stopped by {number.name}\n"
    if "during" in body:
        line = (
            f"embed: stopped by {number.name}; the same command continues from what is finished\n"
        )
    assert end_of(process) == (status, "", line)


def test_work_that_defers_the_end_sees_the_request():
    process = start(DEFERS)
    assert process.stdout.readline() == "deferred\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # the same request, from another launcher
    assert end_of(process) == (7, "saved after 15\n", "")


def test_a_second_request_ends_deferred_work():
    process = start("with stops.deferred():\n    print('deferred', flush=True)\n    " + LONG)
    assert process.stdout.readline() == "deferred\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert end_of(process) == (130, "", "stopped by SIGINT\n")


def test_work_that_is_saved_ends_at_once():
    """Nothing is lost: a compilation of minutes need not be waited for."""
    body = (
        "with stops.deferred() as work:\n    work.saved = 'train: {signal}; saved after step 5'\n"
        "    print('deferred', flush=True)\n    " + LONG
    )
    process = start(body)
    assert process.stdout.readline() == "deferred\n"
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == (143, "", "train: SIGTERM; saved after step 5\n")


def test_a_request_that_was_not_heard_takes_effect_behind_the_block():
    body = (
        "with stops.deferred():\n    print('deferred', flush=True)\n    sys.stdin.read()\n"
        "print('not reached')"
    )
    process = start(body, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "deferred\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert end_of(process) == (143, "", "stopped by SIGTERM\n")


def test_an_ignored_signal_stays_ignored():
    """nohup ignores SIGHUP; a shell ignores SIGINT for what runs in its background."""
    script = 'trap "" HUP INT; exec "$0" -c "$1"'
    body = START + "sys.stdin.read(); print('done')"
    process = subprocess.Popen(
        ["bash", "-c", script, sys.executable, body],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert end_of(process) == (0, "done\n", "")


def test_a_notebook_keeps_its_own_handlers():
    """Without `install`, only SIGTERM is taken, and only within the block."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stops.deferred() as work:
        assert signal.getsignal(signal.SIGINT) == before[1]
        assert work.asked() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            if work.asked():
                break
            time.sleep(0.01)
        assert work.asked() == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("module", ["nvret_jax", "nvret_jax.main", "nvret_jax.plan"])
def test_a_signal_while_modules_are_imported(module):
    """Handlers come before everything that takes long to import."""
    body = (
        "import builtins, runpy, sys, os, signal\n"
        "plain = builtins.__import__\n"
        "def slow(name, *rest, **more):\n"
        "    if name.split('.')[0] in ('absl', 'numpy', 'jax', 'etils', 'pyarrow'):\n"
        "        os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(20)\n"
        "    return plain(name, *rest, **more)\n"
        "builtins.__import__ = slow\n"
        f"sys.argv = ['{module}', '--config=x']; runpy.run_module('{module}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT\n"), done.stderr[-500:]
