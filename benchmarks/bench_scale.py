"""A corpus larger than memory should be: mining search over 5 M vectors on two cores in 4 GiB.

    python benchmarks/bench_scale.py                               # several minutes, 2.6 GB of disk
    python benchmarks/bench_scale.py --passages 200000 --dir /tmp/scale      # a quick look

Makes a store of unit vectors in bfloat16 (seeded, chunk by chunk; kept in --dir if that is given)
and queries with one planted positive each, whose score is around 0.7. Then one ceilinged search
finds negatives by PercPos: the k best below `percent` of the positive's score, the positive
excluded. Four things are measured, each in separate processes:

    speed     chunks are read once; the search folds each into its lists and the bare matmul scores
              the same tiles for the same blocks, in turns: which goes first changes with each
              chunk. The matmul writes its scores into memory it has already, as the search does
    memory    peak resident memory (VmHWM) of the process that searches, and of no other
    resume    a search is killed (SIGKILL) in the middle and goes on: the same rows and scores
    processes two processes of one device each, by jax.distributed: the same rows and scores

On a machine with accelerators the same command runs on them (JAX takes what it finds; the two
processes then stay on CPUs, `--skip processes` leaves them out); for a corpus that fits,
`bench_search.py --passages 1000000 --width 1024 --queries 8192 --dtype bfloat16` compares with the
bare matmul on one device.

The last line is one JSON object: speed_vs_matmul (matmul's time over ours), peak_rss_gib,
resumed_equal, two_processes_equal, seconds, versions, machine.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WRITE_ROWS = 65_536  # rows of a chunk of the store
SEED = 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=5_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--percent", type=float, default=0.95)
    parser.add_argument("--memory_gib", type=float, default=1.5, help="the search's budget")
    parser.add_argument("--dir", default=None, help="keep the vectors here and use them again")
    parser.add_argument("--skip", nargs="*", choices=["speed", "resume", "processes"], default=[])
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return CHILDREN[arguments.child.split(":")[0]](arguments)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as work:
        arguments.dir = arguments.dir or work
        _run(arguments, Path(work))


def _run(arguments, work: Path) -> None:
    folder = Path(arguments.dir)
    start = time.perf_counter()
    _finish(_child(arguments, "make"))
    print(f"vectors at {folder}: {time.perf_counter() - start:.0f} s", flush=True)

    result = {"benchmark": "scale", "speed_vs_matmul": None, "resumed_equal": None}
    result["two_processes_equal"] = None
    searched = _finish(_child(arguments, f"search:{work / 'whole.npz'}"))
    result.update(searched)
    print(json.dumps(searched), flush=True)
    whole = np.load(work / "whole.npz")
    if "resume" not in arguments.skip:
        again, at = _killed_and_resumed(arguments, work, searched["search_seconds"])
        result["resumed_equal"], result["killed_at_row"] = _same(whole, again), at
        print(f"killed after row {at:,} and resumed: equal {result['resumed_equal']}", flush=True)
    if "processes" not in arguments.skip:
        port = _free_port()
        pair = [
            _child(arguments, f"search:{work / f'pair{i}.npz'}:{port}:{i}", cpus=1) for i in (0, 1)
        ]
        peaks = [_finish(process)["peak_rss_gib"] for process in pair]
        both = [np.load(work / f"pair{i}.npz") for i in (0, 1)]
        result["two_processes_equal"] = all(_same(whole, one) for one in both)
        result["two_processes_peak_rss_gib"] = peaks
        print(f"two processes: equal {result['two_processes_equal']}, {peaks} GiB", flush=True)
    if "speed" not in arguments.skip:
        speed = _finish(_child(arguments, "speed"))
        result.update(speed)
    for name in ("passages", "width", "queries", "k", "percent", "memory_gib"):
        result[name] = getattr(arguments, name)
    result["versions"] = {
        name: importlib.metadata.version(name)
        for name in ("jax", "jaxlib", "numpy", "ml_dtypes", "tensorstore")
    }
    print(json.dumps(result))


def _killed_and_resumed(arguments, work: Path, seconds: float):
    """The answer of a search that was killed in the middle, and the row it went on from."""
    saved = work / "saved"
    child = _child(arguments, f"search:{work / 'killed.npz'}:{saved}")
    until = time.monotonic() + 20 * seconds + 600
    at = 0
    while at < arguments.passages * 0.4 and child.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
        for file in saved.glob("search-*-*-*.npz"):
            at = int(np.load(file)["rows"])
    child.send_signal(signal.SIGKILL)
    child.communicate()
    if child.returncode != -signal.SIGKILL or (work / "killed.npz").exists():
        sys.exit("bench_scale: the search was not killed in the middle; try more passages")
    _finish(_child(arguments, f"search:{work / 'resumed.npz'}:{saved}"))
    return np.load(work / "resumed.npz"), at


def _same(one, other) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in ("scores_qk", "rows_qk"))


# --- children: each in a separate process, its last line a JSON object ---------------------------


def _child(arguments, what: str, cpus: int = 0) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", what, "--dir", str(arguments.dir)]
    for name in ("passages", "width", "queries", "k", "percent", "memory_gib"):
        command += [f"--{name}", str(getattr(arguments, name))]
    more = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(cpus)} if cpus else {}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=dict(os.environ, **more)
    )


def _finish(child: subprocess.Popen) -> dict:
    output, _ = child.communicate()
    if child.returncode:
        sys.exit(f"bench_scale: a child ended with status {child.returncode}\n{output}")
    return json.loads(output.splitlines()[-1])


def _make(arguments) -> None:
    """The vectors: unit length, and one positive for each query at an even spread of rows."""
    import ml_dtypes

    from nvret_jax.search.store import EmbeddingStore

    folder = Path(arguments.dir)
    n, width = arguments.passages, arguments.width
    queries_qd, rows_q = _queries(arguments)
    store = EmbeddingStore.create(folder / f"{n}x{width}", (n, width), WRITE_ROWS, "bfloat16")
    there = set(store.finished_chunks())
    for i in range(store.chunks):
        if i in there:
            continue
        rng = np.random.default_rng([SEED, i])
        first = i * store.chunk_rows
        count = min(store.chunk_rows, n - first)
        vectors_nd = _unit(rng.standard_normal((count, width), dtype=np.float32))
        for query in np.flatnonzero((rows_q >= first) & (rows_q < first + count)):
            mixed = queries_qd[query] + vectors_nd[rows_q[query] - first]  # cosine about 0.7
            vectors_nd[rows_q[query] - first] = mixed / np.linalg.norm(mixed)
        store.write_chunk(i, vectors_nd.astype(ml_dtypes.bfloat16))
    print(json.dumps({"made": store.chunks - len(there)}))


def _queries(arguments) -> tuple[np.ndarray, np.ndarray]:
    """Queries as bfloat16 numbers in float32 [Q, D], and the row of each one's positive."""
    import ml_dtypes

    rng = np.random.default_rng([SEED, 1 << 30])
    queries_qd = _unit(rng.standard_normal((arguments.queries, arguments.width), dtype=np.float32))
    rows_q = rng.permutation(arguments.passages)[: arguments.queries]
    return queries_qd.astype(ml_dtypes.bfloat16).astype(np.float32), rows_q


def _unit(vectors_nd: np.ndarray) -> np.ndarray:
    return vectors_nd / np.linalg.norm(vectors_nd, axis=1, keepdims=True)


def _question(arguments):
    """(store, queries, ceilings, exclusions): PercPos over what `_make` made."""
    from nvret_jax.data.ragged import Ragged
    from nvret_jax.search.rankers.ranker import score_pairs
    from nvret_jax.search.store import EmbeddingStore

    store = EmbeddingStore.open(Path(arguments.dir) / f"{arguments.passages}x{arguments.width}")
    queries_qd, rows_q = _queries(arguments)
    positives = Ragged.from_rows(rows_q[:, None], np.int32)
    anchors_q = score_pairs(queries_qd, store, positives)
    ceiling_q = anchors_q - np.abs(anchors_q) * (1 - arguments.percent)
    return store, queries_qd, ceiling_q.astype(np.float64), [[row] for row in rows_q]


def _index(arguments, store):
    from nvret_jax.search.index.stream import StreamIndex

    return StreamIndex(store, memory_bytes=int(arguments.memory_gib * 2**30))


def _search(arguments) -> None:
    """One search, whole or from a folder, alone or as one of two processes."""
    import jax

    _, out, *more = arguments.child.split(":")
    resume = None
    if len(more) == 2:
        jax.distributed.initialize(f"localhost:{more[0]}", 2, int(more[1]))
    elif more:
        resume = more[0]
    store, queries_qd, ceiling_q, exclude = _question(arguments)
    index = _index(arguments, store)
    start = time.perf_counter()
    scores_qk, rows_qk = index.search(
        queries_qd, arguments.k, ceiling_q=ceiling_q, exclude=exclude, resume=resume
    )
    seconds = time.perf_counter() - start
    assert (rows_qk >= 0).all()
    assert (scores_qk < ceiling_q[:, None]).all()
    np.savez(out, scores_qk=scores_qk, rows_qk=rows_qk)
    found = {
        "search_seconds": round(seconds, 2),
        "peak_rss_gib": _peak_rss_gib(),
        "planned_gib": round(index.plan.total / 2**30, 3),
        "device": jax.devices()[0].device_kind,
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "dtype": str(index._dtype),
    }
    print(json.dumps(found))


def _speed(arguments) -> None:
    """Search and bare matmul over the same tiles, each read once; ratios per chunk.

    Both sides get the tile from the device and the seconds that reading it took. Reading ahead is
    left out for both, so that neither computes while the other's tile is read.
    """
    import jax
    import jax.numpy as jnp

    from nvret_jax import mesh as mesh_lib
    from nvret_jax.search.index import checks, steps, stream

    store, queries_qd, ceiling_q, exclude = _question(arguments)
    index = _index(arguments, store)
    count, k = len(queries_qd), arguments.k
    multiply = steps.query_dtype(index._dtype, index._platform, queries_qd)
    index.plan = index._choose(count, k, multiply, None)
    print(index.plan.describe(), file=sys.stderr, flush=True)
    pairs_2m = checks.check_exclude(exclude, count, len(store))
    ours = stream._Pass(
        index, k, queries_qd.astype(multiply), checks.check_ceiling(ceiling_q, count), pairs_2m,
        0, None,
    )  # fmt: skip
    high = jax.lax.Precision.HIGHEST if multiply == np.float32 else None

    @functools.partial(jax.jit, donate_argnums=(0,), keep_unused=True)
    def product(scores, queries_qd, tile_nd):
        """Into memory that is there already: fresh pages would cost as much as the product."""

        def local(queries_qd, tile_nd):
            return jax.lax.dot_general(  # a transposed operand would be copied first
                queries_qd, tile_nd.astype(queries_qd.dtype), (((1,), (1,)), ((), ())),
                precision=high, preferred_element_type=jnp.float32,
            )  # fmt: skip

        spec = jax.P(steps.ROWS, None)
        return jax.shard_map(
            local, mesh=index.mesh, in_specs=(jax.P(), spec), out_specs=jax.P(None, steps.ROWS)
        )(queries_qd, tile_nd)

    def matmul(tile_nd) -> None:
        for block_qd in ours.blocks:
            held[0] = product(held[0], block_qd, tile_nd)
        jax.block_until_ready(held[0])

    shape = (index.plan.query_block, index.plan.tile * index._shards)
    held = [
        jax.device_put(
            np.zeros(shape, np.float32), jax.NamedSharding(index.mesh, jax.P(None, steps.ROWS))
        )
    ]
    best = ours._begin(None)
    chunk = index.plan.tile * mesh_lib.shards(index.mesh, "rows")
    seconds = {"matmul": [], "ours": [], "reading": []}
    cpu_seconds = {"matmul": 0.0, "ours": 0.0}
    with jax.set_mesh(index.mesh):
        for number, first in enumerate(range(0, len(store), chunk)):
            start = time.perf_counter()
            tile_nd = ours._read(first)
            reading = time.perf_counter() - start
            sides = {
                "matmul": lambda: matmul(tile_nd),  # noqa: B023
                "ours": lambda: ours._fold(best, tile_nd, first),  # noqa: B023
            }
            if first == 0 or first + chunk > len(store):  # the first of each shape compiles
                for side in sides.values():
                    side()
                best = ours._begin(None) if first == 0 else best
            for name in sorted(sides, reverse=number % 2 == 1):
                start, cpu = time.perf_counter(), time.process_time()
                sides[name]()
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name] += time.process_time() - cpu
            seconds["reading"].append(reading)
    read = np.array(seconds["reading"])
    theirs, mine = (np.array(seconds[name]) + read for name in ("matmul", "ours"))
    bare = np.array(seconds["matmul"]) / np.array(seconds["ours"])
    result = {
        "speed_vs_matmul": round(float(theirs.sum() / mine.sum()), 4),
        "speed_vs_matmul_median": round(statistics.median(theirs / mine), 4),
        "speed_without_reading": round(statistics.median(bare), 4),
        "seconds": {name: round(sum(values), 2) for name, values in seconds.items()},
        "cpu_seconds": {name: round(value, 2) for name, value in cpu_seconds.items()},
    }
    print(json.dumps(result))


def _peak_rss_gib() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(found[1]) / 2**20, 3)


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else ""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


CHILDREN = {"make": _make, "search": _search, "speed": _speed}

if __name__ == "__main__":
    main()
