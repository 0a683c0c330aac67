"""Batches: a pure function of (seed, step), right ids in right places, the same for any split."""

import numpy as np
import pytest

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.negatives import Negatives
from nvret_jax.training.batches.examples import Examples
from nvret_jax.training.batches.shapes import batch_shapes, padded_width

QUERIES, PASSAGES = 10, 30
SIDES = ("query", "passage")


def tokenize(texts):
    """A text 'x7' becomes 7 % 5 + 2 tokens that all are its number + 100."""
    return [np.full(int(t[1:]) % 5 + 2, int(t[1:]) + 100, np.int32) for t in texts]


def build(seed=0, batch_size=4, num_negatives=2, **more):
    rng = np.random.default_rng(3)
    positives = [[q] if q % 2 else [q, q + 10] for q in range(QUERIES)]
    hard = [rng.choice(np.arange(20, 30), q % 4, replace=False) for q in range(QUERIES)]
    negatives = Negatives(
        query_rows=np.arange(QUERIES, dtype=np.int32)[::-1].copy(),
        positive_rows=Ragged.from_rows(positives, np.int32),
        positive_scores=Ragged.from_rows([[0.5] * len(row) for row in positives], np.float32),
        judged_rows=Ragged.from_rows(positives, np.int32),
        negative_rows=Ragged.from_rows(hard, np.int32),
        negative_scores=Ragged.from_rows([[0.25] * len(row) for row in hard], np.float32),
        negative_ranks=None,
        teachers=("t",),
        negative_teachers=None,
        negative_ceilings=None,
        ceilings=None,
        distilled_rows=Ragged.from_rows(hard, np.int32),
        distilled_scores=Ragged.from_rows([[0.5] * len(row) for row in hard], np.float32),
    )
    return Examples.build(
        negatives,
        [f"q{i}" for i in range(QUERIES)],
        [f"p{i}" for i in range(PASSAGES)],
        tokenize,
        tokenize,
        batch_size=batch_size,
        num_negatives=num_negatives,
        pad_id=0,
        seed=seed,
        **more,
    )


def test_tokens_lengths_and_ids_belong_together():
    examples = build()
    batch = examples.batch(0)
    assert batch["query_tokens"].shape[0] == 4
    assert batch["passage_tokens"].shape[0] == 4 * 3
    numbers, passages = examples.rows(0)
    for i, number in enumerate(numbers):
        query = 9 - number  # query_rows are reversed
        length = batch["query_lengths"][i]
        assert length == query % 5 + 2
        assert batch["query_tokens"][i, :length].tolist() == [query + 100] * length
        assert not batch["query_tokens"][i, length:].any()
        known = set(examples.negatives.positive_rows[number].tolist())
        assert set(batch["positive_ids"][i].tolist()) - {-1} == known
        row = batch["passage_ids"][i * 3 : i * 3 + 3]
        assert row.tolist() == passages[i].tolist()
        assert row[0] in known
        hard = examples.negatives.negative_rows[number][:2].tolist()
        assert row[1:].tolist() == hard + [-1] * (2 - len(hard))
    for i, passage in enumerate(batch["passage_ids"]):
        length = batch["passage_lengths"][i]
        if passage < 0:
            assert length == 1
            assert not batch["passage_tokens"][i].any()
        else:
            assert batch["passage_tokens"][i, :length].tolist() == [passage + 100] * length


GUIDE = (np.zeros((QUERIES, 6), np.float32), np.zeros((PASSAGES, 6), np.float32))


@pytest.mark.parametrize(
    ("more", "planned"),
    [
        ({}, {}),
        ({"num_positives": 2, "teacher_scores": True}, {"teacher_scores": True}),
        ({"guide": GUIDE}, {"guide_width": 6}),
        ({"num_distilled": 2}, {"distilled": True}),
        (
            {"unpooled": {side: lambda ids: np.ones(len(ids), np.int32) for side in SIDES}},
            {"unpooled": True},
        ),
        ({"skiplist": {side: [101] for side in SIDES}}, {"skiplist": True}),
    ],
)
def test_a_plan_has_the_arrays_of_a_batch(more, planned):
    examples = build(**more)
    batch = examples.batch(1)
    picked = examples.pick(1)
    group = examples.num_positives + 2 + examples.num_distilled
    widths = dict(zip(SIDES, examples.widths(picked), strict=True))
    assert set(widths.values()) == {16} == {padded_width(6)}
    shapes = batch_shapes(4, group, widths, positives=examples.max_positives, **planned)
    found = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert found == {name: (shape.shape, shape.dtype) for name, shape in shapes.items()}


def test_every_query_once_per_epoch():
    examples = build(batch_size=5)
    epoch = np.concatenate([examples.rows(step)[0] for step in range(2)])
    assert sorted(epoch.tolist()) == list(range(QUERIES))
    again = np.concatenate([examples.rows(step)[0] for step in range(2, 4)])
    assert sorted(again.tolist()) == list(range(QUERIES))
    assert epoch.tolist() != again.tolist()


def test_a_step_depends_on_seed_and_step_alone():
    first, second = build(), build()
    for _ in range(3):
        second.batch(7)  # what was asked before must not matter
    for name, value in first.batch(5).items():
        np.testing.assert_array_equal(value, second.batch(5)[name])
    assert build(seed=1).rows(5)[0].tolist() != first.rows(5)[0].tolist()


def test_processes_build_parts_of_the_same_batch():
    examples = build()
    whole = examples.batch(2)
    for start, stop in ((0, 2), (2, 4)):
        part = examples.batch(2, start, stop)
        for name, value in whole.items():
            per_row = len(value) // 4
            np.testing.assert_array_equal(part[name], value[start * per_row : stop * per_row])


def test_a_positive_is_drawn_from_several():
    examples = build(batch_size=10)
    drawn = {}
    for step in range(40):
        numbers, passages = examples.rows(step)
        for number, positive in zip(numbers.tolist(), passages[:, 0].tolist(), strict=True):
            drawn.setdefault(number, set()).add(positive)
    assert drawn == {q: {q} if q % 2 else {q, q + 10} for q in range(QUERIES)}


def test_an_empty_table_is_an_error():
    examples = build()
    negatives = examples.negatives.take(np.zeros(0, np.int64))
    with pytest.raises(InputError, match="no rows"):
        Examples.build(
            negatives, [], [], tokenize, tokenize, batch_size=1, num_negatives=0, pad_id=0, seed=0
        )
