"""How a run searches vectors, from its config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from nvret_jax.models import precision
from nvret_jax.search.index import rounded
from nvret_jax.search.index.backend import make_index
from nvret_jax.search.options import Search


@dataclasses.dataclass(frozen=True)
class Searching:
    """A search for candidates, or of an evaluation.

    Attributes:
        options: of the search.
        mesh: returns the mesh; called when an index is made.
        platform: 'cpu', 'gpu' or 'tpu'.
    """

    options: Search
    mesh: Callable[[], Mesh]
    platform: str

    def index(self, passages_nd):
        """A search index over passages."""
        return make_index(
            passages_nd,
            mesh=self.mesh(),
            backend=self.options.backend,
            memory_bytes=int(self.options.memory_gib * 2**30) or None,
        )

    def passages(self, passages_nd):
        """Passages in the dtype of the search."""
        passages_nd = rounded.passages(passages_nd, self.options.dtype)
        precision.say_cost("search", str(passages_nd.dtype), self.platform, "search.dtype")
        return passages_nd

    def queries(self, queries_qd: np.ndarray) -> np.ndarray:
        """Queries in the dtype of the search."""
        return rounded.queries(queries_qd, self.options.dtype)

    def parts(self, stored: str = "float32") -> dict[str, Any]:
        """The dtype of the search as a part, if it differs from the stored one.

        Args:
            stored: their dtype; '' if unknown.
        """
        dtype = self.options.dtype
        return {} if dtype in ("auto", stored) else {"search.dtype": dtype}
