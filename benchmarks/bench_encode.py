"""Texts per second and peak memory of `Encoder.encode`, against sentence-transformers.

    python benchmarks/bench_encode.py --data beir:DIR --max_length 256 --limit 512 --rounds 5

Same weights, same texts, same length limit, default thread counts on both sides. Each side runs
in a separate process, so that its peak memory (`ru_maxrss`) can be measured; the parent drives them
in turn, one idle while the other works, and the order changes every round. A ratio is taken within
a round and the median over rounds is reported: what else runs on the machine then weighs on both.

The first call of each side is not timed as speed (ours compiles in it) but is reported as
`first_call_s`. The last line printed is one JSON object.

Needs the extra 'parity' (torch, sentence-transformers).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SIDES = ("nvret_jax", "sentence_transformers")
VERSIONS = {
    "nvret_jax": ("nvret_jax", "jax", "flax", "tokenizers"),
    "sentence_transformers": ("sentence-transformers", "transformers", "torch"),
}


def peak_mib() -> float:
    """This process's peak resident memory, MiB (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def work(args: argparse.Namespace) -> None:
    """One side: loads its model, then encodes all texts once for every line read from stdin."""
    # Answers go to the real stdout; whatever a library prints there goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    texts = json.loads(pathlib.Path(args.texts).read_text())
    if args.side == "nvret_jax":
        import jax

        from nvret_jax.models.encoder import Encoder

        # float32 is the default of both sides.
        encoder = Encoder.from_pretrained(args.folder, max_length=args.max_length, dtype=args.dtype)
        device = str(jax.devices()[0].device_kind)

        def encode():
            return encoder.encode(texts, token_budget=args.token_budget)
    else:
        import torch
        from sentence_transformers import SentenceTransformer

        kwargs = {} if args.dtype == "float32" else {"dtype": getattr(torch, args.dtype)}
        model = SentenceTransformer(args.folder, local_files_only=True, model_kwargs=kwargs)
        model.max_seq_length = args.max_length
        device = str(model.device)

        def encode():
            return model.encode(texts, batch_size=args.batch_size, show_progress_bar=False)

    import numpy as np

    loaded = peak_mib()
    answers.write(json.dumps({"device": device, "loaded_mib": loaded}) + "\n")
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        emb_nd = encode()
        seconds = time.perf_counter() - wall
        cpu = time.process_time() - cpu
        peak = peak_mib()  # before the file below is written
        np.save(args.out, np.asarray(emb_nd, np.float32))
        answers.write(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mib": peak}) + "\n")


class Worker:
    """A side's process; `ask()` makes it encode once and returns what it measured."""

    def __init__(self, side: str, args: argparse.Namespace, folder: str, place: pathlib.Path):
        self.out = place / f"{side}.npy"
        command = [sys.executable, __file__, "--side", side, "--folder", folder]
        command += ["--texts", str(place / "texts.json"), "--out", str(self.out)]
        for name in ("max_length", "batch_size", "dtype"):
            command += [f"--{name}", str(getattr(args, name))]
        if args.token_budget:
            command += ["--token_budget", str(args.token_budget)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.side = side
        self.start = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.side}: the process ended; its message is above")
        return json.loads(line)

    def ask(self) -> dict:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(args: argparse.Namespace) -> dict:
    """Runs both sides and returns the JSON object that is printed."""
    import numpy as np

    from nvret_jax.data.load import load_dataset
    from nvret_jax.models.pretrained.resolve import resolve

    corpus = load_dataset(args.data, splits=()).corpus
    # Spread over the corpus, which may be sorted by something.
    step = max(1, len(corpus) // args.limit) if args.limit else 1
    texts = [corpus.texts[row] for row in range(0, len(corpus), step)][: args.limit or None]
    folder = os.fspath(resolve(args.model, download=args.download))
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        (place / "texts.json").write_text(json.dumps(texts))
        workers = {side: Worker(side, args, folder, place) for side in SIDES}
        first = {side: worker.ask()["seconds"] for side, worker in workers.items()}
        emb = [np.load(workers[side].out) for side in SIDES]
        difference = float(np.abs(emb[0] - emb[1]).max())
        rounds = {side: [] for side in SIDES}
        for number in range(args.rounds):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                rounds[side].append(workers[side].ask())
            rates = "  ".join(f"{s} {len(texts) / rounds[s][-1]['seconds']:.1f}/s" for s in SIDES)
            print(f"round {number + 1}/{args.rounds}: {rates}", flush=True)
        for worker in workers.values():
            worker.close()
    ours, theirs = (rounds[side] for side in SIDES)

    def paired(field: str) -> float:
        return statistics.median(t[field] / o[field] for o, t in zip(ours, theirs, strict=True))

    peak = {side: max(r["peak_mib"] for r in rounds[side]) for side in SIDES}
    return {
        "benchmark": "encode",
        "ratio_vs_sentence_transformers": round(paired("seconds"), 3),
        "cpu_time_ratio": round(paired("cpu"), 3),
        "memory_ratio": round(peak[SIDES[0]] / peak[SIDES[1]], 3),
        "texts_per_s": {
            side: round(len(texts) / statistics.median(r["seconds"] for r in rounds[side]), 2)
            for side in SIDES
        },
        "peak_mib": {side: round(peak[side], 1) for side in SIDES},
        "loaded_mib": {s: round(workers[s].start["loaded_mib"], 1) for s in SIDES},
        "first_call_s": {side: round(first[side], 2) for side in SIDES},
        "max_abs_difference": difference,
        "data": args.data,
        "texts": len(texts),
        "max_length": args.max_length,
        "dtype": args.dtype,
        "model": args.model,
        "rounds": args.rounds,
        "device": {side: workers[side].start["device"] for side in SIDES},
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for side in SIDES for n in VERSIONS[side]},
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
    parser.add_argument("--data", default="pydocs", help="dataset whose corpus is encoded")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--max_length", type=int, default=256, help="tokens a text is cut to")
    parser.add_argument("--limit", type=int, default=512, help="number of texts; 0 for all")
    parser.add_argument("--rounds", type=int, default=5, help="timed encodes of each side")
    parser.add_argument("--dtype", default="float32", help="compute dtype of both sides")
    parser.add_argument("--token_budget", type=int, help="ours: tokens a step, per device")
    parser.add_argument("--batch_size", type=int, default=32, help="theirs; 32 is their default")
    parser.add_argument("--download", action="store_true", help="the hub may be asked")
    for name in ("--side", "--texts", "--folder", "--out"):  # between parent and worker
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        work(args)
    else:
        print(json.dumps(compare(args)))


if __name__ == "__main__":
    main()
