"""The device mesh, the one table from logical axes to mesh axes, and the multi-host start.

Every mesh has the same three axes, in this order:

    data     replicas of the weights; the batch is split over it
    fsdp     the batch is split over it, and so are the weights at rest
    tensor   heads and feed-forward units are split over it

All axes are Explicit: an array's sharding is part of its type, and a product of two batch-sharded
arrays is an error until somebody says what is meant. Code names *logical* axes; `RULES` below is
the only place where those become mesh axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nvret_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")

# logical axis -> mesh axes at rest. A logical axis not listed here is never split.
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
    """The PartitionSpec of an array whose dimensions carry these logical axes.

    Args:
        *logical: one name (or None: never split) per dimension.
        compute: the layout a weight is used in, where the `GATHERED` axes are whole.

    Raises:
        InputError: two dimensions would land on the same mesh axis.
    """
    parts, seen = [], {}
    for name in logical:
        axes = () if name is None or (compute and name in GATHERED) else RULES.get(name, ())
        for axis in axes:
            if axis in seen:
                raise InputError(
                    f"sharding {logical}: '{name}' and '{seen[axis]}' both map to mesh axis "
                    f"'{axis}'; an array can use a mesh axis once"
                )
            seen[axis] = name
        parts.append(axes[0] if len(axes) == 1 else (axes or None))
    return P(*parts)


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """`spec` bound to a mesh; see there."""
    return NamedSharding(mesh, spec(*logical))


def shards(mesh: Mesh, logical: str) -> int:
    """Into how many pieces `mesh` cuts a dimension with this logical axis."""
    return math.prod(mesh.shape[axis] for axis in RULES.get(logical, ()))


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over all devices of all processes.

    Args:
        data, fsdp, tensor: axis sizes; at most one may be -1, which takes what is left.
        devices: default `jax.devices()`.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or TPUs are not linked so.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise InputError(f"mesh.{name}={size}: give a positive size, or -1 for what is left")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise InputError(f"mesh: {' and '.join(free)} are both -1; at most one can take the rest")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = len(devices) // fixed
    asked = " × ".join(f"{name} {size}" for name, size in sizes.items())
    if math.prod(sizes.values()) != len(devices):
        raise InputError(f"mesh: {asked} does not cover {len(devices)} devices")
    try:
        return jax.make_mesh(
            tuple(sizes.values()), AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices
        )
    except NotImplementedError as error:  # axes that the links between TPUs cannot form
        raise InputError(
            f"mesh: {asked} cannot be laid over these {len(devices)} {devices[0].device_kind} "
            "devices; let each axis be a product of sides of their topology (of 4x4x4: 4, 16 or 64)"
        ) from error


def start_distributed(
    mode: str = "auto",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to the others of the run; must come before the first use of a device.

    Args:
        mode: 'off' never; 'on' must succeed; 'auto' joins when a cluster (Cloud TPU pod, SLURM,
            Open MPI, Kubernetes) or `coordinator` is found, and otherwise runs alone.
        coordinator: host:port of process 0, for clusters JAX cannot detect.
        num_processes, process_id: with `coordinator`.

    Raises:
        InputError: mode 'on' and no cluster was found.
    """
    if mode == "off" or jax.distributed.is_initialized():
        return
    # JAX's preemption service swallows SIGTERM for programs that poll it; ours are resumed from
    # checkpoints, and a process asked to end must end.
    jax.config.update("jax_enable_preemption_service", False)
    if coordinator:
        jax.distributed.initialize(coordinator, num_processes, process_id)
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:  # JAX's answer where no cluster is detected
        if mode == "on":
            raise InputError(
                f"distributed.mode='on', but JAX found no cluster ({error}); "
                "set distributed.coordinator, num_processes and process_id"
            ) from None


def is_main() -> bool:
    """True on the one process that prints and writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process of the run is here. `name` must be the same on all of them."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def from_main(text: str) -> str:
    """The main process's `text`, on every process; waits for it."""
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils

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
