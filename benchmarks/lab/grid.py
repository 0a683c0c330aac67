"""What a grid is: axes of named levels, each level some values of the config, and its cells.

A cell is known by what it computes, not by its name: its key is the fingerprint of the artefact
that its run would end with, the evaluation or the negatives, known before anything runs. Two cells
with the same key are one run, and one of another grid counts as well.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from nvret_jax import config as config_lib
from nvret_jax.artifacts.fingerprints import digest
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.config import checks
from nvret_jax.errors import InputError
from nvret_jax.training.options import BEST_KEYS

Values = Mapping[str, Any]  # config key -> value
Where = Mapping[str, tuple[str, ...]]  # axis -> its levels
HIDDEN = "{hidden}"  # as a value: the verdicts that name all hidden positives of the data set
SET_NAME = "{set}"  # in a value: the name of the data set
SET, SEED = "set", "seed"  # axes that every grid has
_STAGES = ("embed", "search", "mine", "train", "evaluate")
_ALL = {  # what every cell is, unless its grid says otherwise
    "name": "lab",
    "evaluation.bm25": "off",
    "train.checkpoint_every": 0,
    "train.keep": 1,
    "train.keep_best": False,
    "train.log_every": 10,
}


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of a grid.

    Attributes:
        source: as `data.train`, such as beir:DIR.
        visible: leave one positive of each training query visible and hide the others.
        values: config values of all its cells. 'data.test' among them is another data set to
            evaluate on.
        queries: split -> the most queries that are kept of it, drawn once; the others are whole.
        passages: the most passages that are kept: those judged for a kept query whatever their
            number, then others, drawn once; 0: the whole corpus.
        shuffled: share of the training queries that get the judgments of another one, drawn once:
            wrong positives, as labels by clicks or by machines have them.
    """

    source: str
    visible: bool = False
    values: Values = dataclasses.field(default_factory=dict)
    queries: Mapping[str, int] = dataclasses.field(default_factory=dict)
    passages: int = 0
    shuffled: float = 0.0


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table of runs. In a source and in any value `$NAME` is read from the environment.

    Attributes:
        sets: data sets by name.
        axes: axis -> level -> config values; a level applies over those of earlier axes.
        values: config values of all cells.
        teachers: name -> model of teachers beside 'teacher'.
        seeds: of training and of draws.
        baseline: (axis, level) that the others are compared with.
        second: another level of that axis that they are compared with, or ''.
        without: combinations of levels that are left out.
        until: the stage that cells end with: 'evaluate', or 'mine' where negatives are all that is
            asked.
    """

    sets: Mapping[str, DataSet]
    axes: Mapping[str, Mapping[str, Values]]
    values: Values = dataclasses.field(default_factory=dict)
    teachers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    baseline: tuple[str, str] = ("rule", "naive")
    second: str = ""
    without: Sequence[Mapping[str, str]] = ()
    until: str = "evaluate"

    def labels(self, only: Where | None = None) -> Iterator[dict[str, str]]:
        """The cells by their levels, seeds outermost: an early look sees every level once.

        Args:
            only: some axes with the levels wanted of each.

        Raises:
            InputError: an axis or level that the grid does not have.
        """
        axes = {
            SEED: [str(seed) for seed in self.seeds],
            SET: list(self.sets),
            **{name: list(levels) for name, levels in self.axes.items()},
        }
        for axis, levels in (only or {}).items():
            for level in levels:
                if axis not in axes or level not in axes[axis]:
                    known = ", ".join(axes.get(axis, axes))
                    raise InputError(f"the grid has no {axis}={level}; it has {known}")
            axes[axis] = list(levels)
        for chosen in itertools.product(*axes.values()):
            label = dict(zip(axes, chosen, strict=True))
            if not any(out.items() <= label.items() for out in self.without):
                yield label

    def config(self, label: Mapping[str, str], places: Values) -> ConfigDict:
        """The config of a cell.

        Args:
            label: axis -> level.
            places: `HIDDEN` and 'source' -> where they are; see `sets.Made`.
        """
        config = config_lib.base()
        for name, model in self.teachers.items():
            config_lib.add_teacher(config, name, expanded(model))
        values = {"data.train": places["source"], "data.test": places["source"]}
        values |= _ALL | self.values | self.sets[label[SET]].values
        for axis, levels in self.axes.items():
            values |= levels[label[axis]]
        values["seed"] = int(label[SEED])
        values["stages"] = _STAGES[: _STAGES.index(self.until) + 1]
        # What is added by name copies the values around it, so these come first.
        for key, value in sorted(values.items(), key=lambda item: _added(item[0]) != ""):
            if isinstance(value, str):
                value = expanded(places.get(value, value).replace(SET_NAME, label[SET]))
            put(config, key, value)
        self._check_teachers(config)
        return config

    def _check_teachers(self, config: ConfigDict) -> None:
        """Raises InputError if a teacher that is used has no model, or a folder that is missing."""
        for name in config.mining.teachers:
            key = "teacher" if name == "teacher" else f"teachers.{name}"
            model = (config.teacher if name == "teacher" else config.teachers[name]).model
            if not model:
                raise InputError(f"{key}.model: the grid has it for its own data sets only")
            if os.path.isabs(model) and not os.path.exists(model):
                raise InputError(f"{key}.model={model}: no such folder")

    def needs_hidden(self, label: Mapping[str, str]) -> bool:
        """Whether a cell reads the hidden positives, which only some data sets have."""
        return any(HIDDEN in levels[label[axis]].values() for axis, levels in self.axes.items())


def expanded(text: str) -> str:
    """A text with the environment's variables filled in.

    Raises:
        InputError: one of them is not set.
    """
    found = os.path.expandvars(text)
    if "$" in found:
        name = found[found.index("$") + 1 :].split("/")[0]
        raise InputError(f"{text}: the environment variable {name} is not set; set it")
    return found


def put(config: ConfigDict, key: str, value: Any) -> None:
    """Sets one value by its dotted key.

    A set or a stage of training that the config lacks is added by its name: a set with the source
    of `data.train`, a stage as a copy of `train` after the stages before.

    Raises:
        InputError: the config has no such key.
    """
    table = _added(key)
    if table and key.split(".")[1] not in config[table]:
        name = key.split(".")[1]
        if table == "sets":
            config_lib.add_set(config, name, config.data.train)
        else:
            config_lib.add_stage(config, name)
    at = config
    *blocks, last = key.split(".")
    for name in blocks:
        at = at.get(name)
        if not isinstance(at, ConfigDict):
            break
    if not isinstance(at, ConfigDict) or last not in at:
        raise InputError(f"config key {key!r} is not known{config_lib.near(config, key)}")
    with at.ignore_type():
        at[last] = value


def _added(key: str) -> str:
    """'sets' or 'train_stages' for the key of a value of one of these; else ''."""
    table, _, rest = key.partition(".")
    return table if table in ("sets", "train_stages") and "." in rest else ""


def keys_of(configs: Sequence[ConfigDict], out: pathlib.Path) -> list[str]:
    """What each cell computes: the fingerprint of its last artefact, and what dev scores are of.

    Args:
        configs: of cells.
        out: folder of the grid; nothing is written.

    Raises:
        InputError: a config is wrong, or its data or models cannot be read.
    """
    from nvret_jax.pipeline import evaluate, mine
    from nvret_jax.pipeline.state import Run

    read: dict[str, Any] = {}
    found = []
    for config in configs:
        checks.validate(config)
        place = Workdir.open(str(out / "work" / "none"), config.to_dict(), write=False)
        run = Run(config, place, read=read)
        if "evaluate" in config.stages:
            made = [evaluate.artifact(run).fingerprint, *(config.train[key] for key in BEST_KEYS)]
        else:
            made = [mine.artifact(run).fingerprint]
        if config.rounds > 1:
            made.append(config.rounds)
        found.append(digest(made))
    return found


def group_of(config: ConfigDict) -> tuple[str, ...]:
    """What cells that share embeddings and candidates have in common."""
    return tuple(str(config[block][key]) for block, key in (k.split(".") for k in _SHARING))


_SHARING = ("data.train", "data.test", "teacher.model", "student.model")


def read(path: str) -> Grid:
    """The grid that a Python file defines as `GRID`; a name is one of `benchmarks/lab/grids`.

    Raises:
        InputError: there is no such file, or it defines none.
    """
    file = pathlib.Path(path)
    if file.suffix != ".py":
        file = pathlib.Path(__file__).parent / "grids" / f"{path}.py"
    if not file.is_file():
        raise InputError(f"{path}: no such grid; name a Python file, or one in {file.parent}")
    spec = importlib.util.spec_from_file_location("lab_grid", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "GRID", None), Grid):
        raise InputError(f"{file}: expected a Grid by the name GRID")
    return module.GRID
