"""What distillation fits: several teachers' scores, calibrated and averaged, against float64."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_reference import MatrixRanker, table

from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining import distilled, targets
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import Rule

QUERIES, PASSAGES = 40, 90
NAMES = tuple(f"id{i}" for i in range(PASSAGES))
OF = {"query_ids": NAMES[:QUERIES], "passage_ids": NAMES, "seed": 3}


def scores_of(seed: int, strength: float, positives: list[list[int]]) -> np.ndarray:
    """Scores of a teacher that lifts positives by `strength` standard deviations."""
    scores_qn = np.random.default_rng(seed).normal(size=(QUERIES, PASSAGES))
    for q, rows in enumerate(positives):
        scores_qn[q, rows] += strength
    return scores_qn.astype(np.float32)


@pytest.fixture(scope="module")
def mined():
    """(the table, positives, scores of three teachers)."""
    rng = np.random.default_rng(0)
    positives = [sorted(rng.choice(PASSAGES, 1 + q % 3, replace=False)) for q in range(QUERIES)]
    teachers = {name: scores_of(i, s, positives) for i, (name, s) in enumerate(TEACHERS.items())}
    rule = Rule("margin_pos", margin=0.1)
    first = teachers["good"]
    candidates = table(first, positives, 30)
    negatives, _ = mine(
        [Teacher("good", candidates, MatrixRanker(first), rule)],
        Options(rule=rule, num_negatives=3),
        excluded=Ragged.from_rows([[]] * QUERIES, np.int32),
        query_ids=OF["query_ids"],
        passage_ids=NAMES,
    )
    nothing = Ragged.from_rows([[]] * QUERIES, np.int32)
    return distilled.add(negatives, candidates, nothing, 5), positives, teachers


TEACHERS = {"good": 2.0, "fair": 1.0, "contrary": -1.0}


def score(scores_qn: np.ndarray, negatives: Negatives, times: float = 1.0, plus: float = 0.0):
    """The teacher as `targets` asks it."""

    def of(rows: np.ndarray, pairs: Ragged) -> np.ndarray:
        queries = negatives.query_rows[rows][pairs.row_of]
        return (times * scores_qn[queries, pairs.values] + plus).astype(np.float32)

    return of


def reference(positives: Ragged, others: Ragged, factor: float) -> float:
    """The mean over rows of the mean over positives of log softmax, one list at a time."""
    of_rows = []
    for r in range(len(others)):
        if not len(others[r]):
            continue
        lists = [np.array([p, *others[r]], np.float64) * factor for p in positives[r]]
        of_rows.append(np.mean([one[0] - np.logaddexp.reduce(one) for one in lists]))
    return float(np.mean(of_rows))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 3.0), st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_factor_has_the_highest_likelihood(seed, strength, scale):
    rng = np.random.default_rng(seed)
    positives = Ragged.from_rows(
        [rng.normal(strength, 1, 1 + r % 3) * scale for r in range(12)], np.float32
    )
    others = Ragged.from_rows([rng.normal(0, 1, r % 7) * scale for r in range(12)], np.float32)
    found = targets.calibrate("t", positives, others)

    def likelihood(factor: float) -> float:
        return reference(positives, others, factor)

    assert found.log_likelihood == pytest.approx(likelihood(found.factor), abs=1e-9)
    assert found.uniform == pytest.approx(likelihood(0.0), abs=1e-9)
    tried = [found.factor * times for times in (0.5, 0.9, 0.99)] + [0.0, 1e-3 / scale]
    mean = lambda x: np.mean(x, dtype=np.float64)  # noqa: E731
    rows = [r for r in range(12) if len(others[r])]
    gaps = [mean(positives[r]) - mean(others[r]) for r in rows]
    shares = [len(others[r]) / (len(others[r]) + 1) for r in rows]
    limit = targets.MOST_LOGITS / max(np.average(gaps, weights=shares), 1e-9)
    if found.factor < limit * (1 - 1e-6):
        tried += [found.factor * times for times in (1.01, 1.1, 2.0)]
    assert all(likelihood(factor) <= found.log_likelihood + 1e-7 for factor in tried)


def test_targets_are_the_mean_of_the_scaled_scores(mined):
    negatives, _, teachers = mined
    asked = {name: score(teachers[name], negatives) for name in ("good", "fair")}
    found, made = targets.add(negatives, asked, **OF)
    factors = [one.factor for one in made]
    assert factors[0] > factors[1] > 0
    for side in ("positive", "negative", "distilled"):
        rows = getattr(negatives, f"{side}_rows")
        queries = negatives.query_rows[rows.row_of]
        expected = sum(
            factor * teachers[name][queries, rows.values].astype(np.float64)
            for factor, name in zip(factors, asked, strict=True)
        )
        got = getattr(found, f"{side}_targets")
        np.testing.assert_array_equal(got.offsets, rows.offsets)
        # Up to what the row's positives have on average.
        expected = rows.like(expected / 2)
        for r in range(len(negatives)):
            level = np.mean(
                [
                    factor * teachers[name][negatives.query_rows[r], negatives.positive_rows[r]]
                    for factor, name in zip(factors, asked, strict=True)
                ],
                dtype=np.float64,
            )
            np.testing.assert_allclose(got[r], expected[r] - level, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.negative_scores.values, negatives.negative_scores.values)


def test_the_scale_of_a_teacher_does_not_matter(mined):
    negatives, _, teachers = mined
    one, _ = targets.add(negatives, {"a": score(teachers["fair"], negatives)}, **OF)
    other, _ = targets.add(negatives, {"a": score(teachers["fair"], negatives, 1e3, 7e4)}, **OF)
    for side in ("positive", "negative", "distilled"):
        ours, theirs = getattr(one, f"{side}_targets"), getattr(other, f"{side}_targets")
        np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-4, atol=1e-4)


def test_a_teacher_that_says_the_contrary_does_not_count(mined):
    negatives, _, teachers = mined
    contrary = score(teachers["contrary"], negatives)
    found, made = targets.add(
        negatives, {"good": score(teachers["good"], negatives), "contrary": contrary}, **OF
    )
    alone, _ = targets.add(negatives, {"good": score(teachers["good"], negatives)}, **OF)
    assert made[1].factor == 0
    assert made[1].log_likelihood == made[1].uniform
    np.testing.assert_allclose(found.negative_targets.values, alone.negative_targets.values)
    with pytest.raises(InputError, match="no teacher scores the positives above random"):
        targets.add(negatives, {"contrary": contrary}, **OF)


def test_scores_that_separate_everything_get_a_finite_factor():
    positives = Ragged.from_rows([[5.0], [6.0]], np.float32)
    others = Ragged.from_rows([[1.0, 2.0], [0.0]], np.float32)
    found = targets.calibrate("t", positives, others)
    assert 0 < found.factor < 100
    assert found.log_likelihood > -1e-3
    equal = Ragged.from_rows([[1.0], [1.0]], np.float32)
    assert targets.calibrate("t", equal, equal).factor == 0
    nothing = Ragged.from_rows([[], []], np.float32)
    with pytest.raises(InputError, match="no passage to compare"):
        targets.calibrate("t", positives, nothing)


def test_the_draw_depends_on_ids_alone(mined, monkeypatch):
    negatives, positives, _teachers = mined
    monkeypatch.setattr(targets, "ROWS", 7)
    chosen, random = targets.lists(negatives, OF["query_ids"], NAMES, 3)
    assert len(chosen) == 7
    assert (random.counts > 20).all()
    for number, row in enumerate(chosen):
        drawn = random[number].tolist()
        assert len(set(drawn)) == len(drawn)
        assert not set(drawn) & set(positives[row])
    # Rows of the table, and passages, in another order.
    back = np.arange(QUERIES)[::-1]
    turned = negatives.take(back)
    names = [NAMES[PASSAGES - 1 - n] for n in range(PASSAGES)]
    renamed = {
        side: Ragged(getattr(turned, f"{side}_rows").offsets, PASSAGES - 1 - rows.values)
        for side in ("positive", "judged", "negative", "distilled")
        for rows in [getattr(turned, f"{side}_rows")]
    }
    turned = dataclasses.replace(turned, **{f"{side}_rows": v for side, v in renamed.items()})
    again, others = targets.lists(turned, [OF["query_ids"][q] for q in back], names, 3)
    ours = {int(c): {NAMES[p] for p in random[i]} for i, c in enumerate(chosen)}
    theirs = {int(back[c]): {names[p] for p in others[i]} for i, c in enumerate(again)}
    assert ours == theirs
    assert ours != {
        int(c): {NAMES[p] for p in rows[i]}
        for chosen, rows in [targets.lists(negatives, OF["query_ids"], NAMES, 4)]
        for i, c in enumerate(chosen)
    }


def test_copies_of_a_positive_are_no_random_passages(mined):
    negatives, positives, _ = mined
    _, random = targets.lists(negatives, OF["query_ids"], NAMES, 3)
    copy = next((int(random[q][0]), q) for q in range(QUERIES))
    texts = [f"text {i}" for i in range(PASSAGES)]
    texts[copy[0]] = texts[positives[copy[1]][0]]
    chosen, without = targets.lists(negatives, OF["query_ids"], NAMES, 3, SameText.of(texts))
    assert copy[0] not in without[copy[1]]
    others = {(r, p) for r in range(len(chosen)) for p in random[r].tolist()}
    kept = {(r, p) for r in range(len(chosen)) for p in without[r].tolist()}
    assert kept < others
    assert all(texts[p] in {texts[n] for n in positives[r]} for r, p in others - kept)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda s: s * np.nan, "bad: the score of a passage is nan; expected a finite number"),
        (lambda s: np.where(s > 1, np.inf, s), "bad: the score of a passage is inf"),
        (lambda s: s[:-1], r"bad: scores of shape \(.*,\) for .* passages; expected one for each"),
        (lambda s: s[:, None], r"bad: scores of shape \(.*, 1\) for"),
        (lambda s: 3.0, r"bad: scores of shape \(\) for"),
    ],
)
def test_scores_that_are_none_are_refused(broken, message, mined):
    negatives, _, teachers = mined
    right = score(teachers["good"], negatives)
    with pytest.raises(InputError, match=message):
        targets.add(negatives, {"bad": lambda rows, pairs: broken(right(rows, pairs))}, **OF)


def test_blocks_of_rows_change_nothing(mined, monkeypatch):
    negatives, _, teachers = mined
    asked = {"good": score(teachers["good"], negatives)}
    whole, _ = targets.add(negatives, asked, **OF)
    monkeypatch.setattr(targets, "BLOCK", 7)
    blocks, _ = targets.add(negatives, asked, **OF)
    np.testing.assert_array_equal(whole.distilled_targets.values, blocks.distilled_targets.values)


def test_a_table_keeps_them(mined, tmp_path):
    negatives, _, teachers = mined
    queries = TextTable(NAMES[:QUERIES], [""] * QUERIES)
    corpus = TextTable(NAMES, [""] * PASSAGES)
    found, _ = targets.add(negatives, {"fair": score(teachers["fair"], negatives)}, **OF)
    found.write(tmp_path / "with.parquet", queries, corpus)
    again = Negatives.read(tmp_path / "with.parquet", queries, corpus)
    for side in ("positive", "negative", "distilled"):
        one, other = getattr(found, f"{side}_targets"), getattr(again, f"{side}_targets")
        np.testing.assert_array_equal(one.values, other.values)
    assert again.take(np.array([1])).distilled_targets.counts.tolist() == [5]
