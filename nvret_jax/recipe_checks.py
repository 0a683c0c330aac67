"""What must hold between the keys of a config that are about sets, training and its result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from nvret_jax.config import stages_of
from nvret_jax.training.loss_options import Loss

Conflicts = Iterable[tuple[str, str]]  # (key, what is wrong with its value)
MAIN_SET = "train"  # the name of `data.train` among the sets
_OWN = {"temperature": "temperature", "in_batch": "in_batch_negatives"}  # beside `loss`
_EXACT = 1e-6  # how far from 1 parts of a whole may sum


def set_names(config: ConfigDict) -> list[str]:
    """All sets there are to train on, `data.train` first."""
    return [MAIN_SET] * bool(config.data.train) + list(config.sets)


def is_name(name: str) -> bool:
    """Whether it may name a folder: at most 100 letters, digits, '-' and '_'."""
    return len(name) <= 100 and name.replace("-", "").replace("_", "").isalnum()


def recipe_checks(config: ConfigDict) -> Iterator[Conflicts]:
    """The checks, each of which may be ended by a value that is wrong by itself."""
    yield _rounds(config)
    yield _sets(config)
    yield _order(config)
    for name, block in config.train_stages.items():
        yield from _stage(config, f"train_stages.{name}", block)
    yield from _stage(config, "train", config.train)
    yield _starts(config)
    yield _dropout(config)
    yield _result(config)


def _rounds(config: ConfigDict) -> Conflicts:
    if config.rounds > 1:
        if not {"mine", "train"} <= set(config.stages):
            yield "rounds", "more than one round needs the stages mine and train"
        if config.student.adapter:
            yield "rounds", "the student has an 'adapter': merge it first"


def _sets(config: ConfigDict) -> Conflicts:
    known = ("teacher", *config.teachers)
    for name in config.sets:
        if not is_name(name) or name == MAIN_SET:
            what = "letters, digits, '-', '_'"
            yield "sets", f"{name!r} is no name for a set: {what}; '{MAIN_SET}' is taken"
    for name, block in config.sets.items():
        unknown = [teacher for teacher in block.teachers if teacher not in known]
        if unknown:
            yield f"sets.{name}.teachers", f"unknown {unknown}; known are {', '.join(known)}"


def _order(config: ConfigDict) -> Conflicts:
    order = tuple(config.train.stages)
    unknown = [name for name in order if name not in config.train_stages]
    if unknown:
        known = ", ".join(config.train_stages) or "none; add_stage() makes one"
        yield "train.stages", f"unknown {unknown}; there are {known}"
    for name in config.train_stages:
        if name not in order:
            yield "train.stages", f"stage {name!r} is never run; name it, or do not add it"
        if not is_name(name):
            yield "train.stages", f"{name!r} is no name for a stage: letters, digits, '-', '_'"


def _stage(config: ConfigDict, at: str, train: ConfigDict) -> Iterator[Conflicts]:
    """The checks of one block of training, which lies at the key `at`."""
    if at == "train" and config.train_stages:
        return  # a template for the stages there are, and not trained with itself
    yield _used_sets(config, at, train)
    yield _shares(config, at, train)
    yield _negatives(config, at, train)
    yield _length(at, train)
    for conflicts in Loss.conflicts(_LossValues(train)):
        yield ((loss_key(at, name), what) for name, what in conflicts)


def _used_sets(config: ConfigDict, at: str, train: ConfigDict) -> Conflicts:
    known = set_names(config)
    unknown = [name for name in train.sets if name not in known]
    if unknown:
        yield f"{at}.sets", f"unknown {unknown}; there are {', '.join(known) or 'none'}"


def _shares(config: ConfigDict, at: str, train: ConfigDict) -> Conflicts:
    names, shares = tuple(train.sets) or tuple(set_names(config)), tuple(train.shares)
    listed = ", ".join(names)
    if shares and len(shares) != len(names):
        yield f"{at}.shares", f"{len(shares)} for {len(names)} sets ({listed})"
    elif shares and train.share_unit == "weight":
        total = math.fsum(shares)
        if abs(total - 1) > _EXACT:
            yield f"{at}.shares", f"sum to {total:g}; weights sum to 1"
    elif not shares and train.share_unit == "weight" and len(names) != 1:
        yield f"{at}.shares", f"give a weight for each of {listed}"


def _negatives(config: ConfigDict, at: str, train: ConfigDict) -> Conflicts:
    if train.num_negatives == 0 and not train.in_batch_negatives:
        yield f"{at}.in_batch_negatives", "no negatives are left, as num_negatives=0"
    if train.num_negatives == 0 and train.loss.distillation and train.loss.num_positives == 1:
        what = "compares the passages of a row, and num_negatives=0 leaves only one"
        yield f"{at}.loss.distillation", what
    if "train" in config.stages:
        mined = {name: _mined(config, name) for name in set_names(config)}
        used = [mined[name] for name in train.sets or mined if name in mined]
        most = max(used, default=config.mining.num_negatives)
        if train.num_negatives > most:
            yield f"{at}.num_negatives", f"mining.num_negatives={most} are mined"


def _mined(config: ConfigDict, name: str) -> int:
    """Hard negatives mined for each query of a set."""
    own = None if name == MAIN_SET else config.sets[name].num_negatives
    return config.mining.num_negatives if own is None else own


def _length(at: str, train: ConfigDict) -> Conflicts:
    if not train.steps and not train.epochs:
        yield f"{at}.epochs", "expected a number above 0, or steps"
    if train.steps and train.warmup >= train.steps:
        yield f"{at}.warmup", f"there are {train.steps} steps"


class _LossValues(Mapping):
    """The options of `Loss` that a block of training gives, by their names there, when read."""

    def __init__(self, train: ConfigDict):
        self._train = train

    def __getitem__(self, name: str) -> Any:
        own = _OWN.get(name)
        return self._train[own] if own else self._train.loss[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*_OWN, *self._train.loss])

    def __len__(self) -> int:
        return len(_OWN) + len(self._train.loss)


def loss_key(at: str, name: str) -> str:
    """Where a block of training at the key `at` has an option of `Loss`."""
    return f"{at}.{_OWN.get(name, f'loss.{name}')}"


def _has_dev(config: ConfigDict) -> bool:
    return bool(config.data.train and config.data.dev_split)


def _starts(config: ConfigDict) -> Conflicts:
    if any(name not in config.train_stages for name in config.train.stages):
        return
    for number, (name, block) in enumerate(stages_of(config).items()):
        at = f"train_stages.{name}" if config.train.stages else "train"
        if block.start != "best":
            continue
        if number == 0:
            yield f"{at}.start", "there is no stage before the first"
        if not (_has_dev(config) and block.keep_best):
            what = "needs dev scores: data.train with data.dev_split, and keep_best"
            yield f"{at}.start", what


def _dropout(config: ConfigDict) -> Conflicts:
    if any(name not in config.train_stages for name in config.train.stages):
        return
    rates = sorted({block.dropout for block in stages_of(config).values() if block.dropout})
    if len(rates) > 1:
        what = f"stages have the rates {rates}; one rate, or 0 (off), can be built into a model"
        yield "train.stages", what


def _result(config: ConfigDict) -> Conflicts:
    if any(name not in config.train_stages for name in config.train.stages):
        return
    result = config.result
    last = list(stages_of(config).values())[-1]
    if result.pick == "best" and not (_has_dev(config) and last.keep_best):
        what = "needs dev scores: data.train with data.dev_split, and keep_best in the last stage"
        yield "result.pick", what
    if result.merge_last > last.keep:
        what = f"the last stage keeps {last.keep} checkpoints; raise its `keep`"
        yield "result.merge_last", what
    if result.merge_last > 1 and result.pick != "last":
        yield "result.pick", "merge_last merges the last checkpoints"
    weights = tuple(result.merge_weights)
    count = result.merge_last + len(result.merge_with)
    if weights and len(weights) != count:
        yield "result.merge_weights", f"{len(weights)} for {count} models"
    elif weights:
        total = math.fsum(weights)
        if abs(total - 1) > _EXACT:
            yield "result.merge_weights", f"sum to {total:g}, not 1"
