"""The options of stored embeddings and of the search over them."""

from __future__ import annotations

import dataclasses

from nvret_jax.models.options import DTYPES
from nvret_jax.options import choice, number, option, whole

BACKENDS = ("auto", "device", "faiss")
PRECISIONS = ("auto", *DTYPES)
MOST_TOKENS = 1 << 24  # of one step, per device


@dataclasses.dataclass(frozen=True)
class Embed:
    """How embeddings are made and stored."""

    chunk_rows: int = option(
        4096,
        whole(1, 1 << 24),
        "Rows per chunk of the stored embeddings; how they are made does not depend on it.",
    )
    token_budget: int = option(
        0,
        whole(0, MOST_TOKENS, "tokens, 0 for a device-specific value"),
        "Tokens that a device encodes at a time; 0: chosen for the device.",
        counts=False,
    )
    dtype: str = option(
        "auto",
        choice(*PRECISIONS),
        "Products of all encoders while they embed. auto: bfloat16 on accelerators and for "
        "encoders whose own dtype is bfloat16, else float32.",
        counts=False,  # the dtype of each encoder does
    )


@dataclasses.dataclass(frozen=True)
class Search:
    """How candidates are searched for."""

    backend: str = option(
        "auto",
        choice(*BACKENDS),
        "device: matrix products and top-k, sharded over the mesh; faiss: a flat index on the CPU; "
        "auto: the device on an accelerator, FAISS on a host with only a CPU.",
        counts=False,
    )
    depth: int = option(
        100, whole(1), "Candidates stored per training query, best first, before any rule."
    )
    query_block: int = option(
        4096, whole(1, 1 << 24), "Queries searched between two saves.", counts=False
    )
    memory_gib: float = option(
        0.0,
        number(0, 1 << 20, "0 for a share of the free memory"),
        "Memory that a device may spend on passages, scores and lists; passages that do not fit "
        "are streamed from disk. 0: a share of the free memory.",
        counts=False,
    )
    dtype: str = option(
        "auto",
        choice(*PRECISIONS),
        "The dtype of vectors in the product, for candidates and in evaluation. bfloat16 rounds "
        "them first, which changes ranks; auto: the stored dtype, which is float32 for vectors of "
        "encoders.",
        counts=False,  # it does if vectors are stored in another one
    )
