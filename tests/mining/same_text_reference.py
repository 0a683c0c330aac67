"""Random corpora with repeated texts, and what is mined from them, text by text."""

import numpy as np

from nvret_jax.data.normalize import normalize

# One text in several spellings.
SPELLINGS = ("topic {}", "Topic {}.", "topic  {} !")


def corpus(seed, queries=7, passages=24, texts=10):
    """Queries and passages of few texts, positives, and unit vectors, equal for equal texts."""
    rng = np.random.default_rng(seed)

    def some(count, kinds, first):
        numbers = first + rng.integers(0, kinds, count)
        spellings = rng.integers(0, len(SPELLINGS), count)
        return [SPELLINGS[s].format(n) for s, n in zip(spellings, numbers, strict=True)], numbers

    passage_texts, p = some(passages, texts, 0)
    query_texts, q = some(queries, queries - 2, texts - 2)  # two of them may be passages, too
    positives = [rng.choice(passages, rng.integers(1, 3), replace=False).tolist() for _ in q]
    vectors = rng.normal(size=(2 * texts + queries, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return query_texts, passage_texts, positives, vectors[texts + q], vectors[p]


def known_texts(query_texts, passage_texts, positives):
    """For each query the texts that are no negatives: of positives of equal queries, its own."""
    by_query = {}
    for query, rows in zip(query_texts, positives, strict=True):
        by_query.setdefault(normalize(query), set()).update(
            normalize(passage_texts[r]) for r in rows
        )
    return [by_query[normalize(query)] | {normalize(query)} for query in query_texts]


def mined(query_texts, passage_texts, positives, queries_qd, passages_nd, percent, count):
    """The texts of the negatives of each query by perc_pos, hardest first, each text once."""
    known = known_texts(query_texts, passage_texts, positives)
    equal = {}
    for query, rows in zip(query_texts, positives, strict=True):
        equal.setdefault(normalize(query), []).extend(rows)
    out = []
    for b, query in enumerate(query_texts):
        scores = (passages_nd @ queries_qd[b]).astype(np.float64)
        anchor = min(scores[row] for row in equal[normalize(query)])
        ceiling = anchor - abs(anchor) * (1 - percent)
        best = {}
        for row, text in enumerate(map(normalize, passage_texts)):
            best[text] = max(best.get(text, -np.inf), scores[row])
        allowed = [t for t in best if t not in known[b] and best[t] < ceiling - 1e-6]
        out.append(sorted(allowed, key=lambda text: -best[text])[:count])
    return out
