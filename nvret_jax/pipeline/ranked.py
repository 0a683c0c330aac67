"""From a teacher to what ranks the corpus; its candidates, and what ranks beyond them."""

from __future__ import annotations

import functools

import numpy as np
from etils import epath

from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.pipeline.made import need
from nvret_jax.pipeline.state import Run
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers import teachers
from nvret_jax.search.rankers.distinct import distinct
from nvret_jax.search.rankers.ranker import DenseRanker, ListRanker, Ranker


def task(run: Run, name: str, resume: epath.Path | None = None) -> teachers.Task:
    """What a teacher ranks: the corpus for the training queries that have a positive.

    Args:
        name: of the teacher.
        resume: where searches that stream the passages keep what a kill must not cost.
    """
    data = run.train_data
    return teachers.Task(
        data.queries.select(run.positives()),
        data.corpus,
        run.positive_rows(),
        run.passage_texts,
        run.config.seed,
        run.block(name).normalize,
        functools.partial(_dense, run, resume),
    )


def open_ranker(run: Run, name: str, resume: epath.Path | None = None) -> Ranker:
    """A teacher over the training queries that have a positive, numbered in their order.

    Args:
        name: of the teacher.
        resume: see `task`.
    """
    model = run.block(name).model
    if not teachers.is_encoder(model):
        return teachers.open_ranker(model, task(run, name, resume))
    data, split = run.train_data, run.config.data.train_split
    table = data.split_queries(split)
    rows = np.array([table.row[query_id] for query_id in run.positives()], np.int64)
    vectors_qd = np.asarray(run.open(name, data, f"queries-{split}")[:])[rows]
    return _dense(run, resume, vectors_qd, run.open(name, data, "passages"))


def _dense(run: Run, resume: epath.Path | None, queries_qd: np.ndarray, passages_nd) -> Ranker:
    return DenseRanker(
        run.searching.queries(queries_qd),
        run.searching.passages(passages_nd),
        run.searching.index,
        resume,
    )


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
