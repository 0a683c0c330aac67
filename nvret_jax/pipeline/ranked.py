"""From a teacher to what ranks the corpus; its candidates, and what ranks beyond them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from etils import epath

from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.pipeline.made import need
from nvret_jax.pipeline.state import Run
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers import teachers, vectors
from nvret_jax.search.rankers.bm25 import Bm25Ranker
from nvret_jax.search.rankers.distinct import distinct
from nvret_jax.search.rankers.random_ranker import RandomRanker
from nvret_jax.search.rankers.ranker import DenseRanker, ListRanker, Ranker
from nvret_jax.search.rankers.run_file import RunRanker


def open_ranker(run: Run, name: str, resume: epath.Path | None = None) -> Ranker:
    """The teacher over the training queries that have a positive, numbered in their order.

    Args:
        name: of the teacher.
        resume: where searches that stream the passages keep what a kill must not cost.
    """
    data, split = run.train_data, run.config.data.train_split
    block = run.block(name)
    scheme, rest = teachers.kind(block.model), block.model.partition(":")[2]
    queries = data.queries.select(run.positives())
    if scheme == "encoder":
        table = data.split_queries(split)
        rows = np.array([table.row[query_id] for query_id in queries.ids], np.int64)
        vectors_qd = np.asarray(run.open(name, data, f"queries-{split}")[:])[rows]
        return _dense(run, vectors_qd, run.open(name, data, "passages"), resume)
    if scheme == "vectors":
        passages_nd, queries_qd = vectors.open_pair(
            rest, data.corpus.ids, queries.ids, normalize=block.normalize
        )
        return _dense(run, np.asarray(queries_qd), passages_nd, resume)
    if scheme == "bm25":
        return Bm25Ranker(queries.texts, data.corpus.texts)
    if scheme == "random":
        return _random(run, queries.ids)
    return RunRanker.read(rest, queries.ids, data.corpus.ids, run.positive_rows())


def _dense(run: Run, queries_qd: np.ndarray, passages_nd, resume: epath.Path | None) -> Ranker:
    return DenseRanker(
        run.searching.queries(queries_qd),
        run.searching.passages(passages_nd),
        run.searching.index,
        resume,
    )


def _random(run: Run, query_ids: Sequence[str]) -> Ranker:
    ids, texts = run.train_data.corpus.ids, run.passage_texts
    if texts is not None and texts.any_equal:
        # One draw for each text, or one with many copies would be drawn more often.
        ids = [ids[row] for row in texts.first_n]
    return RandomRanker(query_ids, ids, run.positive_rows(), run.config.seed)


def ranked(run: Run, artifact: Artifact, name: str) -> tuple[Candidates, Ranker]:
    """Candidates and ranker of one teacher over the training queries, each text once.

    Args:
        artifact: what is being made; in its unfinished folder, searches that stream keep what a
            kill must not cost.
        name: of the teacher.
    """
    rescored = run.rescored(name)
    if rescored is None:
        candidates = run.read_candidates(name)
        ranker = open_ranker(run, name, artifact.partial / "lists")
        return distinct(candidates, ranker, run.passage_texts)
    data = run.train_data
    candidates = Candidates.read(need(rescored).path, data.queries, data.corpus)

    def score_pairs(pairs: np.ndarray) -> np.ndarray:  # loads the model only if it is asked
        return run.rescorer.score_pairs(pairs)

    return candidates, ListRanker(candidates.query_rows, len(data.corpus), score_pairs)
