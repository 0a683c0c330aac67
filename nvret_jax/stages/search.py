"""search: what the teacher ranks high for each training query, before any rule."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts import Artifact
from nvret_jax.data.ragged import Ragged
from nvret_jax.run import Run
from nvret_jax.search import candidates as candidates_lib
from nvret_jax.search.backend import make_index
from nvret_jax.search.candidates import Candidates
from nvret_jax.stages.stage import Stage


def _search_artifacts(run: Run) -> list[Artifact]:
    return [run.candidates()]


def _make_candidates(run: Run, artifact: Artifact) -> None:
    data, split = run.train_data, run.config.data.train_split
    passages = run.open("teacher", data, "passages")
    queries = np.asarray(run.open("teacher", data, f"queries-{split}")[:])
    positives = run.positives()
    # The embedded queries are those of the split; those without a positive are not mined for.
    table = data.split_queries(split)
    rows = np.array([table.row[query_id] for query_id in positives], np.int64)
    query_rows = np.array([data.queries.row[query_id] for query_id in positives], np.int32)
    positive_rows = Ragged.from_rows(
        [[data.corpus.row[p] for p in ids] for ids in positives.values()], np.int32
    )
    index = make_index(passages, mesh=run.mesh, backend=run.config.search.backend)
    artifact.begin()
    step = run.config.search.query_block
    parts = []
    for block in tqdm(
        range(-(-len(rows) // step)), desc="search", unit="block", disable=not mesh_lib.is_main()
    ):
        part_path = artifact.partial / f"block-{block:06d}.parquet"
        cut = slice(block * step, (block + 1) * step)
        there = part_path.exists()
        mesh_lib.barrier(f"search block {block}")
        if there:
            parts.append(Candidates.read(part_path, data.queries, data.corpus))
            continue
        part = candidates_lib.find(
            query_rows[cut],
            queries[rows[cut]],
            passages,
            positive_rows.take(np.arange(len(rows))[cut]),
            run.config.search.depth,
            index.search,
        )
        parts.append(part)
        if mesh_lib.is_main():
            aside = artifact.partial / f"block-{block:06d}.aside"
            part.write(aside, data.queries, data.corpus)
            aside.replace(part_path)
    whole = Candidates.concatenate(parts)
    artifact.finish_file(lambda path: whole.write(path, data.queries, data.corpus))


STAGE = Stage(_search_artifacts, _make_candidates)
