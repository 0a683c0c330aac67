"""Averages and SLERP of weights against NumPy in float64, tensor by tensor."""

import jax.numpy as jnp
import numpy as np
import pytest

from nvret_jax.errors import InputError
from nvret_jax.training import merging


def trees(count, seed=0):
    """A stack of three layers, a matrix and a bias, far from parallel."""
    rng = np.random.default_rng(seed)
    shapes = {"layers": {"kernel": (3, 4, 5)}, "word": (6, 4), "bias": (4,)}

    def tree(shapes):
        return {
            name: tree(s) if isinstance(s, dict) else rng.normal(size=s).astype(np.float32)
            for name, s in shapes.items()
        }

    return [tree(shapes) for _ in range(count)]


def named(found):
    return [(f"model {i}", {k: v for k, v in tree.items()}) for i, tree in enumerate(found)]


def arc(a, b, share):
    """SLERP of two tensors, as mergekit writes it."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    dot = (a / np.linalg.norm(a) * (b / np.linalg.norm(b))).sum()
    if abs(dot) > 0.9995:
        return (1 - share) * a + share * b
    angle = np.arccos(dot)
    return (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)


def test_the_average_is_the_weighted_sum():
    found, weights = trees(3), (0.5, 0.2, 0.3)
    merged = merging.merge(named(found), weights)
    for get in (lambda t: t["layers"]["kernel"], lambda t: t["word"], lambda t: t["bias"]):
        expected = sum(w * get(t).astype(np.float64) for w, t in zip(weights, found, strict=True))
        np.testing.assert_allclose(get(merged), expected, rtol=1e-5, atol=1e-6)


def test_slerp_goes_along_the_arc_of_each_tensor_and_layer():
    a, b = trees(2)
    merged = merging.merge(named([a, b]), (0.3, 0.7), "slerp")
    np.testing.assert_allclose(merged["word"], arc(a["word"], b["word"], 0.7), atol=2e-6)
    for layer in range(3):
        expected = arc(a["layers"]["kernel"][layer], b["layers"]["kernel"][layer], 0.7)
        np.testing.assert_allclose(merged["layers"]["kernel"][layer], expected, atol=2e-6)


def test_slerp_of_three_takes_them_in_one_after_another():
    a, b, c = trees(3)
    merged = merging.merge(named([a, b, c]), merging.equal(3), "slerp")
    expected = arc(arc(a["word"], b["word"], 0.5), c["word"], 1 / 3)
    np.testing.assert_allclose(merged["word"], expected, atol=2e-6)


def test_slerp_of_parallel_opposite_and_zero_tensors_is_the_average():
    a = trees(1)[0]["word"]
    for b in (a, 2 * a, -a, np.zeros_like(a)):
        merged = merging.merge(named([{"w": a}, {"w": b}]), (0.25, 0.75), "slerp")["w"]
        if b.any():
            np.testing.assert_allclose(merged, 0.25 * a + 0.75 * b, atol=2e-6)
        assert np.isfinite(merged).all()


def test_sums_are_float32_and_the_type_stays():
    ones = {"w": jnp.full((4,), 1.0, jnp.bfloat16)}
    more = {"w": jnp.full((4,), 1.0078125, jnp.bfloat16)}  # the next number bfloat16 has
    weights = (0.2,) * 5
    merged = merging.merge(named([ones, more, more, more, ones]), weights)
    assert merged["w"].dtype == jnp.bfloat16
    assert float(merged["w"][0]) == 1.0078125  # 1.0046875, rounded once


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("bias"), "model 1 has no weight bias, which model 0 has"),
        (
            lambda t: t.update(extra=np.zeros(2)),
            "model 1 has a weight extra, which model 0 does not have",
        ),
        (
            lambda t: t["layers"].update(kernel=np.zeros((2, 4, 5))),
            "model 1: weight layers.kernel has the shape (2, 4, 5), in model 0 it is (3, 4, 5)",
        ),
    ],
)
def test_a_tree_that_differs_is_refused_and_the_leaf_named(change, told):
    a, b = trees(2)
    change(b)
    with pytest.raises(InputError) as error:
        merging.merge(named([a, b]), (0.5, 0.5))
    assert told in str(error.value)


@pytest.mark.parametrize("weights", [(0.5, 0.6), (0.5,), (1.5, -0.5)])
def test_weights_that_do_not_sum_to_one_are_refused(weights):
    with pytest.raises(InputError):
        merging.check_weights(weights, 2)


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="average or slerp"):
        merging.merge(named(trees(2)), (0.5, 0.5), "median")
