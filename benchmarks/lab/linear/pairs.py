"""Scores of pairs of query and passage by a cross-encoder, made once and kept in a file."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts.fingerprints import digest
from nvret_jax.files.atomic import whole_file
from nvret_jax.mining.rescoring import text_scorer
from nvret_jax.models.cross_encoder import CrossEncoder

_SAVED = 4096  # pairs scored between two saves


def of(
    folder: pathlib.Path,
    model: str,
    max_length: int | None,
    queries: Sequence[str],
    passages: Sequence[str],
    pairs: np.ndarray,
) -> np.ndarray:
    """Scores of pairs, float32 [M]; those of earlier calls are read.

    Args:
        folder: of the files.
        model: a folder with a cross-encoder.
        max_length: tokens of a pair; None: the model's own.
        queries, passages: all texts of the data set.
        pairs: int64 [M, 2], numbers of a query and of a passage.
    """
    name = digest([model, max_length, list(queries), list(passages)])[:16]
    file = folder / f"pairs-{name}.npz"
    keys, place = np.unique((pairs[:, 0] << 32) | pairs[:, 1], return_inverse=True)
    known, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    if file.exists():
        with np.load(file, allow_pickle=False) as kept:
            known, scores = kept["keys"], kept["scores"]
    missing = np.setdiff1d(keys, known)
    if len(missing):
        folder.mkdir(parents=True, exist_ok=True)
        mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
        scorer = CrossEncoder.from_pretrained(model, mesh=mesh, max_length=max_length)
        score = text_scorer(scorer.score, queries, passages)
        for start in range(0, len(missing), _SAVED):
            new = missing[start : start + _SAVED]
            made = score(np.stack([new >> 32, new & 0xFFFFFFFF], axis=1))
            order = np.argsort(np.concatenate([known, new]))
            known = np.concatenate([known, new])[order]
            scores = np.concatenate([scores, np.asarray(made, np.float32)])[order]
            with whole_file(epath.Path(file)) as out:
                np.savez(out, keys=known, scores=scores)
            print(f"{start + len(new):,} of {len(missing):,} pairs scored", flush=True)
    return scores[np.searchsorted(known, keys)][place]
