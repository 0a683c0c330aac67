"""Checkpoints: parameters, optimizer and data iterator of one step, by Orbax.

The three are stored apart, so that evaluation and export read the parameters alone. Restore always
goes into an abstract tree with shardings: the same checkpoint opens on any mesh.
"""

from __future__ import annotations

from typing import Any

import jax
from etils import epath
from flax import nnx
from orbax.checkpoint import v1 as ocp

from nvret_jax.errors import InputError


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class Checkpoints:
    """The checkpoints of one run. Use as a context manager."""

    def __init__(self, folder: epath.Path, *, keep: int = 1):
        folder = epath.Path(folder).resolve()  # Orbax wants an absolute path
        policies = ocp.training.preservation_policies
        self._folder = folder
        self._orbax = ocp.training.Checkpointer(
            folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *unused) -> None:
        self._orbax.close()

    @property
    def latest(self) -> int | None:
        """The last finished step, or None."""
        found = self._orbax.latest
        return None if found is None else found.step

    def save(self, step: int, params: nnx.State, optimizer: Any, iterator: Any) -> None:
        """Writes one checkpoint and waits until it stands."""
        self._orbax.save_checkpointables(
            step,
            {
                "params": nnx.to_pure_dict(params),
                "optimizer": jax.tree.leaves(optimizer),
                "iterator": iterator,
            },
            force=True,
        )

    def load(
        self, step: int, params: nnx.State, optimizer: Any, iterator: Any
    ) -> tuple[nnx.State, Any]:
        """Reads a checkpoint into trees like the given ones and sets the iterator's state.

        Raises:
            InputError: the checkpoint does not fit.
        """
        leaves, structure = jax.tree.flatten(optimizer)
        loaded = self._load(
            step,
            {
                "params": abstract(nnx.to_pure_dict(params)),
                "optimizer": abstract(leaves),
                "iterator": iterator,
            },
        )
        return _filled(params, loaded["params"]), jax.tree.unflatten(structure, loaded["optimizer"])

    def load_params(self, step: int, params: nnx.State) -> nnx.State:
        """Reads the parameters alone."""
        loaded = self._load(step, {"params": abstract(nnx.to_pure_dict(params))})
        return _filled(params, loaded["params"])

    def _load(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._orbax.load_checkpointables(step, target)
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise InputError(f"checkpoint {self._folder}/{step} does not fit: {error}") from error


def _filled(state: nnx.State, values: dict[str, Any]) -> nnx.State:
    """A state like `state` that holds `values`."""
    filled = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(filled, values)
    return filled
