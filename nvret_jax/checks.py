"""What must hold of the values of a config; all mistakes are named in one message.

`config_keys` says what each key takes. Here is what must hold between keys, together with
`mining_checks` and `recipe_checks`. Only values are read. What needs the data, the mesh or the
models is checked by `pipeline.py`, before anything is made.

A check between keys reads the config through `Sound`, which ends it where it asks for a value that
is wrong by itself: that mistake is named already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from nvret_jax import options
from nvret_jax.config import base, encoder, flat_keys, near, training_set
from nvret_jax.config_keys import NAMED, keys_of
from nvret_jax.errors import InputError
from nvret_jax.mining_checks import mining_checks
from nvret_jax.path_checks import check_paths
from nvret_jax.recipe_checks import recipe_checks

# A check of what must hold between keys: yields (key, what is wrong with its value).
Conflicts = Iterable[tuple[str, str]]


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
    known, given = keys_of(config), flat_keys(config)
    if known.keys() == set(given):
        return []
    wrong = []
    for block in _blocks(config, known):
        value = _value(config, block)
        if value is not None and not isinstance(value, ConfigDict):
            wrong.append(f"{block}={options.shown(value)}: expected a block of values")
    if wrong:
        return wrong
    expected = base()
    wrong = [f"{key}: no such key{near(expected, key)}" for key in given if key not in known]
    return wrong + [f"{key}: missing; start from base()" for key in known if key not in given]


def _blocks(config: ConfigDict, known: Iterable[str]) -> list[str]:
    """Keys of all blocks there should be, the outer ones first."""
    blocks = dict.fromkeys(NAMED)
    for named in NAMED:
        inside = config.get(named)
        blocks |= dict.fromkeys(
            f"{named}.{name}" for name in (inside if isinstance(inside, ConfigDict) else ())
        )
    for key in known:
        parts = key.split(".")[:-1]
        blocks |= dict.fromkeys(".".join(parts[: i + 1]) for i in range(len(parts)))
    return list(blocks)


def _value(config: ConfigDict, key: str) -> Any:
    """The value of a key; None where there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, ConfigDict) else None
    return config


def wrong_values(config: ConfigDict) -> dict[str, str]:
    """Key -> what is wrong with its value by itself; `config` has all keys."""
    found = {
        key: options.mistake(key, _value(config, key), takes)
        for key, takes in keys_of(config).items()
    }
    return {key: line for key, line in found.items() if line}


def mistakes(config: ConfigDict) -> list[str]:
    """What is wrong with the values, each with its key, value and remedy."""
    wrong = _wrong_keys(config)
    if wrong:  # the checks below read every key
        return wrong
    lines = wrong_values(config)
    sound = Sound(config, frozenset(lines))
    found = list(lines.values()) + check_paths(config)
    for check in (_whole_run, _encoders, _cluster, mining_checks, recipe_checks):
        for conflicts in check(sound):
            try:
                for key, what in conflicts:
                    value = _value(config, key)
                    named = isinstance(value, ConfigDict)
                    found.append(f"{key}: {what}" if named else options.conflict(key, value, what))
            except Unsound:
                pass
    return list(dict.fromkeys(found))


def with_defaults(config: ConfigDict) -> ConfigDict | None:
    """A copy in which each value that is wrong by itself is the default.

    None where such a value, or a path, says what is read: nothing found in other data or another
    model would help. Mistakes between keys stay.
    """
    wrong = wrong_values(config)
    if check_paths(config):
        return None
    if not wrong:
        return None if any(_sources(config)) else config  # no data are named: nothing to read
    copy, expected = config.copy_and_resolve_references(), base()
    with expected.unlocked():
        for named, default in zip(NAMED, (encoder(), training_set(), expected.train), strict=True):
            expected[named] = dict.fromkeys(config[named], default)
    for key in wrong:
        block, _, leaf = key.rpartition(".")
        if block == "data" or leaf in ("model", "source", "split", "adapter", "start"):
            return None
        with copy.ignore_type():
            target = _value(copy, block) if block else copy
            target[leaf] = _value(expected, key)
    return copy


class Unsound(Exception):
    """A check has asked for a value that is wrong by itself."""


class Sound:
    """A config, or a block of it, that raises `Unsound` where a wrong value is read."""

    def __init__(self, config: ConfigDict, wrong: frozenset[str], at: str = ""):
        self._config, self._wrong, self._at = config, wrong, at

    def __getitem__(self, key: str) -> Any:
        if self._at + key in self._wrong:
            raise Unsound
        value = self._config[key]
        if isinstance(value, ConfigDict):
            return Sound(value, self._wrong, f"{self._at}{key}.")
        return value

    def __getattr__(self, key: str) -> Any:
        return self[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)

    def items(self) -> Iterator[tuple[str, Any]]:
        """(key, value or block)."""
        return ((key, self[key]) for key in self)


def _whole_run(config: Sound) -> Iterator[Conflicts]:
    yield _sources(config)


def _sources(config: Sound) -> Conflicts:
    stages = set(config.stages)
    if stages - {"evaluate"} and not config.sets and not config.data.train:
        yield "data.train", "name a data set, such as beir:DIR or pydocs:"
    if "evaluate" in stages and not config.data.test:
        yield "data.test", "name a data set, such as beir:DIR or pydocs:"


def _encoders(config: Sound) -> Iterator[Conflicts]:
    yield _student(config)
    for name in ("teacher", *(f"teachers.{name}" for name in config.teachers)):
        block = config.teacher if name == "teacher" else config.teachers[name[9:]]
        yield _teacher(name, block)


def _student(config: Sound) -> Conflicts:
    block = config.student
    if block.adapter and block.lora_rank:
        yield "student.lora_rank", "new adapters, but 'adapter' names trained ones: give one"
    if "train" in config.stages and not block.lora_rank and not block.adapter:
        what = "all weights are trained, which takes float32; or set lora_rank"
        if block.param_dtype != "float32":
            yield "student.param_dtype", what


def _teacher(at: str, block: Sound) -> Conflicts:
    for key, value in (("init", "pretrained"), ("remat", "none")):
        if block[key] != value:
            yield f"{at}.{key}", f"for the student only; a teacher takes {value!r}"
    if block.lora_rank:
        what = "only the student is trained; 'adapter' puts a trained one on a teacher"
        yield f"{at}.lora_rank", what


def _cluster(config: Sound) -> Iterator[Conflicts]:
    yield _processes(config.distributed)


def _processes(joins: Sound) -> Conflicts:
    if joins.coordinator:
        if joins.num_processes < 1:
            yield "distributed.num_processes", "how many processes join the coordinator"
        if joins.process_id >= max(1, joins.num_processes):
            yield "distributed.process_id", "expected a number below num_processes"
