"""Which test texts were trained on: equal to a training text, or nearly so.

A test query that was a training query, or a relevant passage that was a training positive, measures
memory. Both are counted, and the share is stated with every score of a run. Texts are equal by
their words (letter case, white space and marks aside, see `data.normalize`); near copies share most
of their word triples (`data.near_copies`), as do texts that are linked by such copies.

Passages that nothing asks for are not counted: a corpus shared by train and test is not a leak.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nvret_jax.data.dataset import Dataset
from nvret_jax.data.near_copies import Groups, join_near
from nvret_jax.data.normalize import normalize


@dataclasses.dataclass(frozen=True)
class Count:
    """Of the test texts of one kind, how many are training texts too.

    Attributes:
        texts: how many there are.
        equal: those that equal a training text.
        near: those that do not and are near copies of one.
        ids: of both.
    """

    texts: int
    equal: int
    near: int
    ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """The overlap of a test split with training data.

    Attributes:
        train, test: what was compared, as 'name split'.
        queries: of all judged queries.
        passages: of all relevant passages.
    """

    train: str
    test: str
    queries: Count
    passages: Count

    def line(self) -> str:
        """For people."""
        found = []
        for what, count in (("queries", self.queries), ("relevant passages", self.passages)):
            same = f"{count.equal:,} equal and {count.near:,} near"
            found.append(f"{same} of {count.texts:,} {what}")
        return f"overlap of {self.test} with {self.train}: {'; '.join(found)}"

    def sentence(self) -> str:
        """For a page, after the name of the data set."""
        told = []
        for what, count in (("queries", self.queries), ("relevant passages", self.passages)):
            if count.equal + count.near:
                same = f"{count.equal:,} equal one of training and {count.near:,} are near copies"
                told.append(f"of {count.texts:,} {what}, {same}")
        found = "; ".join(told) or "no query and no relevant passage is one of training, or near it"
        return f"{self.test}, compared with {self.train}: {found}."

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    def counts(self) -> dict[str, Any]:
        """For JSON, without ids."""
        record = self.record()
        for name in ("queries", "passages"):
            del record[name]["ids"]
        return record

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Overlap:
        """That of a record."""
        counts = {
            name: Count(**{**record[name], "ids": tuple(record[name]["ids"])})
            for name in ("queries", "passages")
        }
        return cls(record["train"], record["test"], **counts)


def overlap(
    train: Dataset,
    test: Dataset,
    *,
    train_split: str = "train",
    test_split: str = "test",
    min_relevance: int = 1,
    test_min_relevance: int = 1,
) -> Overlap:
    """Counts what a test split has in common with what is trained on.

    Args:
        train, test: data sets, perhaps the same.
        train_split, test_split: of them.
        min_relevance, test_min_relevance: the lowest judgment that makes a passage positive.

    Raises:
        InputError: no such split, or it has no positive.
    """
    trained = train.positives(train_split, min_relevance)
    judged = test.positives(test_split, test_min_relevance)
    sides = []
    for data, positives in ((train, trained), (test, judged)):
        queries = data.queries.select(positives)
        passages = data.corpus.select(dict.fromkeys(itertools.chain(*positives.values())))
        sides.append((queries, passages))
    (train_queries, train_passages), (test_queries, test_passages) = sides
    return Overlap(
        f"{train.name} {train_split}",
        f"{test.name} {test_split}",
        _count(train_queries.texts, test_queries.texts, test_queries.ids),
        _count(train_passages.texts, test_passages.texts, test_passages.ids),
    )


def _count(train: Sequence[str], test: Sequence[str], ids: Iterable[str]) -> Count:
    known = {normalize(text) for text in train}
    equal = [normalize(text) in known for text in test]
    groups = Groups(len(train) + len(test))
    groups.join_first(len(train))  # what links two training texts does not matter
    join_near(itertools.chain(train, test), groups)
    linked = groups.names()[len(train) :] == 0
    near = [not same and bool(joined) for same, joined in zip(equal, linked, strict=True)]
    found = tuple(i for i, a, b in zip(ids, equal, near, strict=True) if a or b)
    return Count(len(test), sum(equal), sum(near), found)
