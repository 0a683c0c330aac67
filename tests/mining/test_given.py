"""Negatives of the data set beside mined ones, against plain loops over the rows."""

import dataclasses

import numpy as np
import pytest
from mining_reference import MatrixRanker, table

from nvret_jax.data.ragged import Ragged
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining import given as given_lib
from nvret_jax.mining.miner import Teacher, mine
from nvret_jax.mining.negatives import GIVEN, Negatives
from nvret_jax.mining.options import Options
from nvret_jax.mining.rules import Rule

QUERIES, PASSAGES, MOST = 12, 40, 4


def ragged(rows):
    return Ragged.from_rows(rows, np.int32)


@dataclasses.dataclass
class Mined:
    """A teacher, what it mined, and given negatives of its queries."""

    teacher: Teacher
    negatives: Negatives
    given: Ragged
    excluded: Ragged
    texts: SameText
    scores_qn: np.ndarray


@pytest.fixture(params=["min", "own"])
def mined(request):
    rng = np.random.default_rng(1)
    texts = SameText.of([f"text {i - i % 2 if i % 6 == 1 else i}" for i in range(PASSAGES)])
    scores_qn = rng.normal(size=(QUERIES, PASSAGES)).astype(np.float32)
    positives = [sorted(rng.choice(PASSAGES, 1 + q % 2, replace=False)) for q in range(QUERIES)]
    teacher = Teacher(
        "t",
        table(scores_qn, positives, 20),
        MatrixRanker(scores_qn),
        Rule("margin_pos", margin=0.5, anchor=request.param),
    )
    excluded = ragged([sorted(rng.choice(PASSAGES, 3, replace=False)) for _ in range(QUERIES)])
    options = Options(rule=teacher.rule, num_negatives=MOST)
    names = [str(i) for i in range(PASSAGES)]
    negatives, _ = mine(
        [teacher],
        options,
        excluded=excluded,
        query_ids=names[:QUERIES],
        passage_ids=names,
    )
    given = ragged([rng.choice(PASSAGES, q % 7, replace=False) for q in range(QUERIES)])
    return Mined(teacher, negatives, given, excluded, texts, scores_qn)


def combine(mined, mode, **more):
    return given_lib.combine(
        mined.negatives,
        mined.given,
        mode,
        mined.teacher,
        excluded=mined.excluded,
        most=MOST,
        **more,
    )


def expected(mined, mode, texts):
    """Per row its negatives and whether each was given."""
    out = []
    for r, query in enumerate(mined.negatives.query_rows.tolist()):
        positives = mined.teacher.candidates.positive_rows[query].tolist()
        never = {*positives, *mined.excluded[query].tolist()}
        name = (lambda p: p) if texts is None else (lambda p: int(texts.first_n[p]))
        own, seen = [], set()
        for passage in mined.given[query].tolist():
            if passage not in never and name(passage) not in seen:
                seen.add(name(passage))
                own.append((passage, True))
        others = [(passage, False) for passage in mined.negatives.negative_rows[r].tolist()]
        if mode == "only":
            out.append(own[:MOST])
            continue
        turns = []
        for i in range(max(len(own), len(others))):
            turns += own[i : i + 1] + others[i : i + 1]
        kept, seen = [], set()
        for passage, is_given in turns:
            if name(passage) not in seen:
                seen.add(name(passage))
                kept.append((passage, is_given))
        out.append(kept[:MOST])
    return out


@pytest.mark.parametrize("mode", ["add", "only"])
@pytest.mark.parametrize("by_text", [False, True])
def test_given_negatives_alternate_with_mined_ones_or_stand_alone(mined, mode, by_text):
    texts = mined.texts if by_text else None
    made, counts = combine(mined, mode, texts=texts)
    wanted = expected(mined, mode, texts)
    assert made.teachers == ("t", GIVEN)
    for r, row in enumerate(wanted):
        assert made.negative_rows[r].tolist() == [passage for passage, _ in row]
        assert (made.negative_teachers[r] == 1).tolist() == [is_given for _, is_given in row]
        query = mined.negatives.query_rows[r]
        scores = [mined.scores_qn[query, passage] for passage, _ in row]
        np.testing.assert_allclose(made.negative_scores[r], scores, atol=1e-5)
        for rank, ceiling, (_, is_given) in zip(
            made.negative_ranks[r], made.negative_ceilings[r], row, strict=True
        ):
            assert (rank == 0 and np.isinf(ceiling)) or not is_given
    assert counts.used == sum(is_given for row in wanted for _, is_given in row)
    assert counts.without == sum(not row for row in wanted)
    assert counts.queries == sum(q % 7 > 0 for q in range(QUERIES))
    assert counts.given == sum(q % 7 for q in range(QUERIES))
    np.testing.assert_array_equal(made.query_rows, mined.negatives.query_rows)


def test_what_lies_above_the_ceiling_is_counted(mined):
    _, counts = combine(mined, "add")
    above = 0
    for r, query in enumerate(mined.negatives.query_rows.tolist()):
        positives = mined.teacher.candidates.positive_rows[query].tolist()
        never = {*positives, *mined.excluded[query].tolist()}
        ceiling = mined.negatives.positive_scores[r].min() - 0.5
        above += sum(
            mined.scores_qn[query, p] >= ceiling for p in mined.given[query] if p not in never
        )
    assert counts.above == above
    assert above


def test_ignored_negatives_change_nothing_and_are_counted(mined):
    made, counts = combine(mined, "ignore")
    assert made is mined.negatives
    assert counts.used == 0
    assert counts.given > 0


def test_rows_of_ids_and_a_set_without_negatives():
    row = {"a": 0, "b": 1}
    found = given_lib.rows_of({"q": ("b", "a")}, ["p", "q"], row)
    assert [found[i].tolist() for i in range(2)] == [[], [1, 0]]
    none = given_lib.rows_of({}, ["p", "q"], row)
    given_lib.check("add", none, "x")
    with pytest.raises(InputError, match="no training query of data set x comes with negatives"):
        given_lib.check("only", none, "x")
