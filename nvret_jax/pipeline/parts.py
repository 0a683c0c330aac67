"""Parts of artefacts that consist of several values: mining's options, exclusions, files.

Each is named by the config key that decides it. Each stage's file defines which artefact has which
parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from nvret_jax.artifacts.fingerprints import About, Digest, Made, digest
from nvret_jax.artifacts.workdir import flatten
from nvret_jax.config import sets
from nvret_jax.data.dataset import Dataset
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.mining.options import Mining, Options
from nvret_jax.models.pretrained.weights import file_sha256
from nvret_jax.options import parts_of
from nvret_jax.training.options import BEST_KEYS, LAST, STARTS, Result, Training

# Keys of the config that affect only where and how a run executes: never a reason.
_WHERE = ("distributed.", "mesh.", "stages")


def values_of(config: ConfigDict) -> dict[str, Any]:
    """The values of a config that may be a reason, by key."""
    values = flatten(config.to_dict())
    return {key: value for key, value in values.items() if not key.startswith(_WHERE)}


def mining_parts(options: Options, config: ConfigDict) -> dict[str, Any]:
    """The options that matter: a value counts if the rule or the draw reads it.

    Args:
        options: as they take effect.
        config: of the run; its preset may have changed some of them.
    """
    named = parts_of(options, "mining.")
    for key, value in list(named.items()) if config.mining.compat else ():
        if value != config.mining[key.removeprefix("mining.")]:
            named[key] = Digest(value, key, ("mining.compat", key))
    if options.window:
        # As many candidates as sentence-transformers considers; follows from other values.
        named["mining.window"] = Digest(str(options.window), "the window", ("mining.compat",))
    return named | ({"seed": options.seed} if options.draws else {})


def exclusion_parts(mining: Mining) -> dict[str, Any]:
    """The exclusions; files by their content, not their path."""
    at, exclude, judge = "mining.exclude.", mining.exclusions, mining.judge
    parts = parts_of(exclude, at)
    if exclude.document_map:
        parts[f"{at}document_map"] = file_part(f"{at}document_map", exclude.document_map)
    if judge.verdicts:
        parts["mining.verdicts"] = file_part("mining.verdicts", judge.verdicts)
        parts |= parts_of(judge, "mining.")
    return parts


def stage_parts(config: ConfigDict, name: str, stage: Training, following: str) -> dict[str, Any]:
    """The values of one training stage that decide its result.

    Args:
        config: of the run.
        name, stage: of the stage, and its options.
        following: the start of the next stage, or ''.
    """
    at = stage_prefix(name)
    parts = parts_of(stage, at)
    if following == "best":
        parts |= {f"{at}{key}": getattr(stage, key) for key in BEST_KEYS}
    parts[f"{at}sets"] = list(sets.sets_of(config, stage.sets))
    if stage.start not in STARTS:
        parts[f"{at}start"] = folder_part(f"{at}start", stage.start)
    return parts


@dataclasses.dataclass(frozen=True)
class Mined:
    """The inputs of training from one set.

    Attributes:
        negatives: the artefact.
        student: the student's own parts, for queries and passages of this set.
        about: what reasons need of the set.
    """

    negatives: Made
    student: Mapping[str, Any]
    about: About


def training_parts(
    config: ConfigDict, stages: Mapping[str, Training], mined: Mapping[str, Mined], about: About
) -> tuple[dict[str, Any], About]:
    """The parts of the student's training, by stage and set, and what reasons need.

    Args:
        config: of the run.
        stages: of training, by name.
        mined: of each set, by name.
        about: what reasons need of the whole run.
    """
    parts: dict[str, Any] = {"seed": config.seed, "train.stages": list(stages)}
    names, values = dict(about.names), dict(about.values)
    starts = [stage.start for stage in stages.values()]
    for (name, stage), following in zip(stages.items(), [*starts[1:], ""], strict=True):
        of_stage = stage_parts(config, name, stage, following)
        names |= stage_names(config, name, of_stage)
        parts |= of_stage
    if not config.train.stages:
        at = stage_prefix("train")
        values |= {
            key.replace("train.", at, 1): value
            for key, value in values.items()
            if key.startswith("train.")
        }
    for name, part in mined.items():
        of = "" if name == sets.MAIN_SET else f"{name}:"
        parts[f"{of}negatives"] = part.negatives
        for key, value in part.student.items():
            parts[of + key] = value
            names[of + key] = part.about.names.get(key, key)
            values[of + key] = part.about.values.get(key)
    return parts, About(names, values)


def stage_prefix(name: str) -> str:
    """The names of a training stage's parts, also if the config has a single unnamed stage."""
    return f"train_stages.{name}."


def stage_names(config: ConfigDict, name: str, parts: dict[str, Any]) -> dict[str, str]:
    """The keys by which a config of one stage without a name knows that stage's values."""
    if config.train.stages:
        return {}
    at = stage_prefix(name)
    return {key: f"train.{key.removeprefix(at)}" for key in parts}


def result_parts(config: ConfigDict, result: Result, last: Training) -> dict[str, Any]:
    """The parts that select the trained student from the checkpoints.

    Args:
        config: of the run.
        result: as it takes effect.
        last: the options of the last stage of training.
    """
    at = f"train_stages.{config.train.stages[-1]}." if config.train.stages else "train."
    parts = parts_of(result, "result.")
    if result.pick != LAST:
        parts |= {f"{at}{key}": getattr(last, key) for key in BEST_KEYS}
    for number, folder in enumerate(result.merge_with):
        parts[f"result.merge_with.{number}"] = folder_part("result.merge_with", folder)
    if result.merge_last > 1:
        parts[f"{at}checkpoint_every"] = last.checkpoint_every
    return parts


def texts_part(hash_: str, *, test: bool, table: str) -> Digest:
    """The texts of a table of the training or the test data."""
    what = "passages" if table == "passages" else "queries"
    return Digest(hash_, f"the texts of the {what} of data.{_role(test)}", data_keys(test=test))


def judgments_part(value: Any, *, test: bool) -> Digest:
    """Judgments, or the positives among them."""
    grade = "evaluation.min_relevance" if test else "data.min_relevance"
    keys = (*data_keys(test=test), grade)
    return Digest(digest(value), f"the judgments of data.{_role(test)}", keys)


def given_part(value: Any) -> Digest:
    """The negatives that come with the training data."""
    return Digest(digest(value), "the given negatives of data.train", data_keys(test=False))


def data_keys(*, test: bool) -> tuple[str, ...]:
    """The keys of the config that decide what is read from a data set."""
    role = _role(test)
    more = ("max_queries", "max_passages", "allow_empty", "missing")
    keys = (role, f"{role}_split", *(() if test else ("dev_split", "dev_share")), *more)
    return tuple(f"data.{key}" for key in keys)


def _role(test: bool) -> str:
    return "test" if test else "train"


def folder_part(key: str, path: str) -> Digest:
    """A folder of weights that the config names: its path and, of a model, its weights' hash."""
    folder = paths.local(path, "folder")
    if not folder.is_dir():
        raise InputError(f"{path}: no such folder; expected a model or checkpoints")
    files = sorted(folder.glob("*.safetensors"))
    content = digest([str(path), *(file_sha256(file) for file in files)])
    return Digest(content, f"what is in the folder of {key}", (key,))


def file_part(key: str, path: Any) -> Digest:
    """A file that the config names."""
    try:
        return Digest(file_sha256(paths.local(path, key)), f"the file of {key}", (key,))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def folder_name(data: Dataset, other: Dataset | None, *, test: bool) -> str:
    """The folder of the vectors of a data set: its name, unless another one has the same name."""
    clash = test and other is not None and other is not data and other.name == data.name
    return f"{data.name}.test" if clash else data.name
