"""Which GPUs of a Slurm node a task takes."""

import pytest

from nvret_jax.errors import InputError
from nvret_jax.processes import slurm


def node(local, tasks, gpus, *, sees=None, **more):
    """The variables of a task on a node of `gpus` GPUs."""
    sees = gpus if sees is None else sees
    return {
        "SLURM_LOCALID": str(local),
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": "0",
        "SLURM_GPUS_ON_NODE": str(gpus),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(sees))),
        **more,
    }


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        (node(0, "1", 8), [0, 1, 2, 3, 4, 5, 6, 7]),  # one task a node takes all
        (node(0, "1(x2)", 4), [0, 1, 2, 3]),
        (node(3, "8(x2)", 8), [3]),
        (node(1, "2", 8), [4, 5, 6, 7]),
        (node(0, "2(x3),1", 4, SLURM_NODEID="3"), [0, 1, 2, 3]),
        (node(5, "8", 8, sees=1), [0]),  # --gpus-per-task: each sees its own
        ({}, None),  # no Slurm
        (node(0, "1", 0), None),  # no GPU
        (node(0, "1", 8, JAX_LOCAL_DEVICE_IDS="0,1"), None),  # the user says which
    ],
)
def test_the_gpus_are_divided_evenly(environment, devices):
    assert slurm.local_devices(environment) == devices


def test_gpus_that_cannot_be_divided_are_refused():
    with pytest.raises(InputError, match="3 tasks on a node whose 8 GPUs"):
        slurm.local_devices(node(0, "3", 8))
