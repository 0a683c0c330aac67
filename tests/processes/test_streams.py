"""Output that nobody reads, or that an encoding cannot hold, ends no run."""

import io
import os
import subprocess
import sys

import pytest

from nvret_jax.processes import progress

START = "import sys; from nvret_jax.processes import streams; streams.install(); "


def test_output_that_is_not_utf8_is_escaped():
    done = subprocess.run(
        [sys.executable, "-c", START + "print('2 × 3 …'); print('é', file=sys.stderr)"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"2 \\xd7 3 \\u2026\n"
    assert done.stderr == b"\\xe9\n"


def test_a_pipe_that_is_closed_is_no_error():
    body = "print('first'); sys.stdin.read(1); print('x' * 100000); print('y', file=sys.stderr)"
    process = subprocess.Popen(
        [sys.executable, "-c", START + body],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    _, errors = process.communicate(b"\n", timeout=60)
    assert (process.returncode, errors) == (0, b"y\n")


def test_streams_that_are_closed_at_the_start_are_no_error():
    script = f'exec "$0" -c "{START} print(1); print(2, file=sys.stderr)" >&- 2>&-'
    assert subprocess.run(["bash", "-c", script, sys.executable]).returncode == 0


def test_a_library_does_not_write_over_the_output():
    body = (
        "import os; seen = []; undo = streams.only_python(lambda line: b'bad' not in line); "
        "os.write(1, b'gloo'); os.write(2, b'bad'); os.write(2, b'\\ngood\\n'); "
        "print('own'); print('error', file=sys.stderr); undo(); os.write(1, b'after')"
    )
    done = subprocess.run([sys.executable, "-c", START + body], capture_output=True, check=True)
    assert done.stdout == b"own\nafter"
    assert sorted(done.stderr.split()) == [b"error", b"good"]


def test_a_file_gets_no_bar_but_a_line_now_and_then(monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", errors := io.StringIO())
    for _ in progress.bar(range(4), desc="search", unit=" block"):
        pass
    lines = errors.getvalue().splitlines()
    assert lines[0] == "search: 2/4 block, 0.0333 per second"
    assert "\r" not in errors.getvalue()
    assert len(lines) == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_tqdm_disable_is_heard(monkeypatch, terminal):
    errors = io.StringIO()
    errors.isatty = lambda: terminal
    script = (
        "import sys, time; from nvret_jax.processes import progress; progress.EVERY = 0.0\n"
        f"progress._redraws = lambda: {terminal}\n"
        "with progress.bar(total=3, desc='a', unit='b') as bar: bar.update(); bar.update()\n"
    )
    for value, silent in (("1", True), ("", False)):
        env = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
        env |= {"TQDM_DISABLE": value} if value else {}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True)
        assert done.returncode == 0
        assert (done.stderr == b"") is silent


def test_a_bar_that_is_not_shown_is_silent(capsys):
    with progress.bar(total=2, desc="a", unit="b", show=False) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""
