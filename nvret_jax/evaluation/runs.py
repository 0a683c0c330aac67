"""Runs and evaluations as files: the six-column TREC run, and the JSON of an evaluation.

A TREC run line is `query-id Q0 passage-id rank score tag`, rank from 1. Tools sort it by score
(trec_eval as float32) and ignore the rank, so tied scores are lowered by single float32 steps
(`retrieval.strict_scores`) and printed with the nine digits that give the same float32 back: any
tool sees our order. Files appear whole or not at all: written aside, then renamed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from nvret_jax import artifacts
from nvret_jax.errors import InputError
from nvret_jax.evaluation.retrieval import Evaluation, as_run


def write_trec_run(
    path: epath.PathLike,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    scores_qk: np.ndarray,
    ids_qk: np.ndarray,
    tag: str = "nvret_jax",
) -> None:
    """Writes search results as a TREC run, in their order.

    Args:
        path: the file; it is replaced whole.
        query_ids: Q ids.
        passage_ids: the corpus' ids, by row number.
        scores_qk, ids_qk: [Q, k] as `search` returns them; id -1 writes no line.
        tag: the last column, one word.

    Raises:
        InputError: an id or the tag is empty or holds white space (the format cannot carry it).
    """
    run = as_run(query_ids, passage_ids, scores_qk, ids_qk)
    _check_word(tag, "tag")
    lines = []
    for query_id, hits in run.items():
        _check_word(query_id, "query id")
        for rank, (passage_id, score) in enumerate(hits.items(), start=1):
            _check_word(passage_id, "passage id")
            lines.append(f"{query_id} Q0 {passage_id} {rank} {score:.9g} {tag}\n")
    artifacts.write_atomic(path, "".join(lines))


def read_trec_run(path: epath.PathLike) -> dict[str, dict[str, float]]:
    """A TREC run as {query id: {passage id: score}}, in the order of the file.

    Raises:
        InputError: no such file, or a bad line, named as file:line: not six columns, a rank that
            is no whole number, a score that is no finite number, a passage twice for one query.
    """
    path = epath.Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such run file")
    run: dict[str, dict[str, float]] = {}
    with path.open("r", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            columns = line.split()
            if not columns:
                continue
            where = f"{path}:{number}"
            if len(columns) != 6:
                raise InputError(
                    f"{where}: {len(columns)} columns, expected 6 (query Q0 passage rank score tag)"
                )
            query_id, _, passage_id, rank, score, _ = columns
            try:
                int(rank)
            except ValueError:
                raise InputError(f"{where}: rank {rank!r} is not a whole number") from None
            try:
                value = float(score)
            except ValueError:
                raise InputError(f"{where}: score {score!r} is not a number") from None
            if not math.isfinite(value):
                raise InputError(f"{where}: score {score!r} is not a finite number")
            hits = run.setdefault(query_id, {})
            if passage_id in hits:
                raise InputError(f"{where}: passage {passage_id!r} again for query {query_id!r}")
            hits[passage_id] = value
    return run


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
    artifacts.write_atomic(
        path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


def _check_word(word: str, what: str) -> None:
    if len(word.split()) != 1 or word != word.strip():
        raise InputError(f"{what} {word!r}: a TREC run separates columns by spaces; give one word")
