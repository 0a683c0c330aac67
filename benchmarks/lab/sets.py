"""A data set as cells read it: as it is, cut, with wrong positives, or with most of them hidden.

Labels that hide most positives are what mining meets in practice, and what is hidden here is
known: false negatives can be counted, and an oracle can be trained beside the rules. The visible
positive is drawn by a hash of query and passage id, the same for all seeds, so that all cells share
candidates.

A cut set is cheaper: an evaluation embeds the corpus and the test queries for every cell. What is
kept of it is drawn by a hash of ids, too.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from benchmarks.lab.grid import HIDDEN, DataSet, expanded
from nvret_jax.config import base
from nvret_jax.data.dataset import Dataset
from nvret_jax.data.hashing import stable_hash, uniform01
from nvret_jax.data.load import load_dataset
from nvret_jax.files.atomic import remove

_DONE = "content.txt"  # written last: the folder is whole


@dataclasses.dataclass(frozen=True)
class Made:
    """A data set that cells can read.

    Attributes:
        source: as `data.train`.
        hidden: a file of verdicts that names the hidden positives; None: nothing is hidden.
    """

    source: str
    hidden: pathlib.Path | None = None

    @property
    def places(self) -> dict[str, str]:
        """Stand-ins of a grid's values -> where they are."""
        found = {"source": self.source}
        return found if self.hidden is None else found | {HIDDEN: str(self.hidden)}


def hidden_positives(file: str | pathlib.Path) -> dict[str, set[str]]:
    """Query id -> its hidden positives, of a file that `make` wrote; '': none."""
    found: dict[str, set[str]] = {}
    for line in pathlib.Path(file).read_text().splitlines() if file else ():
        row = json.loads(line)
        found.setdefault(row["query_id"], set()).add(row["passage_id"])
    return found


def make(wanted: DataSet, folder: pathlib.Path) -> Made:
    """The data set; one that is not as its source is written to `folder`, if not yet there."""
    values = {"data.min_relevance": base().data.min_relevance} | dict(wanted.values)
    source = expanded(wanted.source)
    data = load_dataset(source)
    if not (wanted.visible or wanted.queries or wanted.passages or wanted.shuffled):
        return Made(source)
    split = values.get("data.train_split", "train")
    least = values["data.min_relevance"]
    content = f"{data.fingerprint} {split} {least}"
    if wanted.queries or wanted.passages:
        content += f" {sorted(wanted.queries.items())} {wanted.passages}"
    if wanted.shuffled:
        content += f" shuffled {wanted.shuffled}"
    hidden = folder / "hidden.jsonl" if wanted.visible else None
    content += "" if wanted.visible else " all visible"
    if not (folder / _DONE).exists() or (folder / _DONE).read_text() != content:
        remove(folder)
        kept = shuffled(cut(data, wanted.queries, wanted.passages), split, wanted.shuffled)
        shown = visible(kept.positives(split, least)) if wanted.visible else {}
        _write(kept, split, least, shown, folder)
        (folder / _DONE).write_text(content)
    return Made(f"beir:{folder}", hidden)


def cut(data: Dataset, queries: Mapping[str, int], passages: int) -> Dataset:
    """Some queries of the splits named, and some passages; see `grid.DataSet`."""
    qrels = {}
    for split, judged in data.qrels.items():
        ids = list(judged)
        kept = {ids[i] for i in _drawn(ids, queries.get(split, 0))}
        qrels[split] = {query: found for query, found in judged.items() if query in kept}
    wanted = {passage for judged in qrels.values() for row in judged.values() for passage in row}
    if passages:
        others = [i for i in data.corpus.ids if i not in wanted]
        wanted.update(others[i] for i in _drawn(others, max(1, passages - len(wanted))))
    else:
        wanted.update(data.corpus.ids)
    asked = {query for judged in qrels.values() for query in judged}
    return dataclasses.replace(
        data,
        corpus=data.corpus.select(i for i in data.corpus.ids if i in wanted),
        queries=data.queries.select(i for i in data.queries.ids if i in asked),
        qrels=qrels,
    )


def shuffled(data: Dataset, split: str, share: float) -> Dataset:
    """A share of a split's queries in a ring, each with the judgments of the next one."""
    ids = list(data.qrels[split])
    drawn = np.flatnonzero(uniform01(1, stable_hash(ids), stable_hash(ids)) < share)
    ring = [ids[i] for i in drawn[np.argsort(stable_hash([ids[i] for i in drawn]), kind="stable")]]
    moved = {
        query: data.qrels[split][other]
        for query, other in zip(ring, [*ring[1:], *ring[:1]], strict=True)
    }
    return dataclasses.replace(data, qrels={**data.qrels, split: {**data.qrels[split], **moved}})


def _drawn(ids: list[str], most: int) -> np.ndarray:
    """The numbers of those that are kept; 0: all."""
    order = np.argsort(stable_hash(ids), kind="stable")
    return order[: most or len(order)]


def visible(positives: Mapping[str, list[str]]) -> dict[str, str]:
    """Query id -> the one positive that stays visible."""
    chosen = {}
    for query, passages in positives.items():
        drawn = uniform01(0, stable_hash([query]), stable_hash(passages))
        chosen[query] = passages[int(np.argmin(drawn))]
    return chosen


def _write(
    data: Dataset, split: str, least: int, shown: Mapping[str, str], folder: pathlib.Path
) -> None:
    (folder / "qrels").mkdir(parents=True)
    for name, table in (("corpus", data.corpus), ("queries", data.queries)):
        rows = zip(table.ids, table.texts, strict=True)
        lines = [json.dumps({"_id": i, "title": "", "text": text}) for i, text in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    hidden = []
    for of, qrels in data.qrels.items():
        lines = ["query-id\tcorpus-id\tscore"]
        for query, judged in qrels.items():
            for passage, grade in judged.items():
                if of == split and shown.get(query, passage) != passage and grade >= least:
                    row = {"query_id": query, "passage_id": passage, "verdict": "remove"}
                    hidden.append(json.dumps(row))
                else:
                    lines.append(f"{query}\t{passage}\t{grade}")
        (folder / "qrels" / f"{of}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "hidden.jsonl").write_text("".join(line + "\n" for line in hidden))
