"""What batches carry for distillation, guides and several positives, beside their ids."""

import dataclasses

import numpy as np
import pytest

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.negatives import Negatives
from nvret_jax.training.batches.examples import Examples

QUERIES, PASSAGES = 6, 40


def score(query, passage):
    return np.float32(query + passage / 64)


def table():
    """Query q has q % 4 + 1 positives and q % 3 negatives; row r is query QUERIES - 1 - r."""
    queries = np.arange(QUERIES, dtype=np.int32)[::-1].copy()
    positives = [[10 * (q % 3) + i for i in range(q % 4 + 1)] for q in queries]
    hard = [[30 + i for i in range(q % 3)] for q in queries]

    def scores(rows):
        pairs = zip(queries, rows, strict=True)
        return Ragged.from_rows([[score(q, p) for p in row] for q, row in pairs], np.float32)

    return Negatives(
        query_rows=queries,
        positive_rows=Ragged.from_rows(positives, np.int32),
        positive_scores=scores(positives),
        judged_rows=Ragged.from_rows(positives, np.int32),
        negative_rows=Ragged.from_rows(hard, np.int32),
        negative_scores=scores(hard),
        negative_ranks=None,
        teachers=("t",),
        negative_teachers=None,
        negative_ceilings=None,
        ceilings=None,
    )


def with_distilled():
    """`table`, whose query q has q % 5 candidates for distillation alone."""
    made = table()
    rows = [[20 + i for i in range(q % 5)] for q in made.query_rows]
    scores = [[score(q, p) for p in row] for q, row in zip(made.query_rows, rows, strict=True)]
    return dataclasses.replace(
        made,
        distilled_rows=Ragged.from_rows(rows, np.int32),
        distilled_scores=Ragged.from_rows(scores, np.float32),
    )


def build(negatives=None, **options):
    defaults = {"batch_size": 4, "num_negatives": 2, "pad_id": 0, "seed": 1}
    return Examples.build(
        table() if negatives is None else negatives,
        [f"q{i}" for i in range(QUERIES)],
        [f"p{i}" for i in range(PASSAGES)],
        lambda texts: [np.array([7, 8, 9], np.int32)] * len(texts),
        lambda texts: [np.array([7, 8], np.int32)] * len(texts),
        **(defaults | options),
    )


@pytest.mark.parametrize("positives", [1, 2, 6])
def test_every_slot_has_the_score_of_its_passage(positives):
    examples = build(num_positives=positives, teacher_scores=True)
    for step in range(6):
        batch = examples.batch(step)
        numbers, _ = examples.rows(step)
        ids = batch["passage_ids"].reshape(4, positives + 2)
        queries = examples.negatives.query_rows[numbers]
        expected = np.where(ids >= 0, score(queries[:, None], ids), -np.inf)
        np.testing.assert_array_equal(batch["teacher_scores"], expected)
        assert batch["teacher_scores"].dtype == np.float32


def test_candidates_for_distillation_alone_come_last_and_are_marked():
    examples = build(
        with_distilled(), num_positives=2, teacher_scores=True, weights=True, num_distilled=3
    )
    plain = build(num_positives=2, teacher_scores=True)
    for step in range(6):
        batch, (numbers, _) = examples.batch(step), examples.rows(step)
        ids = batch["passage_ids"].reshape(4, 7)
        np.testing.assert_array_equal(ids[:, :4].ravel(), plain.batch(step)["passage_ids"])
        queries = examples.negatives.query_rows[numbers]
        for q, row in zip(queries, ids[:, 4:].tolist(), strict=True):
            assert row == ([20 + i for i in range(q % 5)] + [-1] * 3)[:3]
        expected = np.where(ids >= 0, score(queries[:, None], ids), -np.inf)
        np.testing.assert_array_equal(batch["teacher_scores"], expected)
        assert batch["passage_distilled"].reshape(4, 7).tolist() == [[False] * 4 + [True] * 3] * 4
        assert (batch["passage_weights"] == 1).all()
    assert "passage_distilled" not in plain.batch(0)
    with pytest.raises(InputError, match="mine with num_distilled"):
        build(num_distilled=3)


def test_several_positives_are_drawn_without_repetition():
    examples = build(num_positives=2)
    seen = {}
    for step in range(60):
        numbers, passages = examples.rows(step)
        for number, row in zip(numbers.tolist(), passages[:, :2].tolist(), strict=True):
            real = [p for p in row if p >= 0]
            known = examples.negatives.positive_rows[number].tolist()
            assert len(set(real)) == len(real) == min(2, len(known))
            assert row[0] >= 0
            seen.setdefault(number, set()).update(real)
    assert seen == {n: set(examples.negatives.positive_rows[n].tolist()) for n in range(QUERIES)}


def test_a_process_gets_its_part_of_the_scores():
    examples = build(teacher_scores=True, guide=(np.eye(QUERIES), np.eye(PASSAGES)))
    whole = examples.batch(3)
    for start, stop in ((0, 2), (2, 4)):
        part = examples.batch(3, start, stop)
        for name, value in whole.items():
            per_row = len(value) // 4
            np.testing.assert_array_equal(part[name], value[start * per_row : stop * per_row])


def test_guide_vectors_belong_to_the_rows_and_empty_slots_have_none():
    guide = np.arange(QUERIES)[:, None] + 1.0, np.arange(PASSAGES)[:, None] + 1.0
    examples = build(guide=guide)
    batch, (numbers, _) = examples.batch(0), examples.rows(0)
    assert batch["query_guide"][:, 0].tolist() == (QUERIES - numbers).tolist()
    assert batch["passage_guide"][:, 0].tolist() == (batch["passage_ids"] + 1).tolist()


def test_unpooled_tokens_and_the_skiplist():
    unpooled = {"query": lambda tokens: np.arange(len(tokens)) % 3}
    examples = build(unpooled=unpooled, skiplist={"passage": [8]})
    batch = examples.batch(0)
    rows = examples.negatives.query_rows[examples.rows(0)[0]]
    assert batch["query_unpooled"].tolist() == (examples.queries.place[rows] % 3).tolist()
    assert "passage_unpooled" not in batch
    for real in batch["passage_real"]:  # an empty slot's one token is padding
        assert real[:2].tolist() == [True, False]
        assert not real[2:].any()


def test_scores_of_several_teachers_are_an_error():
    mixed = dataclasses.replace(table(), teachers=("a", "b"))
    build(mixed)
    with pytest.raises(InputError, match=r"those of 2 \(a, b\)"):
        build(mixed, teacher_scores=True)


def test_a_guide_of_another_data_set_is_an_error():
    with pytest.raises(InputError, match="vectors of 39 passages, the data set has 40"):
        build(guide=(np.eye(QUERIES), np.eye(39)))
