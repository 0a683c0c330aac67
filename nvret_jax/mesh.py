"""The device mesh, the one table from logical axes to mesh axes, and the multi-host start.

Every mesh has the same three axes, in this order:

    data     replicas of the weights; the batch is split over it
    fsdp     the batch is split over it, and so are the stored weights
    tensor   heads and feed-forward units are split over it

All axes are Explicit: an array's sharding is part of its type, and a product of two batch-sharded
arrays is an error unless its output sharding is given. Code names *logical* axes; only `RULES`
below maps them to mesh axes.
"""

from __future__ import annotations

import collections
import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nvret_jax import options
from nvret_jax.errors import InputError
from nvret_jax.processes import log, peers, slurm

AXES = ("data", "fsdp", "tensor")

# logical axis -> mesh axes in storage. A logical axis not listed here is never split.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # examples: queries, passages, rows of a batch
    "rows": ("data", "fsdp", "tensor"),  # rows of an embedding matrix under search
    "embed": ("fsdp",),  # the model width D of a weight
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}
# Logical axes that are gathered before a weight is used (fsdp stores, it does not compute).
GATHERED = ("embed",)


def spec(*logical: str | None, compute: bool = False) -> P:
    """The PartitionSpec of an array whose dimensions have these logical axes.

    Within a `jax.shard_map`, where an array is one device's part along some mesh axes, these are
    left out, so that a model runs on whole arrays and on parts of them.

    Args:
        *logical: one name (or None: never split) per dimension.
        compute: the layout in which a weight is used: whole along the `GATHERED` axes.

    Raises:
        InputError: two dimensions would land on the same mesh axis.
    """
    parts, seen, manual = [], {}, manual_axes()
    for name in logical:
        axes = () if name is None or (compute and name in GATHERED) else RULES.get(name, ())
        axes = tuple(axis for axis in axes if axis not in manual)
        for axis in axes:
            if axis in seen:
                raise InputError(
                    f"sharding {logical}: '{name}' and '{seen[axis]}' both map to mesh axis "
                    f"'{axis}'; an array can use a mesh axis once"
                )
            seen[axis] = name
        parts.append(axes[0] if len(axes) == 1 else (axes or None))
    return P(*parts)


def manual_axes() -> frozenset[str]:
    """Mesh axes along which the code being traced sees one device's part: inside `shard_map`."""
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)


def cut_here(logical: str) -> tuple[str, ...]:
    """Mesh axes that split a dimension of the parts that the code being traced sees."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(a for a in RULES[logical] if a in mesh.manual_axes and mesh.shape[a] > 1)


def memory_bytes(mesh: Mesh) -> int:
    """Memory of a device of the mesh, in bytes; 0 if not reported, as on a CPU."""
    stats = mesh.local_devices[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0))


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """`spec` bound to a mesh; see there."""
    return NamedSharding(mesh, spec(*logical))


def shards(mesh: Mesh, logical: str) -> int:
    """The number of parts into which `mesh` splits a dimension with this logical axis."""
    return math.prod(mesh.shape[axis] for axis in RULES.get(logical, ()))


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over all devices of all processes.

    Args:
        data, fsdp, tensor: axis sizes; at most one may be -1, for the remaining devices.
        devices: default `jax.devices()`.

    Raises:
        InputError: the product of the sizes is not the number of devices, or the TPU topology does
            not fit.
    """
    if devices is None:
        spare_threads()
        devices = jax.devices()
    devices = list(devices)
    if not devices:
        raise InputError("mesh: devices is empty; give at least one, or None for all")
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    for name, size in sizes.items():
        if wrong := options.mistake(f"mesh.{name}", size, options.MESH_AXIS):
            raise InputError(wrong)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise InputError(f"mesh: {' and '.join(free)} are both -1; at most one can take the rest")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        asked = f"data {data} × fsdp {fsdp} × tensor {tensor} does not cover {len(devices)} devices"
        if free:
            raise InputError(f"mesh: {asked}: {fixed} does not divide {len(devices)}")
        raise InputError(f"mesh: {asked}; one axis may be -1, for those that remain")
    asked = " × ".join(f"{name} {size}" for name, size in sizes.items())
    try:
        return Mesh(_grid(devices, sizes), AXES, axis_types=(AxisType.Explicit,) * 3)
    except NotImplementedError as error:  # axes that the TPU topology cannot form
        raise InputError(
            f"mesh: {asked} cannot be mapped to these {len(devices)} {devices[0].device_kind} "
            f"devices; make each axis a product of sides of their topology (of 4x4x4: 4, 16 or 64)"
        ) from error


def given(mesh: Mesh | None) -> Mesh:
    """A mesh that a caller gives, or one over all devices.

    Raises:
        InputError: it is something else.
    """
    if mesh is not None and not isinstance(mesh, Mesh):
        raise InputError(
            f"mesh: expected a mesh, such as make_mesh(), or None for all devices; got "
            f"{type(mesh).__name__}"
        )
    return make_mesh() if mesh is None else mesh


def _grid(devices: Sequence[jax.Device], sizes: Mapping[str, int]) -> np.ndarray:
    """The devices in the mesh's shape: neighbours along an axis have the fastest links.

    If the devices form several slices (of TPUs, or hosts of GPUs), data crosses the network between
    them first, then fsdp, and tensor last.
    """
    # As in jax.make_mesh, which supports only a single slice.
    split = devices[0].device_kind in ("TPU v5 lite", "TPU v5e")
    slices = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(slices) == 1:
        shape = tuple(sizes.values())
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)
    if len(set(slices.values())) > 1:
        raise InputError(
            f"mesh: the {len(slices)} slices have {min(slices.values())} to "
            f"{max(slices.values())} devices; use slices of one size"
        )
    outer, rest = {}, len(slices)
    for name, size in sizes.items():
        outer[name] = math.gcd(size, rest)
        rest //= outer[name]
    if outer["tensor"] > 1:
        logging.warning(
            "mesh.tensor=%d crosses the network between %d slices of %d devices, many times per "
            "step; make tensor divide the number of devices of a slice",
            sizes["tensor"],
            len(slices),
            len(devices) // len(slices),
        )
    return mesh_utils.create_hybrid_device_mesh(
        [size // outer[name] for name, size in sizes.items()],
        list(outer.values()),
        devices,
        allow_split_physical_axes=split,
    )


# by which processes of a cluster may start apart; then a lost process ends the run
CLUSTER_SECONDS = 300
_HEARTBEAT_SECONDS = 50  # of silence after which JAX considers a process lost


def meet(coordinator: str, count: int, index: int, seconds: int) -> peers.Peers | None:
    """Finds the other processes at the port that JAX will use, before JAX does.

    JAX takes minutes to detect a lost process for which the others still wait; these connections
    close at once.

    Args:
        coordinator: host:port of process 0; '' if only the cluster knows.
        count, index: the number of processes, and the index of this one.
        seconds: how long to wait for those that have not yet started.

    Returns:
        The connections, for `agree`; None if there are no other processes.

    Raises:
        InputError: not an address, or the port is in use, or this process is not expected there.
    """
    if not coordinator or count < 2 or jax.distributed.is_initialized():
        return None
    named = f"distributed.coordinator={coordinator!r}"
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InputError(f"{named}: expected host:port of process 0, as in 10.0.0.1:12321")
    these = peers.Peers(index, count)
    peers.start(these)
    try:
        missing = these.meet(host.strip("[]"), int(port), seconds)
    except OSError as error:
        raise InputError(
            f"{named}: process 0 cannot listen at port {port} ({error.strerror or error}); choose "
            "a port that is free"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{named}: process {index} of {count} is not expected there ({error}); give each "
            "process its own distributed.process_id, and each run its own port"
        ) from error
    if missing:
        peers.missed(missing, count)
    return these


def start_distributed(
    mode: str = "auto",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    join_seconds: int = CLUSTER_SECONDS,
) -> None:
    """Joins this process to the others of the run; must come before the first use of a device.

    On a node of Slurm each task gets its share of the node's GPUs (`slurm.local_devices`).

    Args:
        mode: 'off' never; 'on' must succeed; 'auto' joins when a cluster (Cloud TPU pod, SLURM,
            Open MPI, Kubernetes) or `coordinator` is found, and otherwise runs alone. A cluster
            that does not reveal the other processes (a pod without a service account) causes a
            warning.
        coordinator: host:port of process 0, for clusters JAX cannot detect.
        num_processes, process_id: with `coordinator`.
        join_seconds: how long to wait for processes that have not yet started.

    Raises:
        InputError: mode 'on' and no cluster was found, or the others cannot be joined.
    """
    if mode == "off" or jax.distributed.is_initialized():
        return
    # JAX's preemption service swallows SIGTERM for programs that poll it; this package uses
    # `stops`.
    jax.config.update("jax_enable_preemption_service", False)
    options = {
        "initialization_timeout": join_seconds,
        "heartbeat_timeout_seconds": _HEARTBEAT_SECONDS,
        "local_device_ids": slurm.local_devices(os.environ),
    }
    if coordinator:
        named = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
        # Everything is given, except that a cluster may know the devices of this process.
        if _initialize(options | named) is not None:
            failed = _initialize(options | named | {"cluster_detection_method": "deactivate"})
            if failed is not None:
                raise InputError(f"distributed.coordinator={coordinator!r}: {failed}")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        failed = _initialize(options)
    if failed is None:
        return
    if mode == "on":
        raise InputError(
            f"distributed.mode='on', but JAX found no cluster ({failed}); "
            "set distributed.coordinator, num_processes and process_id"
        )
    caught = [warning for warning in caught if warning.category is UserWarning]
    if caught or not isinstance(failed, ValueError):  # ValueError: no cluster found
        reason = str(caught[0].message if caught else failed).strip().splitlines()
        logging.warning(
            "distributed.mode='auto': this process runs alone, because its cluster does not "
            "identify the others (%s); set distributed.coordinator to join them, or mode='off'",
            " ".join(reason[:1] or [type(failed).__name__]),
        )


def _initialize(options: Mapping[str, Any]) -> Exception | None:
    """Starts JAX's distributed runtime; returns the error of its search for a cluster.

    Raises:
        InputError: the other processes are known, but cannot be joined.
    """
    try:
        jax.distributed.initialize(**options)
    except jax.errors.JaxRuntimeError as error:
        at = options.get("coordinator_address") or "the address that the cluster gives"
        raise InputError(
            f"distributed: this process cannot join the others, or listen for them, at {at} "
            f"({str(error).splitlines()[0]}); is the port in use?"
        ) from error
    except Exception as error:  # of any class: each kind of cluster fails in its own way
        return error
    return None


_COLLECTIVES_AT_ONCE = 8  # of one CPU device; a training step was observed to have 2


def spare_threads() -> None:
    """Gives several CPU devices enough threads to wait for each other.

    A collective blocks a thread of XLA's pool until the last device has reached it. If the pool has
    only as many threads as there are devices, two collectives that may run in any order can hold
    all of them forever; XLA ends the process after 40 seconds. The pool has NPROC threads, which is
    set here unless the user has set it. It has no effect once JAX has started its devices.
    """
    forced = re.findall(
        r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    devices = max(1, jax.config.jax_num_cpu_devices, *map(int, forced))
    if devices > 1 or jax.distributed.is_initialized():
        threads = max(os.cpu_count() or 1, _COLLECTIVES_AT_ONCE * devices)
        os.environ.setdefault("NPROC", str(threads))


def check_devices() -> None:
    """Starts the devices.

    Raises:
        InputError: JAX cannot use what JAX_PLATFORMS names.
    """
    spare_threads()
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        named = jax.config.jax_platforms
        reason = " ".join(str(error).split()) or "no plugin for it is installed"
        raise InputError(
            f"JAX finds no device{f' for JAX_PLATFORMS={named}' if named else ''} "
            f"({reason.split(' (set JAX_PLATFORMS', 1)[0][:300]}); install the plugin, as with pip "
            "install 'nvret_jax[cuda]' or '[tpu]', or set JAX_PLATFORMS=cpu"
        ) from error


def agree(values: Mapping[str, Any], met: peers.Peers | None = None) -> None:
    """Lets the processes of a run monitor each other, and compares their values.

    Args:
        values: key -> value; the same on all processes.
        met: the result of `meet`; None: they have to be connected first.

    Raises:
        InputError: values of this process differ from those of process 0.
    """
    index, mine = process_index(), {key: repr(value) for key, value in values.items()}
    these = met or peers.Peers(index, process_count())
    given = {"values": mine} if is_main() else {}
    if is_main() and met is None:
        given |= these.listen()
    first = json.loads(from_main(json.dumps(given)))
    if not is_main() and met is None and not these.connect(first):
        logging.warning(
            "process %d cannot connect to port %d of process 0 under any of %s; a lost process "
            "will be detected late",
            index,
            first["port"],
            ", ".join(first["hosts"]),
        )
    peers.start(these)
    if is_main() and met is None:
        these.wait()
    keys = [k for k in {**first["values"], **mine} if mine.get(k) != first["values"].get(k)]
    if keys:
        shown = [f"{k}={mine.get(k)} but {first['values'].get(k)} on process 0" for k in keys[:5]]
        more = f"; and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise InputError(
            f"values differ from those of process 0: {'; '.join(shown)}{more}; "
            "start all processes with the same command"
        )


def is_main() -> bool:
    """True on the process that prints and that writes what is written once."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line on the main process and flushes it."""
    if is_main():
        log.say(text)


def barrier(name: str) -> None:
    """Waits until every process of the run has reached this call; `name` is the same on all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_main(text: str) -> str:
    """The main process's `text`, on every process; waits for it."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    if not size:
        return ""
    buffer = data if is_main() else np.zeros(size, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8)).decode()


def sum_over_processes(values: np.ndarray) -> np.ndarray:
    """The sum of every process's array of one shape, on every process; waits for them."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values)).sum(axis=0)


def process_index() -> int:
    """The number of this process, from 0."""
    return jax.process_index()


def process_count() -> int:
    """How many processes the run has."""
    return jax.process_count()
