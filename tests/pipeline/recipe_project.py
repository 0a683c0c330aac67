"""Recipes of several sets and stages over the tiny project, as Python."""

from __future__ import annotations

import pathlib

from nvret_jax import config as config_lib


def config(folder: pathlib.Path, **train):
    """The config of a tiny run; `train`: values of its block."""
    made = config_lib.base()
    made.name = "recipe"
    made.data.train = made.data.test = f"beir:{folder / 'data'}"
    for side in (made.teacher, made.student):
        side.model = str(folder / "model")
        side.query_length, side.passage_length = 16, 24
    made.embed.chunk_rows = 16
    made.search.depth = 30
    made.report.examples = 3
    made.train.update(
        {
            "batch_size": 8,
            "num_negatives": 3,
            "steps": 4,
            "learning_rate": 1e-3,
            "eval_every": 2,
            "checkpoint_every": 2,
            "dev_passages": 40,
        }
    )
    made.train.update(train)
    return made


def two_stages(folder: pathlib.Path):
    """Retrieval alone, then with a second set that is mined in a way of its own."""
    made = config(folder)
    config_lib.add_set(
        made,
        "other",
        f"beir:{folder / 'data'}",
        split="dev",
        rule="naive",
        num_negatives=2,
        query_prompt="the wing ",
    )
    config_lib.add_stage(made, "first", sets=("train",))
    config_lib.add_stage(
        made,
        "second",
        batches="mixed",
        share_unit="weight",
        shares=(0.75, 0.25),
        start="best",
        learning_rate=5e-4,
        loss={"terms": ("query_to_passage", "passage_to_query")},
    )
    return made
