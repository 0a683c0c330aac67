"""MaxSim and its contrast against loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from loss_reference import make_batch, reference
from test_losses import ALL, run

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.loss.losses import Loss
from nvret_jax.training.loss.maxsim import max_sim, max_sim_own, token_mask


@pytest.fixture(autouse=True)
def _doubles():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def mesh():
    return mesh_lib.make_mesh(devices=jax.devices()[:1])


def some(seed=0):
    rng = np.random.default_rng(seed)
    q, p = rng.normal(size=(3, 4, 5)), rng.normal(size=(6, 7, 5))
    q_real = np.arange(4)[None] < rng.integers(1, 5, 3)[:, None]
    p_real = rng.random((6, 7)) < 0.6  # not only padding: any token may be left out
    p_real[:, 0] = True
    return q, p, q_real, p_real


def by_loop(x, y, x_real, y_real):
    return sum(max(a @ b for b in y[y_real]) for a in x[x_real])


def test_max_sim_equals_the_loop():
    q, p, q_real, p_real = some()
    expected = [
        [by_loop(q[a], p[c], q_real[a], p_real[c]) for c in range(len(p))] for a in range(len(q))
    ]
    np.testing.assert_allclose(max_sim(q, p, q_real, p_real), expected, rtol=1e-12)
    own = max_sim_own(q, p.reshape(3, 2, 7, 5), q_real, p_real.reshape(3, 2, 7))
    wanted = [[expected[b][2 * b + g] for g in range(2)] for b in range(3)]
    np.testing.assert_allclose(own, wanted, rtol=1e-12)


def test_gradient_of_max_sim():
    q, p, q_real, p_real = some()
    check_grads(lambda q, p: max_sim(q, p, q_real, p_real), (q, p), order=1, modes=["rev"])


def test_tokens_that_do_not_count_get_no_gradient():
    q, p, q_real, p_real = some()
    to_q, to_p = jax.grad(lambda q, p: jnp.sum(max_sim(q, p, q_real, p_real)), (0, 1))(q, p)
    assert np.all(to_q[~q_real] == 0)
    assert np.all(to_p[~p_real] == 0)
    assert np.all(np.any(to_q[q_real] != 0, axis=-1))


def test_token_mask_is_the_length():
    found = token_mask(jnp.array([1, 3], jnp.int32), 3)
    assert found.tolist() == [[True, False, False], [True, True, True]]


CASES = {
    "default": ({}, {}),
    "all terms, masks, distillation": (
        {
            "terms": ALL,
            "score_mask": "margin",
            "margin": 0.3,
            "num_positives": 2,
            "distillation": "margin_mse",
            "distillation_weight": 0.1,
        },
        {"positives": 2, "hard": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contrast_by_max_sim_equals_the_loops(mesh, name):
    options, kind = CASES[name]
    q, p, batch = make_batch(4, rows=6, width=5, tokens=3, **kind)
    rng = np.random.default_rng(5)
    towards = rng.normal(size=q.shape), rng.normal(size=p.shape)
    plain = Loss(scores="maxsim", temperature=0.8, **options)
    expected, counts = reference(plain, q, p, batch)
    if plain.score_mask:
        assert counts["above"] > 0

    def slope(i):
        def at(step):
            moved = [q, p]
            moved[i] = moved[i] + step * towards[i]
            return reference(plain, *moved, batch)[0]

        return (at(1e-5) - at(-1e-5)) / 2e-5

    slopes = slope(0), slope(1)
    for method in ("gather", "ring"):
        loss = Loss(scores="maxsim", temperature=0.8, method=method, tile_pairs=12 * 25, **options)
        value, metrics, grads = run(mesh, loss, q, p, batch)
        assert value == pytest.approx(expected, rel=1e-10)
        assert metrics["negatives"] == pytest.approx(counts["negatives"])
        for i in range(2):
            assert np.sum(grads[i] * towards[i]) == pytest.approx(slopes[i], rel=1e-6)
