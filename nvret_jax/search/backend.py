"""Which search runs where: the device path on accelerators, FAISS on a host with only a CPU.

Both give the same answers, so the choice is about speed and about what is installed. Several
processes on CPUs take the device path, where each holds only its share of the passages.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from nvret_jax.console import say
from nvret_jax.errors import InputError
from nvret_jax.search import checks, exact

BACKENDS = ("auto", "device", "faiss")


def search(
    queries_qd: np.ndarray,
    passages_nd,
    k: int,
    *,
    ceiling_q: np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    mesh: Mesh | None = None,
    tile: int | None = None,
    progress: bool = False,
    backend: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """`exact.search`, by the backend of that name: 'auto', 'device' or 'faiss'.

    Raises:
        InputError: an unknown backend, and whatever `exact.search` raises.
    """
    checks.check_arguments(queries_qd, passages_nd, k)
    index = make_index(passages_nd, mesh=mesh, tile=tile, backend=backend)
    return index.search(queries_qd, k, ceiling_q=ceiling_q, exclude=exclude, progress=progress)


def make_index(
    passages_nd, *, mesh: Mesh | None = None, tile: int | None = None, backend: str = "auto"
):
    """Passages made ready for many searches: an `exact.ExactIndex` or a `faiss_index.FaissIndex`.

    Both have `.shape` and `.search(queries_qd, k, ceiling_q=, exclude=, progress=)`.
    """
    if choose(backend) == "faiss":
        from nvret_jax.search import faiss_index  # FAISS is loaded only where it is used

        return faiss_index.FaissIndex(passages_nd)
    return exact.ExactIndex(passages_nd, mesh=mesh, tile=tile)


def choose(backend: str) -> str:
    """'device' or 'faiss' for one of `BACKENDS`; says once which and why."""
    if backend not in BACKENDS:
        raise InputError(f"search.backend={backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend != "auto":
        chosen, why = backend, "as asked"
    elif jax.default_backend() != "cpu":
        chosen, why = "device", f"JAX runs on {jax.default_backend()}"
    elif jax.process_count() > 1:
        chosen, why = "device", f"{jax.process_count()} processes share the passages"
    else:
        chosen, why = "faiss", "a single host with only a CPU"
    _say(chosen, why)
    return chosen


@functools.cache
def _say(chosen: str, why: str) -> None:
    name = {"device": "matmul and top-k on the devices", "faiss": "FAISS flat index on the CPU"}
    say(f"search backend: {chosen}, {name[chosen]} ({why})")
