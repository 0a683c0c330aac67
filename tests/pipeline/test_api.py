"""The notebook interface."""

import numpy as np
import pytest

from nvret_jax import api


def unit(rng, n, d=16):
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_mine_keeps_the_hardest_below_95_percent_of_the_positive():
    rng = np.random.default_rng(0)
    queries, passages = unit(rng, 5), unit(rng, 60)
    positives = [[int(np.argmax(passages @ q))] for q in queries]
    negatives = api.mine(
        [f"q{i}" for i in range(5)],
        [f"p{i}" for i in range(60)],
        positives,
        query_embeddings=queries,
        passage_embeddings=passages,
        depth=10,
        progress=False,
    )
    for q in range(5):
        scores = passages @ queries[q]
        allowed = [r for r in np.argsort(-scores) if scores[r] < 0.95 * scores[positives[q][0]]]
        assert negatives.negative_rows[q].tolist() == allowed[:4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positives": [[0]]}, "positives: 1 lists for 2 queries"),
        ({"positives": [[0], [9]]}, "positives: query 1 has row 9; there are 3 passages"),
        ({"positives": [[0], []]}, "positives: query 1 has no positive"),
        ({"passage_embeddings": None}, "give a teacher"),
        ({"query_embeddings": np.ones((3, 4), np.float32)}, "3 query embeddings for 2 texts"),
        ({"passage_embeddings": np.ones((3, 5), np.float32)}, "4 wide and passages 5"),
        ({"rule": "best"}, "mine: rule='best': expected one of naive"),
        ({"backend": "gpu"}, "auto, device, faiss"),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    arguments = {
        "queries": ["a", "b"],
        "passages": ["x", "y", "z"],
        "positives": [[0], [1]],
        "query_embeddings": np.ones((2, 4), np.float32),
        "passage_embeddings": np.ones((3, 4), np.float32),
        "progress": False,
        **changes,
    }
    with pytest.raises(api.InputError) as error:
        api.mine(**arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_search_and_mine_agree_on_the_order():
    rng = np.random.default_rng(1)
    queries, passages = unit(rng, 3), unit(rng, 20)
    _, rows = api.search(queries, passages, 5)
    negatives = api.mine(
        ["a", "b", "c"],
        [str(i) for i in range(20)],
        [[int(r[0])] for r in rows],
        query_embeddings=queries,
        passage_embeddings=passages,
        rule="naive",
        num_negatives=4,
        progress=False,
    )
    assert [negatives.negative_rows[q].tolist() for q in range(3)] == rows[:, 1:].tolist()


def test_auto_chooses_the_value_that_calibration_would():
    rng = np.random.default_rng(2)
    queries, passages = unit(rng, 120, 8), unit(rng, 150, 8)
    positives = [int(row) for row in np.argmax(queries @ passages.T, axis=1)]

    def mined(**how):
        return api.mine(
            [f"q{i}" for i in range(120)],
            [f"p{i}" for i in range(150)],
            positives,
            query_embeddings=queries,
            passage_embeddings=passages,
            progress=False,
            **how,
        )

    auto = mined(percent="auto").negative_rows.values.tolist()
    tried = {p: mined(percent=p).negative_rows.values.tolist() for p in np.arange(50, 96) / 100}
    assert auto in tried.values()
