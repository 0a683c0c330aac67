"""Negatives drawn in each step: a pure function of (seed, step, query), as likely as stated."""

import dataclasses
import itertools

import numpy as np
import pytest

from nvret_jax import config as config_lib
from nvret_jax.config import checks
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.negatives import GIVEN, RANDOM, Negatives
from nvret_jax.training.batches import drawing
from nvret_jax.training.batches.examples import Examples
from nvret_jax.training.options import Draw

SCORES = np.array([0.9, 0.75, 0.6, 0.55, 0.2])
POSITIVE = 0.8


def draws(draw, count, steps, *, scores=SCORES, query=5, seed=3):
    pool = Ragged.from_rows([np.arange(len(scores))], np.int32)
    return np.concatenate(
        [
            drawing.drawn_places(
                draw,
                count,
                seed=seed,
                step=step,
                query_rows=np.array([query]),
                passages=pool,
                scores=pool.like(np.asarray(scores, np.float32)),
                positives=np.array([POSITIVE]),
            )
            for step in range(steps)
        ]
    )


def likely(weights, count):
    """Probability of each set of `count`, drawn one after the other without replacement."""
    found = dict.fromkeys(itertools.combinations(range(len(weights)), count), 0.0)
    for order in itertools.permutations(range(len(weights)), count):
        left, p = weights.sum(), 1.0
        for one in order:
            p *= weights[one] / left
            left -= weights[one]
        found[tuple(sorted(order))] += p
    return found


@pytest.mark.parametrize(
    ("draw", "weights"),
    [
        (Draw("uniform"), np.ones(5)),
        (Draw("softmax", temperature=0.2), np.exp(SCORES / 0.2)),
        (
            Draw("simans", a=30.0, b=-0.1),
            np.exp(-30.0 * (SCORES - POSITIVE + 0.1) ** 2),
        ),
    ],
)
def test_sets_are_drawn_as_often_as_drawing_one_by_one_would(draw, weights):
    steps = 6000
    taken = draws(draw, 2, steps)
    assert (np.diff(taken, axis=1) > 0).all()
    for pair, p in likely(weights, 2).items():
        share = (taken == pair).all(axis=1).mean()
        assert share == pytest.approx(p, abs=4.5 * np.sqrt(p * (1 - p) / steps) + 1e-3), pair


def test_a_draw_depends_on_seed_step_and_query_alone():
    pool = Ragged.from_rows([[7, 1, 4, 9, 3], [2, 8], [5, 6, 7, 1], []], np.int32)
    scores = pool.like(np.linspace(0.9, 0.1, 11).astype(np.float32))
    queries, positives = np.array([11, 12, 13, 14]), np.full(4, 0.8)

    def taken(order, how="softmax", **changes):
        at = np.array(order)
        values = {"seed": 1, "step": 4} | changes
        return drawing.drawn_places(
            Draw(how),
            3,
            query_rows=queries[at],
            passages=pool.take(at),
            scores=scores.take(at),
            positives=positives[at],
            **values,
        )

    whole = taken([0, 1, 2, 3])
    assert whole.shape == (4, 3)
    assert np.array_equal(taken([3, 1, 0, 2]), whole[[3, 1, 0, 2]])
    assert np.array_equal(taken([0]), whole[:1])
    assert whole[1].tolist() == [0, 1, -1]  # it has two
    assert whole[3].tolist() == [-1, -1, -1]
    pairs = [(seed, step) for seed in range(6) for step in range(6)]
    different = {taken([0], "uniform", seed=seed, step=step).tobytes() for seed, step in pairs}
    assert len(different) >= 8  # of ten sets of three
    other = draws(Draw("uniform"), 2, 40, query=6)
    assert not np.array_equal(draws(Draw("uniform"), 2, 40), other)


def test_what_has_no_score_is_taken_last():
    scores = [0.9, -np.inf, 0.5, 0.4, np.nan]
    assert (draws(Draw("softmax"), 3, 50, scores=scores) == [0, 2, 3]).all()
    assert (draws(Draw("simans"), 3, 50, scores=scores) == [0, 2, 3]).all()
    assert (draws(Draw("uniform"), 3, 50, scores=scores) == [0, 2, 3]).mean() < 0.9


def table(teachers=("t",), rows=6, pool=5):
    rng = np.random.default_rng(0)
    negatives = Ragged.from_rows(
        [10 + pool * i + np.arange(pool - i % 2) for i in range(rows)], np.int32
    )
    count = len(negatives.values)
    positives = Ragged.from_rows([[i] for i in range(rows)], np.int32)
    return Negatives(
        query_rows=np.arange(rows, dtype=np.int32),
        positive_rows=positives,
        positive_scores=positives.like(np.full(rows, 0.8, np.float32)),
        judged_rows=positives,
        negative_rows=negatives,
        negative_scores=negatives.like(rng.random(count).astype(np.float32)),
        negative_ranks=negatives.like(np.ones(count, np.int32)),
        teachers=teachers,
        negative_teachers=negatives.like(np.arange(count, dtype=np.int32) % len(teachers)),
        negative_ceilings=negatives.like(np.full(count, np.inf, np.float32)),
        ceilings=np.full(rows, np.inf, np.float32),
    )


def examples(draw, negatives=None, count=2, **more):
    texts = [f"text {i}" for i in range(60)]

    def tokens(texts):
        return [np.array([1, 2, 3 + int(t.split()[1])]) for t in texts]

    return Examples.build(
        negatives or table(),
        texts[:6],
        texts,
        tokens,
        tokens,
        batch_size=4,
        num_negatives=count,
        pad_id=0,
        seed=7,
        draw=draw,
        **more,
    )


def test_batches_hold_what_is_drawn_with_its_scores():
    made = examples(Draw("uniform"), teacher_scores=True)
    of_row = {
        row: dict(zip(rows.tolist(), scores.tolist(), strict=True))
        for row, (rows, scores) in enumerate(
            zip(table().negative_rows, table().negative_scores, strict=True)
        )
    }
    seen = {row: set() for row in range(6)}
    for step in range(40):
        numbers, passages = made.rows(step)
        scores = made.scores(step)
        for number, hard, said in zip(numbers, passages[:, 1:], scores[:, 1:], strict=True):
            assert [of_row[number][one] for one in hard.tolist()] == said.tolist()
            seen[int(number)] |= set(hard.tolist())
        made.batch(step)  # the tokens of all are there
    assert {row: len(found) for row, found in seen.items()} == {
        row: len(rows) for row, rows in of_row.items()
    }
    again = examples(Draw("uniform"))
    assert np.array_equal(again.rows(17)[1], made.rows(17)[1])  # as a resumed run asks
    # A smaller pool is never left; the best are what they were.
    few = examples(Draw("uniform", pool=3))
    for step in range(20):
        numbers, passages = few.rows(step)
        assert ((passages[:, 1:] - 10 - 5 * numbers[:, None]) < 3).all()
    top = examples(Draw())
    numbers, passages = top.rows(3)
    assert np.array_equal(passages[:, 1:], 10 + 5 * numbers[:, None] + np.arange(2))


def test_what_cannot_be_drawn_is_refused():
    two = table(teachers=("a", "b"))
    with pytest.raises(
        InputError, match=r"draw\.how=.simans. needs the scores of a single teacher"
    ):
        examples(Draw("simans"), dataclasses.replace(two), count=2)
    mixed = table(teachers=("a", RANDOM, GIVEN))
    examples(Draw("softmax"), mixed)
    config = config_lib.base()
    config.train.draw.how = "softmax"
    wrong = checks.mistakes(config)
    assert any("train.draw.how" in one and "nothing to choose" in one for one in wrong), wrong
    config.mining.num_negatives = 30
    assert checks.mistakes(config) == []
