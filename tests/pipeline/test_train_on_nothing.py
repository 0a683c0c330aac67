"""Training without negatives is refused before the first step, or counted."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from nvret_jax import blocks
from nvret_jax import config as config_lib
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.negatives import Negatives
from nvret_jax.pipeline import train
from nvret_jax.training.blend import Blend, Source
from nvret_jax.training.examples import Examples
from nvret_jax.training.options import Training


def table(hard, positives):
    lists = Ragged.from_rows(positives, np.int32)
    nothing = [None] * 2
    return Negatives(
        np.arange(len(hard), dtype=np.int32),
        lists,
        None,
        lists,
        Ragged.from_rows(hard, np.int32),
        *nothing,
        ("t",),
        *nothing,
        None,
    )


@dataclasses.dataclass
class Part:
    """What the checks know of a run."""

    config: ConfigDict
    sets: dict = dataclasses.field(default_factory=dict)
    kind: str = "tiny:bert"
    normalize: bool = True
    teacher_names: tuple = ("teacher",)

    def rescored(self, name):
        return None

    def block(self, name):
        return ConfigDict({"model": self.kind, "normalize": self.normalize})

    @property
    def stage(self):
        return blocks.read(Training, self.config.train)


@pytest.fixture
def part(monkeypatch):
    def make(hard, **train_values):
        config = config_lib.base()
        config.train.update(train_values)
        run = Part(config)
        run.sets["train"] = run
        monkeypatch.setattr(train, "_read_negatives", lambda _: table(hard, [[0], [1], [2]]))
        return run

    return make


def test_no_negative_at_all_is_an_error_with_numbers(part):
    for values, why in (
        ({"in_batch_negatives": False}, "train.in_batch_negatives is false"),
        ({"batch_size": 1}, "train.batch_size is 1"),
    ):
        run = part([[], [], []], **values)
        with pytest.raises(InputError, match=f"none of the 3 rows has a hard negative .*{why}"):
            train._check_negatives(run, "train", run.stage)
    run = part([[3], [4], [5]], in_batch_negatives=False, num_negatives=0)
    with pytest.raises(InputError, match=r"none of the 3 rows .*train.num_negatives=0"):
        train._check_negatives(run, "train", run.stage)


@pytest.mark.parametrize(
    ("in_batch", "what"),
    [(True, "learn from in-batch negatives alone"), (False, "add nothing to the loss")],
)
def test_rows_without_a_hard_negative_are_counted(part, capsys, in_batch, what):
    run = part([[3], [], []], in_batch_negatives=in_batch)
    train._check_negatives(run, "train", run.stage)
    assert capsys.readouterr().out == (f"train     2 of 3 rows have no hard negative and {what}\n")
    run = part([[3], [4], [5]], in_batch_negatives=in_batch)
    train._check_negatives(run, "train", run.stage)
    assert capsys.readouterr().out == ""


def blend(positives, hard, batches="homogeneous", texts=("a", "b", "A!")):
    examples = Examples.build(
        table(hard, positives),
        [f"q{i}" for i in range(len(hard))],
        texts,
        *[lambda texts: [np.array([1], np.int32)] * len(texts)] * 2,
        batch_size=2,
        num_negatives=1,
        pad_id=0,
        seed=0,
    )
    return Blend.build([Source("s", examples, 1.0)], batch_size=2, seed=0, batches=batches)


def test_a_corpus_of_one_text_has_no_negatives():
    assert blend([[0], [2]], [[2], [0]]).without_negatives(in_batch=True) == (2, 2)
    assert blend([[0], [2]], [[1], [0]]).without_negatives(in_batch=True) == (1, 2)
    assert blend([[0], [1]], [[2], [0]]).without_negatives(in_batch=True) == (0, 2)
    assert blend([[0], [1]], [[2], [0]]).without_negatives(in_batch=False) == (1, 2)


@pytest.mark.parametrize(
    ("kind", "normalize", "student", "expected"),
    [
        ("tiny:bert", True, 0.0, 0.05),
        ("tiny:bert", True, 0.2, 0.2),
        ("vectors:x", True, 0.0, 0.05),
        ("tiny:bert", False, 0.0, 1.0),
        ("bm25:", True, 0.0, 1.0),
    ],
)
def test_cosines_are_divided_as_the_students_are(part, kind, normalize, student, expected):
    run = part([[3]])
    run.kind, run.normalize = kind, normalize
    run.config.train.loss.update({"distillation": "kl", "student_temperature": student})
    block = train._with_teacher_temperature(run, run.stage)
    assert block.loss.teacher_temperature == expected
    assert run.config.train.loss.teacher_temperature is None
    run.config.train.loss.teacher_temperature = 3.0
    assert train._with_teacher_temperature(run, run.stage).loss.teacher_temperature == 3.0
