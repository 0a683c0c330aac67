"""Mining against a brute force that looks at the whole corpus, query by query."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_reference import MatrixRanker, brute_draw, brute_survivors, table

from nvret_jax.data.dataset import TextTable
from nvret_jax.data.hashing import mix, stable_hash
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.mining.miner import RANDOM, Teacher, mine
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Options, compatible
from nvret_jax.mining.rules import RULES, Rule
from nvret_jax.mining.sampling import SAMPLINGS
from nvret_jax.search.candidates import Candidates

# Quarters make ties, and ties at the ceiling, the rule rather than the exception.
GRID = st.integers(-4, 4).map(lambda i: i / 4)


def ids(n, letter="p"):
    return [f"{letter}{i}" for i in range(n)]


def run(scores_qn, positives, options, *, depth, excluded=None, ranker=None, names=("t",)):
    """Mines with one teacher, or with several where `scores_qn` is a list of matrices."""
    several = scores_qn if isinstance(scores_qn, list) else [scores_qn]
    teachers = [
        Teacher(name, table(scores, positives, depth), ranker or MatrixRanker(scores))
        for name, scores in zip(names, several, strict=True)
    ]
    q, n = several[0].shape
    return mine(
        teachers,
        options,
        excluded=Ragged.from_rows(excluded or [[]] * q, np.int32),
        query_ids=ids(q, "q"),
        passage_ids=ids(n),
    )


@st.composite
def rules(draw, names=RULES):
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    shift = draw(st.integers(0, 6))
    return Rule(
        "+".join(chosen),
        percent=draw(st.sampled_from([0.5, 0.75, 1.0])),
        margin=draw(st.sampled_from([0.0, 0.25, 0.5])),
        threshold=draw(st.sampled_from([-0.25, 0.5])),
        shift=shift,
        anchor=draw(st.sampled_from(["own", "min", "max", "mean"])),
        ranks=draw(st.sampled_from(["raw", "survivors"])),
        max_rank=draw(st.sampled_from([0, 0, shift + 5, shift + 9])),
        min_score=draw(st.sampled_from([-np.inf, -0.5])),
        keep_equal=draw(st.booleans()),
    )


@st.composite
def problems(draw):
    n, q = draw(st.integers(3, 24)), draw(st.integers(1, 5))
    scores = np.array(draw(st.lists(GRID, min_size=q * n, max_size=q * n)), np.float32)
    rows = st.integers(0, n - 1)
    positives = [sorted(draw(st.sets(rows, min_size=1, max_size=min(3, n)))) for _ in range(q)]
    excluded = [sorted(draw(st.sets(rows, max_size=2)) - set(p)) for p in positives]
    options = Options(
        rule=draw(rules()),
        num_negatives=draw(st.integers(1, 5)),
        sampling=draw(st.sampled_from(SAMPLINGS)),
        sample_from=draw(st.integers(1, 9)),
        sample_temperature=draw(st.sampled_from([0.1, 1.0])),
        short=draw(st.sampled_from(["ragged", "drop"])),
        seed=draw(st.integers(0, 3)),
    )
    return scores.reshape(q, n), positives, excluded, options, draw(rows) + 1


def expected(scores_qn, positives, excluded, options):
    """(query, positives, negatives) of every row, in plain loops."""
    rule, out = options.rule, []
    passages, queries = ids(scores_qn.shape[1]), stable_hash(ids(len(scores_qn), "q"))
    for q, scores_n in enumerate(scores_qn):
        scores = [np.float64(scores_n[p]) for p in positives[q]]
        if rule.anchor == "own":
            tasks = [([p], s) for p, s in zip(positives[q], scores, strict=True)]
        else:
            tasks = [(positives[q], {"min": min, "max": max, "mean": np.mean}[rule.anchor](scores))]
        for own, anchor in tasks:
            passed = brute_survivors(scores_n, positives[q], excluded[q], anchor, rule)
            key = queries[q : q + 1]
            if rule.anchor == "own":
                key = mix(key, stable_hash([passages[own[0]]]))
            rows = [row for row, _ in passed]
            out.append((q, own, brute_draw(rows, scores_n, options, key, passages)))
    if options.short == "drop":
        out = [row for row in out if len(row[2]) == options.num_negatives]
    return out


@settings(max_examples=400, deadline=None)
@given(problems())
def test_any_depth_gives_what_the_whole_corpus_gives(problem):
    scores_qn, positives, excluded, options, depth = problem
    negatives, counts = run(scores_qn, positives, options, depth=depth, excluded=excluded)
    want = expected(scores_qn, positives, excluded, options)
    assert [
        (int(negatives.query_rows[r]), negatives.positive_rows[r].tolist(), rows.tolist())
        for r, rows in enumerate(negatives.negative_rows)
    ] == want
    for r, rows in enumerate(negatives.negative_rows):
        q = negatives.query_rows[r]
        assert negatives.negative_scores[r].tolist() == scores_qn[q][rows].tolist()
        assert negatives.judged_rows[r].tolist() == positives[q]
        assert (negatives.negative_scores[r] < negatives.negative_ceilings[r]).all()
        assert (negatives.negative_ceilings[r] == negatives.ceilings[r]).all()
    if options.short == "ragged":
        missing = [options.num_negatives - len(rows) for _, _, rows in want]
        assert counts.missing == sum(missing)
        assert counts.short == sum(m > 0 for m in missing)


def test_ranks_count_neither_positives_nor_what_is_excluded():
    scores_qn = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], np.float32)
    negatives, counts = run(
        scores_qn, [[1]], Options(Rule("naive"), num_negatives=2), depth=5, excluded=[[0]]
    )
    assert negatives.negative_rows[0].tolist() == [2, 3]
    assert negatives.negative_ranks[0].tolist() == [1, 2]
    verdicts = counts.teachers["t"].verdicts
    assert (verdicts["positive"], verdicts["excluded"], verdicts["survivor"]) == (1, 1, 3)


def test_raw_ranks_count_what_the_ceiling_removes_and_survivor_ranks_do_not():
    scores_qn = np.array([[0.5, 0.9, 0.8, 0.4, 0.3, 0.2, 0.1]], np.float32)  # row 0 is the positive
    rule = Rule("shifted+margin_pos", margin=0.0, shift=2)
    raw, _ = run(scores_qn, [[0]], Options(rule, 2), depth=7)
    assert raw.negative_rows[0].tolist() == [3, 4]  # ranks 1 and 2 lie above the ceiling anyway
    rule = dataclasses.replace(rule, ranks="survivors")
    survivors, _ = run(scores_qn, [[0]], Options(rule, 2), depth=7)
    assert survivors.negative_rows[0].tolist() == [5, 6]


def test_the_second_search_is_asked_once_and_only_for_queries_left_short():
    rng = np.random.default_rng(0)
    scores_qn = rng.random((6, 40)).astype(np.float32)
    positives = [[int(np.argsort(-s)[20])] for s in scores_qn[:3]] + [
        [int(np.argmax(s))] for s in scores_qn[3:]
    ]
    ranker = MatrixRanker(scores_qn)
    options = Options(Rule("margin_pos", margin=0.0), num_negatives=4)
    negatives, counts = run(scores_qn, positives, options, depth=10, ranker=ranker)
    assert ranker.calls == [3]  # the first three have twenty better passages than their positive
    assert counts.teachers["t"].searched_again == 3
    assert counts.teachers["t"].found_again == 12
    assert negatives.negative_rows.counts.tolist() == [4] * 6
    assert negatives.negative_ranks[0].tolist() == [0, 0, 0, 0]  # beyond the stored candidates
    assert negatives.negative_ranks[5].tolist() == [1, 2, 3, 4]
    without = dataclasses.replace(options, second_search=False)
    negatives, counts = run(scores_qn, positives, without, depth=10, ranker=ranker)
    assert ranker.calls == [3]
    assert (negatives.negative_rows.counts.tolist(), counts.short) == ([0, 0, 0, 4, 4, 4], 3)


def test_a_query_without_any_candidate_is_short_and_counted():
    scores_qn = np.array([[0.9, 0.5], [0.9, 0.5]], np.float32)
    whole = table(scores_qn, [[0], [0]], 2)
    empty = Candidates(
        whole.query_rows,
        Ragged.from_rows([[0, 1], []], np.int32),
        Ragged.from_rows([scores_qn[0], []], np.float32),
        whole.positive_rows,
        whole.positive_scores,
    )
    negatives, counts = mine(
        [Teacher("list", empty)],
        Options(Rule("naive"), num_negatives=1),
        excluded=Ragged.from_rows([[], []], np.int32),
        query_ids=ids(2, "q"),
        passage_ids=ids(2),
    )
    assert [row.tolist() for row in negatives.negative_rows] == [[1], []]
    assert (counts.short, counts.missing) == (1, 1)


def test_random_fill_takes_what_is_left_and_says_so():
    scores_qn = np.tile(np.linspace(1, 0, 12, dtype=np.float32), (3, 1))
    positives = [[11], [11], [0]]  # below the first two positives there is nothing
    options = Options(Rule("margin_pos", margin=0.0), num_negatives=4, short="random")
    negatives, counts = run(scores_qn, positives, options, depth=5, excluded=[[0], [], []])
    assert negatives.negative_rows.counts.tolist() == [4, 4, 4]
    assert (counts.short, counts.filled_at_random) == (2, 8)
    assert counts.given == {"t": 4, RANDOM: 8}
    for r, never in enumerate([{11, 0}, {11}, {0}]):
        rows = negatives.negative_rows[r].tolist()
        assert len(set(rows)) == 4
        assert not set(rows) & never
        assert negatives.negative_scores[r].tolist() == scores_qn[r][rows].tolist()
    again, _ = run(scores_qn, positives, options, depth=5, excluded=[[0], [], []])
    assert again.negative_rows.values.tolist() == negatives.negative_rows.values.tolist()
    assert negatives.negative_rows[0].tolist() != negatives.negative_rows[1].tolist()


def test_random_fill_of_a_corpus_that_is_too_small_gives_all_it_has():
    scores_qn = np.array([[0.9, 0.5, 0.4]], np.float32)
    options = Options(Rule("abs", threshold=-1.0), num_negatives=4, short="random")
    negatives, _ = run(scores_qn, [[0]], options, depth=3)
    assert sorted(negatives.negative_rows[0].tolist()) == [1, 2]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draw_depends_on_the_query_and_nothing_else(sampling):
    rng = np.random.default_rng(3)
    scores_qn = rng.random((8, 50)).astype(np.float32)
    positives = [[int(rng.integers(50))] for _ in range(8)]
    options = Options(Rule("naive"), 3, sampling=sampling, sample_from=10)

    def mined(order):
        order = np.asarray(order)
        teacher = Teacher("t", table(scores_qn[order], [positives[i] for i in order], 20))
        negatives, _ = mine(
            [teacher],
            options,
            excluded=Ragged.from_rows([[]] * len(order), np.int32),
            query_ids=[f"q{i}" for i in order],
            passage_ids=ids(50),
        )
        return {
            i: row.tolist() for i, row in zip(order.tolist(), negatives.negative_rows, strict=True)
        }

    whole = mined(range(8))
    shuffled = mined([5, 2, 7, 0])
    assert all(whole[i] == rows for i, rows in shuffled.items())


def test_scores_that_are_not_finite_are_refused():
    scores_qn = np.array([[0.9, np.nan, 0.7]], np.float32)
    with pytest.raises(InputError, match="passage row 1"):
        run(scores_qn, [[0]], Options(num_negatives=1), depth=3)


def test_no_query_is_an_error():
    with pytest.raises(InputError, match="no training query"):
        run(np.zeros((0, 3), np.float32), [], Options(), depth=3)


def test_teachers_of_other_queries_are_refused():
    rng = np.random.default_rng(0)
    one, other = (
        table(rng.random((3, 9)).astype(np.float32), p, 5) for p in ([[0]] * 3, [[1]] * 3)
    )
    with pytest.raises(InputError, match="'second'"):
        mine(
            [Teacher("first", one), Teacher("second", other)],
            Options(),
            excluded=Ragged.from_rows([[]] * 3, np.int32),
            query_ids=ids(3),
            passage_ids=ids(9),
        )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Options(sampling="best"), "mining.sampling='best'"),
        (lambda: Options(ensemble="vote"), "mining.ensemble='vote'"),
        (lambda: Options(short="pad"), "mining.short='pad'"),
        (lambda: Options(num_negatives=0), "mining.num_negatives=0"),
        (lambda: Options(sample_temperature=0.0), "sample_temperature=0.0"),
        (lambda: Options(Rule("shifted", max_rank=12)), "leaves 2 ranks"),
        (lambda: compatible(Options(), "st", 1), "mining.compat='st'"),
        (lambda: Rule("naive+best"), "mining.rule='naive+best'"),
        (lambda: Rule("abs+abs"), "different"),
        (lambda: Rule(ranks="some"), "mining.ranks='some'"),
    ],
)
def test_options_that_cannot_be_are_named(make, words):
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)


def test_the_table_survives_the_disk(tmp_path):
    rng = np.random.default_rng(1)
    scores_qn = rng.random((5, 12)).astype(np.float32)
    positives = [[1, 2], [0], [3], [4, 5, 6], [11]]
    options = Options(Rule("perc_pos", percent=0.9, anchor="own"), num_negatives=3)
    negatives, _ = run(scores_qn, positives, options, depth=8)
    candidates = table(scores_qn, positives, 8)
    corpus = TextTable(tuple(ids(12)), [""] * 12)
    queries = TextTable(tuple(ids(5, "q")), [""] * 5)
    candidates.write(tmp_path / "c.parquet", queries, corpus)
    negatives.write(tmp_path / "n.parquet", queries, corpus)
    for before, after in (
        (candidates, Candidates.read(tmp_path / "c.parquet", queries, corpus)),
        (negatives, Negatives.read(tmp_path / "n.parquet", queries, corpus)),
    ):
        for name, value in vars(before).items():
            other = getattr(after, name)
            if isinstance(value, Ragged):
                np.testing.assert_array_equal(value.offsets, other.offsets)
                np.testing.assert_array_equal(value.values, other.values)
            else:
                np.testing.assert_array_equal(value, other)
    fewer = TextTable(corpus.ids[:5], [""] * 5)
    with pytest.raises(InputError, match="is not in the data set"):
        Candidates.read(tmp_path / "c.parquet", queries, fewer)


def test_a_damaged_table_is_one_line(tmp_path):
    path = tmp_path / "n.parquet"
    path.write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        Negatives.read(path, TextTable((), []), TextTable((), []))


def test_a_block_of_any_size_gives_the_same(monkeypatch):
    rng = np.random.default_rng(5)
    scores_qn = rng.random((30, 60)).astype(np.float32)
    positives = [[int(rng.integers(60))] for _ in range(30)]
    options = Options(Rule("perc_pos", percent=0.8))
    whole, _ = run(scores_qn, positives, options, depth=12)
    monkeypatch.setattr("nvret_jax.mining.survivors.CELLS", 40)
    parts, _ = run(scores_qn, positives, options, depth=12)
    assert parts.negative_rows.values.tolist() == whole.negative_rows.values.tolist()
    assert parts.negative_rows.offsets.tolist() == whole.negative_rows.offsets.tolist()
