"""Vectors of a data set by one encoder, made once and kept in a file.

The laboratory's other cells keep theirs in workdirs. Here hundreds of cells of a second each read
the same few arrays.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from etils import epath

import nvret_jax.api as nv
from nvret_jax.artifacts.fingerprints import digest
from nvret_jax.files.atomic import whole_file


def of(
    folder: pathlib.Path, model: str, texts: Sequence[str], kind: str, max_length: int | None
) -> np.ndarray:
    """Unit vectors, float32 [len(texts), D], from the file of an earlier call if there is one.

    Args:
        folder: of the files.
        model: of the encoder.
        texts: to encode.
        kind: 'query' or 'passage'.
        max_length: tokens; None: what the model takes.
    """
    name = digest([model, kind, max_length, list(texts)])[:16]
    file = folder / f"{name}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = nv.Encoder.from_pretrained(model).encode(texts, kind=kind, max_length=max_length)
        with whole_file(epath.Path(file)) as out:
            np.save(out, np.asarray(found, np.float32))
    emb_nd = np.load(file)
    return emb_nd / np.maximum(np.linalg.norm(emb_nd, axis=1, keepdims=True), 1e-12)
