"""BRIGHT (Su et al. 2024), whose queries each leave some passages out.

Its repository on the Hugging Face hub has the configs `documents` (id, content) and `examples` (id,
query, gold_ids, excluded_ids), and in each a split per domain. The excluded passages of a query are
other forms of its source, which should not affect the score of a ranking.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etils import epath

from nvret_jax.data.dataset import Asked, Dataset
from nvret_jax.data.hub import find_configs
from nvret_jax.data.judged import read_judged
from nvret_jax.errors import InputError
from nvret_jax.files.records import Records, open_records

_NONE = "N/A"  # its word for an empty list


def read_bright(folder: epath.Path, domain: str) -> tuple[Dataset, dict[str, list[str]]]:
    """Reads one domain.

    Args:
        folder: of the repository.
        domain: such as 'biology'.

    Returns:
        The data set, its judgments under the split 'standard'; and for each query that has any, the
        ids of the excluded passages.

    Raises:
        InputError: the folder has no such domain, or whatever is wrong with its rows.
    """
    configs = find_configs(folder)
    for config in ("documents", "examples"):
        if domain not in configs.get(config, {}):
            raise InputError(f"{folder}: no {config} of the domain '{domain}'")

    def rows(config: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for file in configs[config][domain]:
            records = open_records(folder / file, f"{config} of BRIGHT")
            yield from records.read(records.names)

    examples = list(rows("examples"))
    excluded = {}
    for _, row in examples:
        found = [one for one in row.get("excluded_ids") or [] if one != _NONE]
        if found:
            excluded[str(row["id"])] = found

    def table(name: str, columns: list[str], made: Iterator[tuple[str, dict]]) -> Records:
        return Records(folder / name, columns, lambda names, mistakes: made)

    corpus = (
        (where, {"_id": str(row["id"]), "text": row["content"]}) for where, row in rows("documents")
    )
    queries = ((where, {"_id": str(row["id"]), "text": row["query"]}) for where, row in examples)
    judged = (
        (where, {"query-id": str(row["id"]), "corpus-id": passage, "score": 1})
        for where, row in examples
        for passage in dict.fromkeys(row["gold_ids"])
    )
    data = read_judged(
        f"bright-{domain}",
        [table("documents", ["_id", "text"], corpus)],
        [table("examples", ["_id", "text"], queries)],
        {"standard": [table("examples", ["query-id", "corpus-id", "score"], judged)]},
        Asked(),
    )
    row = data.corpus.row
    return data, {query: [p for p in found if p in row] for query, found in excluded.items()}
