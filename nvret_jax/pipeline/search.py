"""search: the passages that each teacher ranks high for each training query, before any rule."""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.data.dataset import Dataset
from nvret_jax.data.ragged import Ragged
from nvret_jax.files.atomic import write_checked
from nvret_jax.mesh import say
from nvret_jax.mining import rescoring
from nvret_jax.mining.options import Options
from nvret_jax.mining.options import Rescorer as RescorerOptions
from nvret_jax.mining.rescoring import ChunkStore, ScorePairs
from nvret_jax.mining.rules import anchors
from nvret_jax.models import precision
from nvret_jax.options import blocks
from nvret_jax.pipeline import exclusions, ranked
from nvret_jax.pipeline.chunks import Chunks, is_there
from nvret_jax.pipeline.exclusions import Excluder
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run
from nvret_jax.processes import progress
from nvret_jax.search import candidates as candidates_lib
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.options import Search
from nvret_jax.search.rankers.distinct import distinct
from nvret_jax.search.rankers.ranker import DenseRanker, Ranker


class Pieces(Protocol):
    """Stores finished pieces, so that a kill does not lose them."""

    def load(self, number: int) -> Candidates | None: ...
    def save(self, number: int, piece: Candidates) -> None: ...


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a teacher's search.

    Attributes:
        data: the queries and the corpus.
        name: of the teacher.
        query_rows: int32 [Q], the queries of the data that have a positive.
        positive_rows: their positives.
        ranker: over these queries.
        pieces: see `Pieces`; None: nothing is stored.
    """

    data: Dataset
    name: str
    query_rows: np.ndarray
    positive_rows: Ragged
    ranker: Ranker
    pieces: Pieces | None = None


@dataclasses.dataclass(frozen=True)
class Rescoring:
    """The inputs of rescoring.

    Attributes:
        data: the queries and the corpus.
        candidates: a teacher's.
        score_pairs: scores of pairs of rows.
        mining: how negatives will be mined, which decides the scores that matter.
        excluder: of passages that can never be negatives; None if irrelevant.
        pieces: see `rescoring.ChunkStore`; None: nothing is stored.
    """

    data: Dataset
    candidates: Candidates
    score_pairs: ScorePairs
    mining: Options
    excluder: Excluder | None = None
    pieces: ChunkStore | None = None


def _artifacts(run: Run) -> list[Artifact]:
    made = [ranked.artifact(run, name) for name in run.teacher_names]
    return made + [item for name in run.teacher_names if (item := ranked.rescored(run, name))]


def _inputs(
    run: Run, artifact: Artifact
) -> tuple[Inputs, Search] | tuple[Rescoring, RescorerOptions]:
    name, data = artifact.path.stem, run.train_data
    if name.endswith(".rescored"):
        return _rescoring(run, artifact, name.removesuffix(".rescored"))
    # The queries of the split without a positive are not mined for.
    query_rows = np.array([data.queries.row[query_id] for query_id in run.positives()], np.int32)
    inputs = Inputs(
        data,
        name,
        query_rows,
        run.positive_rows(),
        ranked.open_ranker(run, name, artifact.partial / "lists"),
        _Blocks(artifact, data),
    )
    return inputs, blocks.read(Search, run.config.search, depth=ranked.depth(run))


def _rescoring(run: Run, artifact: Artifact, name: str) -> tuple[Rescoring, RescorerOptions]:
    config = run.rescorer.config
    candidates, _ = distinct(ranked.read_candidates(run, name), None, run.passage_texts)
    precision.say_cost("search", config.dtype, run.platform, "rescorer.dtype")
    inputs = Rescoring(
        run.train_data,
        candidates,
        run.rescorer.score_pairs,
        run.options,
        exclusions.opened(run) if config.order == "teacher" else None,
        Chunks(artifact),
    )
    return inputs, config


def make(inputs: Inputs | Rescoring, options: Search | RescorerOptions) -> Candidates:
    """The passages a teacher ranks high for each query; or its candidates with a cross-encoder's
    scores.

    Args:
        inputs: of a search or of rescoring.
        options: of the search, with at least the depth that mining needs; or of the cross-encoder.
    """
    if isinstance(inputs, Rescoring):
        return _rescored(inputs, options)
    ranker, count = inputs.ranker, len(inputs.query_rows)
    for remark in getattr(ranker, "remarks", ()):
        say(f"search    {inputs.name}: {remark}")
    # A streamed search resumes by itself, and needs all queries in one pass.
    streams = isinstance(ranker, DenseRanker) and ranker.streams
    step = count if streams else options.query_block
    parts = []
    for block in progress.bar(
        range(-(-count // step)),
        desc=f"search {inputs.name}",
        unit="block",
        show=mesh_lib.is_main(),
    ):
        part = None if inputs.pieces is None else inputs.pieces.load(block)
        if part is None:
            numbers = np.arange(block * step, min((block + 1) * step, count))
            part = candidates_lib.find(
                inputs.query_rows[numbers],
                numbers,
                ranker,
                inputs.positive_rows.take(numbers),
                options.depth,
            )
            if inputs.pieces is not None:
                inputs.pieces.save(block, part)
        parts.append(part)
    return Candidates.concatenate(parts)


def _rescored(inputs: Rescoring, options: RescorerOptions) -> Candidates:
    """New scores for a teacher's candidates."""
    mining, candidates = inputs.mining, inputs.candidates
    if options.order == "rescored":
        rescored, counts = rescoring.rescore(
            candidates, inputs.score_pairs, mining.window or options.depth, store=inputs.pieces
        )
    else:
        rule = mining.rule
        skipped = rule.ranks_to_skip

        def ceilings(scores: Ragged) -> np.ndarray:
            anchor = "min" if rule.anchor == "own" else rule.anchor
            return rule.ceilings(anchors(scores, anchor))

        rescored, counts = rescoring.rescore_lazily(
            candidates,
            inputs.score_pairs,
            options.depth,
            ceilings=ceilings,
            num_negatives=mining.pool_size + (skipped if rule.ranks == "survivors" else 0),
            excluded=inputs.excluder.of_candidates(candidates).rows,
            ranks_to_skip=skipped if rule.ranks == "raw" else 0,
            min_score=rule.min_score,
            store=inputs.pieces,
        )
    say(
        f"search    {options.model} scored {counts.scored:,} of {counts.possible:,} pairs; "
        f"{counts.full:,} of {counts.queries:,} queries have enough negatives"
    )
    return rescored


def _write(artifact: Artifact, inputs: Inputs | Rescoring, found: Candidates) -> None:
    data = inputs.data
    artifact.finish_file(lambda path: found.write(path, data.queries, data.corpus))


class _Blocks:
    """Blocks of queries in the unfinished folder of an artefact."""

    def __init__(self, artifact: Artifact, data: Dataset):
        self._folder, self._data = artifact.partial, data

    def load(self, number: int) -> Candidates | None:
        path = self._path(number)
        if not is_there(path):
            return None
        return Candidates.read(path, self._data.queries, self._data.corpus)

    def save(self, number: int, piece: Candidates) -> None:
        if mesh_lib.is_main():
            of = {"queries": self._data.queries, "corpus": self._data.corpus}
            write_checked(self._path(number), functools.partial(piece.write, **of))

    def _path(self, number: int) -> epath.Path:
        return self._folder / f"block-{number:06d}.parquet"


STAGE = Stage(_artifacts, _inputs, make, _write)
