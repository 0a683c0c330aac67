"""The options of the exported model."""

from __future__ import annotations

import dataclasses

from nvret_jax.options import choice, option, whole

EXPORT_DTYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True)
class Export:
    """The folder that other tools load."""

    dtype: str = option("float32", choice(*EXPORT_DTYPES), "Precision of the exported weights.")
    max_length: int = option(
        0,
        whole(3, 1 << 20, "tokens", also={0: "the student's"}),
        "Tokens that the exported model keeps of a text, and that it is evaluated with after "
        "training; 0: the longer of the student's two lengths.",
        counts=lambda own: own.max_length > 0,
    )
