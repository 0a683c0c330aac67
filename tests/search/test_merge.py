"""What merging the running lists of many devices moves and sorts, counted in the traced program."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nvret_jax.mesh import make_mesh
from nvret_jax.search.index import steps

QUERIES, K = 512, 100
LISTS = 8 * QUERIES * K  # bytes of one device's scores and rows


def equations(jaxpr):
    """All equations, also of inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def merged(shards: int):
    mesh = make_mesh()
    sizes = (shards,) + (1,) * (len(mesh.axis_names) - 1)
    mesh = AbstractMesh(sizes, mesh.axis_names, axis_types=mesh.axis_types)
    where = NamedSharding(mesh, P(steps.ROWS))
    lists = [
        jax.ShapeDtypeStruct((shards, QUERIES, K), dtype, sharding=where)
        for dtype in (jnp.float32, jnp.int32)
    ]
    return list(equations(jax.make_jaxpr(steps.merge(mesh))(*lists).jaxpr))


def elements(found, name):
    """Elements of the results of one kind of operation, on one device."""
    return sum(
        out.aval.size for e in found if e.primitive.name.startswith(name) for out in e.outvars
    )


@pytest.mark.parametrize("shards", [8, 64, 256])
def test_a_device_receives_two_lists_however_many_devices_there_are(shards):
    found = merged(shards)
    assert 4 * elements(found, "all_to_all") == LISTS
    assert 4 * elements(found, "all_gather") == LISTS
    assert elements(found, "sort") == LISTS // 4  # scores and rows of a share of all lists


def test_queries_that_do_not_divide_are_padded():
    found = merged(3)
    assert LISTS < 4 * elements(found, "all_to_all") < 1.01 * LISTS
