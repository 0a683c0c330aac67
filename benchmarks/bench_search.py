"""Search speed: our device path, FAISS and torch, with the bare matmul as the ceiling.

    python benchmarks/bench_search.py --passages 131072 --width 384 --queries 512 --k 100 --rounds 7

All sides hold the passages already, on the device they compute on, and answer the same queries;
they take turns within each round, so that a busy machine hurts all of them alike, and ratios are
medians over the rounds. Every side's answer is checked against ours first. The bare matmul keeps
its [Q, N] scores on the device and selects nothing. On a GPU, torch runs there too (FAISS stays on
the CPU, which is what `faiss-cpu` does), and `--dtype bfloat16` halves what the matmul reads.

The last line is one JSON object: ratio_vs_matmul, ratio_vs_faiss, ratio_vs_torch (the other
side's time over ours; above 1 we are faster; null where the side is not installed), medians in
seconds, versions, machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from nvret_jax import mesh as mesh_lib
from nvret_jax.search.index.exact import ExactIndex


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=131_072)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tile", type=int, default=None, help="rows per device and step")
    parser.add_argument("--skip", nargs="*", choices=["faiss", "torch"], default=[])
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    passages_nd = _unit_vectors(rng, arguments.passages, arguments.width)
    queries_qd = _unit_vectors(rng, arguments.queries, arguments.width)
    if arguments.dtype == "bfloat16":  # rounded for every side, so that answers can be compared
        passages_nd = passages_nd.astype(jnp.bfloat16)
        queries_qd = queries_qd.astype(jnp.bfloat16)

    sides = {
        "ours": _ours(passages_nd, queries_qd, arguments),
        "matmul": _matmul(passages_nd, queries_qd),
        "faiss": None if "faiss" in arguments.skip else _faiss(passages_nd, queries_qd, arguments),
        "torch": None if "torch" in arguments.skip else _torch(passages_nd, queries_qd, arguments),
    }
    sides = {name: side for name, side in sides.items() if side is not None}
    answers = {name: side() for name, side in sides.items()}  # compiles and warms up, too
    for name in ("faiss", "torch"):
        if name in answers:
            _check_same(answers["ours"], answers[name], name, arguments.dtype)
    answers.clear()
    seconds = {name: [] for name in sides}
    for number in range(arguments.rounds):
        # The order turns, so that no side always follows the same other.
        names = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
        for name in names:
            start = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - start)
        line = "  ".join(f"{name} {seconds[name][-1]:.4f}" for name in sides)
        print(f"round {number + 1}: {line} s", flush=True)

    def ratio(name: str) -> float | None:
        if name not in seconds:
            return None
        pairs = zip(seconds[name], seconds["ours"], strict=True)
        return round(statistics.median(theirs / ours for theirs, ours in pairs), 4)

    result = {
        "benchmark": "search",
        "ratio_vs_matmul": ratio("matmul"),
        "ratio_vs_faiss": ratio("faiss"),
        "ratio_vs_torch": ratio("torch"),
        "median_seconds": {name: round(statistics.median(s), 5) for name, s in seconds.items()},
        "min_seconds": {name: round(min(s), 5) for name, s in seconds.items()},
        **{name: getattr(arguments, name) for name in ("passages", "width", "queries", "k")},
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
        "versions": {name: _version(name) for name in ("jax", "jaxlib", "faiss-cpu", "torch")},
        "machine": {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "cpus": os.cpu_count(),
            "cpu": _cpu(),
            "python": sys.version.split()[0],
        },
    }
    print(json.dumps(result))


def _unit_vectors(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _ours(passages_nd, queries_qd, arguments):
    index = ExactIndex(passages_nd, mesh=mesh_lib.make_mesh(), tile=arguments.tile)
    queries_qd = jax.device_put(queries_qd, mesh_lib.sharding(index.mesh))
    return lambda: jax.block_until_ready(index.search_on_device(queries_qd, arguments.k))


def _matmul(passages_nd, queries_qd):
    """The jitted product at the precision we use: 'highest' for float32 (TF32 is not float32)."""
    passages_nd, queries_qd = jnp.asarray(passages_nd), jnp.asarray(queries_qd)

    @jax.jit
    def product(queries_qd, passages_nd):
        return jnp.matmul(
            queries_qd, passages_nd.T, precision="highest", preferred_element_type=jnp.float32
        )

    return lambda: jax.block_until_ready(product(queries_qd, passages_nd))


def _faiss(passages_nd, queries_qd, arguments):
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(arguments.width)
    index.add(np.asarray(passages_nd, np.float32))
    queries_qd = np.asarray(queries_qd, np.float32)
    return lambda: index.search(queries_qd, arguments.k)


def _torch(passages_nd, queries_qd, arguments):
    try:
        import torch
    except ImportError:
        return None
    cuda = torch.cuda.is_available() and jax.default_backend() == "gpu"
    dtype = getattr(torch, arguments.dtype)
    passages, queries = (
        torch.from_numpy(np.asarray(x, np.float32)).to("cuda" if cuda else "cpu", dtype)
        for x in (passages_nd, queries_qd)
    )

    @torch.inference_mode()
    def search():
        scores, rows = torch.topk(queries @ passages.T, arguments.k, dim=1)
        if cuda:
            torch.cuda.synchronize()
        return scores, rows

    return search


def _check_same(ours, theirs, name: str, dtype: str) -> None:
    """Scores agree to rounding; nearly all rows agree (equal scores may stand in another order)."""
    within = 1e-5 if dtype == "float32" else 1e-2
    scores, rows = (np.asarray(part) for part in ours)
    their_scores, their_rows = (
        part.float().cpu().numpy() if hasattr(part, "cpu") else np.asarray(part) for part in theirs
    )
    off = np.abs(scores - their_scores).max()
    shared = np.mean(
        [len(np.intersect1d(a, b)) / len(a) for a, b in zip(rows, their_rows, strict=True)]
    )
    print(f"{name}: largest score difference {off:.1e}, rows in common {shared:.4%}")
    if off > within or (dtype == "float32" and shared < 0.999):
        sys.exit(f"bench_search: {name} and we disagree; there is nothing to compare")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()


if __name__ == "__main__":
    main()
