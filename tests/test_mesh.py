"""The mesh and the table of axes."""

import jax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError


def test_a_mesh_has_the_three_explicit_axes():
    mesh = mesh_lib.make_mesh()
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert set(mesh.axis_types) == {AxisType.Explicit}
    assert mesh.size == jax.device_count()


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 0}, "mesh.data=0"),
        ({"data": -1, "fsdp": -1}, "data and fsdp are both -1"),
        ({"data": 3, "fsdp": 5}, "data 3 × fsdp 5 × tensor 1 does not cover"),
        ({"data": -1, "fsdp": 7}, "does not cover"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, words):
    with pytest.raises(InputError, match=words):
        mesh_lib.make_mesh(**sizes)


def test_axes_that_links_cannot_form_are_refused_in_one_line(monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError("Failed to find assignment for logical_axis_index 1\nof size 2")

    monkeypatch.setattr(jax, "make_mesh", refuse)
    with pytest.raises(InputError, match="data 1 × fsdp 1 × tensor 1 cannot be laid over") as told:
        mesh_lib.make_mesh(data=1, devices=jax.devices()[:1])
    assert "\n" not in str(told.value)


def test_logical_axes_map_to_mesh_axes():
    assert mesh_lib.spec("batch", None) == P(("data", "fsdp"), None)
    assert mesh_lib.spec("embed", "heads", None) == P("fsdp", "tensor", None)
    assert mesh_lib.spec("embed", "mlp", compute=True) == P(None, "tensor")


def test_a_mesh_axis_cannot_be_used_twice():
    with pytest.raises(InputError, match="'embed' and 'batch' both map to mesh axis 'fsdp'"):
        mesh_lib.spec("batch", "embed")


def test_distributed_on_without_a_cluster_is_an_error(monkeypatch):
    def no_cluster(*_):
        raise ValueError("no cluster")

    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    mesh_lib.start_distributed("auto")
    mesh_lib.start_distributed("off")
    with pytest.raises(InputError, match="found no cluster"):
        mesh_lib.start_distributed("on")
