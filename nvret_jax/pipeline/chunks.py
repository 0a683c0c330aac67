"""Scored pairs in the unfinished folder of an artefact, which survive a kill."""

from __future__ import annotations

import io

import numpy as np
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.files.atomic import is_whole, write_checked
from nvret_jax.mesh import say


def is_there(path: epath.Path) -> bool:
    """Whether the main process sees an undamaged piece of an earlier run."""
    found = ""
    if mesh_lib.is_main() and path.exists():
        found = "whole" if is_whole(path) else ""
        if not found:
            say(f"          {path} is damaged; rebuilding it")
    return bool(mesh_lib.from_main(found))


class Chunks:
    """A `rescoring.ChunkStore` in the unfinished folder of an artefact."""

    def __init__(self, artifact: Artifact):
        self._folder = artifact.partial

    def load(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        path = self._folder / f"pairs-{number:06d}.npz"
        if not is_there(path):
            return None
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["pairs"], arrays["scores"]

    def save(self, number: int, pairs: np.ndarray, scores: np.ndarray) -> None:
        if mesh_lib.is_main():
            buffer = io.BytesIO()
            np.savez(buffer, pairs=pairs, scores=scores)
            path = self._folder / f"pairs-{number:06d}.npz"
            write_checked(path, lambda aside: aside.write_bytes(buffer.getvalue()))
