"""The FAISS backend gives the device path's answers: ties, ceilings, exclusions, real values."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import (
    assert_same,
    assert_same_up_to_rounding,
    brute_force,
    exclusions,
    integers,
)

from nvret_jax.errors import InputError
from nvret_jax.mesh import make_mesh
from nvret_jax.search.index import backend, exact, faiss_index
from nvret_jax.search.options import BACKENDS


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 400),
    queries=st.integers(1, 40),
    k=st.integers(1, 60),
    with_ceiling=st.booleans(),
    with_exclude=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_ties_ceilings_exclusions(n, queries, k, with_ceiling, with_exclude, seed):
    k = min(k, n)
    rng = np.random.default_rng(seed)
    queries_qd, passages_nd = integers(rng, queries), integers(rng, n)
    ceiling_q = rng.integers(-9, 9, queries).astype(np.float64) if with_ceiling else None
    exclude = exclusions(rng, queries, n, most=12) if with_exclude else None
    got = faiss_index.search(queries_qd, passages_nd, k, ceiling_q=ceiling_q, exclude=exclude)
    assert_same(got, brute_force(queries_qd, passages_nd, k, ceiling_q, exclude))


def test_a_strict_ceiling_deepens_until_enough_survive():
    rng = np.random.default_rng(0)
    passages_nd = rng.standard_normal((3000, 16)).astype(np.float32)
    queries_qd = rng.standard_normal((25, 16)).astype(np.float32)
    ceiling_q = np.quantile(queries_qd @ passages_nd.T, 0.2, axis=1).astype(np.float64)
    index = faiss_index.FaissIndex(passages_nd)
    got = index.search(queries_qd, 10, ceiling_q=ceiling_q)
    assert (got[1] >= 0).all()
    want = exact.search(queries_qd, passages_nd, 10, ceiling_q=ceiling_q)
    assert_same_up_to_rounding(got, want, passages_nd, queries_qd)


def test_same_as_the_device_path_on_unit_vectors():
    rng = np.random.default_rng(1)
    passages_nd = rng.standard_normal((6000, 64)).astype(np.float32)
    passages_nd /= np.linalg.norm(passages_nd, axis=1, keepdims=True)
    passages_nd[1000:1400] = passages_nd[:400]  # copies: ties to the last bit
    queries_qd = (passages_nd[:50] + 0.5 * passages_nd[500:550]).astype(np.float32)
    exclude = exclusions(rng, 50, 6000)
    got = faiss_index.search(queries_qd, passages_nd, 100, exclude=exclude)
    want = exact.search(queries_qd, passages_nd, 100, exclude=exclude)
    np.testing.assert_allclose(got[0], want[0], atol=2e-6)
    assert (got[1] == want[1]).mean() > 0.999  # neighbours closer than rounding may swap
    assert_same_up_to_rounding(got, want, passages_nd, queries_qd, within=2e-6)
    for rows in got[1]:
        place = {row: at for at, row in enumerate(rows)}
        assert all(
            place[row] < place[row + 1000]
            for row in range(400)
            if {row, row + 1000} <= place.keys()
        )


def test_vectors_are_added_in_blocks(monkeypatch):
    monkeypatch.setattr(faiss_index, "ADD_ROWS", 64)
    monkeypatch.setattr(faiss_index, "CANDIDATES", 50)
    rng = np.random.default_rng(2)
    queries_qd, passages_nd = integers(rng, 30), integers(rng, 333)
    got = faiss_index.search(queries_qd, passages_nd, 9)
    assert_same(got, brute_force(queries_qd, passages_nd, 9))
    passages_nd[200, 0] = np.nan
    with pytest.raises(InputError, match="passages row 200"):
        faiss_index.search(queries_qd, passages_nd, 9)


def test_backend_choice(monkeypatch, caplog):
    assert backend.choose("device") == "device"
    assert backend.choose("faiss") == "faiss"
    with pytest.raises(InputError, match=r"search\.backend='gpu': expected one of auto, device"):
        backend.choose("gpu")
    assert backend.choose("auto") == ("faiss" if jax.default_backend() == "cpu" else "device")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert backend.choose("auto") == "device"
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert backend.choose("auto") == "device"


def test_backend_says_its_choice_once(monkeypatch):
    said = []
    monkeypatch.setattr(backend, "say", said.append)
    backend._say.cache_clear()
    for _ in range(3):
        backend.choose("auto")
    assert len(said) == 1
    assert said[0].startswith("search    ")
    assert said[0].endswith(": a single host with only a CPU")


def test_both_backends_behind_one_function():
    rng = np.random.default_rng(6)
    queries_qd, passages_nd = integers(rng, 5), integers(rng, 90)
    want = brute_force(queries_qd, passages_nd, 7)
    mesh = make_mesh(devices=jax.devices()[:1])
    for name in BACKENDS:
        got = backend.search(queries_qd, passages_nd, 7, mesh=mesh, backend=name)
        assert_same(got, want)
