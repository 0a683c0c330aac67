"""search: what each teacher ranks high for each training query, before any rule."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from nvret_jax import mesh as mesh_lib
from nvret_jax import teachers
from nvret_jax.artifacts import Artifact
from nvret_jax.run import Run
from nvret_jax.search import candidates as candidates_lib
from nvret_jax.search.candidates import Candidates
from nvret_jax.stages.stage import Stage


def _search_artifacts(run: Run) -> list[Artifact]:
    return [run.candidates(name) for name in run.teacher_names]


def _make_candidates(run: Run, artifact: Artifact) -> None:
    data = run.train_data
    name = artifact.path.stem
    # The queries of the split without a positive are not mined for.
    query_rows = np.array([data.queries.row[query_id] for query_id in run.positives()], np.int32)
    positive_rows = run.positive_rows()
    ranker = teachers.open_ranker(run, name)
    artifact.begin()
    step = run.config.search.query_block
    parts = []
    for block in tqdm(
        range(-(-len(query_rows) // step)),
        desc=f"search {name}",
        unit="block",
        disable=not mesh_lib.is_main(),
    ):
        part_path = artifact.partial / f"block-{block:06d}.parquet"
        numbers = np.arange(block * step, min((block + 1) * step, len(query_rows)))
        there = part_path.exists()
        mesh_lib.barrier(f"search block {block}")
        if there:
            parts.append(Candidates.read(part_path, data.queries, data.corpus))
            continue
        part = candidates_lib.find(
            query_rows[numbers], numbers, ranker, positive_rows.take(numbers), run.depth
        )
        parts.append(part)
        if mesh_lib.is_main():
            aside = artifact.partial / f"block-{block:06d}.aside"
            part.write(aside, data.queries, data.corpus)
            aside.replace(part_path)
    whole = Candidates.concatenate(parts)
    artifact.finish_file(lambda path: whole.write(path, data.queries, data.corpus))


STAGE = Stage(_search_artifacts, _make_candidates)
