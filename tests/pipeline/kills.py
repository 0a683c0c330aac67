"""Runs that a signal hits, at a moment after a line of output, and what their reruns leave.

python kills.py FOLDER ROUNDS [SEED]    rounds over all stages, signals, 1 and 2 processes
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import sys
import threading
import time

import tensorstore
import tiny_project

from nvret_jax.training import rates

STAGES = ("embed", "search", "mine", "train", "evaluate", "export", "report")
# Where search takes the same path whatever the number of processes is.
COMMON = (
    "--config.search.backend=device",
    "--config.train.chunk_tokens=64",
    "--config.train.steps=12",
    "--config.train.eval_every=6",
    "--config.train.checkpoint_every=3",
)
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
# What depends on the clock, is there only while a run is at work, or has names drawn by lot.
_CLOCK = re.compile(
    r"metrics\.jsonl|history\.jsonl|in_use\.json|tensorboard/|report\.html|config\.json|"
    r".*(_CHECKPOINT_METADATA|commit_success\.txt|manifest\.ocdbt|/d/\w+|\.sums\.json)$"
)


@dataclasses.dataclass(frozen=True)
class Round:
    """A stop: `sent` to process `at` of `processes`, `delay` s after `event` (None: the start)."""

    processes: int
    at: int
    sent: str
    event: str | None
    delay: float


@dataclasses.dataclass
class Outcome:
    """What came of it.

    Attributes:
        stage: the last that had begun; '' where none had.
        statuses: of all processes, the one that was hit first.
        errors: lines that are not progress, of each process.
        differences: between the rerun's workdir and an undisturbed one; [] is right.
    """

    stage: str
    statuses: list[int]
    errors: list[list[str]]
    seconds: float
    differences: list[str]


class Running:
    """Processes of one run, with their output as it comes."""

    def __init__(self, project: pathlib.Path, workdir: pathlib.Path, processes: int):
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job
            signal.signal(signal.SIGINT, signal.default_int_handler)  # what it starts hears it
        more: list[list[str]] = [[]]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            more = [
                [
                    f"--config.distributed.coordinator=localhost:{port}",
                    f"--config.distributed.num_processes={processes}",
                    f"--config.distributed.process_id={number}",
                ]
                for number in range(processes)
            ]
        self.processes = [tiny_project.start(project, workdir, *COMMON, *m) for m in more]
        self.lines: list[list[str]] = [[] for _ in more]
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(number,)) for number in range(processes)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, number: int) -> None:
        for line in self.processes[number].stdout:
            with self._changed:
                self.lines[number].append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, event: str, timeout: float = 300) -> None:
        """Until the main process has printed a line that begins so, or has ended."""

        def there() -> bool:
            ended = not self._readers[0].is_alive() and self.processes[0].poll() is not None
            return ended or any(line.startswith(event) for line in self.lines[0])

        with self._changed:
            until = time.monotonic() + timeout
            while not there() and time.monotonic() < until:
                self._changed.wait(1)

    def end(self, timeout: float) -> list[int]:
        """The statuses of all processes, -1000 for one that did not end."""
        until, statuses = time.monotonic() + timeout, []
        for process in self.processes:
            try:
                statuses.append(process.wait(max(0.1, until - time.monotonic())))
            except Exception:
                process.kill()
                statuses.append(-1000)
        for reader in self._readers:
            reader.join(10)
        return statuses


def finished(project: pathlib.Path, workdir: pathlib.Path, processes: int) -> None:
    """Runs to the end; AssertionError if it does not end well."""
    running = Running(project, workdir, processes)
    statuses = running.end(600)
    assert set(statuses) == {0}, (statuses, [lines[-20:] for lines in running.lines])


def stop(project: pathlib.Path, workdir: pathlib.Path, one: Round) -> Outcome:
    """Starts a run, stops it as `one` says and looks at its end; the rerun is the caller's."""
    running = Running(project, workdir, one.processes)
    if one.event is not None:
        running.wait_for(one.event)
    time.sleep(one.delay)
    begun = time.monotonic()
    running.processes[one.at].send_signal(SIGNALS[one.sent])
    statuses = running.end(90)
    seconds = time.monotonic() - begun
    order = [one.at, *(i for i in range(one.processes) if i != one.at)]
    stages = [line.split()[0] for line in running.lines[0] if " making " in line]
    errors = [
        [line for line in running.lines[i] if re.search(r"stopped|^error|Traceback|  File ", line)]
        for i in order
    ]
    stage = stages[-1] if stages else ""
    return Outcome(stage, [statuses[i] for i in order], errors, seconds, [])


def differences(workdir: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Files that are in one of two workdirs only, or whose bytes differ; metrics but for speed."""
    names = [
        {
            str(path.relative_to(root))
            for path in root.rglob("*")
            if path.is_file() and not _CLOCK.match(str(path.relative_to(root)))
        }
        for root in (workdir, other)
    ]
    found = [f"only in one: {name}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        mine, theirs = (workdir / name).read_bytes(), (other / name).read_bytes()
        if name.startswith("fingerprints/"):
            mine, theirs = (json.loads(x)["fingerprint"] for x in (mine, theirs))
        if name.endswith(".metrics.jsonl"):
            mine, theirs = _without_speed(mine), _without_speed(theirs)
        if mine != theirs:
            found.append(f"differs: {name}")
    stores = [_checkpoints(root) for root in (workdir, other)]
    found += [
        f"differs: {k}"
        for k in stores[0].keys() | stores[1].keys()
        if stores[0].get(k) != stores[1].get(k)
    ]
    if tiny_project.metrics(workdir) != tiny_project.metrics(other):
        found.append("differs: metrics.jsonl")
    return found


def _without_speed(lines: bytes) -> list[dict]:
    """Metrics but for what depends on the clock."""
    out = [json.loads(line) for line in lines.splitlines()]
    for line in out:
        for name in rates.NAMES:
            line.pop(name, None)
    return out


def _checkpoints(workdir: pathlib.Path) -> dict[str, bytes]:
    """The arrays of all checkpoints, chunk by chunk, as they are stored."""
    out = {}
    for manifest in (workdir / "checkpoints").rglob("manifest.ocdbt"):
        if manifest.parent.name.startswith("ocdbt.process"):
            continue
        base = f"file://{manifest.parent}/"
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        for key in store.list().result():
            name = f"{manifest.parent.relative_to(workdir)}/{key.decode()}"
            out[name] = store.read(key).result().value
    return out


def rounds(count: int, seed: int = 0) -> list[Round]:
    """Stops spread over all stages, signals and numbers of processes."""
    rng, out = random.Random(seed), []
    events = [None, *(f"{stage:<9} making" for stage in STAGES)]
    names = list(SIGNALS)
    for number in range(count):
        processes = 1 + number % 2
        event = events[number // 2 % len(events)]
        delay = rng.uniform(0.1, 6) if event is None else rng.uniform(0, 1.5)
        if event and event.startswith("train"):
            delay = rng.uniform(0, 8)
        sent = names[number // 3 % 3]
        out.append(Round(processes, rng.randrange(processes), sent, event, delay))
    return out


def main(folder: str, count: str, seed: str = "0") -> None:
    """Prints a line a round, and the counts."""
    root = pathlib.Path(folder)
    project = root / "project"
    if not project.exists():
        tiny_project.make(project)
    for name in ("1", "2", "1-again"):
        if not (root / f"undisturbed-{name}").exists():
            finished(project, root / f"undisturbed-{name}", int(name[0]))
    twice = differences(root / "undisturbed-1", root / "undisturbed-1-again")
    print(f"undisturbed twice: {twice}", flush=True)
    counts: collections.Counter = collections.Counter()
    for number, one in enumerate(rounds(int(count), int(seed))):
        workdir = root / f"round-{number}"
        outcome = stop(project, workdir, one)
        finished(project, workdir, one.processes)
        outcome.differences = differences(workdir, root / f"undisturbed-{one.processes}")
        print(number, one, outcome, flush=True)
        where = outcome.stage or "before the first stage"
        counts[(f"{one.processes} process(es)", one.sent, where, tuple(outcome.statuses))] += 1
        counts["equal" if not outcome.differences else "different"] += 1
        lines = max(len(lines) for lines in outcome.errors)
        counts[f"at most {lines} line(s)"] += 1
        shutil.rmtree(workdir)
    for key, value in counts.items():
        print(value, key)


if __name__ == "__main__":
    main(*sys.argv[1:])
