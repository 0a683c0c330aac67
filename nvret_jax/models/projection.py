"""The kernel of a student's new projection as it begins.

Without vectors to be near to it keeps what the model has: the identity where the widths agree,
and otherwise random orthonormal directions. A wider space then keeps every inner product exactly,
so the untrained model ranks as it did.

With vectors of another encoder it keeps as much and turns the space towards theirs. Two encoders
that were trained apart have unrelated axes: the cosine of their vectors of one text is low, however
alike they rank, and a fit to the other's vectors would first have to turn the whole space. The
orthonormal kernel that brings one set of vectors nearest to another is known in closed form (the
orthogonal Procrustes problem, Schönemann 1966).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def initial(inputs: int, outputs: int, seed: int) -> np.ndarray:
    """The identity, or random orthonormal directions; float32 [inputs, outputs].

    Args:
        inputs, outputs: the widths.
        seed: of the directions.
    """
    if inputs == outputs:
        return np.eye(inputs, dtype=np.float32)
    make = jax.nn.initializers.orthogonal()
    return np.asarray(make(jax.random.key(seed), (inputs, outputs), jnp.float32))


def nearest(ours_nd: np.ndarray, theirs_ne: np.ndarray) -> np.ndarray:
    """The orthonormal kernel with the highest mean inner product of ours · kernel and theirs.

    That is their cosine where E is at least D.

    Args:
        ours_nd, theirs_ne: unit vectors of the same texts, row by row.

    Returns:
        float32 [D, E]: orthonormal rows where E is at least D, otherwise orthonormal columns.
    """
    product_de = ours_nd.T.astype(np.float64) @ theirs_ne.astype(np.float64)
    left, _, right = np.linalg.svd(product_de, full_matrices=False)
    return (left @ right).astype(np.float32)
