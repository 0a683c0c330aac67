"""Retrieval metrics under their trec_eval names, and the evaluation of an encoder on a dataset.

The numbers come from trec_eval's own C code, through `ir_measures` and pytrec_eval (compiled into
the wheel: no Java, no network). What each one is, for one query:

    ndcg_cut_10, ndcg_cut_100   sum over the first 10 (100) of gain / log2(rank + 1), divided by the
                                same sum of the best possible order. The gain is the judgment
                                itself, linear (not 2^judgment - 1); below 1 it is 0.
    recip_rank_10               MRR@10: 1 / rank of the first relevant hit, 0 beyond rank 10.
    map                         mean of precision at each relevant hit over all relevant passages,
                                cut where the run is cut (k).
    recall_10, recall_100       share of the relevant passages among the first 10 (100).

Choices made here:

* "Relevant" is a judgment of at least `min_relevance`; a lower one counts as 0 in every measure.
* A query is scored when it has at least one relevant judgment. One without any hit scores 0
  (trec_eval's -c); one without a relevant judgment cannot be ranked well or badly and is left out.
  The means are over scored queries.
* trec_eval sorts each query by score as float32 and breaks ties by passage id, backwards. Ours is
  (score descending, corpus order). `strict_scores` lowers tied scores by single float32 steps, so
  that trec_eval, here and on the written run, sees our order; an evaluation and its run file
  therefore always agree.
* MRR@10 is trec_eval's recip_rank set to 0 beyond rank 10. The cut measure of ir_measures comes
  from another tool, which breaks ties differently.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ir_measures
import numpy as np
from jax.sharding import Mesh

from nvret_jax import options
from nvret_jax.data import arguments
from nvret_jax.data.dataset import Dataset
from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError
from nvret_jax.evaluation.options import EvaluationOptions
from nvret_jax.options import calls
from nvret_jax.search.options import Search

TrecRun = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]

MEASURES = ("ndcg_cut_10", "ndcg_cut_100", "recip_rank_10", "map", "recall_10", "recall_100")
# The same for people: terminal, model card, report.
MEASURE_NAMES = {
    "ndcg_cut_10": "nDCG@10",
    "ndcg_cut_100": "nDCG@100",
    "recip_rank_10": "MRR@10",
    "map": "MAP",
    "recall_10": "Recall@10",
    "recall_100": "Recall@100",
}
_TREC = {
    "ndcg_cut_10": ir_measures.nDCG @ 10,
    "ndcg_cut_100": ir_measures.nDCG @ 100,
    "recip_rank_10": ir_measures.RR,
    "map": ir_measures.AP,
    "recall_10": ir_measures.R @ 10,
    "recall_100": ir_measures.R @ 100,
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one encoder scored on one split, with the ranking that scored it.

    Attributes:
        dataset, split: the names of what was evaluated.
        metrics: mean of each of `MEASURES` over the scored queries.
        per_query: the same numbers by query id, in the order of `query_ids`.
        query_ids: the scored queries.
        passage_ids: the ids of the whole corpus; `rows_qk` points into it.
        scores_qk: float32 [Q, k], descending in each row, -inf where there was no further hit.
        rows_qk: int32 [Q, k] rows of the corpus, -1 where there was no further hit.
        counts: queries, unscored_queries, passages, judgments, positives, k, min_relevance.
    """

    dataset: str
    split: str
    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    query_ids: tuple[str, ...]
    passage_ids: Sequence[str]
    scores_qk: np.ndarray
    rows_qk: np.ndarray
    counts: dict[str, int]

    def __repr__(self) -> str:
        means = ", ".join(
            f"{MEASURE_NAMES.get(name, name)} {value:.4f}" for name, value in self.metrics.items()
        )
        where = f"{self.dataset} {self.split}, {len(self.query_ids):,} queries"
        return f"Evaluation({where}: {means})"

    def run(self) -> dict[str, dict[str, float]]:
        """The ranking as {query id: {passage id: strict score}}."""
        return as_run(self.query_ids, self.passage_ids, self.scores_qk, self.rows_qk)


def strict_scores(scores_qk: np.ndarray) -> np.ndarray:
    """Scores in which every row falls strictly, so that a sort by score alone keeps our order.

    A score equal to the one before it (or pushed up to it by this very rule) becomes the next
    smaller float32; all others keep their value.

    Args:
        scores_qk: [Q, k], descending in each row; -inf at the end is padding and stays.

    Returns:
        float32 [Q, k].
    """
    out_qk = np.array(scores_qk, np.float32)
    for rank in range(1, out_qk.shape[1]):
        below_q = np.nextafter(out_qk[:, rank - 1], np.float32(-np.inf))
        out_qk[:, rank] = np.minimum(out_qk[:, rank], below_q)
    return out_qk


def as_run(
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    scores_qk: np.ndarray,
    rows_qk: np.ndarray,
) -> dict[str, dict[str, float]]:
    """Search results as {query id: {passage id: score}}, best first, with strict scores.

    Args:
        query_ids: Q ids, one for each row.
        passage_ids: the corpus' ids, by row number.
        scores_qk: [Q, k] descending in each row;
        rows_qk: [Q, k] row numbers, -1 for "no hit".

    Raises:
        InputError: shapes that do not fit, a NaN, a row not in descending order, a passage twice.
    """
    scores_qk, rows_qk = np.asarray(scores_qk, np.float32), np.asarray(rows_qk)
    if scores_qk.ndim != 2 or scores_qk.shape != rows_qk.shape or len(scores_qk) != len(query_ids):
        raise InputError(
            f"run of {len(query_ids)} queries: scores {scores_qk.shape} and ids {rows_qk.shape} "
            f"must both be [{len(query_ids)}, k]"
        )
    hit_qk = rows_qk >= 0
    bad = np.isnan(scores_qk) & hit_qk
    if bad.any():
        row, rank = np.argwhere(bad)[0]
        raise InputError(f"run: query {query_ids[row]!r} has a NaN score at rank {rank + 1}")
    rising = (scores_qk[:, 1:] > scores_qk[:, :-1]) & hit_qk[:, 1:]
    if rising.any():
        row, rank = np.argwhere(rising)[0]
        raise InputError(
            f"run: query {query_ids[row]!r} scores rise at rank {rank + 2}; give them best first"
        )
    strict_qk = strict_scores(scores_qk)
    run: dict[str, dict[str, float]] = {}
    for row, query_id in enumerate(query_ids):
        kept = np.flatnonzero(hit_qk[row])
        hits = {
            passage_ids[i]: s
            for i, s in zip(rows_qk[row, kept].tolist(), strict_qk[row, kept].tolist(), strict=True)
        }
        if len(hits) != len(kept):
            raise InputError(f"run: query {query_id!r} names a passage more than once")
        run[query_id] = hits
    if len(run) != len(query_ids):
        raise InputError(f"run: {len(query_ids) - len(run)} query ids appear more than once")
    return run


def metrics(
    run: TrecRun | tuple[Sequence[str], Sequence[str], np.ndarray, np.ndarray],
    qrels: Qrels,
    *,
    min_relevance: int = 1,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """All `MEASURES` of a run, by trec_eval's code.

    Args:
        run: {query id: {passage id: score}}, unchanged (trec_eval then orders it: score descending,
            ties by passage id descending), or (query_ids, passage_ids, scores_qk, rows_qk) as
            `as_run` takes them, whose order is kept.
        qrels: {query id: {passage id: judgment}}. Graded judgments are the gains.
        min_relevance: the lowest judgment that counts.

    Returns:
        (means over the scored queries, {query id: values}); which queries are scored, and what
        each measure is, is said at the top of this file.

    Raises:
        InputError: no query has a relevant judgment; a score is not a finite number.
    """
    if min_relevance < 1:
        raise InputError(f"min_relevance={min_relevance}: a relevant judgment is at least 1")
    if isinstance(run, tuple):
        run = as_run(*run)
    scored = {
        query_id: {p: int(r) if r >= min_relevance else 0 for p, r in judged.items()}
        for query_id, judged in qrels.items()
        if any(r >= min_relevance for r in judged.values())
    }
    if not scored:
        raise InputError(
            f"no query has a judgment of at least {min_relevance} ({len(qrels)} queries judged): "
            "there is nothing to score"
        )
    hits = {}
    for query_id in scored:
        hits[query_id] = {p: float(s) for p, s in run.get(query_id, {}).items()}
        for passage_id, score in hits[query_id].items():
            if not math.isfinite(score):
                raise InputError(
                    f"run: query {query_id!r}, passage {passage_id!r} has the score {score}; "
                    "scores must be finite numbers"
                )
    per_query = {query_id: dict.fromkeys(MEASURES, 0.0) for query_id in scored}
    names = {measure: name for name, measure in _TREC.items()}
    for found in ir_measures.pytrec_eval.iter_calc(list(names), scored, hits):
        name, value = names[found.measure], float(found.value)
        if name == "recip_rank_10" and value < 1 / 10.5:  # the first relevant hit is beyond 10
            value = 0.0
        per_query[found.query_id][name] = value
    means = {
        name: math.fsum(values[name] for values in per_query.values()) / len(per_query)
        for name in MEASURES
    }
    return means, per_query


_OPTIONS = options.takes_of(EvaluationOptions)
_EVALUATE = {
    **_OPTIONS,
    "split": options.text("the name of a split"),
    "k": _OPTIONS["depth"],
    "backend": options.takes_of(Search)["backend"],
    "passage_length": options.whole(1, what="tokens", unset=True),
    "query_length": options.whole(1, what="tokens", unset=True),
    "progress": options.flag(),
}


_OTHERS = {
    "top_k": "give k=",
    "batch_size": "the encoder chooses how many texts it embeds at a time",
    "show_progress_bar": "give progress=",
    "corpus": "give a data set, such as load_dataset({'corpus': …, 'queries': …, 'qrels': …})",
    "queries": "give a data set, such as load_dataset({'corpus': …, 'queries': …, 'qrels': …})",
    "qrels": "give a data set, such as load_dataset({'corpus': …, 'queries': …, 'qrels': …})",
    "model": "give the encoder first, as in evaluate(encoder, data)",
}


@calls.checked(_OTHERS)
def evaluate(
    encoder: Any,
    dataset: Any,
    split: str = "test",
    *,
    k: int = 100,
    min_relevance: int = 1,
    exclude_self: bool = True,
    exclude: Mapping[str, Sequence[str]] | None = None,
    backend: str = "auto",
    passage_embeddings: Any = None,
    query_embeddings: np.ndarray | None = None,
    passage_length: int | None = None,
    query_length: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Ranks the whole corpus for every judged query of a split and scores the ranking.

    Every process of a multi-host run calls this with the same arguments and gets all of it.

    Args:
        encoder: a `models.encoder.Encoder` (its width, mesh and `encode` are used).
        dataset: a `data.dataset.Dataset`, or what `load_dataset` takes.
        split: a split of its judgments.
        k: hits kept for a query, at least 100 (the deepest measure); a smaller corpus is ranked
            whole.
        min_relevance: the lowest judgment that counts as relevant.
        exclude_self: leave a passage out of the ranking of the query with the same id, as BEIR
            does where queries are passages (ArguAna, Quora), unless it is judged relevant to it.
        exclude: query id -> ids of passages that are left out of its ranking, as BRIGHT has them.
        backend: search backend: 'auto', 'device' or 'faiss'.
        passage_embeddings: float32 [N, D] rows of the corpus, or a store of them that slices by
            row; encoded here when not given.
        query_embeddings: float32 [Q, D] for `scored_queries(dataset, split, min_relevance)`.
        passage_length, query_length: tokens kept of a text; None: the encoder's own length.
        progress: show progress bars.

    Raises:
        InputError: unknown split, no relevant judgment, k below 100, embeddings of another shape.
    """
    options.check_arguments("evaluate", locals(), _EVALUATE)
    if exclude is not None and not isinstance(exclude, Mapping):
        raise InputError(
            f"evaluate: exclude={options.shown(exclude)} ({type(exclude).__name__}): expected a "
            "dict of query id -> ids of passages"
        )
    if not all(hasattr(encoder, name) for name in ("encode", "width", "mesh")):
        raise InputError(
            f"evaluate: encoder={options.shown(encoder)} ({type(encoder).__name__}): expected an "
            "Encoder, such as Encoder.from_pretrained(…)"
        )
    if isinstance(dataset, str | os.PathLike | Mapping):
        dataset = load_dataset(dataset)
    if not all(hasattr(dataset, name) for name in ("corpus", "qrels", "split_queries")):
        raise InputError(
            f"evaluate: dataset={options.shown(dataset)} ({type(dataset).__name__}): expected a "
            "Dataset, such as load_dataset('beir:DIR'), or what names one"
        )
    _, texts = scored_queries(dataset, split, min_relevance)
    for query_id, passages in (exclude or {}).items():
        for passage in passages:
            if passage not in dataset.corpus.row:
                raise InputError(
                    f"evaluate: exclude: query {query_id!r} has {options.shown(passage)}, which "
                    "is not the id of a passage"
                )
    if passage_embeddings is None:
        passage_embeddings = encoder.encode(
            dataset.corpus.texts, kind="passage", max_length=passage_length, progress=progress
        )
    if query_embeddings is None:
        query_embeddings = encoder.encode(
            texts, kind="query", max_length=query_length, progress=progress
        )
    return evaluate_vectors(
        dataset,
        split,
        passage_embeddings,
        query_embeddings,
        width=encoder.width,
        mesh=encoder.mesh,
        k=k,
        min_relevance=min_relevance,
        exclude_self=exclude_self,
        exclude=exclude,
        backend=backend,
        progress=progress,
    )


def evaluate_vectors(
    dataset: Dataset,
    split: str,
    passages_nd: Any,
    queries_qd: np.ndarray,
    *,
    width: int,
    mesh: Mesh,
    k: int = 100,
    min_relevance: int = 1,
    exclude_self: bool = True,
    exclude: Mapping[str, Sequence[str]] | None = None,
    backend: str = "auto",
    progress: bool = False,
) -> Evaluation:
    """`evaluate` for texts that are vectors by now.

    Args:
        dataset, split, k, min_relevance, exclude_self, exclude, backend, progress: as of
            `evaluate`.
        passages_nd: float [N, D] rows of the corpus, or a store of them that slices by row.
        queries_qd: float32 [Q, D] for `scored_queries(dataset, split, min_relevance)`.
        width: D, of the encoder that both should be by.
        mesh: of the search.

    Raises:
        InputError: unknown split, no relevant judgment, vectors of another shape.
    """
    from nvret_jax.search.index.backend import search

    passages_nd = arguments.vectors(passages_nd, "evaluate: passage_embeddings")
    queries_qd = arguments.vectors(queries_qd, "evaluate: query_embeddings")
    query_ids, _ = scored_queries(dataset, split, min_relevance)
    for what, found, rows in (
        ("passage", passages_nd, len(dataset.corpus)),
        ("query", queries_qd, len(query_ids)),
    ):
        if tuple(found.shape) != (rows, width):
            raise InputError(
                f"evaluation of {dataset.name!r} {split}: {what} embeddings have the shape "
                f"{tuple(found.shape)}, expected ({rows}, {width}); they belong to another "
                "corpus or encoder"
            )

    def rank(k: int, exclude: Sequence[np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        return search(
            queries_qd,
            passages_nd,
            k,
            exclude=exclude,
            mesh=mesh,
            backend=backend,
            progress=progress,
        )

    return evaluate_ranking(
        dataset,
        split,
        rank,
        k=k,
        min_relevance=min_relevance,
        exclude_self=exclude_self,
        exclude=exclude,
    )


# (k, for each query the rows left out, or None) -> scores_qk float32, rows_qk int32
Rank = Callable[[int, Sequence[np.ndarray] | None], tuple[np.ndarray, np.ndarray]]


def evaluate_ranking(
    dataset: Dataset,
    split: str,
    rank: Rank,
    *,
    k: int = 100,
    min_relevance: int = 1,
    exclude_self: bool = True,
    exclude: Mapping[str, Sequence[str]] | None = None,
) -> Evaluation:
    """Scores whatever ranks the corpus for `scored_queries(dataset, split, min_relevance)`.

    Args:
        dataset, split, k, min_relevance, exclude_self, exclude: as of `evaluate`.
        rank: called once, with how many passages it is to rank, at most all.

    Raises:
        InputError: unknown split, no relevant judgment.
    """
    query_ids, _ = scored_queries(dataset, split, min_relevance)
    corpus = dataset.corpus
    qrels, never = dataset.qrels[split], []
    for query_id in query_ids:
        rows = [corpus.row[passage] for passage in (exclude or {}).get(query_id, ())]
        # A passage judged relevant to the query of the same id is a document that shares a
        # number with its question, not the question itself.
        own = corpus.row.get(query_id) if exclude_self else None
        if own is not None and qrels[query_id].get(query_id, 0) < min_relevance:
            rows.append(own)
        never.append(np.array(sorted({*rows}), np.int32))
    scores_qk, rows_qk = rank(min(k, len(corpus)), never if any(map(len, never)) else None)
    means, per_query = metrics(
        (query_ids, corpus.ids, scores_qk, rows_qk),
        {query_id: qrels[query_id] for query_id in query_ids},
        min_relevance=min_relevance,
    )
    judged = [r for query_id in query_ids for r in qrels[query_id].values()]
    return Evaluation(
        dataset=dataset.name,
        split=split,
        metrics=means,
        per_query=per_query,
        query_ids=tuple(query_ids),
        passage_ids=corpus.ids,
        scores_qk=scores_qk,
        rows_qk=rows_qk,
        counts={
            "queries": len(query_ids),
            "unscored_queries": len(qrels) - len(query_ids),
            "passages": len(corpus),
            "judgments": len(judged),
            "positives": sum(r >= min_relevance for r in judged),
            "k": min(k, len(corpus)),
            "min_relevance": min_relevance,
        },
    )


def scored_queries(dataset: Any, split: str, min_relevance: int = 1) -> tuple[list[str], list[str]]:
    """Ids and texts of the queries of a split that have a relevant judgment, in dataset order.

    Raises:
        InputError: unknown split; no such query.
    """
    table = dataset.split_queries(split)
    qrels = dataset.qrels[split]
    pairs = [
        (query_id, text)
        for query_id, text in zip(table.ids, table.texts, strict=True)
        if any(r >= min_relevance for r in qrels[query_id].values())
    ]
    if not pairs:
        raise InputError(
            f"dataset {dataset.name!r} split {split!r}: none of {len(table)} queries has a "
            f"judgment of at least {min_relevance}; there is nothing to evaluate"
        )
    return [query_id for query_id, _ in pairs], [text for _, text in pairs]
