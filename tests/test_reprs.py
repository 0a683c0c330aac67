"""What a notebook shows of a big object is one line with its sizes."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_cross_encoders
import tiny_models

from nvret_jax import api
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.ragged import Ragged
from nvret_jax.evaluation.retrieval import MEASURES
from nvret_jax.models.cross_encoder import CrossEncoder
from nvret_jax.search.candidates import Candidates
from nvret_jax.search.rankers.vectors import Vectors
from nvret_jax.search.store import EmbeddingStore

N = 100_000
IDS = tuple(f"passage-{i}" for i in range(N))
CORPUS = TextTable(IDS, ["a text of some length"] * N)
ROWS = np.arange(N, dtype=np.int32)
LISTS = Ragged(np.arange(N + 1), ROWS)
SCORES = Ragged(np.arange(N + 1), np.zeros(N, np.float32))


def dataset():
    qrels = {split: {i: {i: 1} for i in IDS[:9]} for split in ("train", "dev", "test")}
    return api.Dataset("big", CORPUS, CORPUS, qrels, "0" * 64)


def evaluation():
    means = dict.fromkeys(MEASURES, 0.25)
    per_query = {i: means for i in IDS}
    hits = np.zeros((N, 2), np.float32), np.zeros((N, 2), np.int32)
    return api.Evaluation("big", "test", means, per_query, IDS, IDS, *hits, {"queries": N})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (CORPUS, ["TextTable", "100,000 texts"]),
        (dataset(), ["Dataset", "'big'", "100,000 passages", "train 9, dev 9, test 9"]),
        (evaluation(), ["Evaluation", "big test", "100,000 queries", "nDCG@10 0.2500"]),
        (LISTS, ["Ragged", "100,000 rows", "int32"]),
        (Candidates(ROWS, LISTS, SCORES, LISTS, SCORES), ["Candidates", "100,000 queries"]),
        (
            api.Negatives(
                *(ROWS, LISTS, SCORES, LISTS, LISTS, SCORES, LISTS),
                ("teacher",),
                *(LISTS, SCORES, np.zeros(N, np.float32)),
            ),
            ["Negatives", "100,000 rows", "100,000 negatives", "teacher"],
        ),
        (Vectors("v.npy", np.zeros((N, 4), np.float32), np.arange(N), normalize=True), ["x 4"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_is_one_short_line_with_sizes(value, words):
    shown = repr(value)
    assert len(shown) < 300
    assert "\n" not in shown
    for word in words:
        assert word in shown


def test_models_and_stores(tmp_path):
    tiny_models.write(tmp_path / "model")
    encoder = repr(api.Encoder.from_pretrained(str(tmp_path / "model")))
    assert encoder.startswith("Encoder(")
    assert "32 wide, mean pooling, texts cut at" in encoder
    tiny_cross_encoders.write(tmp_path / "cross")
    crossed = repr(CrossEncoder.from_pretrained(str(tmp_path / "cross")))
    assert crossed.startswith("CrossEncoder(")
    store = repr(EmbeddingStore.create(tmp_path / "store", (N, 8), 4096))
    assert "EmbeddingStore(100,000 x 8 float32" in store
    assert max(map(len, (encoder, crossed, store))) < 300
