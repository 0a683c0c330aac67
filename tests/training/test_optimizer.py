"""Schedule and decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvret_jax.errors import InputError
from nvret_jax.training.gradcache import chunk_rows
from nvret_jax.training.optimizer import decay_mask, schedule
from nvret_jax.training.options import Training


def rates(steps, **changes):
    rate = schedule(Training(learning_rate=1.0, **changes), steps)
    return [float(rate(step)) for step in range(steps)]


def test_linear_rises_then_falls_to_nothing():
    got = rates(10, warmup=0.3, schedule="linear")
    assert got[0] == pytest.approx(1 / 3)
    assert got[2] == pytest.approx(1.0)
    assert got[3:] == pytest.approx([1 - i / 7 for i in range(7)])


def test_a_warm_up_is_a_share_of_the_steps_or_their_number():
    assert rates(40, warmup=8, schedule="linear") == rates(40, warmup=0.2, schedule="linear")
    assert rates(8532, warmup=100, schedule="constant")[99:101] == [1.0, 1.0]
    with pytest.raises(InputError, match=r"warmup=40 steps, and the stage has 40"):
        rates(40, warmup=40)


def test_first_step_learns_even_without_warm_up():
    assert rates(4, warmup=0.0, schedule="constant") == [1.0] * 4
    assert rates(5, warmup=0.2, schedule="cosine")[0] == pytest.approx(1.0)


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 2, 7])
@pytest.mark.parametrize("steps", [9, 40, 1000])
def test_the_host_has_the_same_rates_without_a_device(shape, warmup, steps):
    rate = schedule(Training(learning_rate=3e-5, warmup=warmup, schedule=shape), steps)
    on_device = np.asarray(jax.vmap(rate)(jnp.arange(steps + 3)))
    with jax.transfer_guard("disallow"):
        on_host = [rate.at(step) for step in range(steps + 3)]
    assert all(type(value) is float for value in on_host)
    np.testing.assert_allclose(on_host, on_device, rtol=1e-5, atol=3e-5 * 1e-6)


def test_biases_and_layer_norm_are_not_decayed():
    params = {
        "layers": {"query_kernel": 1, "query_bias": 1, "mlp_norm_scale": 1, "mlp_norm_bias": 1},
        "embeddings": {"word": 1, "norm_scale": 1},
    }
    params = {k: {n: jnp.ones(()) for n in v} for k, v in params.items()}
    assert decay_mask(params) == {
        "layers": {
            "query_kernel": True,
            "query_bias": False,
            "mlp_norm_scale": False,
            "mlp_norm_bias": False,
        },
        "embeddings": {"word": True, "norm_scale": False},
    }


@pytest.mark.parametrize(
    ("tokens", "width", "rows", "expected"),
    [
        (1024, 128, 160, 8),
        (1024, 128, 7, 7),
        (1024, 2000, 6, 1),
        (-1, 8, 12, 12),
        (1024, 96, 50, 10),
    ],
)
def test_chunks_are_of_one_size_within_the_budget(tokens, width, rows, expected):
    assert chunk_rows(tokens, width, rows) == expected
