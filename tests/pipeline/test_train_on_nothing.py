"""Training without negatives is refused before the first step, or counted."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.negatives import Negatives
from nvret_jax.pipeline import train
from nvret_jax.training.batches.examples import Examples
from nvret_jax.training.batches.mixture import Mixture, Source
from nvret_jax.training.loss.options import Loss
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


@pytest.fixture
def inputs():
    """Inputs of a training on one set, as far as the checks read them."""

    def make(hard, *, cosines=True):
        one = train.MinedSet(
            data=None,
            digest="",
            negatives=lambda: table(hard, [[0], [1], [2]]),
            num_negatives=4,
            has_cosines=cosines,
            lengths={},
            encoder=None,
        )
        return train.Inputs(None, {"train": one}, 0, None)

    return make


def test_no_negative_at_all_is_an_error_with_numbers(inputs):
    for values, why in (
        ({"loss": Loss(in_batch=False)}, "train.in_batch_negatives is false"),
        ({"batch_size": 1}, "train.batch_size is 1"),
    ):
        with pytest.raises(InputError, match=f"none of the 3 rows has a hard negative .*{why}"):
            train._check_negatives(inputs([[], [], []]), "train", Training(**values))
    block = Training(loss=Loss(in_batch=False), num_negatives=0)
    with pytest.raises(InputError, match=r"none of the 3 rows .*train.num_negatives=0"):
        train._check_negatives(inputs([[3], [4], [5]]), "train", block)


def test_vectors_alone_need_no_negatives(inputs, capsys):
    loss = Loss(in_batch=False, vectors="cosine", contrastive_weight=0.0)
    block = Training(loss=loss, num_negatives=0)
    train._check_negatives(inputs([[], [], []]), "train", block)
    assert capsys.readouterr().out == ""
    mixed = Training(loss=dataclasses.replace(loss, contrastive_weight=1.0))
    with pytest.raises(InputError, match="none of the 3 rows has a hard negative"):
        train._check_negatives(inputs([[], [], []]), "train", mixed)


@pytest.mark.parametrize(
    ("in_batch", "what"),
    [(True, "learn only from in-batch negatives"), (False, "add nothing to the loss")],
)
def test_rows_without_a_hard_negative_are_counted(inputs, capsys, in_batch, what):
    block = Training(loss=Loss(in_batch=in_batch))
    train._check_negatives(inputs([[3], [], []]), "train", block)
    assert capsys.readouterr().out == (f"train     2 of 3 rows have no hard negative and {what}\n")
    train._check_negatives(inputs([[3], [4], [5]]), "train", block)
    assert capsys.readouterr().out == ""


def mixture(positives, hard, batches="homogeneous", texts=("a", "b", "A!")):
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
    return Mixture.build([Source("s", examples, 1.0)], batch_size=2, seed=0, batches=batches)


def test_a_corpus_of_one_text_has_no_negatives():
    assert mixture([[0], [2]], [[2], [0]]).without_negatives(in_batch=True) == (2, 2)
    assert mixture([[0], [2]], [[1], [0]]).without_negatives(in_batch=True) == (1, 2)
    assert mixture([[0], [1]], [[2], [0]]).without_negatives(in_batch=True) == (0, 2)
    assert mixture([[0], [1]], [[2], [0]]).without_negatives(in_batch=False) == (1, 2)


@dataclasses.dataclass
class Teachers:
    """What is asked of a run about its teachers."""

    model: str
    normalize: bool
    teacher_names: tuple = ("teacher",)
    targets: tuple = ()

    @property
    def mining(self):
        return ConfigDict({"targets": self.targets})

    def block(self, name):
        return ConfigDict({"model": self.model, "normalize": self.normalize})


@pytest.mark.parametrize(
    ("model", "normalize", "rescored", "expected"),
    [
        ("tiny:bert", True, False, True),
        ("vectors:x", True, False, True),
        ("tiny:bert", False, False, False),
        ("bm25:", True, False, False),
        ("tiny:bert", True, True, False),
    ],
)
def test_which_scores_are_cosines(monkeypatch, model, normalize, rescored, expected):
    made = object() if rescored else None
    monkeypatch.setattr(train.ranked, "rescored", lambda run, name: made)
    assert train._gives_cosines(Teachers(model, normalize)) == expected


@pytest.mark.parametrize(
    ("cosines", "student", "expected"), [(True, 0.0, 0.05), (True, 0.2, 0.2), (False, 0.0, 1.0)]
)
def test_cosines_are_divided_as_the_students_are(inputs, cosines, student, expected):
    loss = Loss(distillation="kl", student_temperature=student)
    of = inputs([[3]], cosines=cosines)
    found = train._with_teacher_temperature(of, Training(loss=loss))
    assert found.loss.teacher_temperature == expected
    given = Training(loss=dataclasses.replace(loss, teacher_temperature=3.0))
    assert train._with_teacher_temperature(of, given).loss.teacher_temperature == 3.0
