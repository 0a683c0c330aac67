"""The kinds of teachers, and what the ranking of each depends on.

`model` of a teacher's block says which kind it is:

    a folder, package or hub id    an encoder of this package
    bm25:                          BM25 over the texts
    random:                        the paper's baseline: negatives drawn at random
    vectors:DIR                    vectors computed elsewhere (vectors.py)
    run:FILE                       a ranking made elsewhere (run_file.py)

A new kind is a `Ranker` in a separate file and a row of `KINDS`. Only encoders have embeddings in
the workdir; other kinds are read or indexed where they are needed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nvret_jax.artifacts.fingerprints import Digest
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.models.pretrained.weights import file_sha256
from nvret_jax.search.rankers import vectors
from nvret_jax.search.rankers.bm25 import WORDS_VERSION, Bm25Ranker
from nvret_jax.search.rankers.random_ranker import RandomRanker
from nvret_jax.search.rankers.ranker import Ranker
from nvret_jax.search.rankers.run_file import RunRanker


@dataclasses.dataclass(frozen=True)
class Task:
    """What a teacher ranks.

    Attributes:
        queries: Q training queries that have a positive.
        corpus: N passages.
        positive_rows: judged positives, a row per query.
        texts: which passages have equal texts; None if every text is distinct.
        seed: of draws.
        normalize: whether vectors are scaled to unit length.
        dense: makes a ranker of vectors [Q, D] and [N, D].
    """

    queries: TextTable
    corpus: TextTable
    positive_rows: Ragged
    texts: SameText | None
    seed: int
    normalize: bool
    dense: Callable[[np.ndarray, Any], Ranker]


@dataclasses.dataclass(frozen=True)
class Block:
    """A teacher's block as fingerprints read it.

    Attributes:
        at: its key in the config.
        place: what follows the colon of `model`.
        normalize: its option of that name.
        seed: of the run.
        same_text: whether equal texts count as one passage.
    """

    at: str
    place: str
    normalize: bool
    seed: int
    same_text: bool


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of teacher that is no encoder.

    Attributes:
        open: the ranker, from what follows the colon of `model`.
        parts: what the ranking is a function of, besides texts and positives.
        place: what follows the colon: '' nothing, else 'a folder' or 'a file', which is read and
            checked before a run begins.
        has_vectors: whether it ranks by vectors, with the search options of the run.
    """

    open: Callable[[str, Task], Ranker]
    parts: Callable[[Block], dict[str, Any]]
    place: str = ""
    has_vectors: bool = False


def _open_bm25(place: str, task: Task) -> Ranker:
    return Bm25Ranker(task.queries.texts, task.corpus.texts)


def bm25_parts(block: Block | None = None) -> dict[str, Any]:
    """What a ranking by BM25 is a function of, besides the texts."""
    made_by = importlib.metadata.version("bm25s")
    return {"the version of bm25s": made_by, "the words of BM25": WORDS_VERSION}


def _open_random(place: str, task: Task) -> Ranker:
    ids = task.corpus.ids
    if task.texts is not None and task.texts.any_equal:
        # One draw per text, or a text with many copies would be drawn more often.
        ids = [ids[row] for row in task.texts.first_n]
    return RandomRanker(task.queries.ids, ids, task.positive_rows, task.seed)


def _random_parts(block: Block) -> dict[str, Any]:
    return {"seed": block.seed, "mining.exclude.same_text": block.same_text}


def _open_vectors(place: str, task: Task) -> Ranker:
    passages_nd, queries_qd = vectors.open_pair(
        place, task.corpus.ids, task.queries.ids, normalize=task.normalize
    )
    return task.dense(np.asarray(queries_qd), passages_nd)


def _vectors_parts(block: Block) -> dict[str, Any]:
    key = f"{block.at}.model"
    read = Digest(vectors.fingerprint(block.place), f"the files of {key}", (key,))
    return {key: read, f"{block.at}.normalize": block.normalize}


def _open_run(place: str, task: Task) -> Ranker:
    return RunRanker.read(place, task.queries.ids, task.corpus.ids, task.positive_rows)


def _run_parts(block: Block) -> dict[str, Any]:
    key = f"{block.at}.model"
    try:
        read = file_sha256(paths.local(block.place, "run"))
    except OSError as error:
        raise InputError(f"{block.place}: cannot be read ({error.strerror or error})") from None
    return {key: Digest(read, f"the file of {key}", (key,))}


KINDS = {
    "bm25": Kind(_open_bm25, bm25_parts),
    "random": Kind(_open_random, _random_parts),
    "vectors": Kind(_open_vectors, _vectors_parts, "a folder", has_vectors=True),
    "run": Kind(_open_run, _run_parts, "a file"),
}
SCHEMES = tuple(KINDS)


def kind(model: str) -> Kind | None:
    """The kind of a teacher; None for an encoder.

    Raises:
        InputError: something follows the colon where nothing should, or is missing.
    """
    scheme, colon, place = model.partition(":")
    if not colon and scheme in KINDS and not os.path.exists(model):
        raise InputError(f"teacher {model!r}: no such folder; write '{scheme}:' for the ranker")
    if not colon or scheme not in KINDS:
        return None
    found = KINDS[scheme]
    if place and not found.place:
        raise InputError(f"teacher {model!r}: '{scheme}:' takes nothing after the colon")
    if found.place and not place:
        raise InputError(f"teacher {model!r}: name {found.place}, as in '{scheme}:/data/teacher'")
    return found


def is_encoder(model: str) -> bool:
    """Whether a teacher is an encoder of this package; InputError as `kind`."""
    return kind(model) is None


def has_vectors(model: str) -> bool:
    """Whether a teacher ranks by vectors; InputError as `kind`."""
    found = kind(model)
    return found is None or found.has_vectors


def open_ranker(model: str, task: Task) -> Ranker:
    """The ranker of a teacher that is no encoder.

    Raises:
        InputError: its file or folder cannot be used for the task.
    """
    return kind(model).open(model.partition(":")[2], task)


def parts(
    at: str, block: ConfigDict, texts: Mapping[str, Any], *, seed: int, same_text: bool
) -> dict[str, Any]:
    """What the ranking of a teacher without embeddings depends on, apart from positives.

    Args:
        at: the key of its block.
        block: its options.
        texts: the parts 'passages' and 'queries'.
        seed: of draws.
        same_text: whether equal texts count as one passage.
    """
    scheme, _, place = block.model.partition(":")
    key = f"{at}.model"
    found = {"kind": Digest(scheme, f"the kind of {key}", (key,)), **texts}
    return found | kind(block.model).parts(Block(at, place, block.normalize, seed, same_text))
