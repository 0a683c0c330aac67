"""Equal rows from sentence-transformers' `mine_hard_negatives` on real texts with MiniLM.

Both sides embed for themselves, or take the same vectors. Two float32 products of the same vectors
differ in their last bits, and vectors of two float32 encoders differ by as much again. So a row may
differ, but only where the scores leave it open: two of those that decide it are closer than NEAR,
or one is that close to a threshold. Everywhere else rows are equal, and every score is within NEAR
of theirs.
"""

import os

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("datasets")
pytest.importorskip("sentence_transformers")

import sentence_transformers
import st_reference as st

from nvret_jax.data.load import load_dataset
from nvret_jax.mining.rules import anchors
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.pretrained.resolve import DEFAULT_MODEL, resolve
from nvret_jax.search.index.backend import make_index
from nvret_jax.search.rankers.ranker import DenseRanker

pytestmark = pytest.mark.parity
NEAR = {"their vectors": 1e-6, "our vectors": 2e-6}  # of scores, by who embedded

SETTINGS = {
    "defaults": {},
    "the paper's best": {"relative_margin": 0.05, "num_negatives": 4},
    "a wide margin": {"absolute_margin": 0.2, "num_negatives": 6},
    "a band of scores": {"max_score": 0.5, "min_score": 0.2, "num_negatives": 5},
    "ranks": {"range_min": 5, "range_max": 40, "num_negatives": 8},
    "their docstring's": {
        "range_min": 10,
        "range_max": 50,
        "max_score": 0.8,
        "relative_margin": 0.05,
        "num_negatives": 5,
    },
    "a short window": {"relative_margin": 0.3, "range_max": 8},
}


class Case:
    """A data set, their model and its vectors, our vectors."""

    def __init__(self, name, split, queries, passages, length, cache):
        folder = os.environ.get("NVRET_DATA")
        if not folder:
            pytest.skip(f"needs NVRET_DATA (a folder with {name} in BEIR layout)")
        data = load_dataset(f"beir:{folder}/{name}")
        texts = dict(zip(data.corpus.ids, data.corpus.texts, strict=True))
        asked = dict(zip(data.queries.ids, data.queries.texts, strict=True))
        chosen = list(data.positives(split).items())[:queries]
        self.pairs = [(asked[q], texts[p]) for q, rows in chosen for p in rows]
        self.corpus = list(data.corpus.texts[:passages])
        self.given = st.inputs(self.pairs, self.corpus)
        self.cache, self.length = cache, length
        self.model = sentence_transformers.SentenceTransformer(
            str(resolve(DEFAULT_MODEL)), device="cpu"
        )
        self.model.max_seq_length = length

    def theirs(self, **settings):
        """(query, positive) -> texts and scores; embeds when first asked."""
        rows = st.theirs(
            self.model,
            self.pairs,
            self.corpus,
            output_format="labeled-list",
            output_scores=True,
            cache_folder=str(self.cache),
            **settings,
        )
        return st.by_positive(rows)

    def rankers(self):
        """Ours over their vectors, and over our own."""
        self.theirs()
        kept = [next(self.cache.glob(f"{kind}_embeddings*.npy")) for kind in ("query", "corpus")]
        encoder, length = Encoder.from_pretrained(DEFAULT_MODEL), self.length
        vectors = {
            "their vectors": [np.load(path) for path in kept],
            "our vectors": [
                encoder.encode(self.given.queries.texts, kind="query", max_length=length),
                encoder.encode(self.given.corpus.texts, max_length=length),
            ],
        }
        return {
            name: DenseRanker(*pair, lambda passages: make_index(passages, backend="faiss"))
            for name, pair in vectors.items()
        }


def open_questions(case, ranker, settings, near):
    """Queries (bool [Q]) whose rows the scores leave open."""
    given, options = case.given, st.options_of(settings, case.given.max_positives)
    candidates = st.stored(given, ranker, options.window + 1)
    rule = options.rule
    ceilings = rule.ceilings(anchors(candidates.positive_scores, "min"))
    wanted = rule.ranks_to_skip + options.num_negatives
    out = np.zeros(len(candidates), bool)
    for q in range(len(candidates)):
        scores = candidates.scores[q].astype(np.float64)
        free = ~np.isin(candidates.passage_rows[q], candidates.positive_rows[q])
        limits = [limit for limit in (ceilings[q], rule.min_score) if np.isfinite(limit)]
        at_limit = [(np.abs(scores[free] - limit) <= near).any() for limit in limits]
        # Near ties decide among the survivors that are taken and the next one.
        passed = free & (scores < ceilings[q]) & (scores >= rule.min_score)
        taken = scores[passed][: wanted + 1]
        tied = (np.abs(np.diff(taken)) <= near).any()
        # The edge of the window matters where it is what ends the list.
        edge = len(taken) <= wanted and (np.abs(np.diff(scores[-2:])) <= near).any()
        out[q] = any(at_limit) or tied or edge
    return out


def check(case, vectors, settings, use_faiss, capsys):
    """Compares one setting, and says how many queries differ and how many might."""
    case, rankers = case
    ranker, near = rankers[vectors], NEAR[vectors]
    expected = case.theirs(use_faiss=use_faiss, **settings)
    negatives = st.ours(case.given, ranker, settings)
    is_open = open_questions(case, ranker, settings, near)
    query_texts, passages = case.given.queries.texts, case.given.corpus.texts
    assert is_open.mean() < 0.02  # so that the exception stays one
    differing, negative_count = 0, 0
    for q, query in enumerate(query_texts):
        got = [passages[row] for row in negatives.negative_rows[q]]
        got_scores = negatives.negative_scores[q]
        for place, row in enumerate(negatives.positive_rows[q]):
            texts, scores, positive = expected.pop((query, passages[row]), ([], [], None))
            if texts != got:
                assert is_open[q], (query, texts, got)
                differing += place == 0
            if len(texts) == len(got):
                np.testing.assert_allclose(got_scores, scores, rtol=0, atol=near)
            if positive is not None:
                assert abs(negatives.positive_scores[q][place] - positive) <= near
        negative_count += len(got)
    assert not expected
    with capsys.disabled():
        print(
            f"\n{len(query_texts)} queries, {len(passages)} passages, {negative_count} negatives: "
            f"{differing} queries differ, {int(is_open.sum())} are open within {near}",
            end=" ",
        )


@pytest.fixture(scope="module")
def xquad(tmp_path_factory):
    case = Case("xquad_en", "test", 100, 100, 128, tmp_path_factory.mktemp("xquad"))
    return case, case.rankers()


@pytest.fixture(scope="module")
def scifact(tmp_path_factory):
    case = Case("scifact", "train", 300, 2000, 64, tmp_path_factory.mktemp("scifact"))
    return case, case.rankers()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("vectors", ["their vectors", "our vectors"])
def test_rows_of_xquad_are_equal(xquad, setting, vectors, capsys):
    check(xquad, vectors, SETTINGS[setting], False, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("use_faiss", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("vectors", ["their vectors", "our vectors"])
def test_rows_of_scifact_are_equal(scifact, setting, vectors, use_faiss, capsys):
    check(scifact, vectors, SETTINGS[setting], use_faiss, capsys)
