"""The stages as functions on texts and arrays, for notebooks; no workdir, nothing on disk.

import nvret_jax.api as nv

teacher = nv.Encoder.from_pretrained()
negatives = nv.mine(queries, passages, positives, teacher=teacher)
scores_qk, rows_qk = nv.search(teacher.encode(queries, kind="query"), passages_nd, k=10)
result = nv.evaluate(teacher, nv.load_dataset("beir:scifact"), "test")
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from nvret_jax.data.dataset import Dataset, TextTable, load_dataset
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.evaluation.retrieval import Evaluation, evaluate
from nvret_jax.export.sentence_transformers import export
from nvret_jax.mesh import make_mesh
from nvret_jax.mining import exclusion, miner
from nvret_jax.mining.exclusion import Settings as Exclude
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Options, compatible
from nvret_jax.mining.rules import Rule
from nvret_jax.models.encoder import Encoder
from nvret_jax.search import candidates as candidates_lib
from nvret_jax.search.backend import make_index, search
from nvret_jax.search.bm25 import Bm25Ranker
from nvret_jax.search.ranker import DenseRanker, Ranker

__all__ = [
    "Bm25Ranker",
    "Dataset",
    "Encoder",
    "Evaluation",
    "Exclude",
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
    teacher: Encoder | Ranker | Sequence[Encoder | Ranker] | None = None,
    query_embeddings: np.ndarray | None = None,
    passage_embeddings: np.ndarray | None = None,
    rule: str = "perc_pos",
    percent: float = 0.95,
    margin: float = 0.05,
    threshold: float = 0.70,
    shift: int = 10,
    anchor: str = "min",
    ranks: str = "raw",
    max_rank: int = 0,
    min_score: float | None = None,
    keep_equal: bool = False,
    num_negatives: int = 4,
    sampling: str = "top",
    sample_from: int = 10,
    sample_temperature: float = 1.0,
    ensemble: str = "intra_dedup",
    second_search: bool = True,
    short: str = "ragged",
    compat: str = "",
    exclude: Exclude | None = None,
    query_ids: Sequence[str] | None = None,
    passage_ids: Sequence[str] | None = None,
    seed: int = 0,
    depth: int = 100,
    backend: str = "auto",
    progress: bool = True,
) -> Negatives:
    """Mines hard negatives for queries with known positives.

    Args:
        queries: Q texts.
        passages: N texts.
        positives: for each query the numbers of its relevant passages, at least one.
        teacher: an encoder, which embeds both sides, or anything else that ranks (`search.ranker`,
            such as `Bm25Ranker(queries, passages)`); or several, the most accurate first. Not
            needed when both embeddings are given.
        query_embeddings: float32 [Q, D]; unit length, so that scores are cosines.
        passage_embeddings: float32 [N, D], an array or a store that slices by rows.
        rule, percent, margin, threshold, shift, anchor, ranks, max_rank, min_score, keep_equal: see
            `mining.rules.Rule`; the defaults are the paper's best (TopK-PercPos, 95 %).
        num_negatives: kept per query; a query the corpus cannot serve gets fewer, see `short`.
        sampling, sample_from, sample_temperature: see `mining.sampling`.
        ensemble: how several teachers make one list; see `mining.ensemble`.
        second_search, short: see `mining.options.Options`.
        compat: '', 'paper' or 'sentence_transformers'; see `mining.options`.
        exclude: passages that are never negatives; default: the query's own text and texts equal
            to a positive's. See `mining.exclusion.Settings`.
        query_ids, passage_ids: what draws depend on; default: the numbers.
        seed: of draws.
        depth: candidates looked at before a second search; see `mining.survivors`.
        backend: 'auto', 'device' or 'faiss'.
        progress: show bars.

    Returns:
        Rows of `passages` for each query (for each query and positive where `anchor` is 'own'),
        with teacher scores and ranks.

    Raises:
        InputError: lists that do not fit each other, a row that is not a passage, no teacher, or
            options that cannot be.
    """
    floor = -np.inf if min_score is None else min_score
    options = Options(
        Rule(rule, percent, margin, threshold, shift, anchor, ranks, max_rank, floor, keep_equal),
        num_negatives=num_negatives,
        sampling=sampling,
        sample_from=sample_from,
        sample_temperature=sample_temperature,
        ensemble=ensemble,
        short=short,
        second_search=second_search,
        seed=seed,
    )
    positive_rows = _positive_rows(positives, len(queries), len(passages))
    options = compatible(options, compat, int(positive_rows.counts.max(initial=0)))
    if exclude is None:
        off = compat == "sentence_transformers"
        exclude = Exclude(own_text="off", same_text=False) if off else Exclude()
    rankers = _rankers(
        queries, passages, teacher, query_embeddings, passage_embeddings, backend, progress
    )
    depth = max(depth, options.window)
    numbers = np.arange(len(queries), dtype=np.int32)
    teachers = []
    for number, ranker in enumerate(rankers):
        found = candidates_lib.find(numbers, numbers, ranker, positive_rows, depth)
        teachers.append(miner.Teacher(f"teacher {number}", found, ranker))
    query_ids = list(map(str, numbers)) if query_ids is None else query_ids
    passage_ids = [str(i) for i in range(len(passages))] if passage_ids is None else passage_ids
    vectors = {}
    if exclude.cosine and isinstance(rankers[0], DenseRanker):
        vectors = {"passages_nd": rankers[0].passages_nd, "search": rankers[0].index.search}
    excluded = exclusion.build(
        queries, TextTable(tuple(passage_ids), passages), positive_rows, exclude, **vectors
    )
    negatives, _ = miner.mine(
        teachers,
        options,
        excluded=excluded.rows,
        query_ids=query_ids,
        passage_ids=passage_ids,
    )
    return negatives


def _positive_rows(positives, queries: int, passages: int) -> Ragged:
    """The given positives, checked; each once, in the order given."""
    if len(positives) != queries:
        raise InputError(f"mine: {len(positives)} lists of positives for {queries} queries")
    rows = Ragged.from_rows(
        [list(dict.fromkeys(np.asarray(rows, np.int64).tolist())) for rows in positives], np.int32
    )
    bad = (rows.values < 0) | (rows.values >= passages)
    if bad.any():
        where = int(np.argmax(bad))
        raise InputError(
            f"mine: query number {rows.row_of[where]} has the positive {rows.values[where]}, but "
            f"there are {passages} passages"
        )
    return rows


def _rankers(
    queries, passages, teacher, query_embeddings, passage_embeddings, backend, progress
) -> list[Ranker]:
    """What ranks, for whatever was given as teacher and embeddings."""
    several = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    if teacher is None and (query_embeddings is None or passage_embeddings is None):
        raise InputError("mine: give a teacher, or query_embeddings and passage_embeddings")
    if len(several) > 1 and (query_embeddings is not None or passage_embeddings is not None):
        raise InputError(f"mine: {len(several)} teachers, but embeddings for one")
    out: list[Ranker] = []
    for one in several:
        if one is not None and not isinstance(one, Encoder):
            out.append(one)
            continue
        queries_qd, passages_nd = query_embeddings, passage_embeddings
        if passages_nd is None:
            passages_nd = one.encode(passages, kind="passage", progress=progress)
        if queries_qd is None:
            queries_qd = one.encode(queries, kind="query", progress=progress)
        mesh = None if one is None else one.mesh
        out.append(
            DenseRanker(
                queries_qd, passages_nd, functools.partial(make_index, mesh=mesh, backend=backend)
            )
        )
    for ranker in out:
        for what, found, texts in (
            ("query", ranker.queries, queries),
            ("passage", ranker.passages, passages),
        ):
            if found != len(texts):
                raise InputError(f"mine: {found} {what} embeddings for {len(texts)} texts")
    return out
