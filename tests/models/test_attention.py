import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvret_jax.errors import InputError
from nvret_jax.models.attention.attention import attention
from nvret_jax.models.pooling import l2_normalize, pool

RNG = np.random.default_rng(0)


def reference(q_bthk, k_bshk, v_bshk, lengths_b):
    """One query, one head at a time, in float64, over the real keys only."""
    out = np.zeros(q_bthk.shape)
    for b, t, h in np.ndindex(q_bthk.shape[:3]):
        n = lengths_b[b]
        scores = k_bshk[b, :n, h].astype(float) @ q_bthk[b, t, h] / np.sqrt(q_bthk.shape[-1])
        probs = np.exp(scores - scores.max())
        out[b, t, h] = probs / probs.sum() @ v_bshk[b, :n, h]
    return out


def inputs(batch=3, tokens=6, heads=2, width=4):
    return [RNG.standard_normal((batch, tokens, heads, width)).astype(np.float32) for _ in "qkv"]


def test_equals_the_definition_over_real_keys():
    q, k, v = inputs()
    lengths = np.array([6, 1, 4], np.int32)
    got = attention(*map(jnp.asarray, (q, k, v)), jnp.asarray(lengths))
    np.testing.assert_allclose(got, reference(q, k, v, lengths), atol=1e-6)


def test_padding_has_no_influence_at_all():
    q, k, v = inputs()
    lengths = jnp.asarray([5, 2, 3], jnp.int32)
    before = attention(*map(jnp.asarray, (q, k, v)), lengths)
    for b, n in enumerate(lengths):
        k[b, n:], v[b, n:] = 1e4, -1e4
    after = attention(*map(jnp.asarray, (q, k, v)), lengths)
    np.testing.assert_array_equal(before, after)


def test_softmax_is_float32_for_bfloat16_inputs():
    # 257 equal scores: a bfloat16 sum of exponentials stops growing at 256.
    q = jnp.zeros((1, 300, 1, 4), jnp.bfloat16)
    v = jnp.ones((1, 300, 1, 4), jnp.bfloat16)
    out = attention(q, q, v, jnp.asarray([300]))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1.0, atol=4e-3)


def test_unknown_implementation_is_refused():
    q = jnp.zeros((1, 2, 1, 4))
    with pytest.raises(
        InputError, match=r"unknown attention implementation 'flash3'; known: .*xla"
    ):
        attention(q, q, q, jnp.asarray([2]), implementation="flash3")


def test_pooling_takes_real_tokens_only():
    hidden = RNG.standard_normal((2, 4, 3)).astype(np.float32)
    hidden[0, 2:] = np.inf  # what padding holds is of no consequence
    lengths = jnp.asarray([2, 4])
    mean = pool(jnp.asarray(hidden), lengths, "mean")
    np.testing.assert_allclose(mean, [hidden[0, :2].mean(0), hidden[1].mean(0)], atol=1e-6)
    np.testing.assert_array_equal(pool(jnp.asarray(hidden), lengths, "cls"), hidden[:, 0])
    with pytest.raises(InputError, match=r"'max' is not supported; known: mean, cls"):
        pool(jnp.asarray(hidden), lengths, "max")


def test_a_zero_row_has_a_zero_gradient():
    rows = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]])
    grad = jax.jit(jax.grad(lambda x: (l2_normalize(x) * jnp.asarray([1.0, 2.0])).sum()))(rows)
    # Across the row's direction alone: (1, 2) - 11/5 · (3, 4)/5, divided by the length.
    np.testing.assert_allclose(grad[0], [-0.064, 0.048], rtol=1e-5)
    np.testing.assert_array_equal(grad[1:], 0.0)


def test_l2_normalize_leaves_zero_at_zero_and_hides_nothing():
    got = jax.jit(l2_normalize)(jnp.asarray([[3.0, 4.0], [0.0, 0.0], [np.nan, 1], [np.inf, 1]]))
    np.testing.assert_allclose(got[:2], [[0.6, 0.8], [0.0, 0.0]], atol=1e-7)
    assert np.isnan(got[2:]).any(axis=1).all()
