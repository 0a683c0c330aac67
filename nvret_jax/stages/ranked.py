"""A teacher's candidates, rescored where that is configured, and what ranks beyond them."""

from __future__ import annotations

import numpy as np

from nvret_jax import teachers
from nvret_jax.artifacts import Artifact
from nvret_jax.run import Run
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.distinct import distinct
from nvret_jax.search.ranker import ListRanker, Ranker


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
        ranker = teachers.open_ranker(run, name, artifact.partial / "lists")
        return distinct(candidates, ranker, run.passage_texts)
    data = run.train_data
    candidates = Candidates.read(run.need(rescored).path, data.queries, data.corpus)

    def score_pairs(pairs: np.ndarray) -> np.ndarray:  # loads the model only if it is asked
        return run.rescorer.score_pairs(pairs)

    return candidates, ListRanker(candidates.query_rows, len(data.corpus), score_pairs)
