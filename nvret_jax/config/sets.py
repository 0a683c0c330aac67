"""Training sets: each is mined like a separate run, in a separate folder.

A set's config is the run's, with the set's source instead of `data.train` and the set's values
overriding the run's. So all options of mining are available for each set; training then reads the
negatives of all of them.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

from nvret_jax.config import EACH_TEACHER, MAIN_SET, TrainingSet, set_names, stages_of
from nvret_jax.mining.negatives import RESCORER
from nvret_jax.options import blocks
from nvret_jax.training.options import Training

MINING_STAGES = ("embed", "search", "audit", "mine")


def set_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config for mining one of `config.sets`, without training and evaluation."""
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.sets, own.train_stages = ConfigDict(), ConfigDict()
        own.train.stages = own.train.sets = own.train.shares = ()
    own.name = f"{config.name}: {name}"
    own.stages = tuple(stage for stage in config.stages if stage in MINING_STAGES)
    own.data.dev_split = ""
    for key, of in _replaced(config, name):
        *blocks, leaf = key.split(".")
        target = functools.reduce(operator.getitem, blocks, own)
        with target.ignore_type():  # 'auto' instead of a number
            target[leaf] = config.sets[name][of]
    return own


def key_names(config: ConfigDict, name: str) -> dict[str, str]:
    """Keys of a set's own config -> the keys of the whole run's config that set them.

    Keys that the set does not override are not included.
    """
    return {key: f"sets.{name}.{of}" for key, of in _replaced(config, name)}


def _replaced(config: ConfigDict, name: str) -> Iterator[tuple[str, str]]:
    """(key of the whole run's config, option of the set that replaces its value)."""
    block = config.sets[name]
    for of, one in blocks.entries(TrainingSet):
        if block[of] is None or block[of] == ():  # the run's value
            continue
        if not one.replaces.startswith(f"{EACH_TEACHER}."):
            yield one.replaces, of
            continue
        for teacher in scorers(config, block.teachers or config.mining.teachers):
            at = teacher if teacher == "teacher" else f"teachers.{teacher}"
            yield one.replaces.replace(EACH_TEACHER, at), of


def scorers(config: ConfigDict, mining: Iterable[str]) -> tuple[str, ...]:
    """The teachers that mine, then the others whose scores distillation fits."""
    more = (name for name in config.mining.targets if name != RESCORER)
    return tuple(dict.fromkeys((*mining, *more)))


def sets_of(config: ConfigDict, named: Iterable[str]) -> tuple[str, ...]:
    """The names of the sets that a training stage draws from; `named`: those it lists."""
    return tuple(named) or tuple(set_names(config))


def used_sets(config: ConfigDict) -> list[str]:
    """The names of all sets that are mined: those that any training stage draws from."""
    if "train" not in config.stages:
        return set_names(config)
    named = {name for stage in stages_of(config).values() for name in sets_of(config, stage.sets)}
    return [name for name in set_names(config) if name in named]


def shares_of(stage: Training, names: Iterable[str]) -> list[float]:
    """The share of each set in a stage, in its `share_unit`."""
    return [float(x) for x in stage.shares] or [1.0 for _ in names]


__all__ = [
    "MAIN_SET",
    "MINING_STAGES",
    "key_names",
    "scorers",
    "set_config",
    "sets_of",
    "shares_of",
    "used_sets",
]
