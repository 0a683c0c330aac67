"""A smaller data set of the same kind, for smoke runs: the first queries, the judged passages."""

from __future__ import annotations

from collections.abc import Sequence

from nvret_jax.artifacts.fingerprints import digest
from nvret_jax.data.dataset import Dataset, Given, Qrels


def subset(
    dataset: Dataset, splits: Sequence[str], *, max_queries: int = 0, max_passages: int = 0
) -> Dataset:
    """Keeps the first `max_queries` judged queries of each split and `max_passages` passages.

    Passages judged for a kept query come first, whatever the limit, then others in corpus order;
    all keep their order. 0 keeps everything.
    """
    if not max_queries and not max_passages:
        return dataset
    qrels, wanted_queries, wanted = {}, set(), set()
    for split in splits:
        ids = dataset.split_queries(split).ids
        ids = ids[:max_queries] if max_queries else ids
        qrels[split] = {query_id: dataset.qrels[split][query_id] for query_id in ids}
        wanted_queries.update(ids)
        for judged in qrels[split].values():
            wanted.update(judged)
    limit = max_passages or len(dataset.corpus)
    for passage_id in dataset.corpus.ids:
        if len(wanted) >= limit:
            break
        wanted.add(passage_id)

    return Dataset(
        name=dataset.name,
        corpus=dataset.corpus.select(i for i in dataset.corpus.ids if i in wanted),
        queries=dataset.queries.select(i for i in dataset.queries.ids if i in wanted_queries),
        qrels=qrels,
        fingerprint=digest([dataset.fingerprint, list(splits), max_queries, max_passages]),
        given=_given(dataset.given, qrels, wanted),
    )


def _given(given: Given, qrels: dict[str, Qrels], wanted: set[str]) -> Given:
    """Given negatives of the kept queries, as far as they are among the kept passages."""
    return {
        split: {
            query: tuple(passage for passage in of_split[query] if passage in wanted)
            for query in qrels[split]
            if query in of_split
        }
        for split, of_split in given.items()
        if split in qrels
    }
