"""nDCG@10 on dev queries over a corpus small enough to embed repeatedly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from nvret_jax.data.dataset import Dataset
from nvret_jax.evaluation import retrieval
from nvret_jax.models.encoder import Encoder


@dataclasses.dataclass(frozen=True)
class Dev:
    """A dev evaluation: dev queries over a small corpus.

    Attributes:
        data: the queries and the corpus that passages are taken from.
        split: of the dev queries.
        min_relevance: judgments from this grade on count.
        passages, queries: largest numbers; 0: all.
        lengths: tokens that the student keeps, by kind of text.
        backend: of the search.
        hard: (ids of queries, depth) -> rows of passages that are hard for them, the hardest first.
    """

    data: Dataset
    split: str
    min_relevance: int
    passages: int
    queries: int
    lengths: Mapping[str, int]
    backend: str
    hard: Callable[[Sequence[str], int], Iterable[int]]

    def score(self) -> Callable[[Encoder], float]:
        """nDCG@10 on some dev queries over a corpus small enough to embed repeatedly."""
        qrels = self.data.qrels[self.split]
        ids = list(self.data.positives(self.split, self.min_relevance))[: self.queries or None]
        corpus = self.data.corpus
        if self.passages and self.passages < len(corpus):
            wanted = dict.fromkeys(corpus.row[p] for i in ids for p in qrels[i])
            for row in self.hard(ids, max(10, self.passages // len(ids))):
                if len(wanted) >= self.passages:
                    break
                wanted.setdefault(row)
            corpus = corpus.select(corpus.ids[row] for row in sorted(wanted))
        small = Dataset(
            name=f"{self.data.name}-dev",
            corpus=corpus,
            queries=self.data.queries.select(ids),
            qrels={self.split: {i: qrels[i] for i in ids}},
            fingerprint="",
        )

        def embedded(encoder: Encoder, kind: str, texts: Sequence[str]) -> np.ndarray:
            # At the lengths of training; the share that is cut was stated before it.
            return encoder.encode(texts, kind=kind, max_length=self.lengths[kind], warn=False)

        def score(encoder: Encoder) -> float:
            result = retrieval.evaluate(
                encoder,
                small,
                self.split,
                min_relevance=self.min_relevance,
                passage_embeddings=embedded(encoder, "passage", corpus.texts),
                query_embeddings=embedded(encoder, "query", small.queries.texts),
                backend=self.backend,
            )
            return result.metrics["ndcg_cut_10"]

        return score
