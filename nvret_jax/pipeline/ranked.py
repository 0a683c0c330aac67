"""From a teacher to its candidates, and to a ranker for passages beyond them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from etils import epath

from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.artifacts.fingerprints import Digest
from nvret_jax.mining.negatives import RESCORER
from nvret_jax.pipeline import embed, exclusions
from nvret_jax.pipeline import parts as parts_lib
from nvret_jax.pipeline.inputs import need
from nvret_jax.pipeline.state import Run, once
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers import teachers
from nvret_jax.search.rankers.distinct import distinct
from nvret_jax.search.rankers.ranker import DenseRanker, ListRanker, Ranker


def depth(run: Run) -> int:
    """Candidates stored per query: as configured, or the number that mining needs."""
    return max(run.config.search.depth, run.options.window)


@once
def artifact(run: Run, name: str) -> Artifact:
    """One teacher's best passages for every training query."""
    parts = {
        **_ranking_parts(run, name),
        "positives": parts_lib.judgments_part(run.positives(), test=False),
        "search.depth": depth(run),
    }
    return run.workdir.candidates(name, parts, run.about)


def _ranking_parts(run: Run, name: str) -> dict[str, Any]:
    """What a teacher's ranking of the training queries depends on, apart from positives."""
    data, tables = run.train_data, {"passages": "passages"}
    tables["queries"] = f"queries-{run.config.data.train_split}"
    if name in run.encoders:
        made = {what: embed.artifact(run, name, data, table) for what, table in tables.items()}
        return made | run.searching.parts()
    found = teachers.parts(
        "teacher" if name == "teacher" else f"teachers.{name}",
        run.block(name),
        {what: run.texts(data, table) for what, table in tables.items()},
        seed=run.config.seed,
        same_text=run.exclusions.same_text,
    )
    by_vectors = teachers.has_vectors(run.block(name).model)
    return found | (run.searching.parts(stored="") if by_vectors else {})


@once
def rescored(run: Run, name: str) -> Artifact | None:
    """One teacher's candidates with the rescorer's scores; None without one."""
    if run.rescorer is None or not run.rescorer.is_needed(run.options, run.mining.compat):
        return None
    parts = {"candidates": artifact(run, name), **run.rescorer.parts()}
    if run.config.rescorer.order == "teacher":
        parts |= parts_lib.mining_parts(run.options, run.config) | exclusions.parts(run)
    else:
        parts["mining.exclude.same_text"] = run.exclusions.same_text
    return run.workdir.candidates(f"{name}.rescored", parts, run.about)


def mined_from(run: Run) -> dict[str, Any]:
    """The inputs of a rule as parts: candidates, options of mining, exclusions."""
    found = {
        f"candidates {name}": rescored(run, name) or artifact(run, name)
        for name in run.teacher_names
    }
    found["mining.teachers"] = list(run.teacher_names)
    return found | parts_lib.mining_parts(run.options, run.config) | exclusions.parts(run)


def targets_from(run: Run) -> dict[str, Any]:
    """What the scores that distillation fits depend on, as parts, besides what mining does."""
    found: dict[str, Any] = {}
    for name in run.mining.targets:
        of = run.rescorer.parts() if name == RESCORER else _ranking_parts(run, name)
        for key, value in of.items():
            own = isinstance(value, Digest) or hasattr(value, "fingerprint")
            found[f"target {name} {key}" if own else key] = value
    return found | {"mining.targets": list(run.mining.targets)} if found else {}


def read_candidates(run: Run, name: str) -> Candidates:
    """Finished candidates."""
    data = run.train_data
    return Candidates.read(need(artifact(run, name)).path, data.queries, data.corpus)


def task(run: Run, name: str, resume: epath.Path | None = None) -> teachers.Task:
    """The task of a teacher: to rank the corpus for the training queries that have a positive.

    Args:
        name: of the teacher.
        resume: where streamed searches save their progress.
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
    vectors_qd = np.asarray(embed.opened(run, name, data, f"queries-{split}")[:])[rows]
    return _dense(run, resume, vectors_qd, embed.opened(run, name, data, "passages"))


def _dense(run: Run, resume: epath.Path | None, queries_qd: np.ndarray, passages_nd) -> Ranker:
    return DenseRanker(
        run.searching.queries(queries_qd),
        run.searching.passages(passages_nd),
        run.searching.index,
        resume,
    )


def ranked(run: Run, made: Artifact, name: str) -> tuple[Candidates, Ranker]:
    """Candidates and ranker of one teacher over the training queries, each text once.

    Args:
        made: the artefact being made, in whose unfinished folder streamed searches save their
            progress.
        name: of the teacher.
    """
    scored = rescored(run, name)
    if scored is None:
        candidates = read_candidates(run, name)
        ranker = open_ranker(run, name, made.partial / "lists")
        return distinct(candidates, ranker, run.passage_texts)
    data = run.train_data
    candidates = Candidates.read(need(scored).path, data.queries, data.corpus)

    def score_pairs(pairs: np.ndarray) -> np.ndarray:  # loads the model only on demand
        return run.rescorer.score_pairs(pairs)

    return candidates, ListRanker(candidates.query_rows, len(data.corpus), score_pairs)
