"""Products: values and gradients are an einsum's, on any mesh, and nothing is kept needlessly."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import virtual_devices

from nvret_jax import mesh as mesh_lib
from nvret_jax.models.products import product

SIZES = dict(zip("bthskdfgn", (4, 3, 4, 5, 2, 8, 12, 2, 2), strict=True))
HIGHEST = jax.lax.Precision.HIGHEST
# Of which einsums the backbones are made; x larger than the result, smaller, and of its size.
EINSUMS = (
    "btd,df->btf",
    "btf,fd->btd",
    "btd,dhk->bthk",
    "bthk,hkd->btd",
    "bhtk,bhsk->bhts",
    "bhts,bhsk->bhtk",
    "bhtk,bshk->bhts",
    "bngtk,bnsk->bngts",
    "bngts,bnsk->bngtk",
)


def factors(einsum, dtype=np.float32):
    rng = np.random.default_rng(0)
    letters = (*einsum.split("->")[0].split(","), einsum.split("->")[1])
    return [rng.normal(size=[SIZES[c] for c in word]).astype(dtype) for word in letters]


@pytest.mark.parametrize("einsum", EINSUMS)
def test_equals_numpy_in_float64_with_both_gradients(einsum):
    x, y, grad = factors(einsum)
    (x_letters, y_letters), out = einsum.split("->")[0].split(","), einsum.split("->")[1]
    value, pull = jax.vjp(lambda x, y: product(einsum, x, y, precision=HIGHEST), x, y)
    x_bar, y_bar = pull(jnp.asarray(grad))
    wide = [a.astype(np.float64) for a in (x, y, grad)]
    for found, expected in (
        (value, np.einsum(einsum, wide[0], wide[1])),
        (x_bar, np.einsum(f"{out},{y_letters}->{x_letters}", wide[2], wide[1])),
        (y_bar, np.einsum(f"{x_letters},{out}->{y_letters}", wide[0], wide[2])),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_on_eight_devices():
    environment = virtual_devices.environment(8)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(
        [*command, "-k", "split_like"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert "4 passed" in run.stdout


@pytest.mark.skipif("JAX_NUM_CPU_DEVICES" not in os.environ, reason="run by the test above")
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("einsum", ["btd,df->btf", "btf,fd->btd"])
def test_gradients_are_split_like_what_they_are_of(einsum, sizes):
    x, y, grad = factors(einsum)
    x, grad = (np.concatenate([a, a]) for a in (x, grad))
    mesh = mesh_lib.make_mesh(*sizes)
    inner = einsum.split(",")[0]
    x_axes = ("batch", None, None if inner == "btd" else "mlp")
    y_axes = ("embed", "mlp") if inner == "btd" else ("mlp", "embed")
    out_axes = ("batch", None, "mlp" if inner == "btd" else None)

    def run(how, x, y, grad):
        def value(x, y):
            split = tuple(None if axis == "embed" else axis for axis in y_axes)
            used = jax.reshard(y, mesh_lib.spec(*split))
            return how(einsum, x, used, precision=HIGHEST, out_sharding=mesh_lib.spec(*out_axes))

        out, pull = jax.vjp(value, x, y)
        return (out, *pull(grad))

    with jax.set_mesh(mesh):
        put = [
            jax.device_put(a, mesh_lib.sharding(mesh, *names))
            for a, names in ((x, x_axes), (y, y_axes), (grad, out_axes))
        ]
        found = jax.jit(lambda *a: run(product, *a))(*put)
        expected = jax.jit(lambda *a: run(jnp.einsum, *a))(*put)
    for one, other in zip(found, expected, strict=True):
        assert one.sharding == other.sharding
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-5)


def kept(f, *args):
    """Sizes of what the backward pass keeps."""
    pull = jax.vjp(f, *args)[1]
    return sorted(leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size"))


def test_beside_a_frozen_factor_the_other_is_not_kept():
    x, y, _ = factors("btd,df->btf")
    assert kept(lambda x: product("btd,df->btf", x, y), x) == [y.size]
    assert kept(lambda y: product("btd,df->btf", x, y), y) == [x.size]
    assert kept(lambda x, y: product("btd,df->btf", x, y), x, y) == sorted([x.size, y.size])


@pytest.mark.parametrize("wide", [False, True])
def test_narrow_products_are_left_to_jax(wide):
    x, y, _ = factors("btd,df->btf")
    x, y = (jnp.asarray(a, jnp.bfloat16) for a in (x, y))
    options = {"preferred_element_type": jnp.float32 if wide else jnp.bfloat16}

    def program(how):
        def of(x, y):
            return how("btd,df->btf", x, y, **options).astype(jnp.float32).sum()

        return str(jax.make_jaxpr(jax.grad(of, argnums=(0, 1)))(x, y))

    assert program(product) == program(jnp.einsum)
