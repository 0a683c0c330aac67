"""The options of an evaluation."""

from __future__ import annotations

import dataclasses

from nvret_jax.data.options import GRADE
from nvret_jax.options import choice, flag, option, whole

BM25 = ("auto", "on", "off")


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """How rankings are made and scored."""

    depth: int = option(
        100,
        whole(100, 1_000_000, "passages; recall_100 and ndcg_cut_100 need 100"),
        "Passages retrieved per query; recall@100 needs 100.",
    )
    min_relevance: int = option(
        1, GRADE, "Judgments from this grade on count as relevant; lower ones gain nothing."
    )
    exclude_self: bool = option(
        True, flag(), "Leave the passage with the query's own id out of its ranking, as BEIR does."
    )
    bm25: str = option(
        "auto",
        choice(*BM25),
        "Whether BM25 is scored on the same queries, beside the student. auto: on a corpus of at "
        "most 200,000 passages.",
        counts=False,  # it has an artefact for itself
    )
    teacher_passages: bool = option(
        False,
        flag(),
        "Also score the student's queries with the passages of the guide, the first teacher that "
        "is an encoder (asymmetric retrieval); needs vectors of one width.",
        counts=lambda own: own.teacher_passages,
    )
