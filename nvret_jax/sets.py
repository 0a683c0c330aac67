"""Training sets: each is mined as a run of its own would, in a folder of its own.

A set's config is the run's, with the set's source in the place of `data.train` and the set's own
choices over the run's. So all that mining can do, it can do for each set; training then reads the
negatives of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from ml_collections import ConfigDict

from nvret_jax.config import MAIN_SET, set_names, stages_of
from nvret_jax.training.options import Training

MINING_STAGES = ("embed", "search", "audit", "mine")
_MINING = ("rule", "percent", "margin", "anchor", "num_negatives")
_CAPS = ("min_relevance", "max_queries", "max_passages")
_TEXTS = ("query_prompt", "passage_prompt")
_LENGTHS = ("query_length", "passage_length")


def set_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config by which one of `config.sets` is mined: it trains and evaluates nothing."""
    block = config.sets[name]
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.sets, own.train_stages = ConfigDict(), ConfigDict()
        own.train.stages = own.train.sets = own.train.shares = ()
    own.name = f"{config.name}: {name}"
    own.stages = tuple(stage for stage in config.stages if stage in MINING_STAGES)
    own.data.train, own.data.train_split = block.source, block.split
    own.data.dev_split = ""
    for key in _CAPS:
        own.data[key] = block[key]
    for key in _MINING:
        if block[key] is not None:
            own.mining[key] = block[key]
    if block.teachers:
        own.mining.teachers = block.teachers
    for teacher in own.mining.teachers:
        side = own.teacher if teacher == "teacher" else own.teachers[teacher]
        for key in _TEXTS:
            if block[f"teacher_{key}"] is not None:
                side[key] = block[f"teacher_{key}"]
    for key in (*_TEXTS, *_LENGTHS):
        if block[key] is not None:
            own.student[key] = block[key]
    return own


def key_names(config: ConfigDict, name: str) -> dict[str, str]:
    """Keys of a set's own config -> the keys of the whole run's config that set them.

    Keys that the set leaves to the whole run are not among them.
    """
    block, at = config.sets[name], f"sets.{name}."
    names = {"data.train": f"{at}source", "data.train_split": f"{at}split"}
    names |= {f"data.{key}": f"{at}{key}" for key in _CAPS}
    own = {f"mining.{key}": key for key in _MINING}
    own |= {f"student.{key}": key for key in (*_TEXTS, *_LENGTHS)}
    for teacher in block.teachers or config.mining.teachers:
        side = "teacher" if teacher == "teacher" else f"teachers.{teacher}"
        own |= {f"{side}.{key}": f"teacher_{key}" for key in _TEXTS}
    names |= {key: f"{at}{of}" for key, of in own.items() if block[of] is not None}
    return names | ({"mining.teachers": f"{at}teachers"} if block.teachers else {})


def sets_of(config: ConfigDict, named: Iterable[str]) -> tuple[str, ...]:
    """The names of the sets that a stage of training draws from; `named`: those it names."""
    return tuple(named) or tuple(set_names(config))


def used_sets(config: ConfigDict) -> list[str]:
    """The names of all sets that are mined: those that some stage of training draws from."""
    if "train" not in config.stages:
        return set_names(config)
    named = {name for stage in stages_of(config).values() for name in sets_of(config, stage.sets)}
    return [name for name in set_names(config) if name in named]


def shares_of(stage: Training, names: Iterable[str]) -> list[float]:
    """How much of each set a stage takes, in its `share_unit`."""
    return [float(x) for x in stage.shares] or [1.0 for _ in names]


__all__ = [
    "MAIN_SET",
    "MINING_STAGES",
    "key_names",
    "set_config",
    "sets_of",
    "shares_of",
    "used_sets",
]
