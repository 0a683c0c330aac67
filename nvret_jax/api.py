"""The stages as functions on texts and arrays, for notebooks; no workdir, nothing on disk.

import nvret_jax.api as nv

teacher = nv.Encoder.from_pretrained()
negatives = nv.mine(queries, passages, positives, teacher=teacher)
scores_qk, rows_qk = nv.search(teacher.encode(queries, kind="query"), passages_nd, k=10)
result = nv.evaluate(teacher, nv.load_dataset("beir:scifact"), "test")
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvret_jax.data.dataset import Dataset, load_dataset
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.evaluation.retrieval import Evaluation, evaluate
from nvret_jax.export.sentence_transformers import export
from nvret_jax.mesh import make_mesh
from nvret_jax.mining import miner
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.rules import Rule
from nvret_jax.models.encoder import Encoder
from nvret_jax.search import candidates as candidates_lib
from nvret_jax.search.backend import make_index, search

__all__ = [
    "Dataset",
    "Encoder",
    "Evaluation",
    "InputError",
    "Negatives",
    "evaluate",
    "export",
    "load_dataset",
    "make_mesh",
    "mine",
    "search",
]


def mine(
    queries: Sequence[str],
    passages: Sequence[str],
    positives: Sequence[Sequence[int]],
    *,
    teacher: Encoder | None = None,
    query_embeddings: np.ndarray | None = None,
    passage_embeddings: np.ndarray | None = None,
    rule: str = "perc_pos",
    percent: float = 0.95,
    margin: float = 0.05,
    threshold: float = 0.70,
    shift: int = 10,
    anchor: str = "min",
    num_negatives: int = 4,
    depth: int = 100,
    backend: str = "auto",
    progress: bool = True,
) -> Negatives:
    """Mines hard negatives for queries with known positives.

    Args:
        queries: Q texts.
        passages: N texts.
        positives: for each query the numbers of its relevant passages, at least one.
        teacher: embeds both sides; not needed when both embeddings are given.
        query_embeddings: float32 [Q, D]; unit length, so that scores are cosines.
        passage_embeddings: float32 [N, D], an array or a store that slices by rows.
        rule, percent, margin, threshold, shift, anchor: see `mining.rules.Rule`; the defaults are
            the paper's best (TopK-PercPos, 95 %).
        num_negatives: kept per query; a query the corpus cannot serve gets fewer.
        depth: candidates looked at before a second search; see `mining.miner`.
        backend: 'auto', 'device' or 'faiss'.
        progress: show bars.

    Returns:
        Rows of `passages` for each query, with teacher scores and ranks.

    Raises:
        InputError: lists that do not fit each other, a row that is not a passage, no teacher.
    """
    chosen = Rule(rule, percent, margin, threshold, shift, anchor)
    chosen.ceilings(np.zeros(0))  # an unknown rule is known before anything is encoded
    if len(positives) != len(queries):
        raise InputError(f"mine: {len(positives)} lists of positives for {len(queries)} queries")
    positive_rows = Ragged.from_rows(
        [np.unique(np.asarray(rows, np.int64)) for rows in positives], np.int32
    )
    bad = (positive_rows.values < 0) | (positive_rows.values >= len(passages))
    if bad.any():
        where = int(np.argmax(bad))
        raise InputError(
            f"mine: query number {positive_rows.row_of[where]} has the positive "
            f"{positive_rows.values[where]}, but there are {len(passages)} passages"
        )
    if teacher is None and (query_embeddings is None or passage_embeddings is None):
        raise InputError("mine: give a teacher, or query_embeddings and passage_embeddings")
    if passage_embeddings is None:
        passage_embeddings = teacher.encode(passages, kind="passage", progress=progress)
    if query_embeddings is None:
        query_embeddings = teacher.encode(queries, kind="query", progress=progress)
    for what, found, texts in (
        ("query", query_embeddings, queries),
        ("passage", passage_embeddings, passages),
    ):
        if len(found) != len(texts):
            raise InputError(f"mine: {len(found)} {what} embeddings for {len(texts)} texts")
    index = make_index(
        passage_embeddings, mesh=None if teacher is None else teacher.mesh, backend=backend
    )

    def search_all(queries_qd, k):
        return index.search(queries_qd, k, progress=progress)

    def search_below(numbers, k, ceilings, exclude):
        return index.search(query_embeddings[numbers], k, ceiling_q=ceilings, exclude=exclude)

    found = candidates_lib.find(
        np.arange(len(queries), dtype=np.int32),
        query_embeddings,
        passage_embeddings,
        positive_rows,
        depth,
        search_all,
    )
    negatives, _ = miner.mine(
        found,
        rule=chosen,
        num_negatives=num_negatives,
        own_text=miner.own_text_rows(queries, passages),
        corpus_size=len(passages),
        search_below=search_below,
    )
    return negatives
