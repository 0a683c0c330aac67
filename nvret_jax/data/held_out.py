"""A dev split where the data have none: some of the training queries, held out from training.

They are drawn as `splits` draws: no passage, no equal text and no near copy is on both sides. What
is drawn follows from the training queries alone, whatever part of them a run uses.
"""

from __future__ import annotations

import dataclasses

from nvret_jax.artifacts.fingerprints import digest
from nvret_jax.data import splits
from nvret_jax.data.dataset import Dataset
from nvret_jax.errors import InputError
from nvret_jax.mesh import say

LEAST = 10  # queries; the mean of fewer says next to nothing


def hold_out(dataset: Dataset, split: str, dev: str, share: float) -> Dataset:
    """The data set with a dev split of held-out training queries; prints how many there are.

    Args:
        dataset: it has no split `dev`.
        split: that is trained on.
        dev: the name of the new split.
        share: of the queries of `split`, above 0 and below 1.

    Returns:
        The same data set where fewer than `LEAST` queries would be held out, or where the queries
        cannot be separated; says so.
    """
    qrels = dataset.split_qrels(split)
    relevant = {
        query: [passage for passage, grade in judged.items() if grade > 0]
        for query, judged in qrels.items()
    }
    asked = [query for query, passages in relevant.items() if passages]
    if round(share * len(asked)) < LEAST:
        say(
            f"data      no dev split: {share:.0%} of {len(asked):,} training queries are fewer "
            f"than {LEAST}, too few to guide training"
        )
        return dataset
    place: dict[str, int] = {}
    rows = [[place.setdefault(p, len(place)) for p in relevant[query]] for query in asked]
    queries, corpus = dataset.queries, dataset.corpus
    try:
        drawn = splits.draw(
            [queries.texts[queries.row[query]] for query in asked],
            [corpus.texts[corpus.row[passage]] for passage in place],
            rows,
            splits.Shares(dev=share, test=0.0),
            dataset.name,
        )
    except InputError as error:
        why = str(error).partition(";")[0]  # what follows is advice on options of a source
        say(f"data      no dev split is held out: {why}")
        return dataset
    held = {query for query, found in zip(asked, drawn, strict=True) if found == splits.DEV}
    say(
        f"data      {dataset.name} has no split '{dev}': {len(held):,} of {len(qrels):,} training "
        "queries are held out for it (data.dev_share)"
    )

    def parted(of_split: dict) -> dict[str, dict]:
        return {
            split: {query: found for query, found in of_split.items() if query not in held},
            dev: {query: found for query, found in of_split.items() if query in held},
        }

    given = dict(dataset.given)
    if split in given:
        given |= parted(given[split])
    return dataclasses.replace(
        dataset,
        qrels=dataset.qrels | parted(qrels),
        given=given,
        fingerprint=digest([dataset.fingerprint, split, dev, share]),
    )
