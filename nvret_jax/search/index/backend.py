"""Which search runs where: the device path on accelerators, FAISS on a host with only a CPU.

All give the same results, so the choice depends on speed, memory and what is installed:

* Passages that fit the devices' budget stay there (`exact`), others stream from disk (`stream`).
* FAISS holds the whole corpus as float32 in host memory, in every process. It is chosen
  automatically only for one process on a CPU, and only if the corpus fits the budget in float32.
* Several processes on CPUs take the device path, where each holds only its share.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax import options, platforms
from nvret_jax.data import arguments
from nvret_jax.errors import InputError
from nvret_jax.mesh import say
from nvret_jax.options import calls, mistake
from nvret_jax.search.index import checks, exact, memory, steps, stream
from nvret_jax.search.options import Search

BACKEND = options.takes_of(Search)["backend"]
_TAKES = {"backend": BACKEND, "progress": options.flag()}


_OTHERS = {
    "top_k": "give k=",
    "corpus_embeddings": "give the passages' vectors second",
    "query_embeddings": "give the queries' vectors first",
    "score_function": "scores are inner products; vectors of unit length give cosines",
    "query_chunk_size": "memory_bytes= bounds what a search holds",
    "corpus_chunk_size": "memory_bytes= bounds what a search holds",
}


@calls.checked(_OTHERS)
def search(
    queries_qd: np.ndarray,
    passages_nd,
    k: int = 10,
    *,
    ceiling_q: np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    mesh: Mesh | None = None,
    tile: int | None = None,
    progress: bool = False,
    backend: str = "auto",
    memory_bytes: int | None = None,
    resume: os.PathLike | str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages of largest inner product per query, in (score desc, row asc) order.

    Args:
        queries_qd: float [Q, D]: an array, a tensor, or a list of vectors.
        passages_nd: float [N, D], likewise, or a store that slices by rows.
        k: how many to return per query, 1 to N.
        ceiling_q: [Q]; only passages scoring strictly below it are returned.
        exclude: per query the row numbers that are never returned.
        mesh, tile, progress: see `exact.search`.
        backend, memory_bytes: see `make_index`.
        resume: a folder from which a streamed search continues; see `stream.StreamIndex.search`.

    Returns:
        scores [Q, k] float32 and rows [Q, k] int32; where fewer than k passages are left,
        score -inf and row -1 at the end.

    Raises:
        InputError: an unknown backend; k, widths, ceilings or row numbers that cannot be; NaN or
            infinity in a vector.
    """
    options.check_arguments("search", locals(), _TAKES)
    passages_nd = arguments.vectors(passages_nd, "search: passages")
    queries_qd = arguments.vectors(queries_qd, "search: queries")
    checks.check_all(queries_qd, passages_nd, k)
    index = make_index(
        passages_nd, mesh=mesh, tile=tile, backend=backend, memory_bytes=memory_bytes
    )
    more = {"resume": resume} if getattr(index, "streams", False) else {}
    return index.search(
        queries_qd, k, ceiling_q=ceiling_q, exclude=exclude, progress=progress, **more
    )


def make_index(
    passages_nd,
    *,
    mesh: Mesh | None = None,
    tile: int | None = None,
    backend: str = "auto",
    memory_bytes: int | None = None,
):
    """Prepares passages for many searches.

    Args:
        passages_nd: float [N, D], an array or a store that slices by rows.
        mesh: default: all devices.
        tile: rows per device and step; default: from the shapes.
        backend: 'auto', 'device' or 'faiss'.
        memory_bytes: what the search may hold on each device (CPU devices share the host's memory,
            so host buffers count, too); None or 0: a share of the free memory.

    Returns:
        An `exact.ExactIndex`, a `stream.StreamIndex` or a `faiss_index.FaissIndex`. All have
        `.shape` and `.search(queries_qd, k, ceiling_q=, exclude=, progress=)`; the first two also
        `.streams`, `.plan` and `search(resume=)`.

    Raises:
        InputError: an unknown backend; passages that cannot be searched.
    """
    shape, dtype = checks.check_passages(passages_nd), np.dtype(passages_nd.dtype)
    mesh = mesh_lib.given(mesh)
    budget = memory.budget_bytes(mesh, memory_bytes)
    if choose(backend, shape, budget * len(mesh.local_devices)) == "faiss":
        from nvret_jax.search.index import faiss_index  # FAISS is loaded only where it is used

        return faiss_index.FaissIndex(passages_nd)
    plan = memory.estimate(
        shape,
        dtype,
        steps.PIECES,
        1,
        mesh_lib.shards(mesh, "rows"),
        budget,
        platform=platforms.of(mesh),
        tile=tile,
        chunk_rows=getattr(passages_nd, "chunk_rows", 1),
    )
    kind = stream.StreamIndex if plan.streams else exact.ExactIndex
    return kind(passages_nd, mesh=mesh, tile=tile, memory_bytes=budget)


def choose(backend: str, shape: tuple[int, int] | None = None, budget: int | None = None) -> str:
    """'device' or 'faiss' for one of `search.options.BACKENDS`; logs the choice and its reason
    once.

    Args:
        backend: the requested backend.
        shape: (N, D) of the passages, if memory matters.
        budget: bytes the process may hold, if memory matters.
    """
    wrong = mistake("search.backend", backend, BACKEND)
    if wrong:
        raise InputError(wrong)
    faiss_bytes = 4 * shape[0] * shape[1] if shape and budget else 0
    if backend != "auto":
        chosen, why = backend, f"search.backend={backend}"
    elif platforms.here() != "cpu":
        chosen, why = "device", f"JAX runs on {platforms.here()}"
    elif jax.process_count() > 1:
        chosen, why = "device", f"{jax.process_count()} processes share the passages"
    elif faiss_bytes and faiss_bytes > budget:
        chosen = "device"
        why = (
            f"FAISS would hold {memory.size(faiss_bytes)} in memory, more than the "
            f"{memory.size(budget)} allowed"
        )
    else:
        chosen, why = "faiss", "a single host with only a CPU"
    _say(chosen, why)
    return chosen


@functools.cache
def _say(chosen: str, why: str) -> None:
    name = {"device": "matmul and top-k on the devices", "faiss": "FAISS flat index on the CPU"}
    say(f"search    {name[chosen]}: {why}")
