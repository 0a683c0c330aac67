"""What a command prints: a warning once, in the terminal and in the file."""

import subprocess
import sys

BODY = """
import sys
from absl import logging
from nvret_jax.processes import log
for _ in range(2):  # a process may be configured again
    log.configure(file=sys.argv[1])
    for name in ('a', 'b', 'a', 'a'):
        logging.warning('%s: %d texts are blank', name, 3)
        log.say('line')
        logging.error('one')
"""


def test_a_warning_is_printed_once_whoever_repeats_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BODY, str(tmp_path / "log")], capture_output=True, text=True
    )
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("warning")] == [
        "warning: a: 3 texts are blank",
        "warning: b: 3 texts are blank",
    ] * 2
    assert lines.count("error: one") == 8
    assert done.stdout.splitlines() == ["line"] * 8
    kept = (tmp_path / "log").read_text().splitlines()
    assert sum("a: 3 texts" in line for line in kept) == 2
    assert sum("line" in line for line in kept) == 8
