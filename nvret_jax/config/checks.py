"""Checks of the values of a config; one message names all mistakes.

The dataclasses of options define the values of each key, and the conditions within a block. Here
are the conditions between blocks. Only values are read. Conditions on the data, the mesh or the
models are checked by `pipeline/preflight.py`, before anything is made.

A check between keys reads the config through `Sound`, which ends it when it reads a value that is
invalid by itself, because that mistake is already reported.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from nvret_jax import options
from nvret_jax.config import (
    MAIN_SET,
    NAMED,
    Config,
    base,
    flat_keys,
    keys_of,
    near,
    nearest,
    set_names,
    stages_of,
)
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.mining.negatives import GIVEN, RANDOM, RESCORER
from nvret_jax.mining.rules import beyond_cosines
from nvret_jax.options import blocks
from nvret_jax.options.blocks import Conflicts
from nvret_jax.options.takes import paths_in

# Names in tables and folders.
_TAKEN = ("teacher", "student", "student-start", RANDOM, GIVEN, RESCORER)
_NO_COSINES = ("bm25:", "random:", "run:")  # what models of teachers begin with
_REPAIRS = 3  # a default, too, may conflict with another value
_NONE: Mapping[str, str] = types.MappingProxyType({})
_EXACT = 1e-6  # tolerance for parts that must sum to 1


def validate(config: ConfigDict, misread: Mapping[str, str] = _NONE) -> None:
    """Checks every value.

    Args:
        config: of a run.
        misread: what is wrong with overrides that it does without, by key.

    Raises:
        InputError: one line that lists all mistakes, each with its key, value and remedy.
    """
    wrong = mistakes(config)
    if wrong or misread:
        raise InputError(as_one_line(wrong, misread))


def as_one_line(wrong: Sequence[str], misread: Mapping[str, str] = _NONE) -> str:
    """All mistakes as one line, each once; those that may follow from `misread` are left out."""
    return "config: " + "; ".join(_with_misread(misread, wrong))


def _with_misread(misread: Mapping[str, str], wrong: Iterable[str]) -> list[str]:
    """Mistakes in the names or types of keys, by key, and those others that do not follow."""
    expected = base() if misread else None
    meant = set(misread)
    for key in misread:
        meant.update(difflib.get_close_matches(key, nearest(expected, key), 1))
    apart = [line for line in wrong if re.split(r"[=:]", line, maxsplit=1)[0] not in meant]
    return list(dict.fromkeys([*misread.values(), *apart]))


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


def _with_all_keys(config: ConfigDict) -> ConfigDict | None:
    """A copy without the keys that do not exist, and with defaults for those that are missing.

    None where a block is missing or no block, which leaves too little to check.
    """
    copy = config.copy_and_resolve_references()
    known = keys_of(config)
    if any(not isinstance(_value(config, block), ConfigDict) for block in _blocks(config, known)):
        return None
    defaults = _defaults(config)
    with copy.unlocked():
        for key in {*flat_keys(config), *known}:
            block, _, leaf = key.rpartition(".")
            target = _value(copy, block) if block else copy
            if key not in known:
                del target[leaf]
            elif leaf not in target:
                target[leaf] = defaults[key]
    return copy if has_all_keys(copy) else None


def _blocks(config: ConfigDict, known: Iterable[str]) -> list[str]:
    """Keys of all expected blocks, the outer ones first."""
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
    """The value of a key; None if there is none."""
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
        whole = _with_all_keys(config)
        if whole is None:
            return wrong
        unread = {line.split(":", 1)[0]: line for line in wrong}
        return _with_misread(unread, mistakes(whole))
    lines = wrong_values(config)
    sound = Sound(config, frozenset(lines))
    found = list(lines.values()) + check_paths(config)
    for check in _checks(sound):
        try:
            for key, what in check:
                value = _value(config, key)
                is_block = isinstance(value, ConfigDict)
                found.append(f"{key}: {what}" if is_block else options.conflict(key, value, what))
        except Unsound:
            pass
    return list(dict.fromkeys(found))


def check_paths(config: ConfigDict) -> list[str]:
    """What is wrong with the paths of a config, each with its key; it has all keys."""
    wrong = []
    for key, takes in keys_of(config).items():
        for path in paths_in(takes, _value(config, key)):
            try:
                paths.local(path, key)
            except InputError as error:
                wrong.append(str(error))
    return wrong


def with_defaults(config: ConfigDict) -> ConfigDict | None:
    """A copy in which values that are invalid, by themselves or within their block, are defaults.

    None if such a value, or a path, determines what is read, because findings in other data or
    another model would not help; also None if no data are given. Mistakes between blocks are kept.
    """
    if check_paths(config):
        return None
    wrong = set(wrong_values(config))
    copy, defaults = config.copy_and_resolve_references(), _defaults(config)
    for _ in range(_REPAIRS):
        for key in wrong:
            block, _, leaf = key.rpartition(".")
            if block == "data" or leaf in ("model", "source", "split", "adapter", "start"):
                return None
            with copy.ignore_type():
                target = _value(copy, block) if block else copy
                target[leaf] = defaults[key]
        wrong = {key for check in _inside(Sound(copy, frozenset())) for key, _ in check}
        if not wrong:
            return None if any(_sources(Sound(copy, frozenset()))) else copy
    return None


def _defaults(config: ConfigDict) -> dict[str, Any]:
    """Key -> default, for every key that this config should have."""
    found = {key: one.config_default for key, one in blocks.entries(Config)}
    for named, cls in NAMED.items():
        for name in config[named]:
            entries = blocks.entries(cls, f"{named}.{name}.")
            found |= {key: one.config_default for key, one in entries}
    return found


class Unsound(Exception):
    """A check has read a value that is invalid by itself."""


class Sound:
    """A config, or a block of it, that raises `Unsound` when an invalid value is read."""

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


def _checks(config: Sound) -> Iterator[Conflicts]:
    """The checks, each of which may be ended by a value that is invalid by itself."""
    yield _sources(config)
    yield _student(config)
    yield _names(config)
    yield _mining_teachers("mining", config.mining, config)
    yield from _inside(config)
    yield _rescorer(config)
    yield _targets(config)
    yield _audited(config)
    yield _cosines("mining", config.mining, config)
    yield _rounds(config)
    for name, block in config.sets.items():
        yield _cosines(f"sets.{name}", block, config)
        yield _mining_teachers(f"sets.{name}", block, config)
    yield _order(config)
    for at, train in _trainings(config):
        yield _used_sets(at, train, config)
        yield _shares(at, train, config)
        yield _mined(at, train, config)
        yield _weights(at, train, config)
    yield _few_candidates(config)
    yield _starts(config)
    yield _dropout(config)
    yield _result(config)


def _inside(config: Sound) -> Iterator[Conflicts]:
    """The conditions within each block, from its dataclass."""
    for check in blocks.conflicts(Config, config):
        yield _but_templates(check, config)
    for named, cls in NAMED.items():
        for name, block in config[named].items():
            yield from blocks.conflicts(cls, block, f"{named}.{name}.")


def _but_templates(check: Conflicts, config: Sound) -> Conflicts:
    """If training stages are named, `train` is only the template that they are copied from."""
    for key, what in check:
        if not (config.train_stages and key.startswith("train.")):
            yield key, what


def _trainings(config: Sound) -> Iterator[tuple[str, Sound]]:
    """Key and block of each stage of training, used or not."""
    for name, block in config.train_stages.items():
        yield f"train_stages.{name}", block
    if not config.train_stages:
        yield "train", config.train


# --- encoders ------------------------------------------------------------------------------------


def _sources(config: Sound) -> Conflicts:
    stages = set(config.stages)
    if stages - {"evaluate"} and not config.sets and not config.data.train:
        yield "data.train", "name a data set, such as beir:DIR or pydocs:"
    if stages == {"evaluate"} and not config.data.test:
        yield "data.test", "name a data set, such as beir:DIR or pydocs:"


def _student(config: Sound) -> Conflicts:
    block = config.student
    if block.adapter and block.lora_rank:
        yield "student.lora_rank", "new adapters, but 'adapter' names trained ones: give one"
    if "train" in config.stages and not block.lora_rank and not block.adapter:
        what = "all weights are trained, which takes float32; or set lora_rank"
        if block.param_dtype != "float32":
            yield "student.param_dtype", what


# --- mining --------------------------------------------------------------------------------------


def is_name(name: str) -> bool:
    """Whether it is valid as a folder name: at most 100 letters, digits, '-' and '_'."""
    return len(name) <= 100 and name.replace("-", "").replace("_", "").isalnum()


def _names(config: Sound) -> Conflicts:
    what = "letters, digits, '-', '_'"
    for name in config.teachers:
        if not is_name(name):
            yield "teachers", f"{name!r} is not a valid name for a teacher: {what}"
        elif name in _TAKEN:
            yield "teachers", f"{name!r} is taken; give the teacher another name"
    for name in config.sets:
        if not is_name(name) or name == MAIN_SET:
            yield "sets", f"{name!r} is not a valid name for a set: {what}; '{MAIN_SET}' is taken"


def _mining_teachers(at: str, block: Sound, config: Sound) -> Conflicts:
    known = ("teacher", *config.teachers)
    unknown = [name for name in block.teachers if name not in known]
    if unknown:
        yield f"{at}.teachers", f"unknown {unknown}; known: {', '.join(known)}"


def _targets(config: Sound) -> Conflicts:
    mining = config.mining
    known = ("teacher", *config.teachers, RESCORER)
    unknown = [name for name in mining.targets if name not in known]
    if unknown:
        yield "mining.targets", f"unknown {unknown}; known: {', '.join(known)}"
    blocks_of = {"teacher": config.teacher, **dict(config.teachers.items())}
    for name in mining.targets:
        if name in blocks_of and blocks_of[name].model == "random:":
            yield "mining.targets", f"{name!r} is random: its scores say nothing"
    if RESCORER in mining.targets and not config.rescorer.model:
        yield "mining.targets", f"{RESCORER!r} needs rescorer.model"
    if mining.targets and "train" in config.stages:
        if not any(train.loss.distillation for _, train in _trainings(config)):
            yield "mining.targets", "is read by distillation alone; set train.loss.distillation"


def _rescorer(config: Sound) -> Conflicts:
    rescorer, mining = config.rescorer, config.mining
    if rescorer.model and rescorer.order == "unchanged" and RESCORER not in mining.targets:
        yield "rescorer.order", f"'unchanged' is for mining.targets=('{RESCORER}',)"
    if rescorer.model and rescorer.order == "teacher" and "auto" in (mining.percent, mining.margin):
        yield "rescorer.order", "a value that is 'auto' is chosen from all scores: use 'rescored'"


def _are_cosines(config: Sound, names: Iterable[str]) -> bool:
    known = {"teacher": config.teacher, **dict(config.teachers.items())}
    return all(
        known[name].normalize and not known[name].model.startswith(_NO_COSINES)
        for name in names
        if name in known
    )


def _audited(config: Sound) -> Conflicts:
    """Values out of the range of cosines, among those that an audit tries."""
    if not _are_cosines(config, config.mining.teachers):
        return
    for name in ("margin", "threshold"):
        for value in config.audit[f"{name}s"]:
            for _, what in beyond_cosines({name: value}):
                yield f"audit.{name}s", what


def _cosines(at: str, block: Sound, config: Sound) -> Conflicts:
    """Values out of the range of cosines, if the teachers' scores are cosines."""
    if not _are_cosines(config, block.teachers or config.mining.teachers):
        return
    values = {name: block[name] for name in ("margin", "threshold") if name in block}
    for name, what in beyond_cosines(values):
        yield f"{at}.{name}", what


# --- training ------------------------------------------------------------------------------------


def _rounds(config: Sound) -> Conflicts:
    if config.rounds > 1:
        if not {"mine", "train"} <= set(config.stages):
            yield "rounds", "more than one round needs the stages mine and train"
        if config.student.adapter:
            yield "rounds", "the student has an 'adapter': merge it first"


def _order(config: Sound) -> Conflicts:
    order = tuple(config.train.stages)
    unknown = [name for name in order if name not in config.train_stages]
    if unknown:
        known = ", ".join(config.train_stages) or "none; add_stage() makes one"
        yield "train.stages", f"unknown {unknown}; there are {known}"
    for name in config.train_stages:
        if name not in order:
            yield "train.stages", f"stage {name!r} never runs; list it, or do not add it"
        if not is_name(name):
            yield (
                "train.stages",
                f"{name!r} is not a valid name for a stage: letters, digits, '-', '_'",
            )


def _used_sets(at: str, train: Sound, config: Sound) -> Conflicts:
    known = set_names(config)
    unknown = [name for name in train.sets if name not in known]
    if unknown:
        yield f"{at}.sets", f"unknown {unknown}; there are {', '.join(known) or 'none'}"


def _shares(at: str, train: Sound, config: Sound) -> Conflicts:
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


def _mined(at: str, train: Sound, config: Sound) -> Conflicts:
    if "train" not in config.stages:
        return
    most = config.mining.num_negatives
    mined = dict.fromkeys(set_names(config), most)
    for name, block in config.sets.items():
        if block.num_negatives is not None:
            mined[name] = block.num_negatives
    used = [mined[name] for name in train.sets or mined if name in mined]
    most = max(used, default=most)
    if train.num_negatives > most:
        yield f"{at}.num_negatives", f"mining.num_negatives={most} are mined"
    elif train.draw.how != "top" and train.num_negatives in (0, most):
        why = f"mining.num_negatives={most} and {at}.num_negatives={train.num_negatives}"
        yield f"{at}.draw.how", f"there is nothing to choose: {why}; mine more than a step takes"
    if train.num_distilled > config.mining.num_distilled:
        why = f"mining.num_distilled={config.mining.num_distilled} are stored; raise that, too"
        yield f"{at}.num_distilled", why


def _weights(at: str, train: Sound, config: Sound) -> Conflicts:
    """Weights that are read and not made, or made and not read."""
    mining = config.mining
    weighed = mining.positives.max_rank and mining.positives.doubtful == "weigh"
    if train.loss.weights and not mining.risk and not weighed and "train" in config.stages:
        why = "mining stores no weights; set mining.risk, or mining.positives.doubtful='weigh'"
        yield f"{at}.loss.weights", why
    if weighed and not train.loss.weights:
        yield "mining.positives.doubtful", f"'weigh' needs {at}.loss.weights=true"


def _few_candidates(config: Sound) -> Conflicts:
    mining, depth = config.mining, config.search.depth
    why = f"search.depth={depth} candidates are stored; raise that, too"
    if mining.positives.max_rank > depth:
        yield "mining.positives.max_rank", why
    if mining.num_distilled > depth:
        yield "mining.num_distilled", why


def _has_dev(config: Sound) -> bool:
    return bool(config.data.train and config.data.dev_split)


def _starts(config: Sound) -> Conflicts:
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


def _dropout(config: Sound) -> Conflicts:
    if any(name not in config.train_stages for name in config.train.stages):
        return
    rates = sorted({block.dropout for block in stages_of(config).values() if block.dropout})
    if len(rates) > 1:
        what = f"stages have the rates {rates}; all stages must use one dropout rate, or 0"
        yield "train.stages", what


def _result(config: Sound) -> Conflicts:
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
