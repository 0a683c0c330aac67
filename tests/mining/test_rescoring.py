"""Rescoring against brute force, and lazy rescoring against scoring everything."""

import numpy as np
import pytest

from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.rescoring import rescore, rescore_lazily, text_scorer
from nvret_jax.mining.rules import Rule, anchors
from nvret_jax.mining.survivors import Fate, judge
from nvret_jax.search.candidates import Candidates

N = 30


class Scorer:
    """Scores by a matrix and remembers what it was asked for."""

    def __init__(self, table_qn):
        self.table_qn, self.pairs, self.calls = table_qn, [], 0

    def __call__(self, pairs):
        assert pairs.shape == (len(pairs), 2)
        self.calls += 1
        self.pairs += map(tuple, pairs.tolist())
        return self.table_qn[pairs[:, 0], pairs[:, 1]]


class Store(dict):
    """Chunks in memory; fails where it is told to, as a kill would."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.fail_at = fail_at

    def load(self, number):
        return self.get(number)

    def save(self, number, pairs, scores):
        if number == self.fail_at:
            raise KeyboardInterrupt
        self[number] = (pairs.copy(), scores.copy())


def make(seed=0, queries=12, ties=False):
    """Candidates of a teacher, with empty lists, unlisted positives, and a matrix of new scores."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(N)[: rng.integers(0, 21)] for _ in range(queries)]
    rows[3] = rows[3][:0]
    positives = []
    for listed in rows:
        count = rng.integers(1, 4)
        some = rng.permutation(listed)[: rng.integers(0, 3)]
        positives.append(np.unique([*some, *rng.integers(0, N, count)]))
    lists = Ragged.from_rows(rows, np.int32)
    positive_rows = Ragged.from_rows(positives, np.int32)
    candidates = Candidates(
        query_rows=np.arange(queries, dtype=np.int32)[::-1] * 2 + 1,  # not the query numbers
        passage_rows=lists,
        scores=lists.like(rng.standard_normal(len(lists.values)).astype(np.float32)),
        positive_rows=positive_rows,
        positive_scores=positive_rows.like(np.zeros(len(positive_rows.values), np.float32)),
    )
    table_qn = rng.standard_normal((2 * queries, N)).astype(np.float32) - 1  # often negative
    return candidates, np.round(table_qn) if ties else table_qn


def by_hand(candidates, table_qn, depth, order):
    """Lists of (row, score) per query and of positive scores."""
    lists, positive_scores = [], []
    for number, query in enumerate(candidates.query_rows):
        hits = [(r, table_qn[query, r]) for r in candidates.passage_rows[number][:depth].tolist()]
        if order == "rescored":
            hits.sort(key=lambda hit: (-hit[1], hit[0]))
        lists.append(hits)
        positive_scores.append([table_qn[query, r] for r in candidates.positive_rows[number]])
    return lists, positive_scores


def as_lists(candidates):
    pairs = zip(candidates.passage_rows, candidates.scores, strict=True)
    return [list(zip(rows.tolist(), scores, strict=True)) for rows, scores in pairs]


@pytest.mark.parametrize("order", ["rescored", "teacher"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("depth", [1, 7, 100])
def test_every_candidate_and_positive_gets_its_score_and_its_place(order, ties, depth):
    candidates, table_qn = make(ties=ties)
    scorer = Scorer(table_qn)
    got, counts = rescore(candidates, scorer, depth, order)
    lists, positive_scores = by_hand(candidates, table_qn, depth, order)
    assert as_lists(got) == lists
    assert [row.tolist() for row in got.positive_scores] == positive_scores
    assert got.scores.values.dtype == got.positive_scores.values.dtype == np.float32
    assert got.passage_rows.values.dtype == np.int32
    np.testing.assert_array_equal(got.query_rows, candidates.query_rows)
    asked = {
        (query, row)
        for number, query in enumerate(candidates.query_rows.tolist())
        for rows in (candidates.passage_rows[number][:depth], candidates.positive_rows[number])
        for row in rows.tolist()
    }
    assert set(scorer.pairs) == asked
    assert len(scorer.pairs) == len(asked) == counts.scored == counts.possible  # each pair once


RULES = {
    "margin": Rule("margin_pos", margin=0.1),
    "percent": Rule("perc_pos", percent=0.9),
    "naive": Rule("naive"),
    "shifted": Rule("shifted", shift=3),
    "both": Rule("shifted+perc_pos", shift=2, percent=0.8, anchor="max"),
    "floor": Rule("margin_pos", margin=0.0, min_score=-1.5, anchor="mean"),
    "nothing": Rule("abs", threshold=-9.0),
}


def excluded_rows(candidates, seed=5):
    rng = np.random.default_rng(seed)
    return Ragged.from_rows(
        [rng.integers(0, N, rng.integers(0, 4)) for _ in range(len(candidates))], np.int32
    )


def lazily(candidates, score, rule, wanted, depth=15, **how):
    return rescore_lazily(
        candidates,
        score,
        depth,
        ceilings=lambda scores: rule.ceilings(anchors(scores, rule.anchor)),
        num_negatives=wanted,
        ranks_to_skip=rule.ranks_to_skip,
        min_score=rule.min_score,
        **how,
    )


def negatives(candidates, rule, wanted, excluded):
    """What mining takes: the first survivors of each list, with scores and ranks."""
    ceilings = rule.ceilings(anchors(candidates.positive_scores, rule.anchor))
    numbers = np.arange(len(candidates))
    fates, ranks = judge(candidates, numbers, ceilings, rule, excluded)
    found = []
    for number in numbers:
        at = np.flatnonzero(fates[number] == Fate.SURVIVOR)[:wanted]
        rows, scores = candidates.passage_rows[number], candidates.scores[number]
        found.append([(rows[i], scores[i], ranks[number, i]) for i in at])
    return found


def fewest(candidates, table_qn, rule, wanted, depth, excluded):
    """Pairs that one must score who goes down each list one by one, (query row, passage row)."""
    asked = set()
    for number, query in enumerate(candidates.query_rows.tolist()):
        own = candidates.positive_rows[number].tolist()
        asked |= {(query, row) for row in own}
        scores = Ragged.from_rows([[table_qn[query, row] for row in own]], np.float32)
        ceiling = rule.ceilings(anchors(scores, rule.anchor))[0]
        rank = have = 0
        for row in candidates.passage_rows[number][:depth].tolist():
            if row in own or row in excluded[number].tolist():
                continue
            if have == wanted:
                break
            rank += 1
            asked.add((query, row))
            have += rank > rule.ranks_to_skip and rule.min_score <= table_qn[query, row] < ceiling
    return asked


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("least", [1, 4])
def test_lazily_the_same_negatives_are_found_with_fewer_pairs(name, ties, least):
    rule, wanted, depth = RULES[name], 2, 15
    for seed in range(6):
        candidates, table_qn = make(seed, ties=ties)
        excluded = excluded_rows(candidates, seed)
        whole, _ = rescore(candidates, Scorer(table_qn), depth, "teacher")
        scorer = Scorer(table_qn)
        some, counts = lazily(
            candidates, scorer, rule, wanted, depth, excluded=excluded, least=least
        )
        found = negatives(some, rule, wanted, excluded)
        assert found == negatives(whole, rule, wanted, excluded)
        np.testing.assert_array_equal(some.positive_scores.values, whole.positive_scores.values)
        asked = fewest(candidates, table_qn, rule, wanted, depth, excluded)
        assert len(scorer.pairs) == len(set(scorer.pairs)) == counts.scored
        assert asked <= set(scorer.pairs)
        if least == 1:  # not one in vain
            assert asked == set(scorer.pairs)
        assert counts.scored <= counts.possible
        assert counts.full == sum(len(row) == wanted for row in found)


def test_what_comes_back_is_the_part_of_the_list_that_was_looked_at():
    candidates, table_qn = make(2)
    excluded = excluded_rows(candidates)
    got, _ = lazily(candidates, Scorer(table_qn), RULES["margin"], 2, excluded=excluded)
    assert np.isfinite(got.scores.values).all()
    for number, rows in enumerate(got.passage_rows):
        positive, left_out = candidates.positive_rows[number], excluded[number]
        kept = [
            row
            for row in candidates.passage_rows[number].tolist()
            if row in positive or row not in left_out
        ]
        assert rows.tolist() == kept[: len(rows)]
        np.testing.assert_array_equal(got.scores[number], table_qn[got.query_rows[number], rows])


def one_query(new_scores, positive, wanted=1, **how):
    """A query whose candidates are all passages in row order, with these new scores."""
    count = len(new_scores)
    rows = Ragged.from_rows([range(count)], np.int32)
    candidates = Candidates(
        np.zeros(1, np.int32),
        rows,
        rows.like(np.arange(count, 0, -1).astype(np.float32)),
        Ragged.from_rows([[positive]], np.int32),
        Ragged.from_rows([[0.0]], np.float32),
    )
    scorer = Scorer(np.array([new_scores], np.float32))
    return (*lazily(candidates, scorer, RULES["margin"], wanted, 99, **how), scorer)


def test_a_query_whose_positive_scores_lowest_is_followed_to_the_end_and_stays_empty():
    got, counts, scorer = one_query([3, 2, 1, -5, 4, 0.5], positive=3)
    assert (counts.scored, counts.possible, counts.full) == (6, 6, 0)
    assert len(scorer.pairs) == 6
    assert got.passage_rows[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_query_that_is_full_at_once_costs_one_round():
    got, counts, _ = one_query([-3, 2, 1, 9, 4, 0.5, 0, 0], positive=3, least=1)
    assert (counts.scored, counts.rounds, counts.full) == (2, 1, 1)
    assert got.passage_rows[0].tolist() == [0]


def test_a_score_equal_to_the_ceiling_does_not_survive():
    ceiling = float(RULES["margin"].ceilings(np.array([1.0]))[0])
    _, counts, scorer = one_query([ceiling, ceiling, 0.0, 1.0], positive=3, least=1)
    assert counts.full == 1
    assert scorer.pairs == [(0, 3), (0, 0), (0, 1), (0, 2)]


def test_pairs_of_all_queries_share_a_call():
    candidates, table_qn = make(1, queries=200)
    scorer = Scorer(table_qn)
    _, counts = lazily(candidates, scorer, RULES["margin"], 2)
    assert scorer.calls == 1 + counts.rounds  # one for the positives
    assert counts.rounds <= 4


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("fail_at", [0, 3])
def test_a_kill_costs_one_chunk(lazy, fail_at):
    candidates, table_qn = make(4)

    def run(score, store):
        if lazy:
            return lazily(candidates, score, RULES["percent"], 2, store=store, chunk_pairs=7)
        return rescore(candidates, score, 9, store=store, chunk_pairs=7)

    whole = Scorer(table_qn)
    want, want_counts = run(whole, Store())
    store, first, second = Store(fail_at), Scorer(table_qn), Scorer(table_qn)
    with pytest.raises(KeyboardInterrupt):
        run(first, store)
    store.fail_at = None
    got, counts = run(second, store)
    assert as_lists(got) == as_lists(want)
    assert counts == want_counts
    assert len(second.pairs) == len(whole.pairs) - 7 * fail_at
    assert max(len(pairs) for pairs, _ in store.values()) == 7
    assert run(None, store)[1] == counts  # everything is there: nothing is scored


def test_chunks_of_another_run_are_refused():
    candidates, table_qn = make()
    store = Store()
    rescore(candidates, Scorer(table_qn), 9, store=store, chunk_pairs=7)
    with pytest.raises(InputError, match="chunk 0 on disk holds 7 pairs that differ"):
        rescore(make(1)[0], Scorer(table_qn), 9, store=store, chunk_pairs=7)


def test_texts_reach_the_scorer_as_pairs():
    seen = []

    def score(pairs):
        seen.extend(pairs)
        return np.array([len(q) - len(p) for q, p in pairs])

    got = text_scorer(score, ["a", "bb"], ["x", "yy", "zzz"])(np.array([[1, 0], [0, 2]]))
    assert seen == [("bb", "x"), ("a", "zzz")]
    assert got.tolist() == [1, -2]


def test_no_query_and_no_candidate_are_no_mistake():
    empty = Ragged.from_rows([], np.int32)
    numbers = Ragged.from_rows([], np.float32)
    none = Candidates(np.zeros(0, np.int32), empty, numbers, empty, numbers)
    got, counts = rescore(none, Scorer(np.zeros((1, 1))), 5)
    assert (len(got), counts.scored) == (0, 0)
    got, counts = lazily(none, Scorer(np.zeros((1, 1))), RULES["margin"], 2)
    assert (len(got), counts.rounds) == (0, 0)


def test_bad_input_is_named():
    candidates, table_qn = make()
    score = Scorer(table_qn)
    with pytest.raises(InputError, match="order 'best'"):
        rescore(candidates, score, 5, "best")
    with pytest.raises(InputError, match="depth=0"):
        rescore(candidates, score, 0)
    with pytest.raises(InputError, match="num_negatives=0"):
        lazily(candidates, score, RULES["margin"], 0)
    with pytest.raises(InputError, match=r"pairs got scores of shape \(1,\)"):
        rescore(candidates, lambda pairs: np.zeros(1), 5)
    query, row = int(candidates.query_rows[0]), int(candidates.positive_rows[0][0])
    table_qn[query, row] = np.nan
    with pytest.raises(InputError, match=f"query row {query} with passage row {row} is nan"):
        rescore(candidates, score, 5)
    with pytest.raises(InputError, match=r"ceilings of shape \(3,\)"):
        rescore_lazily(
            candidates,
            lambda pairs: np.zeros(len(pairs)),
            5,
            ceilings=lambda scores: np.zeros(3),
            num_negatives=1,
        )
