"""The config of a run: every option, from the dataclasses of the packages, and helpers.

A config file in `configs/` calls `base()`, changes the values of its experiment, and returns the
result. On the command line any value can be overridden: `--config.mining.percent=0.9`. `smoke()`
shrinks any config to about a minute. `config/checks.py` has the conditions between values.
`--help_config` prints all options; they are also listed in docs/options.md.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from nvret_jax.data.options import GRADE, ROWS, SPLIT, Data
from nvret_jax.data.options import SCHEMES as DATA_SCHEMES
from nvret_jax.errors import InputError
from nvret_jax.evaluation.options import EvaluationOptions
from nvret_jax.export.options import Export
from nvret_jax.mining.options import GIVEN_MODES, TEACHER, Audit, Mining, Options, Rescorer
from nvret_jax.mining.rules import Rule
from nvret_jax.models.options import LENGTH, MODEL, PROMPT, EncoderOptions, TeacherOptions
from nvret_jax.options import (
    MESH_AXIS,
    SEED,
    Takes,
    block,
    blocks,
    choice,
    fields_of,
    flag,
    many,
    named,
    option,
    or_unset,
    path,
    text,
    whole,
)
from nvret_jax.report.options import Report
from nvret_jax.search.options import Embed, Search
from nvret_jax.training.options import NAME, Result, Training
from nvret_jax.training.trackers import TRACKERS

STAGES = ("embed", "search", "audit", "mine", "train", "evaluate", "export", "report")
DEFAULT_STAGES = tuple(stage for stage in STAGES if stage != "audit")
MAIN_SET = "train"  # the name of `data.train` among the sets
DISTRIBUTED = ("auto", "on", "off")


EACH_TEACHER = "{teacher}"  # in a key: the block of each teacher that mines a set
_RULE, _OPTIONS = fields_of(Rule), fields_of(Options)


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """One of several training sets; unset values are those of the run."""

    source: str = option(
        "",
        path("a data set, such as beir:DIR", schemes=DATA_SCHEMES),
        "As 'data.train'; also labels:FILE, examples:FILE and sts:FILE.",
        replaces="data.train",
    )
    split: str = option("train", SPLIT, "Its split for training.", replaces="data.train_split")
    min_relevance: int = option(
        1, GRADE, "As 'data.min_relevance', for this set.", replaces="data.min_relevance"
    )
    max_queries: int = option(
        0, ROWS, "As 'data.max_queries', for this set.", replaces="data.max_queries"
    )
    max_passages: int = option(
        0, ROWS, "As 'data.max_passages', for this set.", replaces="data.max_passages"
    )
    teachers: tuple[str, ...] = option(
        (),
        many(TEACHER, distinct=True),
        "The teachers that mine it; (): 'mining.teachers'.",
        replaces="mining.teachers",
    )
    rule: str | None = option(
        None,
        or_unset(_RULE["name"].config_takes),
        "How it is mined; unset: as 'mining.rule'.",
        replaces="mining.rule",
    )
    percent: Any = option(
        None,
        or_unset(_RULE["percent"].config_takes),
        "Unset: as 'mining.percent'.",
        replaces="mining.percent",
    )
    margin: Any = option(
        None,
        or_unset(_RULE["margin"].config_takes),
        "Unset: as 'mining.margin'.",
        replaces="mining.margin",
    )
    anchor: str | None = option(
        None,
        or_unset(_RULE["anchor"].config_takes),
        "Unset: as 'mining.anchor'.",
        replaces="mining.anchor",
    )
    num_negatives: int | None = option(
        None,
        or_unset(_OPTIONS["num_negatives"].config_takes),
        "Unset: as 'mining.num_negatives'.",
        replaces="mining.num_negatives",
    )
    given: str | None = option(
        None,
        or_unset(choice(*GIVEN_MODES)),
        "Unset: as 'mining.given'.",
        replaces="mining.given",
    )
    query_prompt: str | None = option(
        None,
        PROMPT,
        "The student's prompt for its queries; unset: as 'student.query_prompt'.",
        replaces="student.query_prompt",
    )
    passage_prompt: str | None = option(
        None, PROMPT, "The same for passages.", replaces="student.passage_prompt"
    )
    query_length: int | None = option(
        None,
        or_unset(LENGTH),
        "The student's length for it; unset: as 'student.query_length'.",
        replaces="student.query_length",
    )
    passage_length: int | None = option(
        None, or_unset(LENGTH), "The same for passages.", replaces="student.passage_length"
    )
    teacher_query_prompt: str | None = option(
        None,
        PROMPT,
        "The teachers' prompt for its queries; unset: their own.",
        replaces=f"{EACH_TEACHER}.query_prompt",
    )
    teacher_passage_prompt: str | None = option(
        None, PROMPT, "The same for passages.", replaces=f"{EACH_TEACHER}.passage_prompt"
    )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The sizes of the mesh of devices, by axis."""

    data: int = option(
        -1, MESH_AXIS, "Devices that split the batch and the corpus; -1: the remaining devices."
    )
    fsdp: int = option(1, MESH_AXIS, "Devices that split weights and batch.")
    tensor: int = option(1, MESH_AXIS, "Devices that split the products of a layer.")


@dataclasses.dataclass(frozen=True)
class Distributed:
    """The processes of a run on several hosts."""

    mode: str = option(
        "auto",
        choice(*DISTRIBUTED),
        "auto: join a cluster where JAX detects one; on: must join; off: run alone.",
    )
    coordinator: str = option(
        "",
        text("host:port", empty=True, longest=300),
        "host:port of process 0, for clusters that JAX cannot detect.",
    )
    num_processes: int = option(0, whole(0, 1 << 20), "With a coordinator: how many processes.")
    process_id: int = option(
        0, whole(0, 1 << 20), "With a coordinator: the number of this process."
    )
    join_seconds: int = option(
        50,
        whole(1, 86400, "seconds"),
        "With a coordinator: how long a process waits for the others to start.",
    )

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Iterable[tuple[str, str]]]:
        """See `options.mistakes`."""
        yield _processes(values)


def _processes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if values["coordinator"]:
        if values["num_processes"] < 1:
            yield "num_processes", "how many processes join the coordinator"
        if values["process_id"] >= max(1, values["num_processes"]):
            yield "process_id", "expected a number below num_processes"


@dataclasses.dataclass(frozen=True)
class Config:
    """All options of a run, by the blocks of a config."""

    name: str = option("base", NAME, "Names the experiment; a workdir belongs to one name.")
    seed: int = option(0, SEED, "Seeds every draw: order of batches, which positive, dropout.")
    stages: tuple[str, ...] = option(
        DEFAULT_STAGES,
        many(choice(*STAGES), least=1),
        "The stages to run, in any order.",
    )
    download: bool = option(
        False,
        flag(),
        "Fetch hub models over the network; otherwise only local files and the local cache.",
    )
    track: tuple[str, ...] = option(
        (),
        many(choice(*TRACKERS), distinct=True),
        "Further outputs of metrics, such as ('wandb',); each is a package to install; (): only "
        "metrics.jsonl and tensorboard/.",
        counts=False,
    )
    data: Data = block(Data)
    teacher: TeacherOptions = block(TeacherOptions)
    student: EncoderOptions = block(EncoderOptions)
    rescorer: Rescorer = block(Rescorer)
    mesh: Mesh = block(Mesh)
    distributed: Distributed = block(Distributed)
    embed: Embed = block(Embed)
    search: Search = block(Search)
    mining: Mining = block(Mining)
    audit: Audit = block(Audit)
    rounds: int = option(
        1,
        whole(1, 1000),
        "The number of rounds: each round after the first mines with the student of the previous "
        "one, and trains it further.",
    )
    order: tuple[str, ...] = option(
        (),
        many(NAME, distinct=True),
        "The stages of training, in order, of those in 'train_stages'; (): one, with the values of "
        "'train'.",
        key="train.stages",
    )
    train: Training = block(Training)
    result: Result = block(Result)
    evaluation: EvaluationOptions = block(EvaluationOptions)
    export: Export = block(Export)
    report: Report = block(Report)
    teachers: dict[str, TeacherOptions] = named(TeacherOptions)
    sets: dict[str, TrainingSet] = named(TrainingSet)
    train_stages: dict[str, Training] = named(Training)


NAMED = blocks.named_blocks(Config)  # blocks to which others are added by name


def base() -> ConfigDict:
    """The default config: mine with MiniLM, train it, evaluate, export."""
    return blocks.default(Config).lock()  # a missing key is a typing mistake


def encoder(model: str = MODEL) -> ConfigDict:
    """The block of a teacher; that of `student` has the options of training beside these."""
    return _with(blocks.default(TeacherOptions), model=model)


def training_set(source: str = "") -> ConfigDict:
    """The block of one of several training sets; unset values are those of `data.train`."""
    return _with(blocks.default(TrainingSet), source=source)


def _with(made: ConfigDict, **values: Any) -> ConfigDict:
    with made.ignore_type():  # a value of another type is a mistake like any other
        made.update(values)
    return made


def keys_of(config: ConfigDict) -> dict[str, Takes]:
    """Key -> the values it takes, for every key that this config should have."""
    table = blocks.takes_by_key(Config)
    for key, cls in NAMED.items():
        inside = config.get(key)
        for name in inside if isinstance(inside, ConfigDict) else ():
            table |= blocks.takes_by_key(cls, f"{key}.{name}.")
    return table


def add_teacher(config: ConfigDict, name: str, model: str, **changes) -> ConfigDict:
    """Adds a teacher under a name; `mining.teachers` lists the used ones, in order.

    Args:
        name: letters, digits, '-' and '_'; also a folder in the workdir.
        model: as `teacher.model`.
        **changes: other values of the block.

    Returns:
        The block.
    """
    return _add(config, "teachers", name, encoder(model), changes)


def add_set(config: ConfigDict, name: str, source: str, **changes) -> ConfigDict:
    """Adds a training set under a name; `train.sets`, or a stage's, lists the used ones.

    Args:
        name: letters, digits, '-' and '_'; also a folder in the workdir.
        source: as `data.train`.
        **changes: other values of the block.

    Returns:
        The block.
    """
    return _add(config, "sets", name, training_set(source), changes)


def add_stage(config: ConfigDict, name: str, **changes) -> ConfigDict:
    """Adds a training stage after the existing ones: a copy of `config.train`, with changes.

    Args:
        name: letters, digits, '-' and '_'; also a folder under the checkpoints.
        **changes: values of the block; `loss` takes a dict of changed values.

    Returns:
        The block.
    """
    block = copy.deepcopy(config.train)  # which keeps the types of what is unset
    with block.unlocked():
        del block["stages"]
    block.loss.update(changes.pop("loss", {}))
    config.train.stages = (*config.train.stages, name)
    return _add(config, "train_stages", name, block, changes)


def _add(config: ConfigDict, table: str, name: str, block: ConfigDict, changes) -> ConfigDict:
    block.update(changes)
    with config.unlocked():
        config[table][name] = block
    return config[table][name]


def stage_names(config: ConfigDict) -> list[str]:
    """The stages that run, in order: without data to evaluate on, all but `evaluate`."""
    skipped = () if config.data.test else ("evaluate",)
    return [name for name in STAGES if name in config.stages and name not in skipped]


def asked_stages(config: ConfigDict, names: Sequence[str]) -> list[str]:
    """The stages of a config that `--stages` names, in order; all that run where it names none.

    Raises:
        InputError: the config has no such stage.
    """
    plan = stage_names(config)
    unknown = [name for name in names if name not in plan]
    if unknown and unknown[0] in config.stages:
        raise InputError(f"--stages={unknown[0]}: data.test names no data set to evaluate on")
    if unknown:
        raise InputError(f"--stages={unknown[0]}: this config has the stages {', '.join(plan)}")
    return [name for name in plan if not names or name in names]


def stages_of(config: ConfigDict) -> dict[str, ConfigDict]:
    """Name -> block of each training stage, in order; only 'train' if none are named."""
    if not config.train.stages:
        return {"train": config.train}
    return {name: config.train_stages[name] for name in config.train.stages}


def set_names(config: Any) -> list[str]:
    """All training sets, `data.train` first."""
    return [MAIN_SET] * bool(config.data.train) + list(config.sets)


def flat_keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """All keys that hold values, such as 'train.batch_size', sorted in each block."""
    out: list[str] = []
    for key in config:
        if isinstance(config[key], ConfigDict):
            out += flat_keys(config[key], f"{prefix}{key}.")
        else:
            out.append(prefix + key)
    return out


def near(config: ConfigDict, key: str) -> str:
    """'; did you mean …?' for an unknown key, or ''."""
    found = nearest(config, key)
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def nearest(config: ConfigDict, key: str) -> list[str]:
    """The keys that an unknown one may mean."""
    known, leaf = flat_keys(config), key.rsplit(".", 1)[-1]
    found = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    return found or difflib.get_close_matches(key, known, 2, cutoff=0.8)


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks any config to a run of about a minute on two cores; changes it and returns it."""
    config.name += "-smoke"
    queries = 150 if config.mining.risk else 48  # a risk is fitted to at least 100
    config.data.max_queries = queries
    config.data.max_passages = 400
    for side in (config.teacher, config.student):
        side.query_length = min(side.query_length or 32, 32)
        side.passage_length = min(side.passage_length or 64, 64)
    config.embed.chunk_rows = 128
    config.search.depth = 30
    config.search.query_block = 16
    for key, value in (("percent", 0.95), ("margin", 0.05)):
        if config.mining[key] == "auto":  # which needs more queries than there are
            config.mining[key] = value
    config.audit.resamples = min(config.audit.resamples, 200)
    for one in config.sets.values():
        one.max_queries, one.max_passages = queries, 400
        one.query_length = min(one.query_length or 32, 32)
        one.passage_length = min(one.passage_length or 64, 64)
    config.rounds = min(config.rounds, 2)
    for train in (config.train, *config.train_stages.values()):
        train.batch_size = 8
        train.num_negatives = min(train.num_negatives, 2)
        train.steps = 12
        train.warmup = min(train.warmup, 4)
        train.checkpoint_every = 4
        train.eval_every = 6
        train.log_every = 1
        train.dev_passages = 200
        train.dev_queries = 32
    config.export.max_length = min(config.export.max_length, 64)
    config.report.examples = 5
    return config


def apply_arg(config: ConfigDict, arg: str | None) -> ConfigDict:
    """Applies the word after the colon of `--config=configs/x.py:smoke`.

    Raises:
        InputError: an unknown word.
    """
    if not arg:
        return config
    if arg != "smoke":
        raise InputError(f"unknown config argument ':{arg}'; expected ':smoke'")
    return smoke(config)
