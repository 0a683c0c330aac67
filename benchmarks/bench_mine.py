"""From texts to hard negatives: `api.mine` against sentence-transformers' `mine_hard_negatives`.

    python benchmarks/bench_mine.py --data beir:DIR/squad --rounds 3

Same weights, same texts, same limit of tokens, same rule (a negative scores at most 95 % of the
positive), 4 negatives a query, both on the CPU with default thread counts. What is timed is the
whole call: tokenising,
encoding both sides, search, mining. Loading the model and reading the data are not.

Each side runs in a separate process, so that its peak memory (VmHWM) can be measured; the parent
drives them in turn, one idle while the others work, and turns the order round every round. A ratio
is taken within a round and the median over rounds is reported. Before that, each side is warmed
up: ours by a whole call, in which it compiles (`first_call_s`; no cache on disk is used), theirs,
which compiles nothing, by mining for 256 queries in 1,024 passages.

What else runs on the machine weighs on both sides, but not alike: torch's threads wait for each
other by spinning, so a busy machine flatters us. `load_average` says how busy it was at the start
of each round (0 is idle, this benchmark alone makes it 2).

sentence-transformers is given what is fastest for it: the corpus, batches of 32 (of 16, 32, 64 and
128), 'n-tuple' output, no progress texts, and FAISS only with --faiss.

The last line printed is one JSON object. `time_ratio` and `memory_ratio` are ours over theirs, both
float32. With --bfloat16 each side runs a second time in bfloat16: `time_ratio_bf16` is ours over
theirs in bfloat16, `time_ratio_bf16_vs_f32` ours in bfloat16 over theirs in float32.

Needs the extra 'parity' (torch, sentence-transformers) and `datasets`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

OURS, THEIRS = "nvret_jax", "sentence_transformers"
PACKAGES = ("jax", "flax", "tokenizers", "faiss-cpu", "torch", "transformers")
NEGATIVES, PERCENT = 4, 0.95
# Of both sides, where the caller has not set them. Where libtpu is installed, JAX would load its
# 130 MB to find that there is no TPU; and glibc would keep what each thread has freed for itself.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "1"}


def peak_mib() -> float:
    """This process's peak resident memory, MiB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    raise SystemExit("this system does not report VmHWM in /proc/self/status")


def read_texts(args: argparse.Namespace) -> tuple[list[str], list[str], list[list[int]]]:
    """Queries of the split that have a positive, the corpus, and each query's positive rows."""
    from nvret_jax.data.load import load_dataset

    dataset = load_dataset(args.data, splits=(args.split,))
    row, corpus = dataset.corpus.row, list(dataset.corpus.texts)
    queries, positives = [], []
    for query, passages in dataset.positives(args.split).items():
        queries.append(dataset.queries.texts[dataset.queries.row[query]])
        positives.append([row[passage] for passage in passages])
    if args.limit and args.limit < len(queries):
        queries, positives = queries[: args.limit], positives[: args.limit]
    return queries, corpus, positives


def ours(args: argparse.Namespace, task: dict):
    """(mine, texts): `texts(mine())` are the negatives of each query."""
    import numpy as np

    import nvret_jax.api as nv

    encoder = nv.Encoder.from_pretrained(
        task["folder"], max_length=args.max_length, dtype=args.dtype
    )
    queries, corpus, positives = task["queries"], task["corpus"], task["positives"]

    def mine():
        found = nv.mine(
            queries,
            corpus,
            positives,
            teacher=encoder,
            rule="perc_pos",
            percent=PERCENT,
            num_negatives=NEGATIVES,
            depth=args.depth,
            backend=args.backend,
            progress=False,
        )
        return found.negative_rows

    def texts(negative_rows) -> list[list[str]]:
        lists = np.split(negative_rows.values, negative_rows.offsets[1:-1])
        return [[corpus[row] for row in rows] for rows in lists]

    return mine, texts


def theirs(args: argparse.Namespace, task: dict):
    """(mine, texts): `texts(mine())` are the negatives of each query."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    kwargs = {} if args.dtype == "float32" else {"dtype": getattr(torch, args.dtype)}
    model = SentenceTransformer(
        task["folder"], device="cpu", local_files_only=True, model_kwargs=kwargs
    )
    model.max_seq_length = args.max_length
    corpus = task["corpus"]
    pairs = [
        {"anchor": query, "positive": corpus[row]}
        for query, rows in zip(task["queries"], task["positives"], strict=True)
        for row in rows
    ]
    whole = Dataset.from_list(pairs)

    def mine(dataset=whole, corpus=corpus):
        return mine_hard_negatives(
            dataset,
            model,
            corpus=corpus,
            relative_margin=round(1 - PERCENT, 6),
            num_negatives=NEGATIVES,
            output_format="n-tuple",
            batch_size=args.batch_size,
            use_faiss=args.faiss,
            verbose=False,
        )

    def texts(mined) -> list[list[str]]:
        names = [f"negative_{i}" for i in range(1, NEGATIVES + 1)]
        rows = zip(mined["anchor"], *(mined[name] for name in names), strict=True)
        by_query = {query: list(negatives) for query, *negatives in rows}
        return [by_query.get(query, []) for query in task["queries"]]

    mine(Dataset.from_list(pairs[:256]), corpus[:1024])
    return mine, texts


def work(args: argparse.Namespace) -> None:
    """One side: loads its model, then mines once for every line read from stdin."""
    # Answers go to the real stdout; whatever a library prints there goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    task = json.loads(pathlib.Path(args.task).read_text())
    mine, texts = (ours if args.side.startswith(OURS) else theirs)(args, task)
    answers.write(json.dumps({"loaded_mib": peak_mib()}) + "\n")
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        mined = mine()
        seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = peak_mib()  # before texts are made of it and written
        pathlib.Path(args.out).write_text(json.dumps(texts(mined)))
        answers.write(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mib": peak}) + "\n")


class Worker:
    """A side's process; `ask()` makes it mine once and returns what it measured."""

    def __init__(self, side: str, args: argparse.Namespace, place: pathlib.Path):
        self.side, self.out = side, place / f"{side}.json"
        command = [sys.executable, __file__, "--side", side, "--task", str(place / "task.json")]
        command += ["--out", str(self.out)]
        command += ["--dtype", "bfloat16" if side.endswith("_bf16") else "float32"]
        for name in ("max_length", "batch_size", "depth", "backend"):
            command += [f"--{name}", str(getattr(args, name))]
        command += ["--faiss"] if args.faiss else []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=args.log,
            text=True,
            env=ENVIRONMENT | os.environ,
        )
        self.start = self._answer()
        self.rounds: list[dict] = []

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.side}: the process ended; run it with --verbose to see why")
        return json.loads(line)

    def ask(self) -> dict:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def negatives(self) -> list[list[str]]:
        return json.loads(self.out.read_text())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def overlap(one: list[list[str]], other: list[list[str]]) -> float:
    """Share of the negatives of `other` that `one` has for the same query."""
    both = sum(len(set(a) & set(b)) for a, b in zip(one, other, strict=True))
    return both / max(1, sum(len(set(b)) for b in other))


def compare(args: argparse.Namespace) -> dict:
    """Runs the sides and returns the JSON object that is printed."""
    from nvret_jax.models.pretrained.resolve import resolve

    queries, corpus, positives = read_texts(args)
    folder = os.fspath(resolve(args.model, download=args.download))
    task = {"folder": folder, "queries": queries, "corpus": corpus, "positives": positives}
    sides = [OURS, THEIRS] + ([f"{OURS}_bf16", f"{THEIRS}_bf16"] if args.bfloat16 else [])
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        (place / "task.json").write_text(json.dumps(task))
        args.log = None if args.verbose else subprocess.DEVNULL
        workers = {side: Worker(side, args, place) for side in sides}
        first = {side: workers[side].ask()["seconds"] for side in sides if side.startswith(OURS)}
        loads = []
        for number in range(args.rounds):
            loads.append(round(os.getloadavg()[0], 2))
            for side in sides if number % 2 == 0 else sides[::-1]:
                workers[side].rounds.append(workers[side].ask())
            done = "  ".join(f"{s} {workers[s].rounds[-1]['seconds']:.1f} s" for s in sides)
            print(f"round {number + 1}/{args.rounds}: {done}", flush=True)
        negatives = {side: workers[side].negatives() for side in sides}
        for worker in workers.values():
            worker.close()

    def ratio(side: str, other: str, field: str = "seconds") -> float:
        pairs = zip(workers[side].rounds, workers[other].rounds, strict=True)
        return round(statistics.median(a[field] / b[field] for a, b in pairs), 3)

    def filled(side: str) -> float:
        return sum(len(found) == NEGATIVES for found in negatives[side]) / len(queries)

    peak = {side: workers[side].rounds[-1]["peak_mib"] for side in sides}
    result = {
        "benchmark": "mine",
        "time_ratio": ratio(OURS, THEIRS),
        "memory_ratio": round(peak[OURS] / peak[THEIRS], 3),
        "filled": filled(OURS),
        "cpu_time_ratio": ratio(OURS, THEIRS, "cpu"),
        "first_call_ratio": round(
            first[OURS] / statistics.median(r["seconds"] for r in workers[THEIRS].rounds), 3
        ),
    }
    if args.bfloat16:
        narrow, their_narrow = f"{OURS}_bf16", f"{THEIRS}_bf16"
        result |= {
            "time_ratio_bf16": ratio(narrow, their_narrow),
            "time_ratio_bf16_vs_f32": ratio(narrow, THEIRS),
            "memory_ratio_bf16": round(peak[narrow] / peak[their_narrow], 3),
            "filled_bf16": filled(narrow),
        }
    return result | {
        "seconds": {s: [round(r["seconds"], 2) for r in workers[s].rounds] for s in sides},
        "cpu_seconds": {s: [round(r["cpu"], 2) for r in workers[s].rounds] for s in sides},
        "first_call_s": {side: round(seconds, 2) for side, seconds in first.items()},
        "load_average": loads,
        "environment": {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()},
        "peak_mib": {s: round(peak[s], 1) for s in sides},
        "loaded_mib": {s: round(workers[s].start["loaded_mib"], 1) for s in sides},
        "filled_all": {s: round(filled(s), 5) for s in sides},
        "same_negatives_as_theirs": {
            s: round(overlap(negatives[s], negatives[THEIRS]), 4) for s in sides if s != THEIRS
        },
        "data": args.data,
        "queries": len(queries),
        "passages": len(corpus),
        "max_length": args.max_length,
        "rule": f"perc_pos {PERCENT}",
        "negatives": NEGATIVES,
        "depth": args.depth,
        "backend": args.backend,
        "their_batch_size": args.batch_size,
        "their_faiss": args.faiss,
        "model": args.model,
        "rounds": args.rounds,
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in ("nvret_jax", "sentence-transformers")},
            **{n: importlib.metadata.version(n) for n in PACKAGES},
        },
    }


def processor() -> str:
    """The processor's name, where the system reports it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data = os.environ.get("NVRET_DATA", "")
    parser.add_argument("--data", default=f"beir:{data}/squad", help="default: $NVRET_DATA/squad")
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--max_length", type=int, default=256, help="tokens a text is cut to")
    parser.add_argument("--limit", type=int, default=0, help="number of queries; 0 for all")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each side")
    parser.add_argument("--depth", type=int, default=50, help="ours: candidates a query")
    parser.add_argument("--backend", default="auto", help="ours: 'auto', 'device' or 'faiss'")
    parser.add_argument("--batch_size", type=int, default=32, help="theirs; 32 is their default")
    parser.add_argument("--faiss", action="store_true", help="theirs: use_faiss=True")
    parser.add_argument("--bfloat16", action="store_true", help="both sides in bfloat16, too")
    parser.add_argument("--download", action="store_true", help="the hub may be asked")
    parser.add_argument("--verbose", action="store_true", help="what the sides print")
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    for name in ("--side", "--task", "--out"):  # between parent and worker
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        work(args)
    else:
        print(json.dumps(compare(args)))


if __name__ == "__main__":
    main()
