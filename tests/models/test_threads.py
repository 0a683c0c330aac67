"""One encoder, one cross-encoder and one index, used by eight threads at once."""

import concurrent.futures

import numpy as np
import pytest
import tiny_cross_encoders
import tiny_models

import nvret_jax.api as nv
from nvret_jax.models.cross_encoder import CrossEncoder
from nvret_jax.models.encoder import Encoder

THREADS = 8


def in_threads(calls):
    """The results of all calls, eight of them under way at a time."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        return [future.result(timeout=300) for future in [threads.submit(call) for call in calls]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tiny_models.write(tmp_path_factory.mktemp("threads") / "m")
    return Encoder.from_pretrained(str(folder), query_prompt="the wing of ")


def test_an_encoder_serves_kinds_and_lengths_side_by_side(encoder):
    """The Rust tokenizer keeps the length it cuts at as a state of its own."""
    work = [
        (tiny_models.texts(30, seed), kind, length)
        for seed in range(6)
        for kind in ("query", "passage")
        for length in (7, 11, 16, 24)
    ]
    expected = [encoder.encode(texts, kind=k, max_length=n) for texts, k, n in work]
    for _ in range(2):
        calls = [lambda w=w: encoder.encode(w[0], kind=w[1], max_length=w[2]) for w in work]
        for got, want in zip(in_threads(calls), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_tokens_are_cut_at_each_callers_own_length(encoder):
    text = " ".join(["wing"] * 30)
    lengths = [3 + i % 20 for i in range(400)]
    calls = [lambda n=n: encoder.tokenizer.encode([text] * 50, n) for n in lengths]
    for length, got in zip(lengths, in_threads(calls), strict=True):
        assert {len(ids) for ids in got} == {length}


def test_a_cross_encoder_serves_threads(tmp_path):
    scorer = CrossEncoder.from_pretrained(str(tiny_cross_encoders.write(tmp_path / "m")))
    texts = tiny_models.texts(40)
    work = [list(zip(texts[i:], texts, strict=False)) for i in range(16)]
    expected = [scorer.score(pairs) for pairs in work]
    calls = [lambda pairs=pairs: scorer.score(pairs) for pairs in work]
    for got, want in zip(in_threads(calls), expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("backend", ["device", "faiss"])
def test_a_search_serves_threads(backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    passages = rng.standard_normal((500, 16)).astype(np.float32)
    work = [(rng.standard_normal((20, 16)).astype(np.float32), k) for k in (1, 3, 5, 10) * 4]
    expected = [nv.search(queries, passages, k=k, backend=backend) for queries, k in work]
    calls = [lambda w=w: nv.search(w[0], passages, k=w[1], backend=backend) for w in work]
    for got, want in zip(in_threads(calls), expected, strict=True):
        np.testing.assert_array_equal(got[1], want[1])
