"""search: what each teacher ranks high for each training query, before any rule."""

from __future__ import annotations

import functools
import io

import numpy as np
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax import precision, progress
from nvret_jax.artifacts import Artifact
from nvret_jax.console import say
from nvret_jax.data.ragged import Ragged
from nvret_jax.files import is_whole, write_checked
from nvret_jax.mining import rescoring
from nvret_jax.mining.rules import anchors
from nvret_jax.pipeline import exclusions
from nvret_jax.pipeline.ranked import open_ranker
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run
from nvret_jax.search import candidates as candidates_lib
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.distinct import distinct
from nvret_jax.search.ranker import DenseRanker


def _search_artifacts(run: Run) -> list[Artifact]:
    made = [run.candidates(name) for name in run.teacher_names]
    return made + [item for name in run.teacher_names if (item := run.rescored(name))]


def _make(run: Run, artifact: Artifact) -> None:
    name = artifact.path.stem
    if name.endswith(".rescored"):
        _make_rescored(run, artifact, name.removesuffix(".rescored"))
    else:
        _make_candidates(run, artifact, name)


def _make_candidates(run: Run, artifact: Artifact, name: str) -> None:
    data = run.train_data
    # The queries of the split without a positive are not mined for.
    query_rows = np.array([data.queries.row[query_id] for query_id in run.positives()], np.int32)
    positive_rows = run.positive_rows()
    ranker = open_ranker(run, name, artifact.partial / "lists")
    for remark in getattr(ranker, "remarks", ()):
        say(f"search    {name}: {remark}")
    artifact.begin()
    # A search that streams the passages resumes by itself, and wants all queries in one pass.
    streams = isinstance(ranker, DenseRanker) and ranker.streams
    step = len(query_rows) if streams else run.config.search.query_block
    parts = []
    for block in progress.bar(
        range(-(-len(query_rows) // step)),
        desc=f"search {name}",
        unit="block",
        show=mesh_lib.is_main(),
    ):
        part_path = artifact.partial / f"block-{block:06d}.parquet"
        numbers = np.arange(block * step, min((block + 1) * step, len(query_rows)))
        if _is_there(part_path):
            parts.append(Candidates.read(part_path, data.queries, data.corpus))
            continue
        part = candidates_lib.find(
            query_rows[numbers], numbers, ranker, positive_rows.take(numbers), run.depth
        )
        parts.append(part)
        if mesh_lib.is_main():
            write = functools.partial(part.write, queries=data.queries, corpus=data.corpus)
            write_checked(part_path, write)
    whole = Candidates.concatenate(parts)
    artifact.finish_file(lambda path: whole.write(path, data.queries, data.corpus))


def _make_rescored(run: Run, artifact: Artifact, name: str) -> None:
    """New scores for a teacher's candidates."""
    data, config, options = run.train_data, run.config.rescorer, run.options
    candidates, _ = distinct(run.read_candidates(name), None, run.passage_texts)
    precision.say_cost("search", config.dtype, run.platform, "rescorer.dtype")
    artifact.begin()
    store = _Chunks(artifact)
    if config.order == "rescored":
        rescored, counts = rescoring.rescore(
            candidates, run.rescorer.score_pairs, options.window or config.depth, store=store
        )
    else:
        rule = options.rule
        skipped = rule.ranks_to_skip

        def ceilings(scores: Ragged) -> np.ndarray:
            anchor = "min" if rule.anchor == "own" else rule.anchor
            return rule.ceilings(anchors(scores, anchor))

        rescored, counts = rescoring.rescore_lazily(
            candidates,
            run.rescorer.score_pairs,
            config.depth,
            ceilings=ceilings,
            num_negatives=options.pool_size + (skipped if rule.ranks == "survivors" else 0),
            excluded=exclusions.of_candidates(run, candidates).rows,
            ranks_to_skip=skipped if rule.ranks == "raw" else 0,
            min_score=rule.min_score,
            store=store,
        )
    say(
        f"search    {config.model} scored {counts.scored:,} of {counts.possible:,} pairs; "
        f"{counts.full:,} of {counts.queries:,} queries have enough negatives"
    )
    artifact.finish_file(lambda path: rescored.write(path, data.queries, data.corpus))


def _is_there(path: epath.Path) -> bool:
    """Whether the main process sees a piece that an earlier run left, as it was written."""
    found = ""
    if mesh_lib.is_main() and path.exists():
        found = "whole" if is_whole(path) else ""
        if not found:
            say(f"          {path} is damaged; it is made again")
    return bool(mesh_lib.from_main(found))


class _Chunks:
    """Scored pairs in the unfinished folder of an artefact: what a kill must not cost."""

    def __init__(self, artifact: Artifact):
        self._folder = artifact.partial

    def load(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        path = self._folder / f"pairs-{number:06d}.npz"
        if not _is_there(path):
            return None
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["pairs"], arrays["scores"]

    def save(self, number: int, pairs: np.ndarray, scores: np.ndarray) -> None:
        if mesh_lib.is_main():
            buffer = io.BytesIO()
            np.savez(buffer, pairs=pairs, scores=scores)
            path = self._folder / f"pairs-{number:06d}.npz"
            write_checked(path, lambda aside: aside.write_bytes(buffer.getvalue()))


STAGE = Stage(_search_artifacts, _make)
