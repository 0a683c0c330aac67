"""The student as its training finds it: a new projection begins near the guide's vectors.

They are those of the first training set; `models.projection` finds the kernel.
"""

from __future__ import annotations

import numpy as np

from nvret_jax.mesh import say
from nvret_jax.models import projection
from nvret_jax.models.encoder import Encoder
from nvret_jax.pipeline import embed
from nvret_jax.pipeline.state import Run

_TEXTS = 2000  # queries, and passages, that are compared at most


def student(run: Run) -> Encoder:
    """The student before its training.

    Raises:
        InputError: the guide's vectors are needed and missing.
    """
    encoder = run.student.encoder
    fits = any(stage.loss.vectors for stage in run.training_stages.values())
    if not fits or not run.student.spec.projects:
        return encoder
    first = next(iter(run.sets.values()))
    plain = first.student.encoder.without_projection()
    ours, theirs = [], []
    for table in (f"queries-{first.config.data.train_split}", "passages"):
        kind, texts = first.table(first.train_data, table)
        rows = _spread(len(texts.texts))
        chosen, length = [texts.texts[row] for row in rows], first.student.length(kind)
        ours.append(_unit(plain.encode(chosen, kind=kind, max_length=length, warn=False)))
        vectors = embed.opened(first, first.guide, first.train_data, table)
        theirs.append(_unit(np.concatenate([vectors[row : row + 1] for row in rows])))
    ours_nd, theirs_ne = np.concatenate(ours), np.concatenate(theirs)
    kernel = projection.nearest(ours_nd, theirs_ne)
    cosine = float(np.sum(_unit(ours_nd @ kernel) * theirs_ne, axis=1).mean())
    say(
        f"train     the projection begins where {len(ours_nd):,} vectors are nearest to those of "
        f"{first.guide}: mean cosine {cosine:.3f}"
    )
    return encoder.with_projection(kernel)


def _spread(count: int) -> list[int]:
    """Rows of a table of this many, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, _TEXTS)).astype(int)).tolist()


def _unit(emb_nd: np.ndarray) -> np.ndarray:
    emb_nd = np.asarray(emb_nd, np.float32)
    return emb_nd / np.maximum(np.linalg.norm(emb_nd, axis=1, keepdims=True), 1e-12)
