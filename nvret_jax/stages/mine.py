"""mine: the hard negatives that a rule keeps."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts import Artifact, write_atomic
from nvret_jax.console import say
from nvret_jax.mining.miner import mine, own_text_rows
from nvret_jax.run import Run
from nvret_jax.search.backend import make_index
from nvret_jax.stages.stage import Stage


def _mine_artifacts(run: Run) -> list[Artifact]:
    return [run.negatives()]


def _make_negatives(run: Run, artifact: Artifact) -> None:
    data, split = run.train_data, run.config.data.train_split
    candidates = run.read_candidates()
    query_texts = [data.queries.texts[row] for row in candidates.query_rows]

    def search_below(numbers, k, ceilings, exclude):
        passages = run.open("teacher", data, "passages")
        queries = np.asarray(run.open("teacher", data, f"queries-{split}")[:])
        table = data.split_queries(split)
        rows = [table.row[data.queries.ids[candidates.query_rows[n]]] for n in numbers]
        index = make_index(passages, mesh=run.mesh, backend=run.config.search.backend)
        return index.search(queries[rows], k, ceiling_q=ceilings, exclude=exclude)

    negatives, counts = mine(
        candidates,
        rule=run.rule(),
        num_negatives=run.config.mining.num_negatives,
        own_text=own_text_rows(query_texts, data.corpus.texts),
        corpus_size=len(data.corpus),
        search_below=search_below,
        teacher=run.config.teacher.model,
    )
    filled = counts.queries - counts.short
    say(
        f"mine      {filled:,} of {counts.queries:,} queries have all {counts.wanted} negatives; "
        f"{counts.verdicts['above']:,} candidates lay above the ceiling; a second search below "
        f"it found {counts.found_again:,} for {counts.searched_again:,} queries left short"
    )
    counts_path = artifact.path.parent / f"{split}.counts.json"
    if mesh_lib.is_main():
        write_atomic(counts_path, json.dumps(dataclasses.asdict(counts), indent=1))
    artifact.write_file(lambda path: negatives.write(path, data.queries, data.corpus))


STAGE = Stage(_mine_artifacts, _make_negatives)
