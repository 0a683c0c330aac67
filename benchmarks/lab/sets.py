"""A data set as cells read it: as it is, or with one positive of each training query left visible.

Labels that hide most positives are what mining meets in practice, and what is hidden here is
known: false negatives can be counted, and an oracle can be trained beside the rules. The visible
positive is drawn by a hash of query and passage id, the same for all seeds, so that all cells share
candidates.
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
    """The data set; one with hidden positives is written to `folder` unless it is there whole."""
    values = {"data.min_relevance": base().data.min_relevance} | dict(wanted.values)
    source = expanded(wanted.source)
    data = load_dataset(source)
    if not wanted.visible:
        return Made(source)
    split = values.get("data.train_split", "train")
    least = values["data.min_relevance"]
    content = f"{data.fingerprint} {split} {least}"
    hidden = folder / "hidden.jsonl"
    if not (folder / _DONE).exists() or (folder / _DONE).read_text() != content:
        remove(folder)
        _write(data, split, least, folder)
        (folder / _DONE).write_text(content)
    return Made(f"beir:{folder}", hidden)


def visible(positives: Mapping[str, list[str]]) -> dict[str, str]:
    """Query id -> the one positive that stays visible."""
    chosen = {}
    for query, passages in positives.items():
        drawn = uniform01(0, stable_hash([query]), stable_hash(passages))
        chosen[query] = passages[int(np.argmin(drawn))]
    return chosen


def _write(data: Dataset, split: str, least: int, folder: pathlib.Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    for name, table in (("corpus", data.corpus), ("queries", data.queries)):
        rows = zip(table.ids, table.texts, strict=True)
        lines = [json.dumps({"_id": i, "title": "", "text": text}) for i, text in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    shown = visible(data.positives(split, least))
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
