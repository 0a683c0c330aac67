"""The GPUs of a task on a Slurm node.

JAX gives task i of a node only GPU i, which leaves all others idle if one task has the whole node.
Here the GPUs that a task sees are divided evenly among the tasks that see them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nvret_jax.errors import InputError


def local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs of this task, as numbers among those that it sees.

    Args:
        environment: variables of the process. JAX_LOCAL_DEVICE_IDS is left to JAX, which reads it.

    Returns:
        None if Slurm started no task here, or the task sees no GPU: JAX decides.

    Raises:
        InputError: the GPUs cannot be divided evenly among the tasks.
    """
    local = environment.get("SLURM_LOCALID", "")
    if not local.isdecimal() or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    visible = len([gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu])
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    of_node = int(on_node) if on_node.isdecimal() else visible
    visible = visible or of_node
    if not visible:
        return None
    tasks = _tasks_here(environment)
    if visible < of_node:  # --gpus-per-task: no other task sees these
        tasks, local = 1, "0"
    if visible % tasks:
        raise InputError(
            f"Slurm runs {tasks} tasks on a node whose {visible} GPUs cannot be divided among them "
            "evenly; choose --ntasks-per-node so that they can, or set JAX_LOCAL_DEVICE_IDS in "
            "each task"
        )
    share = visible // tasks
    return list(range(int(local) * share, (int(local) + 1) * share))


def _tasks_here(environment: Mapping[str, str]) -> int:
    """How many tasks of the step run on this node; Slurm writes '2(x3),1' for 2, 2, 2 and 1."""
    name = "SLURM_STEP_TASKS_PER_NODE"
    text = environment.get(name) or environment.get("SLURM_TASKS_PER_NODE", "1")
    counts: list[int] = []
    for part in text.split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()):
            counts += [int(match[1])] * int(match[2] or 1)
    node = environment.get("SLURM_NODEID", "0")
    at = int(node) if node.isdecimal() else 0
    return max(1, counts[at] if at < len(counts) else max(counts, default=1))
