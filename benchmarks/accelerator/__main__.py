"""`make accelerator`: where am I, is it right, is it fast, is the plan right.

    python -m benchmarks.accelerator --out accelerator.json            # up to 8 minutes on one card
    python -m benchmarks.accelerator --small                           # up to 3 minutes on a CPU
    python -m benchmarks.accelerator --only search encode-minilm
    python -m benchmarks.accelerator --page accelerator.json docs/benchmarks.md

It runs on whatever JAX finds, needs no network and no data: models have random weights of real
sizes, texts are the docstrings of installed packages. torch and sentence-transformers are compared
with where they are installed.

Each step runs in a separate process. One that fails is reported and does not stop the others; each
result is written as it comes; what would not fit into the time left is skipped and says so. The
last line printed is the JSON of all results. Status 1: a check failed or a step did.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.accelerator import page
from benchmarks.accelerator.sizes import FULL, SMALL

ROOT = pathlib.Path(__file__).parents[2]
WORKER = [sys.executable, "-m", "benchmarks.accelerator"]
# name: (process it shares, module, function, first argument or None); in order of importance.
_WHERE, _RIGHT, _FAST, _TRUTH = (
    f"benchmarks.accelerator.{name}" for name in ("where", "right", "fast", "truth")
)
STEPS = {
    "where": ("where", _WHERE, "where", None),
    "right-embeddings": ("right", _RIGHT, "embeddings", None),
    "right-attention": ("right", _RIGHT, "attention", None),
    "right-search": ("right", _RIGHT, "search", None),
    "right-losses": ("right", _RIGHT, "losses", None),
    "search": ("search", _FAST, "search", None),
    "encode-minilm": ("encode", _FAST, "encode", "minilm"),
    "encode-bert-base": ("encode", _FAST, "encode", "bert-base"),
    "train-bert-base": ("train", _FAST, "train", "bert-base"),
    "plan": ("plan", _TRUTH, "plan", None),
    "encode-decoder-1b": ("encode-1b", _FAST, "encode", "decoder-1b"),
    "train-decoder-1b": ("train-1b", _FAST, "train", "decoder-1b"),
    "right-training": ("training", _RIGHT, "training", None),
    "sweep-attention": ("sweep", _FAST, "sweep_attention", None),
    "sweep-tokens": ("sweep", _FAST, "sweep_tokens", None),
    "sweep-chunks": ("sweep", _FAST, "sweep_chunks", None),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a test of the steps themselves")
    parser.add_argument("--out", default="accelerator.json", help="file of the results")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), metavar="STEP", default=[])
    parser.add_argument("--page", nargs=2, metavar=("JSON", "MD"), help="writes results into docs")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)  # lines, folder: one process
    args = parser.parse_args()
    if args.page:
        page.insert(pathlib.Path(args.page[1]), json.loads(pathlib.Path(args.page[0]).read_text()))
        return 0
    if args.work:
        work(args.only, args.small, *map(pathlib.Path, args.work))
        return 0
    results = run(args.only or list(STEPS), args.small, pathlib.Path(args.out))
    print(page.table(results))
    print(json.dumps(results))
    return 0 if passed(results) else 1


def passed(results: dict) -> bool:
    """Whether no step failed and every check holds."""
    return all("failed" not in step and step.get("ok", True) for step in results["steps"].values())


def run(names: list[str], small: bool, out: pathlib.Path) -> dict:
    """Runs steps, process by process, until the time is over.

    Args:
        names: of `STEPS`.
        small: see `--small`.
        out: JSON of all results so far, written after each step.
    """
    sizes, begun = SMALL if small else FULL, time.monotonic()
    results: dict = {"benchmark": "accelerator", "small": small, "steps": {}}
    with tempfile.TemporaryDirectory(prefix="accelerator-") as place:
        for group in dict.fromkeys(STEPS[name][0] for name in names):
            waiting = [name for name in names if STEPS[name][0] == group]
            while waiting:
                left = sizes.seconds - (time.monotonic() - begun)
                if left <= 0:
                    found = {name: {"skipped": "the time is over"} for name in waiting}
                else:
                    found = _process(waiting, small, pathlib.Path(place), left)
                for name, result in found.items():
                    results["steps"][name] = result
                    print(page.line(name, result), flush=True)
                results["seconds"] = round(time.monotonic() - begun, 1)
                out.write_text(json.dumps(results, indent=1))
                # A step that took its process down does not take the others of its group along.
                waiting = [name for name in waiting if name not in found]
    return results


def _process(names: list[str], small: bool, place: pathlib.Path, seconds: float) -> dict[str, dict]:
    """Results of the steps that one process got through, the one it died in included."""
    lines = place / "lines.jsonl"
    lines.write_text("")
    command = [*WORKER, "--work", str(lines), str(place)]
    command += ["--only", *names, *(["--small"] if small else [])]
    cache = pathlib.Path.home() / ".cache" / "nvret_jax" / "xla"
    env = {"JAX_COMPILATION_CACHE_DIR": str(cache)} | dict(os.environ)
    env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share the device
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    try:
        ended = f"the process ended with {process.wait(seconds)}"
    except subprocess.TimeoutExpired:
        ended = "the time is over"
    finally:
        _kill(process)
    found, begun = {}, ""
    for line in lines.read_text().splitlines():
        record = json.loads(line)
        begun = record["step"]
        if "result" in record:
            found[begun] = record["result"]
    if begun not in found:
        key = "skipped" if ended == "the time is over" else "failed"
        found[begun or names[0]] = {key: ended}
    return found


def _kill(process: subprocess.Popen) -> None:
    """Ends a step's process and those it started."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        pass
    process.wait()


def work(names: list[str], small: bool, lines: pathlib.Path, place: pathlib.Path) -> None:
    """One process: does steps one after the other and appends a line before and after each."""
    sizes = SMALL if small else FULL
    for name in names:
        _, module, function, argument = STEPS[name]
        with lines.open("a") as file:
            file.write(json.dumps({"step": name}) + "\n")
        start = time.monotonic()
        try:
            call = getattr(importlib.import_module(module), function)
            if argument is not None:
                call = functools.partial(call, argument)
            result = call(sizes, place)
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        result["step_seconds"] = round(time.monotonic() - start, 1)
        with lines.open("a") as file:
            file.write(json.dumps({"step": name, "result": result}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
