"""The lengths of a config's own texts, to plan a training step at its real widths.

A run plans its widths from the batches of its stage (`training.batches.length_groups`). Here the
batches are drawn from the same queries with their positives, and from random passages of the corpus
in place of negatives, which are not yet mined. Only text and a tokenizer are read.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nvret_jax.config.sets import MAIN_SET, set_config
from nvret_jax.data.dataset import Dataset
from nvret_jax.data.reading import read_wanted
from nvret_jax.errors import InputError
from nvret_jax.models.tokenize import ModelTokenizer, TextTokens
from nvret_jax.plan.models import Sketch
from nvret_jax.training.batches.length_groups import Grouped, Plan

SAMPLED = 4096  # texts of a kind that are tokenised


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of a sample of a stage's training texts, limited to the stage's lengths.

    Attributes:
        examples: number of training queries.
        query: int [queries].
        positive: int [queries], of the first positive of each.
        passage: int [passages], of random ones of the corpus.
        longest: by side, of the longest text that a batch may have.
    """

    examples: int
    query: np.ndarray
    positive: np.ndarray
    passage: np.ndarray
    longest: Mapping[str, int]


def read(
    config: ConfigDict, student: Sketch, names: Sequence[str], known: dict[str, Dataset]
) -> Lengths:
    """The lengths of a stage's training texts, with the student's tokenizer.

    Args:
        config: of a run.
        student: with the folder of its tokenizer.
        names: of the sets that the stage draws from; their texts are sampled in equal parts.
        known: data sets that were read before; new ones are added.

    Raises:
        InputError: no such data, or a model of which only the sizes are known.
    """
    if student.folder is None:
        raise InputError(
            f"student.model={student.name}: counting lengths needs its tokenizer, which is not on "
            f"this machine; download the model, or plan without --plan_data"
        )
    texts = TextTokens(student.spec, ModelTokenizer.from_folder(student.folder), student.folder)
    rng = np.random.default_rng(config.seed)
    owned = [_own(config, name) for name in names]
    parts = [_sampled(_data(own, known), own, rng, len(owned)) for own in owned]

    def count(kind: str, of_sources: Iterable[list[str]]) -> np.ndarray:
        joined = list(itertools.chain.from_iterable(of_sources))
        return np.array([len(ids) for ids in texts.tokenize(joined, kind, student.lengths[kind])])

    queries, positives, passages, _ = zip(*parts, strict=True)
    return Lengths(
        sum(count for *_, count in parts),
        count("query", queries),
        count("passage", positives),
        count("passage", passages),
        longest=dict(student.lengths),
    )


def _data(config: ConfigDict, known: dict[str, Dataset]) -> Dataset:
    data = config.data
    read = read_wanted(data, known, trains=True, evaluates=False, download=config.download)
    return read[data.train]


def _own(config: ConfigDict, name: str) -> ConfigDict:
    """The config for mining a set."""
    if name != MAIN_SET:
        return set_config(config, name)
    own = config.copy_and_resolve_references()
    own.stages = ("mine",)
    return own


def _sampled(
    data: Dataset, config: ConfigDict, rng: np.random.Generator, sources: int
) -> tuple[list[str], list[str], list[str], int]:
    """Texts of training queries, of a positive of each, and of passages; how many queries."""
    positives = data.positives(config.data.train_split, config.data.min_relevance)
    most = -(-SAMPLED // sources)
    ids = list(positives)
    queries = [ids[i] for i in rng.permutation(len(ids))[:most]]
    passages = [data.corpus.ids[row] for row in rng.permutation(len(data.corpus))[:most]]
    of_queries = [positives[query][0] for query in queries]
    return (
        list(data.queries.select(queries).texts),
        list(data.corpus.select(of_queries).texts),
        list(data.corpus.select(passages).texts),
        len(positives),
    )


@dataclasses.dataclass
class Drawn:
    """Batches of such lengths, with the interface that `training.batches.length_groups` needs.

    Attributes:
        lengths_of: the sample.
        batch_size: queries.
        positives, negatives: passages of each query.
        seed, steps: of the stage.
    """

    lengths_of: Lengths
    batch_size: int
    positives: int
    negatives: int
    seed: int
    steps: int

    @property
    def longest(self) -> Mapping[str, int]:
        return self.lengths_of.longest

    def lengths(self, step: int) -> dict[str, np.ndarray]:
        """Tokens of each 'query' and 'passage' of a batch."""
        rng = np.random.default_rng([self.seed, step])
        own, shape = self.lengths_of, (self.batch_size, self.positives - 1 + self.negatives)
        picked = rng.integers(0, len(own.query), self.batch_size)
        others = own.passage[rng.integers(0, len(own.passage), shape)]
        passages = np.concatenate([own.positive[picked][:, None], others], axis=1)
        return {"query": own.query[picked], "passage": passages.ravel()}

    def batch(self, *_: Any) -> Any:
        raise NotImplementedError("only lengths are available")

    dataset = batch


def usual(drawn: Drawn, parts: int, chunk_tokens: int, platform: str) -> tuple[Plan, float]:
    """The widths of most steps of a stage, and the share of their tokens that is text.

    Args:
        drawn: batches.
        parts: devices a batch is split over.
        chunk_tokens: tokens a device encodes at a time; -1: all.
        platform: of the devices.
    """
    grouped = Grouped(drawn, parts, chunk_tokens, platform)
    steps = np.unique(np.linspace(0, drawn.steps - 1, 256).astype(int)).tolist()
    counts = collections.Counter(tuple(sorted(grouped.plan(step).items())) for step in steps)
    return dict(counts.most_common(1)[0][0]), grouped.useful
