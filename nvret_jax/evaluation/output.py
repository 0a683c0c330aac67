"""Runs and evaluations as files: the six-column TREC run, and the JSON of an evaluation.

Tools sort a TREC run by score (trec_eval as float32) and ignore its ranks, so tied scores are
lowered by single float32 steps (`retrieval.strict_scores`): any tool sees our order.
`files.runs` writes the lines, and reads them. Files appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from nvret_jax.artifacts import artifact
from nvret_jax.errors import InputError
from nvret_jax.evaluation.retrieval import Evaluation, as_run
from nvret_jax.files import runs

# What is beside the scores of a data set, by how the file's name ends.
BM25, OVERLAP = ".bm25.json", ".overlap.json"


def evaluation_files(folder: epath.Path) -> list[epath.Path]:
    """The files with a student's scores in a folder, by data set."""
    files = sorted(folder.glob("*.json")) if folder.exists() else []
    return [path for path in files if not path.name.endswith((BM25, OVERLAP))]


def write_trec_run(
    path: epath.PathLike,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    scores_qk: np.ndarray,
    rows_qk: np.ndarray,
    tag: str = "nvret_jax",
) -> None:
    """Writes search results as a TREC run, in their order.

    Args:
        path: the file; it is replaced whole.
        query_ids: Q ids.
        passage_ids: the corpus' ids, by row number.
        scores_qk, rows_qk: [Q, k] as `search` returns them; id -1 writes no line.
        tag: the last column, one word.

    Raises:
        InputError: an id or the tag is empty or holds white space (the format cannot carry it).
    """
    run = as_run(query_ids, passage_ids, scores_qk, rows_qk)
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    runs.write_run(run, path, "trec", tag=tag)


def write_evaluation_json(
    path: epath.PathLike, evaluation: Evaluation, extra: Mapping[str, Any] | None = None
) -> None:
    """Writes the scores of an evaluation as one JSON object.

    Keys: dataset, split, each metric under its trec name, the counts, then `extra` (for example
    the encoder's name and fingerprint), then per_query: {query id: {metric: value}}.

    Raises:
        InputError: a key of `extra` that the evaluation itself writes.
    """
    record: dict[str, Any] = {
        "dataset": evaluation.dataset,
        "split": evaluation.split,
        **evaluation.metrics,
        **evaluation.counts,
    }
    taken = sorted((record.keys() | {"per_query"}) & (extra or {}).keys())
    if taken:
        raise InputError(f"{path}: extra key {taken[0]!r} would replace the evaluation's own")
    record |= {**(extra or {}), "per_query": evaluation.per_query}
    artifact.write_atomic(
        path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
