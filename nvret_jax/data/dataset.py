"""The definition of a retrieval dataset; `load.py` reads one.

A dataset is a corpus of passages, a table of queries, and per split the judgments (qrels) that
tie them together. Choices:

- Text is held in memory up to a bound, and beyond it in a memory-mapped file (`mapped`). Everything
  downstream refers to passages and queries by id or by row number.
- The order of rows is the order of the source, and every derived list has a stated order, so two
  runs over the same files agree to the last bit.
- `fingerprint` is a hash of the content, never of paths or times: a moved folder is the same data.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nvret_jax.data.mapped import IdRows
from nvret_jax.errors import InputError
from nvret_jax.files.numbers import shown

MISSING = ("error", "drop")  # judgments of missing queries or passages
_HASHED = 4096  # strings hashed at a time

Qrels = dict[str, dict[str, int]]  # query id -> passage id -> relevance
# split -> query id -> ids of the source's negatives, in its order
Given = dict[str, dict[str, tuple[str, ...]]]


@dataclass(frozen=True)
class TextTable:
    """Ids and texts, row by row.

    Attributes:
        ids: unique, in source order; a tuple, or `MappedTexts` for a large corpus.
        texts: as many strings.
    """

    ids: Sequence[str]
    texts: Sequence[str]

    def __post_init__(self):
        if len(self.ids) != len(self.texts):
            raise ValueError(f"{len(self.ids)} ids for {len(self.texts)} texts")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"TextTable({len(self):,} texts)"

    @functools.cached_property
    def row(self) -> Mapping[str, int]:
        """id -> row number."""
        if not isinstance(self.ids, tuple):
            return IdRows(self.ids)
        return {identifier: row for row, identifier in enumerate(self.ids)}

    def select(self, ids: Iterable[str]) -> TextTable:
        """The rows of these ids, in the given order."""
        ids = tuple(ids)
        return TextTable(ids, [self.texts[self.row[identifier]] for identifier in ids])


@dataclass(frozen=True)
class Dataset:
    """A corpus, its queries and the judgments of some splits.

    Attributes:
        name: short and safe in a file name, e.g. 'scifact'.
        corpus: passages; title and text are already one string.
        queries: the queries of all splits.
        qrels: split -> query id -> passage id -> relevance (0 = judged and not relevant).
        fingerprint: sha256, hex, of the content; see `content_hash`.
        given: negatives that the source has for queries of a split.
    """

    name: str
    corpus: TextTable
    queries: TextTable
    qrels: dict[str, Qrels]
    fingerprint: str
    given: Given = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = [f"{split} {len(judged):,}" for split, judged in self.qrels.items()]
        splits = ", ".join(shown[:6] + ["…"] * (len(shown) > 6))
        return (
            f"Dataset({self.name!r}: {len(self.corpus):,} passages, {len(self.queries):,} queries; "
            f"judged queries per split: {splits or 'none'})"
        )

    def split_qrels(self, split: str) -> Qrels:
        """The judgments of one split.

        Raises:
            InputError: the dataset has no such split, or it was not loaded.
        """
        if split not in self.qrels:
            known = ", ".join(self.qrels) or "none"
            hint = ""
            if [*self.qrels] == ["train"]:
                hint = f"; for a source of pairs, '?{split}=0.1' draws one from its queries"
            raise InputError(
                f"dataset '{self.name}': no split '{split}'; loaded splits: {known}"
                + (hint if split in ("dev", "test") else "")
            )
        return self.qrels[split]

    def split_queries(self, split: str) -> TextTable:
        """Queries with at least one judgment in `split`, in the order of `queries`."""
        judged = self.split_qrels(split)
        return self.queries.select(query for query in self.queries.ids if query in judged)

    def positives(self, split: str, min_relevance: int = 1) -> dict[str, list[str]]:
        """Passages judged relevant, for each query of `split` that has any.

        Args:
            split: name of a loaded split.
            min_relevance: the lowest relevance that counts as positive.

        Returns:
            query id -> passage ids, most relevant first and in corpus order among equals. Queries
            are in the order of `queries`; those without a positive are left out.

        Raises:
            InputError: the split is unknown, or no judgment in it reaches `min_relevance`.
        """
        qrels = self.split_qrels(split)
        row = self.corpus.row
        found = {}
        for query in self.queries.ids:
            judged = qrels.get(query, {})
            passages = [passage for passage, grade in judged.items() if grade >= min_relevance]
            if passages:
                found[query] = sorted(passages, key=lambda p, j=judged: (-j[p], row[p]))
        if not found:
            raise InputError(
                f"dataset '{self.name}', split '{split}': no judgment of relevance "
                f">= {min_relevance}, so there is no positive"
            )
        return found


def split_name(text: str) -> str:
    """The name of a split, which becomes part of names of files.

    Raises:
        ValueError: it is longer than 100 bytes, or has a slash or a NUL.
    """
    if len(text.encode("utf-8", "surrogatepass")) > 100 or set(text) & set("/\\\0"):
        raise ValueError(f"a name of at most 100 bytes without a slash, got {shown(text)}")
    return text


def safe_name(text: str) -> str:
    """`text` as a file name: lower case, anything but letters, digits, '.', '_' and '-' a '-'."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.") or "dataset"


def content_hash(
    corpus: TextTable,
    queries: TextTable,
    qrels: dict[str, Qrels],
    *,
    extra: Sequence[str] = (),
    given: Given | None = None,
) -> str:
    """sha256, hex, of the whole content of the dataset.

    The order of corpus and queries counts (it breaks ties), and that of given negatives; the order
    of judgments and of splits does not. Each string is preceded by its length, so no two contents
    share a byte stream.
    """
    digest = hashlib.sha256()

    def add(strings: Iterable[str], count: int) -> None:
        digest.update(b"%d;" % count)
        strings = iter(strings)
        while block := list(itertools.islice(strings, _HASHED)):
            found = []
            for string in block:
                data = string.encode("utf-8", "surrogatepass")
                found.append(b"%d:" % len(data))
                found.append(data)
            digest.update(b"".join(found))

    add(extra, len(extra))
    for table in (corpus, queries):
        add(table.ids, len(table.ids))
        add(table.texts, len(table.texts))
    for split in sorted(qrels):
        add([split], 1)
        add(
            (
                f"{query}\t{passage}\t{grade}"
                for query, judged in sorted(qrels[split].items())
                for passage, grade in sorted(judged.items())
            ),
            sum(map(len, qrels[split].values())),
        )
    for split, of_split in sorted(given.items()) if given else ():
        add(["given", split], 2)
        for query, passages in sorted(of_split.items()):
            add((query, *passages), 1 + len(passages))
    return digest.hexdigest()


@dataclass(frozen=True)
class Asked:
    """What a caller of `load_dataset` requests from a source.

    Attributes:
        splits: those whose judgments are read; None: all.
        allow_empty: keep texts that are blank.
        missing: 'error', or 'drop' to leave out references to missing texts.
        download: whether a source may use the network.
    """

    splits: Sequence[str] | None = None
    allow_empty: bool = False
    missing: str = "error"
    download: bool = False

    @property
    def drop(self) -> bool:
        """Whether references to missing texts are left out."""
        return self.missing == "drop"
