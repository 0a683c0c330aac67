"""What every key of a config takes: one table, read by checks, command line and tests.

Options that have a dataclass say it there (`mining.rules.Rule`, `mining.options.Options`,
`mining.exclusion.Settings`, `training.loss_options.Loss`); the other keys say it here.

Bounds are wide enough for any real run, and narrow enough that no value within them overflows an
int32, a float32 or a machine by itself. What depends on data, mesh and models is `pipeline.py`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from nvret_jax import choices
from nvret_jax.evaluation.options import DEPTH, GRADE
from nvret_jax.mining.exclusion import Settings
from nvret_jax.mining.options import COMPAT_TAKES, Options
from nvret_jax.mining.rules import MOST_RANKS, Rule
from nvret_jax.options import (
    MESH_AXIS,
    Either,
    Takes,
    choice,
    flag,
    many,
    number,
    takes_of,
    text,
    whole,
)
from nvret_jax.training.loss_options import Loss

AUTO = {"auto": "calibrated for each teacher"}
MOST_TOKENS = 1 << 24  # of one step, per device
_ROWS = whole(0, what="0 for all")
_NAME = text("a name", longest=200, without="/")
_DATA = text("a data set, such as beir:DIR or pydocs:", empty=True)
_SPLIT = text("the name of a split", longest=200, without="/")
_MODEL = text("a folder, a weights package or a hub id")
_FOLDER = text("a folder", empty=True)
_FILE = text("a file", empty=True)
_LENGTH = whole(3, 1 << 20, "tokens", also={0: "the model's own"})
_PROMPT = text("text", lines=True, longest=100_000, unset=True)
_SHARE = number(0, 1, "a share", below=True)
_EVERY = whole(0, what="steps, 0 for only at the end")
NAMED = ("teachers", "sets", "train_stages")  # blocks that others are added to by name

RULE, OPTIONS, EXCLUDE = takes_of(Rule), takes_of(Options), takes_of(Settings)
LOSS = takes_of(Loss)


def or_unset(takes: Takes) -> Takes:
    """The same, or None."""
    return dataclasses.replace(takes, unset=True)


def _or_auto(takes: Takes) -> Takes:
    return dataclasses.replace(takes, also=tuple(AUTO.items()))


# A share of 0 and negative margins, which other tools know, are for `Rule` alone.
PERCENT = dataclasses.replace(RULE["percent"], above=True)
MARGIN = dataclasses.replace(RULE["margin"], low=0)
PERCENT_OR_AUTO, MARGIN_OR_AUTO = _or_auto(PERCENT), _or_auto(MARGIN)
MIN_SCORE = dataclasses.replace(RULE["min_score"], also=(), unset=True)

ENCODER: dict[str, Takes] = {
    "model": _MODEL,
    "query_length": _LENGTH,
    "passage_length": _LENGTH,
    "query_prompt": _PROMPT,
    "passage_prompt": _PROMPT,
    "pooling": choice(*choices.POOLINGS, unset=True),
    "prompt_in_pooling": choice(*choices.PROMPT_IN_POOLING, unset=True),
    "bidirectional": flag(unset=True),
    "normalize": flag(),
    "dtype": choice(*choices.DTYPES),
    "param_dtype": choice(*choices.DTYPES),
    "attention": choice(*choices.ATTENTION),
    "init": choice(*choices.INITS),
    "remat": choice(*choices.REMAT),
    "lora_rank": whole(0, 1 << 16, "0 to train all weights"),
    "lora_alpha": number(0, 1e6, above=True),
    "lora_dropout": _SHARE,
    "lora_targets": many(text("the name of a module, such as q_proj or all-linear"), least=1),
    "adapter": _FOLDER,
}
TRAINING_SET: dict[str, Takes] = {
    "source": text("a data set, such as beir:DIR"),
    "split": _SPLIT,
    "min_relevance": GRADE,
    "max_queries": _ROWS,
    "max_passages": _ROWS,
    "teachers": many(_NAME, distinct=True),
    "rule": or_unset(RULE["name"]),
    "percent": or_unset(PERCENT_OR_AUTO),
    "margin": or_unset(MARGIN_OR_AUTO),
    "anchor": or_unset(RULE["anchor"]),
    "num_negatives": or_unset(OPTIONS["num_negatives"]),
    "query_prompt": _PROMPT,
    "passage_prompt": _PROMPT,
    "query_length": or_unset(_LENGTH),
    "passage_length": or_unset(_LENGTH),
    "teacher_query_prompt": _PROMPT,
    "teacher_passage_prompt": _PROMPT,
}
STAGE: dict[str, Takes] = {
    "start": text(f"one of {', '.join(choices.STARTS)}, or a folder"),
    "sets": many(_NAME, distinct=True),
    "shares": many(number(0, 1e6, above=True)),
    "share_unit": choice(*choices.SHARE_UNITS),
    "batches": choice(*choices.BATCHES),
    "epochs": number(0, 1e6),
    "steps": whole(0, 10**9, "0 for as many as the epochs have"),
    "max_steps": whole(0, 10**9, "0 for no bound"),
    "batch_size": whole(1, 1 << 20),
    "num_negatives": whole(0, OPTIONS["num_negatives"].high),
    "in_batch_negatives": LOSS["in_batch"],
    "temperature": LOSS["temperature"],
    **{
        f"loss.{name}": takes
        for name, takes in LOSS.items()
        if name not in ("in_batch", "temperature", "scores")
    },
    "learning_rate": number(0, 100, above=True),
    "warmup": Either(
        (
            number(0, 1, "a share of the steps", below=True),
            dataclasses.replace(whole(2, 10**9, "steps"), whole=False, integral=True),
        )
    ),
    "schedule": choice(*choices.SCHEDULES),
    "weight_decay": number(0, 100),
    "b1": _SHARE,
    "b2": _SHARE,
    "eps": number(0, 1, above=True),
    "clip_norm": number(0, 1e6, "0 for no clipping"),
    "dropout": _SHARE,
    "chunk_tokens": whole(
        1, MOST_TOKENS, "tokens", also={-1: "the whole batch", 0: "what suits the device"}
    ),
    "recompute": flag(),
    "gather": choice(*choices.GATHER),
    "checkpoint_every": _EVERY,
    "eval_every": _EVERY,
    "log_every": _EVERY,
    "keep": whole(1, 10**6),
    "keep_best": flag(),
    "dev_passages": _ROWS,
    "dev_queries": _ROWS,
}


def _below(block: str, table: Mapping[str, Takes]) -> dict[str, Takes]:
    return {f"{block}.{name}": takes for name, takes in table.items()}


BASE: dict[str, Takes] = {
    "name": _NAME,
    "seed": OPTIONS["seed"],
    "stages": many(choice(*choices.STAGES), least=1),
    "download": flag(),
    "data.train": _DATA,
    "data.train_split": _SPLIT,
    "data.dev_split": dataclasses.replace(_SPLIT, empty=True),
    "data.test": _DATA,
    "data.test_split": _SPLIT,
    "data.min_relevance": GRADE,
    "data.allow_empty": flag(),
    "data.missing": choice(*choices.MISSING),
    "data.max_queries": _ROWS,
    "data.max_passages": _ROWS,
    **_below("teacher", ENCODER),
    **_below("student", ENCODER),
    "rescorer.model": dataclasses.replace(_MODEL, empty=True),
    "rescorer.depth": whole(1, MOST_RANKS),
    "rescorer.order": choice(*choices.RESCORER_ORDERS),
    "rescorer.length": whole(5, 1 << 20, "tokens", also={0: "the model's own"}),
    "rescorer.dtype": choice(*choices.DTYPES),
    "mesh.data": MESH_AXIS,
    "mesh.fsdp": MESH_AXIS,
    "mesh.tensor": MESH_AXIS,
    "distributed.mode": choice(*choices.DISTRIBUTED),
    "distributed.coordinator": text("host:port", empty=True, longest=300),
    "distributed.num_processes": whole(0, 1 << 20),
    "distributed.process_id": whole(0, 1 << 20),
    "distributed.join_seconds": whole(1, 86400, "seconds"),
    "embed.chunk_rows": whole(1, 1 << 24),
    "embed.token_budget": whole(0, MOST_TOKENS, "tokens, 0 for what suits the device"),
    "embed.dtype": choice(*choices.PRECISIONS),
    "search.backend": choice(*choices.BACKENDS),
    "search.depth": whole(1),
    "search.query_block": whole(1, 1 << 24),
    "search.dtype": choice(*choices.PRECISIONS),
    "search.memory_gib": number(0, 1 << 20, "0 for a share of what is free"),
    "mining.teachers": many(_NAME, least=1, distinct=True),
    "mining.rule": RULE["name"],
    "mining.percent": PERCENT_OR_AUTO,
    "mining.margin": MARGIN_OR_AUTO,
    **_below("mining", {n: t for n, t in RULE.items() if n not in ("name", "percent", "margin")}),
    "mining.min_score": MIN_SCORE,
    "mining.compat": COMPAT_TAKES,
    **_below("mining", {n: t for n, t in OPTIONS.items() if n not in ("window", "seed")}),
    "mining.verdicts": _FILE,
    "mining.verdict_mode": choice(*choices.VERDICT_MODES),
    "mining.max_promoted": whole(0, what="0 for never"),
    "mining.calibration.target": number(0, 1, "a share", above=True, below=True),
    "mining.calibration.queries": _ROWS,
    "mining.exclude.own_text": EXCLUDE["own_text"],
    "mining.exclude.same_text": EXCLUDE["same_text"],
    "mining.exclude.near_copy": EXCLUDE["cosine"],
    "mining.exclude.minhash": EXCLUDE["jaccard"],
    "mining.exclude.document_separator": EXCLUDE["document_separator"],
    "mining.exclude.document_map": _FILE,
    "audit.percents": many(PERCENT),
    "audit.margins": many(MARGIN),
    "audit.thresholds": many(RULE["threshold"]),
    "audit.shifts": many(RULE["shift"]),
    "audit.queries": _ROWS,
    "audit.resamples": whole(1, 100_000),
    "rounds": whole(1, 1000),
    "train.stages": many(_NAME, distinct=True),
    **_below("train", STAGE),
    "result.pick": choice(*choices.PICKS),
    "result.merge_last": whole(1, 1000),
    "result.merge_with": many(text("a folder")),
    "result.merge": choice(*choices.MERGES),
    "result.merge_weights": many(number(-10, 10)),
    "evaluation.depth": DEPTH,
    "evaluation.min_relevance": GRADE,
    "evaluation.exclude_self": flag(),
    "export.dtype": choice(*choices.EXPORT_DTYPES),
    "export.max_length": whole(3, 1 << 20, "tokens", also={0: "the student's"}),
    "report.examples": whole(0, 10_000),
}


def keys_of(config: ConfigDict) -> dict[str, Takes]:
    """Key -> what it takes, for every key that this config should have."""
    table = dict(BASE)
    for block, of_one in zip(NAMED, (ENCODER, TRAINING_SET, STAGE), strict=True):
        named = config.get(block)
        for name in named if isinstance(named, ConfigDict) else ():
            table |= _below(f"{block}.{name}", of_one)
    return table
