"""From the name of a teacher to something that ranks the corpus, and what its ranking depends on.

`model` of a teacher's block says what kind it is:

    a folder, package or hub id    one of our encoders
    bm25:                          BM25 over the texts
    random:                        the paper's baseline: negatives drawn at random
    vectors:DIR                    vectors that somebody else computed (search/vectors.py)
    run:FILE                       a ranking that somebody else made (search/run_file.py)

Only encoders have embeddings in the workdir; the others are read or indexed where they are needed.
"""

from __future__ import annotations

import importlib.metadata
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from nvret_jax import paths
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.fingerprints import Digest
from nvret_jax.models.weights import file_sha256
from nvret_jax.search import vectors
from nvret_jax.search.bm25 import WORDS_VERSION, Bm25Ranker
from nvret_jax.search.random_ranker import RandomRanker
from nvret_jax.search.ranker import DenseRanker, Ranker
from nvret_jax.search.run_file import RunRanker

if TYPE_CHECKING:
    from nvret_jax.run import Run

SCHEMES = ("bm25", "random", "vectors", "run")


def kind(model: str) -> str:
    """'encoder' or one of `SCHEMES`.

    Raises:
        InputError: something stands, or is missing, behind the colon.
    """
    scheme, colon, rest = model.partition(":")
    if not colon and scheme in SCHEMES and not os.path.exists(model):
        raise InputError(f"teacher {model!r}: no such folder; write '{scheme}:' for the ranker")
    if not colon or scheme not in SCHEMES:
        return "encoder"
    if scheme in ("bm25", "random") and rest:
        raise InputError(f"teacher {model!r}: '{scheme}:' takes nothing after the colon")
    if scheme in ("vectors", "run") and not rest:
        what = "a folder" if scheme == "vectors" else "a file"
        raise InputError(f"teacher {model!r}: name {what}, as in '{scheme}:/data/teacher'")
    return scheme


def parts(run: Run, name: str) -> dict[str, Any]:
    """What a teacher's ranking of the training queries is a function of, positives aside."""
    data, split = run.train_data, run.config.data.train_split
    block = run.block(name)
    scheme, rest = kind(block.model), block.model.partition(":")[2]
    if scheme == "encoder":
        return {
            "passages": run.embeddings(name, data, "passages"),
            "queries": run.embeddings(name, data, f"queries-{split}"),
            **run.search_parts(),
        }
    at = "teacher" if name == "teacher" else f"teachers.{name}"
    keys = (f"{at}.model",)
    found = {
        "kind": Digest(scheme, f"the kind of {keys[0]}", keys),
        "passages": run.texts(data, "passages"),
        "queries": run.texts(data, f"queries-{split}"),
    }
    if scheme == "bm25":
        made_by = importlib.metadata.version("bm25s")
        return found | {"the version of bm25s": made_by, "the words of BM25": WORDS_VERSION}
    if scheme == "random":
        own = {"seed": run.config.seed, "mining.exclude.same_text": run.exclusions.same_text}
        return found | own
    if scheme == "vectors":
        read = Digest(vectors.fingerprint(rest), f"the files of {keys[0]}", keys)
        own = {keys[0]: read, f"{at}.normalize": block.normalize}
        return found | own | run.search_parts(stored="")
    try:
        read = file_sha256(paths.local(rest, "run"))
    except OSError as error:
        raise InputError(f"{rest}: cannot be read ({error.strerror or error})") from None
    return found | {keys[0]: Digest(read, f"the file of {keys[0]}", keys)}


def open_ranker(run: Run, name: str, resume: epath.Path | None = None) -> Ranker:
    """The teacher over the training queries that have a positive, numbered in their order.

    Args:
        name: of the teacher.
        resume: where searches that stream the passages keep what a kill must not cost.
    """
    data, split = run.train_data, run.config.data.train_split
    block = run.block(name)
    scheme, rest = kind(block.model), block.model.partition(":")[2]
    queries = data.queries.select(run.positives())
    if scheme == "encoder":
        table = data.split_queries(split)
        rows = np.array([table.row[query_id] for query_id in queries.ids], np.int64)
        vectors_qd = np.asarray(run.open(name, data, f"queries-{split}")[:])[rows]
        passages_nd = run.open(name, data, "passages")
        return _dense(run, vectors_qd, passages_nd, resume)
    if scheme == "vectors":
        passages_nd, queries_qd = vectors.open_pair(
            rest, data.corpus.ids, queries.ids, normalize=block.normalize
        )
        return _dense(run, np.asarray(queries_qd), passages_nd, resume)
    return _without_vectors(scheme, rest, queries, data.corpus, run.positive_rows(), run)


def _dense(run: Run, queries_qd: np.ndarray, passages_nd, resume: epath.Path | None) -> Ranker:
    return DenseRanker(run.asked(queries_qd), run.searched(passages_nd), run.make_index, resume)


def _without_vectors(
    scheme: str, rest: str, queries: TextTable, corpus: TextTable, positive_rows: Ragged, run: Run
) -> Ranker:
    if scheme == "bm25":
        return Bm25Ranker(queries.texts, corpus.texts)
    if scheme == "random":
        ids = corpus.ids
        if run.passage_texts is not None and run.passage_texts.any_equal:
            # One draw for each text, or one with many copies would be drawn more often.
            ids = [ids[row] for row in run.passage_texts.first_n]
        return RandomRanker(queries.ids, ids, positive_rows, run.config.seed)
    return RunRanker.read(rest, queries.ids, corpus.ids, positive_rows)


def describe(run: Run) -> str:
    """The teachers' models, for people."""
    return ", ".join(run.block(name).model for name in run.teacher_names)
