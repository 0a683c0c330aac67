"""InfoNCE and its masks against a float64 loop over queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.losses import info_nce


def reference(q, p, ids, positives, temperature, in_batch):
    """The loss of each query, one at a time, in float64."""
    group = len(p) // len(q)
    losses, counts, masked = [], [], []
    for b in range(len(q)):
        scores = p @ q[b] / temperature
        terms, removed = [scores[b * group]], 0
        for n in range(len(p)):
            if n == b * group or ids[n] < 0:
                continue
            if ids[n] in positives[b]:
                removed += 1
                continue
            if not in_batch and n // group != b:
                continue
            terms.append(scores[n])
        losses.append(np.log(np.sum(np.exp(terms))) - terms[0])
        counts.append(len(terms) - 1)
        masked.append(removed)
    return np.mean(losses), np.mean(counts), np.mean(masked)


def batch(seed, rows=6, group=3, width=8):
    rng = np.random.default_rng(seed)

    def unit(n):
        x = rng.normal(size=(n, width))
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    ids = rng.integers(0, 9, rows * group)  # few ids: the same passage comes again and again
    positives = [{int(ids[b * group]), int(rng.integers(0, 9))} for b in range(rows)]
    ids[rng.random(rows * group) < 0.2] = -1  # ragged rows
    for b in range(rows):
        ids[b * group] = sorted(positives[b])[0]
    padded = np.full((rows, 4), -1)
    for b, known in enumerate(positives):
        padded[b, : len(known)] = sorted(known)
    return unit(rows), unit(rows * group), ids, positives, padded


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop(seed, in_batch):
    q, p, ids, positives, padded = batch(seed)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        loss, metrics = info_nce(
            jnp.asarray(q, jnp.float32),
            jnp.asarray(p, jnp.float32),
            jnp.asarray(ids, jnp.int32),
            jnp.asarray(padded, jnp.int32),
            temperature=0.1,
            in_batch=in_batch,
        )
    expected, count, masked = reference(q, p, ids, positives, 0.1, in_batch)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["negatives"]) == pytest.approx(count)
    assert float(metrics["masked"]) == pytest.approx(masked)


def test_an_empty_slot_changes_nothing():
    q, p, ids, _, padded = batch(0)
    ids = np.where(np.arange(len(ids)) % 3 == 2, -1, ids)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])

    def loss_of(passages):
        return info_nce(
            jnp.asarray(q, jnp.float32),
            passages,
            jnp.asarray(ids, jnp.int32),
            jnp.asarray(padded, jnp.int32),
            temperature=0.05,
            in_batch=True,
        )[0]

    with jax.set_mesh(mesh):
        grads = np.asarray(jax.grad(loss_of)(jnp.asarray(p, jnp.float32)))
    assert np.all(grads[2::3] == 0)
    assert np.any(grads[0::3] != 0)
