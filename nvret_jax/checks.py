"""What must hold between the values of a config; all mistakes are told in one message.

`mistakes()` looks at values alone. What needs the data, the mesh or the models is looked at by
`pipeline.py`, before anything is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from nvret_jax.choices import (
    ATTENTION,
    BACKENDS,
    DTYPES,
    INITS,
    MAX_SEED,
    PROMPT_IN_POOLING,
    REMAT,
    STAGES,
)
from nvret_jax.config import add_set, add_stage, add_teacher, base, flat_keys, near
from nvret_jax.errors import InputError
from nvret_jax.mining_checks import check_mining
from nvret_jax.recipe_checks import check_recipe


def validate(config: ConfigDict) -> None:
    """Checks every value.

    Raises:
        InputError: one line that lists all mistakes, each with its key, value and remedy.
    """
    wrong = mistakes(config)
    if wrong:
        raise InputError(told(wrong))


def told(wrong: Sequence[str]) -> str:
    """All mistakes as one line, each once."""
    return "config: " + "; ".join(dict.fromkeys(wrong))


def has_all_keys(config: ConfigDict) -> bool:
    """Whether nothing is missing or misnamed, so that every key can be read."""
    return not _wrong_keys(config)


def _wrong_keys(config: ConfigDict) -> list[str]:
    expected, given = base(), flat_keys(config)
    for key, add in (("teachers", add_teacher), ("sets", add_set), ("train_stages", _add_stage)):
        for name in config[key] if isinstance(config.get(key), ConfigDict) else ():
            add(expected, name, "")
    known = flat_keys(expected)
    wrong = [f"{key}: no such key{near(expected, key)}" for key in given if key not in known]
    return wrong + [f"{key}: missing; start from base()" for key in known if key not in given]


def _add_stage(config: ConfigDict, name: str, _: str) -> None:
    add_stage(config, name)


def mistakes(config: ConfigDict) -> list[str]:
    """What is wrong with the values, each with its key, value and remedy."""
    wrong = _wrong_keys(config)
    if wrong:  # the checks below read every key
        return wrong

    def need(ok: bool, key: str, what: str) -> None:
        if not ok:
            value = config
            for part in key.split("."):
                value = value[part]
            shown = key if isinstance(value, ConfigDict) else f"{key}={value!r}"
            wrong.append(f"{shown}: {what}")

    def one_of(key: str, value: str, known: tuple[str, ...]) -> None:
        need(value in known, key, f"choose one of {', '.join(known)}")

    stages = tuple(config.stages)
    unknown = [s for s in stages if s not in STAGES]
    need(not unknown, "stages", f"unknown {unknown}; the stages are {', '.join(STAGES)}")
    need(bool(stages), "stages", f"name at least one of {', '.join(STAGES)}")
    need(bool(config.name) and "/" not in config.name, "name", "give a name without '/'")
    need(0 <= config.seed <= MAX_SEED, "seed", f"must lie in 0..{MAX_SEED}")

    if set(stages) - {"evaluate"} and not config.sets:
        need(bool(config.data.train), "data.train", "name a data set, such as beir:DIR or pydocs:")
    if "evaluate" in stages:
        need(bool(config.data.test), "data.test", "name a data set, such as beir:DIR or pydocs:")
    need(config.data.min_relevance >= 1, "data.min_relevance", "positives have relevance >= 1")
    for key in ("max_queries", "max_passages"):
        need(config.data[key] >= 0, f"data.{key}", "must be 0 (all) or more")

    sides = ["teacher", "student", *(f"teachers.{name}" for name in config.teachers)]
    for side in sides:
        block = config.teachers[side[9:]] if side.startswith("teachers.") else config[side]
        need(bool(block.model), f"{side}.model", "name a folder, a weights package or a hub id")
        for key in ("query_length", "passage_length"):
            need(block[key] == 0 or block[key] >= 3, f"{side}.{key}", "0 (the model's) or >= 3")
        one_of(f"{side}.dtype", block.dtype, DTYPES)
        one_of(f"{side}.param_dtype", block.param_dtype, DTYPES)
        one_of(f"{side}.attention", block.attention, ATTENTION)
        one_of(f"{side}.remat", block.remat, REMAT)
        one_of(f"{side}.init", block.init, INITS)
        if side == "student" and "train" in stages and not block.lora_rank and not block.adapter:
            what = "all weights are trained, which takes float32; or set lora_rank"
            need(block.param_dtype == "float32", "student.param_dtype", what)
        if side != "student":
            for key, value in (("init", "pretrained"), ("remat", "none")):
                need(block[key] == value, f"{side}.{key}", "for the student only")
        if block.prompt_in_pooling is not None:
            one_of(f"{side}.prompt_in_pooling", block.prompt_in_pooling, PROMPT_IN_POOLING)
        _check_lora(side, block, need)
    for key in ("data", "fsdp", "tensor"):
        need(config.mesh[key] == -1 or config.mesh[key] >= 1, f"mesh.{key}", "-1 or positive")
    joins = config.distributed
    one_of("distributed.mode", joins.mode, ("auto", "on", "off"))
    if joins.coordinator:
        need(joins.num_processes >= 1, "distributed.num_processes", "how many join coordinator")
        mine_is = 0 <= joins.process_id < max(1, joins.num_processes)
        need(mine_is, "distributed.process_id", "must lie in 0..num_processes-1")

    need(config.embed.chunk_rows >= 1, "embed.chunk_rows", "must be positive")
    need(config.embed.token_budget >= 0, "embed.token_budget", "must be 0 (automatic) or more")
    one_of("search.backend", config.search.backend, BACKENDS)
    need(config.search.depth >= 1, "search.depth", "must be positive")
    need(config.search.query_block >= 1, "search.query_block", "must be positive")
    need(config.search.memory_gib >= 0, "search.memory_gib", "must be 0 (automatic) or more")

    check_mining(config, need, one_of)

    check_recipe(config, need, one_of)

    need(config.evaluation.depth >= 100, "evaluation.depth", "recall@100 needs at least 100")
    need(config.evaluation.min_relevance >= 1, "evaluation.min_relevance", "must be 1 or more")
    one_of("export.dtype", config.export.dtype, ("float32", "float16"))
    length = config.export.max_length
    need(length == 0 or length >= 3, "export.max_length", "0 (the student's) or >= 3")
    need(config.report.examples >= 0, "report.examples", "must be 0 or more")
    return wrong


def _check_lora(side: str, block: ConfigDict, need) -> None:
    """`side`: the block's key, 'student' or a teacher's."""
    key = f"{side}.lora_rank"
    need(block.lora_rank >= 0, key, "must be 0 (all weights are trained) or more")
    if side != "student":
        what = "only the student is trained; 'adapter' puts a trained one on a teacher"
        need(block.lora_rank <= 0, key, what)
    if block.adapter:
        need(block.lora_rank <= 0, key, "new adapters, but 'adapter' names trained ones: give one")
    need(block.lora_alpha > 0, f"{side}.lora_alpha", "must be positive")
    need(0 <= block.lora_dropout < 1, f"{side}.lora_dropout", "a share, in [0, 1)")
    targets = block.lora_targets
    named = bool(targets) and all(isinstance(t, str) and t for t in targets)
    need(named, f"{side}.lora_targets", "names of modules, such as ('q_proj',) or ('all-linear',)")
