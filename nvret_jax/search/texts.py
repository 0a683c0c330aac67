"""Search in texts by texts: an encoder, the vectors of a corpus, and the index over them."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from nvret_jax.data.dataset import TextTable
from nvret_jax.errors import InputError
from nvret_jax.models.encoder import Encoder
from nvret_jax.search.index.backend import make_index


@dataclasses.dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        row: of the corpus.
        score: of query and passage.
        rank: from 1.
    """

    row: int
    score: float
    rank: int


class TextSearch:
    """A corpus ready to be searched; may be used by several threads.

    Attributes:
        encoder: embeds both sides.
        corpus: N passages.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: TextTable,
        *,
        passages_nd: Any = None,
        query_length: int | None = None,
        passage_length: int | None = None,
        backend: str = "auto",
        progress: bool = False,
    ):
        """Embeds the corpus, unless its vectors are given.

        Args:
            encoder: see above.
            corpus: see above.
            passages_nd: float [N, D], an array or a store that slices by rows.
            query_length, passage_length: tokens kept; None: the encoder's own length.
            backend: 'auto', 'device' or 'faiss'.
            progress: show a bar.

        Raises:
            InputError: vectors of another width, or what the encoder refuses.
        """
        self.encoder, self.corpus, self._length = encoder, corpus, query_length
        if passages_nd is None:
            passages_nd = encoder.encode(
                corpus.texts, kind="passage", max_length=passage_length, progress=progress
            )
        if tuple(passages_nd.shape) != (len(corpus), encoder.width):
            raise InputError(
                f"the vectors of the corpus are {passages_nd.shape[0]} x {passages_nd.shape[1]}; "
                f"expected {len(corpus)} x {encoder.width}, by the same model"
            )
        self._index = make_index(passages_nd, mesh=encoder.mesh, backend=backend)
        self._lock = threading.Lock()  # one step at a time on the devices

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each query.

        Args:
            queries: Q texts.
            k: at most; a smaller corpus is ranked whole.

        Returns:
            scores float32 [Q, k] and rows int32 [Q, k], best first.
        """
        with self._lock:
            queries_qd = self.encoder.encode(queries, kind="query", max_length=self._length)
            return self._index.search(queries_qd, min(k, len(self.corpus)))

    def hits(self, query: str, k: int) -> list[Hit]:
        """The k best passages of one query, best first."""
        scores_qk, rows_qk = self.search([query], k)
        pairs = zip(scores_qk[0].tolist(), rows_qk[0].tolist(), strict=True)
        return [Hit(row, score, rank) for rank, (score, row) in enumerate(pairs, 1) if row >= 0]
