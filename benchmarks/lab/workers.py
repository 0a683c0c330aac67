"""Processes that run jobs, each on a device: one job at a time, several beside each other.

A worker lives for many jobs, so Python, JAX and compiled programs are loaded once. One that dies
takes its job along and no other: the job counts as failed and a new worker takes its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from benchmarks.lab.cell import Job

ROOT = pathlib.Path(__file__).parents[2]
_COMMAND = [sys.executable, "-m", "benchmarks.lab", "--work"]
# What makes a process see one accelerator.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")


def environments(devices: Sequence[str], jobs: int) -> list[dict[str, str]]:
    """The environment of each worker: `jobs` of them, taking the devices in turn.

    Args:
        devices: numbers of accelerators; empty: workers see what this process sees.
        jobs: 0: one per device, or one.
    """
    jobs = jobs or max(1, len(devices))
    found = []
    for number in range(jobs):
        own = dict(os.environ)
        if devices:
            own |= dict.fromkeys(_VISIBLE, devices[number % len(devices)])
        if jobs > max(1, len(devices)):
            own.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share a device
        found.append(own)
    return found


def run_all(
    jobs: Sequence[Sequence[Job]],
    environments: Sequence[dict[str, str]],
    done: Callable[[Job, dict[str, Any]], None],
) -> None:
    """Runs chains of jobs; the rest of a chain is run, in any order, once its first job is done.

    Args:
        jobs: chains: what makes the shared artefacts, then the cells that use them.
        environments: one for each worker.
        done: called with what became of each: {'seconds'} or {'failed': why}; one call at a time.
    """
    waiting: queue.Queue[tuple[Job, list[Job]]] = queue.Queue()
    left = sum(map(len, jobs))
    for first, *rest in jobs:
        waiting.put((first, rest))
    lock, finished = threading.Lock(), threading.Event()
    broken: list[BaseException] = []

    def count(job: Job, result: dict[str, Any]) -> None:
        nonlocal left
        with lock:
            done(job, result)
            left -= 1
            if not left:
                finished.set()

    def serve(environment: dict[str, str]) -> None:
        try:
            take(environment)
        except BaseException as error:
            broken.append(error)
            finished.set()

    def take(environment: dict[str, str]) -> None:
        with Worker(environment) as worker:
            while not finished.is_set():
                try:
                    job, rest = waiting.get(timeout=0.2)
                except queue.Empty:
                    continue
                result = worker.run(job)
                if finished.is_set():  # stopped, and so is the job
                    return
                for follower in rest:
                    if "failed" in result:
                        count(follower, {"failed": f"{job.name} failed"})
                    else:
                        waiting.put((follower, []))
                count(job, result)

    threads = [threading.Thread(target=serve, args=(e,), daemon=True) for e in environments]
    try:
        for thread in threads:
            thread.start()
        while not finished.wait(0.5):
            pass
    finally:
        finished.set()
        Worker.stop_all()
        for thread in threads:
            thread.join(10)
    if broken:
        raise broken[0]


class Worker:
    """A process that runs jobs."""

    _alive: ClassVar[set[subprocess.Popen]] = set()

    def __init__(self, environment: dict[str, str]):
        self._environment, self._process = environment, None

    def run(self, job: Job) -> dict[str, Any]:
        """What became of a job."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                _COMMAND,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            Worker._alive.add(self._process)
        line = ""
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        Worker._alive.discard(self._process)
        self._process = None
        return {"failed": f"its process ended with {code}"}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # the end of its jobs
            self._process.wait()
            Worker._alive.discard(self._process)

    @classmethod
    def stop_all(cls) -> None:
        """Asks all workers to end; a training saves first."""
        for process in list(cls._alive):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)


def work() -> None:
    """Reads jobs from standard input, one a line, and writes what became of each to its output."""
    from benchmarks.lab import cell
    from nvret_jax.errors import InputError

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        values = json.loads(line)
        job = Job(**values | {"stages": tuple(values["stages"])})
        try:
            result = cell.run(job)
        except InputError as error:
            result = {"failed": str(error)}
        except Exception as error:
            with pathlib.Path(job.workdir).with_suffix(".log").open("a") as log:
                print(*_trace(error), sep="", file=log)
            result = {"failed": f"{type(error).__name__}: {error}; see the log in {log.name}"}
        try:
            print(json.dumps(result), flush=True)
        except BrokenPipeError:  # who asked is gone
            return
        _release()


def _end_with(parent: int) -> None:
    """Ends this process as SIGTERM does once its parent is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _trace(error: Exception) -> Iterator[str]:
    import traceback

    yield from traceback.format_exception(error)


def _release() -> None:
    """Lets go of compiled programs, which no later cell uses: they are in the cache on disk."""
    import gc

    import jax

    jax.clear_caches()
    gc.collect()
