"""Equal rows from sentence-transformers' `mine_hard_negatives` (6.2), which runs live beside ours.

Scores are made here, so that every option and all four output forms are tried where they decide
something. Real texts are in test_st_parity_real.py, differences on purpose in
test_st_differences.py.
"""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("datasets")
pytest.importorskip("sentence_transformers")

import st_reference as st
from mining_reference import MatrixRanker

from nvret_jax import api
from nvret_jax.errors import InputError

pytestmark = pytest.mark.parity
FORMS = [(form, scored) for form in st.forms.FORMS for scored in (False, True)]


def texts(n, letter):
    return [f"{letter}{i}" for i in range(n)]


def positives_at(scores_qn, ranks, pairs_of):
    """Moves scores within each query so that its positives stand at the given ranks."""
    for q, scores_n in enumerate(scores_qn):
        order = np.argsort(-scores_n)
        for place, row in enumerate(pairs_of[q]):
            at = order[(ranks[place % len(ranks)] + q) % len(order)]
            scores_n[[at, row]] = scores_n[[row, at]]
            order = np.argsort(-scores_n)
    return scores_qn


def make_world(kind):
    """One of the data sets every setting is tried on."""
    rng = np.random.default_rng(len(kind))
    queries, passages = texts(9, "query "), texts(48, "passage ")
    pairs = [(q, passages[(7 * i) % 48]) for i, q in enumerate(queries)]
    corpus, low, high = passages, -64, 64
    if kind == "several":  # one to three positives, not next to each other
        pairs = pairs + [(q, passages[(7 * i + 5) % 48]) for i, q in enumerate(queries[:6])]
        pairs = pairs + [(q, passages[(7 * i + 11) % 48]) for i, q in enumerate(queries[2:4], 2)]
    elif kind == "duplicates":  # the same row again, in both columns and in the corpus
        pairs = pairs + pairs[2:5] + [(queries[2], passages[40])] + pairs[2:3]
        corpus = passages[10:30] + passages[5:15] + passages[:20]
    elif kind == "positives_only":
        corpus = None
        pairs = [(f"query {i}", passages[i]) for i in range(40)] + [("query 3", passages[4])]
    elif kind == "few":  # fewer passages than any window
        corpus = passages[:7]
        pairs = [(q, passages[i % 7]) for i, q in enumerate(queries)]
    elif kind == "negative":  # every score below zero
        low, high = -128, 0
    elif kind == "own_text":
        corpus = passages[:20] + queries + passages[20:]
    pairs_of = st.inputs(pairs, corpus).positive_rows
    return st.world(
        pairs,
        corpus,
        lambda q, n: positives_at(st.grid(q, n, rng, low, high), (6, 11, 15), pairs_of),
    )


KINDS = ("plain", "several", "duplicates", "positives_only", "few", "negative", "own_text")
WORLDS = {kind: make_world(kind) for kind in KINDS}

SETTINGS = {
    "defaults": {},
    "one negative": {"num_negatives": 1},
    "eight negatives": {"num_negatives": 8},
    "range_min": {"range_min": 4},
    "range_max": {"range_max": 7},
    "range_max cuts at what is asked for": {"range_max": 3},
    "range_min and range_max": {"range_min": 5, "range_max": 9},
    "range_min and range_max leave just enough": {"range_min": 6, "range_max": 9},
    "max_score": {"max_score": 0.25},
    "max_score at a score": {"max_score": 16 / 64, "num_negatives": 5},
    "max_score below zero": {"max_score": -0.5},
    "min_score": {"min_score": 0.5},
    "min_score at a score": {"min_score": 40 / 64, "num_negatives": 6},
    "min_score above all": {"min_score": 2.0},
    "absolute_margin": {"absolute_margin": 4 / 64},
    "absolute_margin of nothing": {"absolute_margin": 0.0},
    "absolute_margin off the grid": {"absolute_margin": 0.05},
    "absolute_margin below zero": {"absolute_margin": -2 / 64},
    "relative_margin": {"relative_margin": 0.05},
    "relative_margin at half": {"relative_margin": 0.5, "num_negatives": 5},
    "relative_margin at a quarter": {"relative_margin": 0.25},
    "relative_margin of nothing": {"relative_margin": 0.0},
    "relative_margin of all": {"relative_margin": 1.0},
    "both margins": {"absolute_margin": 4 / 64, "relative_margin": 0.125},
    "both margins, the other decides": {"absolute_margin": 1 / 64, "relative_margin": 0.25},
    "relative_margin and max_score": {"relative_margin": 0.05, "max_score": 0.5},
    "relative_margin and min_score": {"relative_margin": 0.125, "min_score": 0.0},
    "absolute_margin and min_score": {"absolute_margin": 0.125, "min_score": 0.25},
    "max_score and min_score": {"max_score": 0.75, "min_score": 0.25, "num_negatives": 6},
    "max_score below min_score": {"max_score": 0.25, "min_score": 0.5},
    "all filters": {
        "absolute_margin": 2 / 64,
        "relative_margin": 0.05,
        "max_score": 0.75,
        "min_score": -0.5,
        "num_negatives": 6,
    },
    "range_min behind a margin": {"range_min": 3, "relative_margin": 0.05},
    "range_min behind max_score": {"range_min": 2, "max_score": 0.5, "num_negatives": 4},
    "range_min behind min_score": {"range_min": 2, "min_score": 0.6, "num_negatives": 4},
    "a short window": {"range_max": 9, "relative_margin": 0.05},
    "a short window and range_min": {"range_max": 12, "range_min": 3, "absolute_margin": 0.0625},
    "everything": {
        "range_min": 1,
        "range_max": 30,
        "absolute_margin": 1 / 64,
        "relative_margin": 0.03,
        "max_score": 0.9,
        "min_score": -0.9,
        "num_negatives": 7,
    },
    "more negatives than there are": {"num_negatives": 60},
    "more than there are behind a margin": {"num_negatives": 45, "relative_margin": 0.05},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


def compare(given, settings, folder, forms=FORMS, **how):
    """Both sides in the given forms; returns our negatives."""
    rows = st.inputs(given.pairs, given.corpus)
    ranker = how.get("ranker") or MatrixRanker(given.scores_qn)
    negatives = st.ours(rows, ranker, settings, how.get("depth", 0))
    their = {name: value for name, value in settings.items() if value is not None}
    for form, scored in forms:
        expected = st.theirs(
            st.Stub(given),
            given.pairs,
            given.corpus,
            output_format=form,
            output_scores=scored,
            use_faiss=how.get("use_faiss", False),
            **their,
        )
        got = st.written(
            negatives,
            rows,
            form,
            scored=scored,
            count=settings.get("num_negatives", 3),
            path=folder / f"{form}.jsonl",
        )
        (got, got_scores), (expected, expected_scores) = st.bare(got), st.bare(expected)
        assert got == expected, form
        np.testing.assert_array_equal(got_scores, expected_scores, err_msg=form)
    return negatives


def form_of(kind, setting):
    """Another form for each combination: every setting and every data set sees (nearly) all."""
    return FORMS[(list(SETTINGS).index(setting) + 3 * KINDS.index(kind)) % len(FORMS)]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_equal(kind, setting, folder):
    compare(WORLDS[kind], SETTINGS[setting], folder, [form_of(kind, setting)])


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_equal_in_all_forms(kind, setting, folder):
    compare(WORLDS[kind], SETTINGS[setting], folder)


BACKENDS = {
    "a margin": ("several", {"relative_margin": 0.05, "num_negatives": 5}),
    "ranks": ("duplicates", {"range_min": 2, "range_max": 9, "max_score": 0.75}),
    "few": ("few", {"absolute_margin": 0.0625}),
}


@pytest.mark.parametrize("case", BACKENDS)
@pytest.mark.parametrize("backend", ["device", "faiss"])
@pytest.mark.parametrize("use_faiss", [False, True])
def test_rows_are_equal_whatever_searches_on_either_side(case, backend, use_faiss, folder):
    kind, settings = BACKENDS[case]
    ranker = st.dense_ranker(WORLDS[kind], backend)
    forms = [("triplet", True), ("labeled-pair", False)]
    compare(WORLDS[kind], settings, folder, forms, ranker=ranker, use_faiss=use_faiss)


@pytest.mark.parametrize("kind", ["plain", "several", "own_text", "few"])
def test_one_call_of_the_python_api_gives_the_same(kind):
    given = WORLDS[kind]
    rows, (queries_qd, passages_nd) = st.inputs(given.pairs, given.corpus), given.vectors
    negatives = api.mine(
        given.queries,
        given.passages,
        list(rows.positive_rows),
        query_embeddings=queries_qd,
        passage_embeddings=passages_nd,
        rule="perc_pos+abs",
        percent=0.875,
        threshold=0.75,
        num_negatives=5,
        compat="sentence_transformers",
        backend="faiss",
        progress=False,
    )
    settings = {"relative_margin": 0.125, "max_score": 0.75, "num_negatives": 5}
    theirs = st.theirs(st.Stub(given), given.pairs, given.corpus, **settings)
    ours = [
        (given.queries[q], given.passages[positive], given.passages[negative])
        for q, positives, negatives in each(
            negatives, "query_rows", "positive_rows", "negative_rows"
        )
        for positive in positives
        for negative in negatives
    ]
    assert ours == [tuple(row.values()) for row in theirs]


@pytest.mark.parametrize("setting", ["defaults", "relative_margin", "range_min behind a margin"])
def test_candidates_stored_beyond_the_window_are_not_looked_at(setting, folder):
    compare(WORLDS["several"], SETTINGS[setting], folder, [("triplet", True)], depth=48)


def random_problem(seed):
    """Texts, scores off any grid and settings, all at random."""
    rng = np.random.default_rng(seed)
    queries, passages = texts(int(rng.integers(1, 8)), "q"), texts(int(rng.integers(2, 40)), "p")
    rows = int(rng.integers(len(queries), 3 * len(queries) + 1))
    pairs = [(q, passages[rng.integers(len(passages))]) for q in queries]
    pairs += [pairs[rng.integers(len(pairs))] for _ in range(rows - len(pairs))]
    pairs += [(queries[rng.integers(len(queries))], passages[rng.integers(len(passages))])]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    corpus = None
    if rng.random() < 0.8:
        corpus = [(passages + queries)[rng.integers(len(passages))] for _ in range(40)]
    low = rng.choice([-1.0, -1.0, 0.2])
    given = st.world(pairs, corpus, lambda q, n: rng.uniform(low, low + 1.2, (q, n)))
    settings = {"num_negatives": int(rng.integers(1, 9))}
    for name, low, high in (
        ("max_score", -0.5, 1.0),
        ("min_score", -1.0, 0.8),
        ("absolute_margin", -0.05, 0.4),
        ("relative_margin", 0.0, 0.6),
    ):
        if rng.random() < 0.35:
            settings[name] = float(rng.uniform(low, high))
    if rng.random() < 0.4:
        settings["range_min"] = int(rng.integers(0, 8))
    if rng.random() < 0.4:
        room = int(rng.integers(0, 12))
        settings["range_max"] = settings.get("range_min", 0) + settings["num_negatives"] + room
    return given, settings, FORMS[rng.integers(len(FORMS))], bool(rng.random() < 0.5)


@pytest.mark.parametrize("seed", range(60))
def test_rows_are_equal_for_settings_drawn_at_random(seed, folder):
    given, settings, form, use_faiss = random_problem(seed)
    compare(given, settings, folder, [form], use_faiss=use_faiss)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.1, 1 / 3, 0.7, 0.95])
@pytest.mark.parametrize("name", ["absolute_margin", "relative_margin"])
def test_equality_is_kept_to_the_last_bit(name, margin, folder):
    """Scores at a margin's limit and one float32 beside it, for anchors of either sign."""
    rng = np.random.default_rng(int(margin * 100))
    count, near = 48, 7
    anchors_q = rng.uniform(-1, 1, count).astype(np.float32)
    limit_q = anchors_q - np.float32(margin)
    if name == "relative_margin":
        limit_q = anchors_q - np.abs(anchors_q) * np.float32(margin)
    # The limit and three neighbours on both sides: the next numbers, but never so close that the
    # rounding of `score + margin` to the anchor's precision takes all of them for the same.
    unit_q = np.spacing(np.abs(limit_q) * np.float32(1.001))
    if name == "absolute_margin":
        unit_q = np.maximum(unit_q, np.spacing(np.abs(anchors_q)) / 2)
    near_qn = limit_q[:, None] + unit_q[:, None] * (np.arange(near, dtype=np.float32) - near // 2)
    far_qn = anchors_q[:, None] - rng.uniform(3, 4, (count, 12)).astype(np.float32)
    passages = texts(1 + near + 12, "p")
    pairs = [(q, passages[0]) for q in texts(count, "q")]
    scores_qn = np.concatenate([anchors_q[:, None], near_qn, far_qn], axis=1)
    given = st.world(pairs, passages, lambda q, n: scores_qn)
    settings = {name: margin, "num_negatives": near + 1}
    negatives = compare(given, settings, folder, [("labeled-list", True)])
    kept = [set(negatives.negative_scores[row]) & set(scores) for row, scores in enumerate(near_qn)]
    assert all(0 < len(scores) < near for scores in kept)  # the limit runs between them
    if name == "relative_margin":
        assert all(max(scores) == limit for scores, limit in zip(kept, limit_q, strict=True))


def test_one_minus_percent_is_their_margin_in_float32():
    margins = np.arange(0, 10001) / 10000
    assert (np.float32(1 - (1 - margins)) == np.float32(margins)).all()


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize(
    "setting",
    [
        "defaults",
        "eight negatives",
        "range_min",
        "max_score",
        "min_score",
        "absolute_margin of nothing",
        "relative_margin",
        "range_min behind min_score",
    ],
)
def test_the_window_they_choose_is_ours(setting, crossed, capsys):
    given, settings = WORLDS["duplicates"], SETTINGS[setting]
    if crossed:
        settings = settings | {"cross_encoder": st.CrossEncoder(given, given.scores_qn)}
    st.theirs(st.Stub(given), given.pairs, given.corpus, verbose=True, **settings)
    most = st.inputs(given.pairs, given.corpus).max_positives
    assert most == 4  # one of them comes three times, and counts as three
    window = st.options_of(settings, most).rule.max_rank
    assert f"Setting range_max to {window} based" in capsys.readouterr().out


RANDOM = {
    "a window of ranks": ("several", {"range_max": 12, "num_negatives": 2}),
    "its own window": ("plain", {"num_negatives": 4}),
    "behind a margin": ("duplicates", {"relative_margin": 0.05}),
    "behind a margin and ranks": ("several", {"absolute_margin": 0.0625, "range_min": 3}),
    "fewer than asked for": ("few", {"max_score": 0.25, "num_negatives": 7}),
    "of negative scores": ("negative", {"relative_margin": 0.1, "num_negatives": 5}),
}


@pytest.mark.parametrize("case", RANDOM)
def test_random_sampling_draws_as_many_of_the_same_survivors(case, folder):
    kind, settings = RANDOM[case]
    given = WORLDS[kind]
    rows = st.inputs(given.pairs, given.corpus)
    count = settings.get("num_negatives", 3)
    options = st.options_of(settings, rows.max_positives)
    last, first = options.rule.max_rank, settings.get("range_min", 0)
    form = {"output_format": "labeled-list", "output_scores": True}
    their = (st.Stub(given), given.pairs, given.corpus)
    whole = settings | {"range_max": last, "num_negatives": last - first}
    survivors = st.by_positive(st.theirs(*their, **form, **whole))
    draw = settings | {"sampling_strategy": "random"}
    drawn = st.ours(rows, MatrixRanker(given.scores_qn), draw)
    ours = st.written(drawn, rows, "labeled-list", scored=True, count=count,
                      path=folder / "r.jsonl")  # fmt: skip
    for side in (st.by_positive(ours), st.by_positive(st.theirs(*their, **form, **draw))):
        assert side.keys() == survivors.keys()
        for key, (texts_n, scores_n, _) in side.items():
            of = dict(zip(*survivors[key][:2], strict=True))
            assert len(set(texts_n)) == len(texts_n) == min(count, len(of))
            assert [of[text] for text in texts_n] == list(scores_n)
            assert list(scores_n) == sorted(scores_n, reverse=True)
    top = st.by_positive(st.theirs(*their, **form, **settings))
    assert any(st.by_positive(ours)[key][0] != top[key][0] for key in top) == (kind != "few")


def test_random_sampling_reaches_every_survivor():
    given, settings = WORLDS["several"], {"range_max": 12, "range_min": 2}
    rows, ranker = st.inputs(given.pairs, given.corpus), MatrixRanker(given.scores_qn)
    survivors = st.ours(rows, ranker, settings | {"num_negatives": 10}).negative_rows
    drawn = [set() for _ in given.queries]
    for seed in range(60):
        draw = settings | {"sampling_strategy": "random", "num_negatives": 2}
        negatives = st.ours(rows, ranker, draw, seed=seed).negative_rows
        for query, row in enumerate(drawn):
            row.update(negatives[query].tolist())
    assert drawn == [set(survivors[query].tolist()) for query in range(len(survivors))]


CROSS = {
    "relative_margin": {"relative_margin": 0.05},
    "absolute_margin": {"absolute_margin": 0.0625},
    "max_score": {"max_score": 0.5},
    "min_score widens the window": {"min_score": -0.25, "num_negatives": 2},
    "a short window": {"relative_margin": 0.05, "range_max": 6},
    "range_min": {"max_score": 0.75, "range_min": 3, "num_negatives": 4},
    "no filter, no rescoring": {"num_negatives": 5},
}


@pytest.mark.parametrize("setting", CROSS)
@pytest.mark.parametrize("kind", ["several", "duplicates", "few", "negative"])
def test_a_cross_encoder_rescores_the_same_window(kind, setting, folder):
    given, rng = WORLDS[kind], np.random.default_rng(7)
    scores_qn = st.grid(*given.scores_qn.shape, rng)
    cross = st.CrossEncoder(given, scores_qn)
    settings = CROSS[setting] | {"cross_encoder": cross}
    form = FORMS[list(CROSS).index(setting)]
    compare(given, settings, folder, [form, ("triplet", True)], depth=48)
    assert bool(cross.pairs) == (setting != "no filter, no rescoring")


POSITIVES = {
    "the ranking": {"num_negatives": 6},
    "all of it": {"num_negatives": 40},
    "within ranks": {"num_negatives": 4, "range_min": 2, "range_max": 9},
    "behind a margin": {"num_negatives": 3, "relative_margin": 0.05},
}


@pytest.mark.parametrize("setting", POSITIVES)
@pytest.mark.parametrize("kind", ["plain", "several", "duplicates", "own_text"])
def test_include_positives_gives_the_ranking_itself(kind, setting, folder):
    settings = POSITIVES[setting] | {"include_positives": True}
    forms = [("n-tuple", False), ("n-tuple", True)]
    negatives = compare(WORLDS[kind], settings, folder, forms)
    if setting == "all of it":
        assert all(set(p) <= set(n) for p, n in each(negatives, "positive_rows", "negative_rows"))


def each(negatives, *names):
    return zip(*([getattr(negatives, n)[r] for r in range(len(negatives))] for n in names),
               strict=True)  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"num_negatives": 0},
        {"range_max": 2},
        {"range_min": 4, "range_max": 6},
        {"range_min": 9, "range_max": 9},
    ],
)
def test_what_they_refuse_is_refused(settings):
    given = WORLDS["plain"]
    with pytest.raises(ValueError, match=r"must be|Cannot mine"):
        st.theirs(st.Stub(given), given.pairs, given.corpus, **settings)
    with pytest.raises(InputError, match="mining"):
        st.options_of(settings, 1)
