"""Published lists of retrieval tasks: an encoder on all of them, and its mean.

    from nvret_jax.evaluation import benchmarks

    found = benchmarks.evaluate(encoder, "NanoBEIR-13", download=True)
    found.mean["ndcg_cut_10"]

    BEIR-15          Thakur et al. 2021; MSMARCO on its dev split; the twelve forums of CQADupstack
                     count as one task, the mean of them
    NanoBEIR-13      50 queries and some thousand passages of each of 13 tasks of BEIR
    BRIGHT           Su et al. 2024, the twelve domains with short documents; a query leaves its
                     excluded passages out
    MTEB(eng, v2)    its ten retrieval tasks

Tasks, revisions of their data, splits and prompts are those of mteb (`tasks.tsv` says of which
release). By default texts get the model's own prompts; `instruction` inserts the task's own
description.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nvret_jax import options
from nvret_jax.data import hub
from nvret_jax.data.bright import read_bright
from nvret_jax.data.dataset import Dataset
from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError
from nvret_jax.evaluation import retrieval
from nvret_jax.evaluation.retrieval import MEASURE_NAMES, MEASURES, Evaluation
from nvret_jax.mesh import say

_FORUMS = (
    "Android English Gaming Gis Mathematica Physics Programmers Stats Tex Unix Webmasters Wordpress"
)
_CQADUPSTACK = tuple(f"CQADupstack{forum}Retrieval" for forum in _FORUMS.split())
_NANO = (
    "ArguAna ClimateFever DBPedia FEVER FiQA2018 HotpotQA MSMARCO NFCorpus NQ Quora SCIDOCS "
    "SciFact Touche2020"
)
_BRIGHT = (
    "Biology EarthScience Economics Psychology Robotics Stackoverflow SustainableLiving Pony "
    "Leetcode Aops TheoremQATheorems TheoremQAQuestions"
)
# Name -> entries, each a task, or a name with the tasks to average.
BENCHMARKS: dict[str, tuple[str | tuple[str, tuple[str, ...]], ...]] = {
    "BEIR-15": (
        *"TRECCOVID NFCorpus NQ HotpotQA FiQA2018 ArguAna Touche2020".split(),
        ("CQADupstackRetrieval", _CQADUPSTACK),
        *"QuoraRetrieval DBPedia SCIDOCS FEVER ClimateFEVER SciFact MSMARCO".split(),
    ),
    "NanoBEIR-13": tuple(f"Nano{name}Retrieval" for name in _NANO.split()),
    "BRIGHT": tuple(f"Bright{name}Retrieval" for name in _BRIGHT.split()),
    "MTEB(eng, v2)": (
        *"ArguAna CQADupstackGamingRetrieval CQADupstackUnixRetrieval".split(),
        *"ClimateFEVERHardNegatives FEVERHardNegatives FiQA2018 HotpotQAHardNegatives".split(),
        *"SCIDOCS TRECCOVID Touche2020Retrieval.v3".split(),
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of a published list.

    Attributes:
        name: in mteb.
        data: on the Hugging Face hub, 'owner/name'.
        revision: of the data.
        part: the domain, for BRIGHT; '' for others.
        split: to evaluate.
        own: whether a passage with the query's own id is left out of its ranking.
        prompt: mteb's description of the task, for queries; '' if it has none.
    """

    name: str
    data: str
    revision: str
    part: str
    split: str
    own: bool
    prompt: str

    @property
    def source(self) -> str:
        """The source for `load_dataset`; BRIGHT is read by `data.bright`."""
        return f"hf:{self.data}?revision={self.revision}"


@functools.cache
def tasks() -> dict[str, Task]:
    """All tasks of the lists, by name."""
    text = importlib.resources.files(__package__).joinpath("tasks.tsv").read_text("utf-8")
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    found = (dict(zip(lines[0], line, strict=True)) for line in lines[1:])
    return {
        row["task"]: Task(
            row["task"],
            row["data"],
            row["revision"],
            row["part"],
            row["split"],
            row["own"] == "yes",
            row["prompt"],
        )
        for row in found
    }


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The scores of an encoder on a list.

    Attributes:
        name: of the list.
        evaluations: of each task that was evaluated.
        scores: of each entry the mean of each measure, a group being the mean of its tasks.
    """

    name: str
    evaluations: dict[str, Evaluation]
    scores: dict[str, dict[str, float]]

    @property
    def mean(self) -> dict[str, float]:
        """The mean over entries, by measure."""
        return _mean(list(self.scores.values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{MEASURE_NAMES[name]} {value:.4f}" for name, value in self.mean.items())
        return f"Benchmark({self.name}, {len(self.scores)} tasks: {shown})"


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: math.fsum(one[name] for one in scores) / len(scores) for name in MEASURES}


_TAKES = {
    "benchmark": options.choice(*BENCHMARKS),
    "only": options.many(options.text("the name of a task"), unset=True),
    "instruction": options.text("a template with '{instruction}'", lines=True, unset=True),
    "download": options.flag(),
    "progress": options.flag(),
}


def evaluate(
    encoder: Any,
    benchmark: str,
    *,
    only: Sequence[str] | None = None,
    sources: Mapping[str, Any] | None = None,
    prompts: Mapping[str, str] | None = None,
    instruction: str | None = None,
    download: bool = False,
    progress: bool = False,
    **how: Any,
) -> Benchmark:
    """Evaluates an encoder on a list of tasks.

    Args:
        encoder: as in `retrieval.evaluate`.
        benchmark: one of `BENCHMARKS`.
        only: some of its entries, by name; None: all.
        sources: task -> a data set, or what `load_dataset` takes, instead of the hub's. For BRIGHT,
            a folder in the layout of its repository.
        prompts: task -> the text put before its queries.
        instruction: a template such as 'Instruct: {instruction}\\nQuery: ' that is filled with the
            task's description and put before queries; only '{instruction}' for BRIGHT, whose
            prompts are complete. None: the model's own prompt.
        download: whether the hub may be accessed; else only its local cache is read.
        progress: show bars.
        **how: further arguments of `retrieval.evaluate`, such as `backend`.

    Raises:
        InputError: no such list or task, or missing data.
    """
    options.check_arguments("benchmark", locals(), _TAKES)
    if instruction is not None and "{instruction}" not in instruction:
        raise InputError(f"benchmark: instruction={instruction!r}: lacks '{{instruction}}'")
    entries = {
        entry if isinstance(entry, str) else entry[0]: (entry,)
        if isinstance(entry, str)
        else entry[1]
        for entry in BENCHMARKS[benchmark]
    }
    for name in only or ():
        if name not in entries:
            raise InputError(f"benchmark: {benchmark} has no task '{name}': {', '.join(entries)}")
    evaluations: dict[str, Evaluation] = {}
    scores = {}
    for entry, names in entries.items():
        if only and entry not in only:
            continue
        for name in names:
            task = tasks()[name]
            data, excluded = _read(task, (sources or {}).get(name), download)
            asked = _asked(encoder, task, (prompts or {}).get(name), instruction)
            found = retrieval.evaluate(
                asked,
                data,
                task.split,
                exclude_self=task.own,
                exclude=excluded,
                progress=progress,
                **how,
            )
            evaluations[name] = found
            say(f"{name}: nDCG@10 {found.metrics['ndcg_cut_10']:.4f}")
        scores[entry] = _mean([evaluations[name].metrics for name in names])
    return Benchmark(benchmark, evaluations, scores)


def _read(task: Task, source: Any, download: bool) -> tuple[Dataset, dict[str, list[str]] | None]:
    if task.part:
        folder = hub.folder_of(source or task.source, download)
        return read_bright(folder, task.part)
    if isinstance(source, Dataset):
        return source, None
    made = load_dataset(source or task.source, splits=[task.split], download=download)
    return made, None


def _asked(encoder: Any, task: Task, prompt: str | None, instruction: str | None) -> Any:
    """The encoder with the prompt for queries of a task."""
    if prompt is None and instruction is not None and task.prompt:
        prompt = instruction.format(instruction=task.prompt)
    if prompt is None:
        return encoder
    spec = encoder.spec
    return encoder.with_texts(
        query_prompt=prompt, passage_prompt=spec.passage_prompt, max_length=spec.max_length
    )
