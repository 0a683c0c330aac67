"""Artefacts of earlier stages for later ones: present, from the right inputs, and undamaged."""

from __future__ import annotations

from nvret_jax.artifacts.artifact import Artifact, Damaged
from nvret_jax.errors import InputError
from nvret_jax.search.store import EmbeddingStore

# Kind of artefact -> the stage that makes it.
MADE_BY = {
    "embeddings": "embed",
    "candidates": "search",
    "audit": "audit",
    "negatives": "mine",
    "checkpoints": "train",
    "baseline": "evaluate",
    "overlap": "evaluate",
    "evaluation": "evaluate",
}


def need(artifact: Artifact) -> Artifact:
    """`artifact`, if it exists and is up to date.

    Raises:
        InputError: it is not; says why. `Damaged` if that is the reason.
    """
    reason = artifact.stale()
    if reason:
        stage = MADE_BY.get(artifact.kind)
        first = f"run --stages={stage} first" if stage else "run the stage that makes it"
        how = reason if reason == "not there yet" else f"out of date ({reason})"
        wrong = f"{artifact.path} is needed but {how}; {first}, or leave --stages out"
        if reason.startswith("damaged"):
            raise Damaged(wrong, artifact.kind, f"{artifact.path} is {reason}")
        raise InputError(wrong)
    return artifact


class Stores:
    """Stored embeddings, whose checksums are read once."""

    def __init__(self):
        self._checked: set[str] = set()

    def open(self, artifact: Artifact) -> EmbeddingStore:
        """Finished vectors.

        Raises:
            InputError: see `need`.
        """
        if self.stale(artifact):
            need(artifact)
        return EmbeddingStore.open(artifact.path)

    def stale(self, artifact: Artifact) -> str | None:
        """`Artifact.stale` of embeddings, their chunks included, which it does not read."""
        reason = artifact.stale()
        if reason or artifact.name in self._checked:
            return reason
        damaged = EmbeddingStore.open(artifact.path).damaged_chunks()
        if damaged:
            artifact.note_damage({f"c/{i}/0": "does not match its checksum" for i in damaged})
            return artifact.stale()
        self._checked.add(artifact.name)
        return None
