"""What the test split has in common with the training sets: an artefact of the stage evaluate.

It depends on texts and judgments alone, so that other models, mining and training use it again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.data.dataset import Dataset
from nvret_jax.evaluation.overlap import Overlap, overlap
from nvret_jax.files.atomic import write_atomic
from nvret_jax.pipeline import parts as parts_lib
from nvret_jax.pipeline.inputs import need
from nvret_jax.pipeline.state import Run, once


@dataclasses.dataclass(frozen=True)
class Judged:
    """A split with its relevant passages.

    Attributes:
        data, split: where it is.
        min_relevance: the lowest judgment that counts.
    """

    data: Dataset
    split: str
    min_relevance: int


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is compared: each training set with the test split."""

    train: Sequence[Judged]
    test: Judged


@once
def artifact(run: Run) -> Artifact | None:
    """The overlaps; None where nothing is trained."""
    if not (run.trains and run.evaluates):
        return None
    parts: dict[str, Any] = {}
    compared = inputs(run)
    sides = {"": compared.test, **dict(zip(run.sets, compared.train, strict=True))}
    for name, side in sides.items():
        part = run.sets.get(name, run)
        own = {
            "passages": part.texts(side.data, "passages"),
            "queries": part.texts(side.data, f"queries-{side.split}"),
            "judgments": parts_lib.judgments_part(
                side.data.positives(side.split, side.min_relevance), test=not name
            ),
        }
        names = part.about.names  # of the keys of a set in the config of the whole run
        for what, value in own.items():
            keys = tuple(names.get(key, key) for key in value.keys)
            parts[f"{name or 'test'}:{what}"] = dataclasses.replace(value, keys=keys)
    return run.workdir.overlap(run.test_data.name, parts, run.about)


def inputs(run: Run) -> Inputs:
    """The splits of a run that are compared."""
    config = run.config
    train = [
        Judged(part.train_data, part.config.data.train_split, part.config.data.min_relevance)
        for part in run.sets.values()
    ]
    test = Judged(run.test_data, config.data.test_split, config.evaluation.min_relevance)
    return Inputs(train, test)


def make(inputs: Inputs) -> list[Overlap]:
    """Compares each training set with the test split."""
    test = inputs.test
    return [
        overlap(
            side.data,
            test.data,
            train_split=side.split,
            test_split=test.split,
            min_relevance=side.min_relevance,
            test_min_relevance=test.min_relevance,
        )
        for side in inputs.train
    ]


def write(artifact: Artifact, found: Sequence[Overlap] | None) -> None:
    """Puts them into the workdir, with the ids of the test texts; on the main process."""

    def put(path: epath.Path) -> None:
        write_atomic(path, json.dumps([one.record() for one in found], indent=1) + "\n")

    artifact.write_file(put)


def read(run: Run) -> list[Overlap]:
    """Those of a run, one per training set; none where nothing is trained."""
    item = artifact(run)
    if item is None:
        return []
    return [Overlap.of(record) for record in json.loads(need(item).path.read_text("utf-8"))]
