"""The checks of a config's blocks about training: `sets`, `train`, `train_stages`, `result`."""

from __future__ import annotations

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from nvret_jax.choices import (
    ANCHORS,
    BATCHES,
    MERGES,
    PICKS,
    RULES,
    SCHEDULES,
    SHARE_UNITS,
    STARTS,
)
from nvret_jax.config import stages_of

MAIN_SET = "train"  # the name of `data.train` among the sets
_EXACT = 1e-6  # how far from 1 parts of a whole may sum


def set_names(config: ConfigDict) -> list[str]:
    """All sets there are to train on, `data.train` first."""
    return [MAIN_SET] * bool(config.data.train) + list(config.sets)


def is_name(name: str) -> bool:
    """Whether it may name a folder: letters, digits, '-' and '_'."""
    return name.replace("-", "").replace("_", "").isalnum()


def check_recipe(config: ConfigDict, need, one_of) -> None:
    """Tells `need` and `one_of`, which collect mistakes, what must hold."""
    need(config.rounds >= 1, "rounds", "must be 1 or more")
    if config.rounds > 1:
        there = {"mine", "train"} <= set(config.stages)
        need(there, "rounds", "more than one round needs the stages mine and train")
        need(not config.student.adapter, "rounds", "the student has an 'adapter': merge it first")
    _check_sets(config, need, one_of)
    order = tuple(config.train.stages)
    repeated = sorted({name for name in order if order.count(name) > 1})
    need(not repeated, "train.stages", f"{repeated} more than once; add_stage() makes another")
    unknown = [name for name in order if name not in config.train_stages]
    known = ", ".join(config.train_stages) or "none; add_stage() makes one"
    need(not unknown, "train.stages", f"unknown {unknown}; there are {known}")
    for name in config.train_stages:
        if name not in order:
            need(False, "train.stages", f"stage {name!r} is never run; name it, or do not add it")
        if not is_name(name):
            what = f"{name!r} is no name for a stage: letters, digits, '-', '_'"
            need(False, "train.stages", what)
    if unknown:
        return
    for number, (name, block) in enumerate(stages_of(config).items()):
        at = f"train_stages.{name}" if order else "train"
        _check_stage(config, block, at, number == 0, need, one_of)
    rates = sorted({block.dropout for block in stages_of(config).values() if block.dropout})
    what = f"stages have the rates {rates}; one rate, or 0 (off), can be built into a model"
    need(len(rates) < 2, "train.stages", what)
    _check_result(config, need, one_of)


def _check_sets(config: ConfigDict, need, one_of) -> None:
    for name, block in config.sets.items():
        at = f"sets.{name}"
        if not is_name(name) or name == MAIN_SET:
            what = (
                f"{name!r} is no name for a set: letters, digits, '-', '_'; '{MAIN_SET}' is taken"
            )
            need(False, "sets", what)
            continue
        need(bool(block.source), f"{at}.source", "name a data set, such as beir:DIR")
        need(block.min_relevance >= 1, f"{at}.min_relevance", "positives have relevance >= 1")
        for key in ("max_queries", "max_passages"):
            need(block[key] >= 0, f"{at}.{key}", "must be 0 (all) or more")
        for key in ("query_length", "passage_length"):
            fits = block[key] is None or block[key] == 0 or block[key] >= 3
            need(fits, f"{at}.{key}", "0 (the model's), >= 3, or unset")
        known = ("teacher", *config.teachers)
        unknown = [teacher for teacher in block.teachers if teacher not in known]
        need(not unknown, f"{at}.teachers", f"unknown {unknown}; known are {', '.join(known)}")
        if block.rule is not None:
            rules = block.rule.split("+")
            fits = set(rules) <= set(RULES) and len(set(rules)) == len(rules)
            need(fits, f"{at}.rule", f"some of {', '.join(RULES)}, joined by '+'")
        for key, high in (("percent", 2), ("margin", 2)):
            value = block[key]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fits = value in (None, "auto") or (number and 0 <= value <= high)
            need(fits, f"{at}.{key}", f"a number in 0..{high}, 'auto', or unset")
        if block.anchor is not None:
            one_of(f"{at}.anchor", block.anchor, ANCHORS)
        if block.num_negatives is not None:
            need(block.num_negatives >= 1, f"{at}.num_negatives", "must be positive, or unset")


def _check_stage(
    config: ConfigDict, train: ConfigDict, at: str, first: bool, need, one_of: Callable
) -> None:
    """The values of one stage, whose block lies at the key `at`."""
    _check_blend(config, train, at, need, one_of)
    _check_start(config, train, at, first, need)
    need(train.steps >= 0, f"{at}.steps", "must be 0 (by epochs) or more")
    need(train.max_steps >= 0, f"{at}.max_steps", "must be 0 (no bound) or more")
    need(train.steps > 0 or train.epochs > 0, f"{at}.epochs", "must be positive")
    need(train.batch_size >= 1, f"{at}.batch_size", "must be positive")
    need(train.num_negatives >= 0, f"{at}.num_negatives", "must be 0 or more")
    if train.num_negatives == 0:
        need(train.in_batch_negatives, f"{at}.in_batch_negatives", "no negatives are left")
    if "train" in config.stages:
        mined = {name: _mined(config, name) for name in set_names(config)}
        used = [mined[name] for name in train.sets or mined if name in mined]
        most = max(used, default=config.mining.num_negatives)
        what = f"mining.num_negatives={most} are mined"
        need(train.num_negatives <= most, f"{at}.num_negatives", what)
    need(train.temperature > 0, f"{at}.temperature", "must be positive")
    need(train.learning_rate > 0, f"{at}.learning_rate", "must be positive")
    what = "a share of the steps in [0, 1), or their number from 2 on"
    number = train.warmup >= 2 and float(train.warmup).is_integer()
    need(0 <= train.warmup < 1 or number, f"{at}.warmup", what)
    if train.steps:
        need(train.warmup < train.steps, f"{at}.warmup", f"there are {train.steps} steps")
    one_of(f"{at}.schedule", train.schedule, SCHEDULES)
    for key in ("weight_decay", "clip_norm"):
        need(train[key] >= 0, f"{at}.{key}", "must be 0 or more")
    for key in ("b1", "b2"):
        need(0 <= train[key] < 1, f"{at}.{key}", "must lie in [0, 1)")
    need(train.eps > 0, f"{at}.eps", "must be positive")
    need(0 <= train.dropout < 1, f"{at}.dropout", "a share, in [0, 1)")
    need(train.chunk_tokens >= -1, f"{at}.chunk_tokens", "-1 (off), 0 (automatic) or positive")
    for key in ("checkpoint_every", "eval_every", "log_every", "dev_passages", "dev_queries"):
        need(train[key] >= 0, f"{at}.{key}", "must be 0 or more")
    need(train.keep >= 1, f"{at}.keep", "must be positive")


def _mined(config: ConfigDict, name: str) -> int:
    """Hard negatives mined for each query of a set."""
    own = None if name == MAIN_SET else config.sets[name].num_negatives
    return config.mining.num_negatives if own is None else own


def _check_blend(config: ConfigDict, train: ConfigDict, at: str, need, one_of) -> None:
    known = set_names(config)
    names = tuple(train.sets)
    unknown = [name for name in names if name not in known]
    need(not unknown, f"{at}.sets", f"unknown {unknown}; there are {', '.join(known) or 'none'}")
    need(len(set(names)) == len(names), f"{at}.sets", "name each set once")
    one_of(f"{at}.share_unit", train.share_unit, SHARE_UNITS)
    one_of(f"{at}.batches", train.batches, BATCHES)
    shares = tuple(train.shares)
    count = len(names or known)
    if shares and len(shares) != count:
        need(False, f"{at}.shares", f"{len(shares)} for {count} sets ({', '.join(names or known)})")
        return
    numbers = all(isinstance(x, int | float) and x > 0 for x in shares)
    need(numbers, f"{at}.shares", "positive numbers; leave a set out of `sets` instead of 0")
    if shares and numbers and train.share_unit == "weight":
        total = math.fsum(shares)
        need(abs(total - 1) <= _EXACT, f"{at}.shares", f"sum to {total:g}; weights sum to 1")
    if train.share_unit == "weight" and not shares:
        need(count == 1, f"{at}.shares", f"give a weight for each of {', '.join(names or known)}")


def _has_dev(config: ConfigDict) -> bool:
    return bool(config.data.train and config.data.dev_split)


def _check_start(config: ConfigDict, train: ConfigDict, at: str, first: bool, need) -> None:
    start = train.start
    need(bool(start), f"{at}.start", f"one of {', '.join(STARTS)}, or a folder")
    if start != "best":
        return
    need(not first, f"{at}.start", "there is no stage before the first")
    what = "needs dev scores: data.train with data.dev_split, and keep_best"
    need(_has_dev(config) and train.keep_best, f"{at}.start", what)


def _check_result(config: ConfigDict, need, one_of) -> None:
    result = config.result
    last = list(stages_of(config).values())[-1]
    one_of("result.pick", result.pick, PICKS)
    if result.pick == "best":
        what = "needs dev scores: data.train with data.dev_split, and keep_best in the last stage"
        need(_has_dev(config) and last.keep_best, "result.pick", what)
    one_of("result.merge", result.merge, MERGES)
    need(result.merge_last >= 1, "result.merge_last", "must be 1 (nothing is merged) or more")
    what = f"the last stage keeps {last.keep} checkpoints; raise its `keep`"
    need(result.merge_last <= last.keep, "result.merge_last", what)
    if result.merge_last > 1:
        need(result.pick == "last", "result.pick", "merge_last merges the last checkpoints")
    weights = tuple(result.merge_weights)
    count = result.merge_last + len(result.merge_with)
    if weights and len(weights) != count:
        need(False, "result.merge_weights", f"{len(weights)} for {count} models")
    elif weights:
        total = math.fsum(weights)
        need(abs(total - 1) <= _EXACT, "result.merge_weights", f"sum to {total:g}, not 1")
