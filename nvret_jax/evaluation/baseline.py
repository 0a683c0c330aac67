"""BM25 on the queries of an evaluation: the baseline that an encoder has to beat.

It is ranked and scored like an encoder: the whole corpus, the same depth, the same passages left
out, the same order among ties. Its defaults are those of BM25 as a teacher.
"""

from __future__ import annotations

import numpy as np

from nvret_jax.data.dataset import Dataset
from nvret_jax.evaluation.options import EvaluationOptions
from nvret_jax.evaluation.retrieval import Evaluation, evaluate_ranking, scored_queries
from nvret_jax.search.rankers.bm25 import Bm25Ranker

# Passages up to which 'auto' ranks them: some twenty seconds and 1 GB on one core.
CHEAP = 200_000


def is_wanted(options: EvaluationOptions, passages: int) -> bool:
    """Whether BM25 is ranked for a corpus of this many passages."""
    return options.bm25 == "on" or (options.bm25 == "auto" and passages <= CHEAP)


def evaluate_bm25(
    dataset: Dataset, split: str, options: EvaluationOptions, *, progress: bool = False
) -> Evaluation:
    """Ranks the corpus of a data set by BM25 for the judged queries of a split, and scores that.

    Args:
        dataset: the queries and the corpus.
        split: of its judgments.
        options: depth, which judgments are relevant, and whether a query's own passage counts.
        progress: show a bar.

    Raises:
        InputError: no query shares a word with the corpus, or as `evaluate_ranking`.
    """
    _, texts = scored_queries(dataset, split, options.min_relevance)
    ranker = Bm25Ranker(texts, dataset.corpus.texts)

    def rank(k: int, exclude) -> tuple[np.ndarray, np.ndarray]:
        return ranker.rank(np.arange(len(texts)), k, exclude=exclude, progress=progress)

    return evaluate_ranking(
        dataset,
        split,
        rank,
        k=options.depth,
        min_relevance=options.min_relevance,
        exclude_self=options.exclude_self,
    )
