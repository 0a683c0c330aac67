"""The mesh and the table of axes."""

import dataclasses
import os
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
import virtual_devices
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

    monkeypatch.setattr(mesh_lib.mesh_utils, "create_device_mesh", refuse)
    with pytest.raises(InputError, match="data 1 × fsdp 1 × tensor 1 cannot be mapped to") as told:
        mesh_lib.make_mesh(data=1, devices=jax.devices()[:1])
    assert "\n" not in str(told.value)


def test_logical_axes_map_to_mesh_axes():
    assert mesh_lib.spec("batch", None) == P(("data", "fsdp"), None)
    assert mesh_lib.spec("embed", "heads", None) == P("fsdp", "tensor", None)
    assert mesh_lib.spec("embed", "mlp", compute=True) == P(None, "tensor")


def test_a_mesh_axis_cannot_be_used_twice():
    with pytest.raises(InputError, match="'embed' and 'batch' both map to mesh axis 'fsdp'"):
        mesh_lib.spec("batch", "embed")


@pytest.mark.parametrize(
    "failure",
    [
        OSError("no network"),
        RuntimeError("Kubernetes API Error: 403 - Forbidden\nmore"),
        KeyError("job-name"),
        type("ConfigException", (Exception,), {})("Service token file does not exist."),
    ],
)
def test_a_cluster_that_says_nothing_is_a_warning_unless_it_must_be_joined(
    monkeypatch, caplog, failure
):
    def no_rights(**_):
        raise failure

    monkeypatch.setattr(jax.distributed, "initialize", no_rights)
    mesh_lib.start_distributed("auto")
    (record,) = caplog.records
    assert "this process runs alone" in record.getMessage()
    assert "\n" not in record.getMessage()
    with pytest.raises(InputError, match="found no cluster"):
        mesh_lib.start_distributed("on")


def test_a_pod_without_the_package_is_a_warning_of_one_line(monkeypatch, caplog):
    def absent(**_):
        warnings.warn("Kubernetes environment detected, but\n  the package", stacklevel=1)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", absent)
    mesh_lib.start_distributed("auto")
    (record,) = caplog.records
    assert "Kubernetes environment detected" in record.getMessage()


def test_a_named_coordinator_needs_no_cluster(monkeypatch):
    """Where JAX asks a cluster that says nothing, only for the devices, it is not asked."""
    calls = []

    def initialize(**options):
        calls.append(options)
        if options.get("cluster_detection_method") != "deactivate":
            raise OSError("no token")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    mesh_lib.start_distributed("auto", "host:1", 2, 1)
    assert [call["process_id"] for call in calls] == [1, 1]


def test_others_that_cannot_be_joined_are_an_error(monkeypatch):
    def unreachable(**_):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Failed to start RPC server\ntrace")

    monkeypatch.setattr(jax.distributed, "initialize", unreachable)
    for mode in ("auto", "on"):
        with pytest.raises(InputError, match="Failed to start RPC server"):
            mesh_lib.start_distributed(mode, "host:1", 2, 0)


@pytest.mark.parametrize("failure", [AssertionError(), RuntimeError("Unable to\n  start cuda")])
def test_a_platform_without_its_plugin_is_one_line(monkeypatch, failure):
    def none():
        raise failure

    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(InputError, match="JAX finds no device") as told:
        mesh_lib.check_devices()
    assert "\n" not in str(told.value)


def test_distributed_on_without_a_cluster_is_an_error(monkeypatch):
    def no_cluster(**_):
        raise ValueError("no cluster")

    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    mesh_lib.start_distributed("auto")
    mesh_lib.start_distributed("off")
    with pytest.raises(InputError, match="found no cluster"):
        mesh_lib.start_distributed("on")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One of a cluster's GPUs as JAX describes it; a host of them is a slice."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"


@pytest.mark.parametrize(
    ("sizes", "within"),
    [
        ((8, 1, 1), (2, 1, 1)),
        ((4, 2, 1), (1, 2, 1)),
        ((2, 4, 1), (1, 2, 1)),  # two hosts along data, and two along fsdp
        ((1, 8, 1), (1, 2, 1)),
        ((4, 1, 2), (1, 1, 2)),
    ],
)
def test_data_crosses_the_network_between_slices_first(sizes, within):
    mesh = mesh_lib.make_mesh(*sizes, devices=[Gpu(i, i // 2) for i in range(8)])
    assert mesh.devices.shape == sizes
    assert sorted(gpu.id for gpu in mesh.devices.flat) == list(range(8))
    slices = np.vectorize(lambda gpu: gpu.slice_index)(mesh.devices)
    a, b, c = within
    blocks = slices.reshape(sizes[0] // a, a, sizes[1] // b, b, sizes[2] // c, c)
    blocks = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(4, 2)
    assert (blocks[:, :1] == blocks).all()  # each slice is one block of that shape


def test_tensor_between_slices_is_possible_and_warned_of(caplog):
    mesh = mesh_lib.make_mesh(1, 1, 8, devices=[Gpu(i, i // 2) for i in range(8)])
    assert mesh.devices.shape == (1, 1, 8)
    assert "mesh.tensor=8 crosses the network between 4 slices of 2 devices" in caplog.text


def test_slices_of_several_sizes_are_refused():
    with pytest.raises(InputError, match="3 slices have 2 to 4 devices"):
        mesh_lib.make_mesh(devices=[Gpu(i, min(i // 2, 2)) for i in range(8)])


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.parametrize(("given", "threads"), [({}, 64), ({"NPROC": "9"}, 9)])
def test_eight_cpu_devices_have_threads_to_wait_for_one_another(given, threads):
    """With 8 threads, a ring loss's two collectives block each other for good."""
    program = (
        "import os, pathlib\n"
        "from nvret_jax import mesh\n"
        "assert mesh.make_mesh().size == 8\n"
        "tasks = pathlib.Path('/proc/self/task').iterdir()\n"
        "print(sum('XLAEigen' in (task / 'comm').read_text() for task in tasks))"
    )
    environment = virtual_devices.environment(8)
    del environment["NPROC"]
    shown = subprocess.run(
        [sys.executable, "-c", program], env=environment | given, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert int(shown.stdout) == (threads if given else max(threads, os.cpu_count()))
