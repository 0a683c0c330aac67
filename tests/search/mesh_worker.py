"""Run by test_search_mesh.py in processes of their own: the same searches on one mesh or another.

    python mesh_worker.py OUT DEVICES[,DEVICES...] [PORT PROCESS PROCESSES]

writes OUT, an npz with the answers to every case on each mesh, by the index that holds the passages
and by the one that streams them.

    python mesh_worker.py OUT resume=FOLDER,SECONDS [PORT PROCESS PROCESSES]

makes one search that is saved in FOLDER, SECONDS a read, and writes its answer.
"""

import sys
import time

import jax
import numpy as np
from search_reference import exclusions, integers

from nvret_jax.mesh import make_mesh
from nvret_jax.search.index import exact
from nvret_jax.search.index.stream import StreamIndex


def cases():
    """(name, queries, passages, arguments): ties across tile and shard borders, padding, masks."""
    rng = np.random.default_rng(7)
    queries_qd = integers(rng, 21)
    for n, k, tile, masked in (
        (1003, 40, None, False),
        (1003, 40, 32, True),
        (4500, 20, 256, True),
        (5, 3, None, False),
    ):
        arguments = {"k": k, "tile": tile}
        if masked:
            arguments["ceiling_q"] = rng.integers(-3, 8, 21).astype(np.float64)
            arguments["exclude"] = exclusions(rng, 21, n)
        yield f"{n}-{tile}", queries_qd, integers(rng, n), arguments
    distinct = rng.standard_normal((60, 48)).astype(np.float32)
    copies = distinct[rng.integers(0, 60, 2000)]  # real values: equal vectors on several shards
    yield "copies", rng.standard_normal((16, 48)).astype(np.float32), copies, {"k": 50, "tile": 64}


class Watched:
    """Remembers which rows this process read."""

    def __init__(self, array, seconds=0.0):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0
        self.first, self.seconds = len(array), seconds

    def __getitem__(self, rows):
        time.sleep(self.seconds)
        block = self.array[rows]
        self.read += len(block)
        self.first = min(self.first, rows.start)
        return block


def resumable():
    """(queries, passages, arguments) of the search that is killed."""
    rng = np.random.default_rng(11)
    queries_qd, passages_nd = integers(rng, 40), integers(rng, 6000)
    ceiling_q = rng.integers(-3, 8, 40).astype(np.float64)
    return (
        queries_qd,
        passages_nd,
        {"k": 25, "ceiling_q": ceiling_q, "exclude": exclusions(rng, 40, 6000)},
    )


def resume(out, folder, seconds):
    """One slow search."""
    queries_qd, passages_nd, arguments = resumable()
    watched = Watched(passages_nd, float(seconds))
    index = StreamIndex(watched, tile=64, memory_bytes=1 << 27)
    scores, rows = index.search(queries_qd, resume=folder, **arguments)
    np.savez(out, scores=scores, rows=rows, read=watched.read, first=watched.first)


def main(out, devices, port=None, process=0, processes=1):
    if port:
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    if devices.startswith("resume="):
        return resume(out, *devices.removeprefix("resume=").split(","))
    answers = {}
    for count in map(int, devices.split(",")):
        # A three-axis mesh, so that rows really are split over all of its axes.
        tensor = 2 if count >= 4 else 1
        mesh = make_mesh(-1, tensor, tensor if count >= 8 else 1, devices=jax.devices()[:count])
        for name, queries_qd, passages_nd, arguments in cases():
            watched = Watched(passages_nd)
            scores, rows = exact.search(queries_qd, watched, mesh=mesh, **arguments)
            answers[f"{count}/{name}/scores"] = scores
            answers[f"{count}/{name}/rows"] = rows
            answers[f"{count}/{name}/read"] = watched.read
            watched, asked = Watched(passages_nd), dict(arguments)
            index = StreamIndex(watched, mesh=mesh, tile=asked.pop("tile"), memory_bytes=200_000)
            scores, rows = index.search(queries_qd, **asked)
            answers[f"{count}/stream/{name}/scores"] = scores
            answers[f"{count}/stream/{name}/rows"] = rows
            answers[f"{count}/stream/{name}/read"] = watched.read
    np.savez(out, **answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
