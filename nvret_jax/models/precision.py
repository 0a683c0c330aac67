"""The dtype that 'auto' selects, and the cost of float32 on an accelerator.

float32 means float32 here, never TF32 and never a single bfloat16 product: results agree between
platforms up to rounding. Matrix units are made for bfloat16, so float32 is slow on accelerators.
"""

from __future__ import annotations

import functools

from nvret_jax import platforms
from nvret_jax.mesh import say


def embedding_dtype(asked: str, own: str, platform: str) -> str:
    """The dtype in which an encoder embeds.

    Args:
        asked: `embed.dtype`.
        own: `dtype` of the encoder's block, also used in its training.
        platform: 'cpu', 'gpu' or 'tpu'.

    Returns:
        the requested dtype. For 'auto': 'bfloat16' on accelerators, and for an encoder whose own
        dtype is bfloat16; else 'float32'.
    """
    if asked != "auto":
        return asked
    return "bfloat16" if own == "bfloat16" or platform != "cpu" else "float32"


def cost(dtype: str, platform: str) -> str | None:
    """The cost of float32 on an accelerator, in words; None elsewhere."""
    found = platforms.limits(platform).float32_cost
    if dtype != "float32" or found is None:
        return None
    factor, why = found
    return f"products in float32 take up to {factor} times as long as in bfloat16 ({why})"


@functools.cache
def say_cost(stage: str, dtype: str, platform: str, key: str) -> None:
    """Prints once per stage the cost of float32, and the key that avoids it."""
    found = cost(dtype, platform)
    if found:
        say(f"{stage:<10}{found}; {key}=bfloat16 avoids it")


@functools.cache
def say_rounded(asked: str, own: str, dtype: str) -> None:
    """Prints once that 'auto' selects bfloat16 for an encoder whose own dtype is float32.

    Args:
        asked, own: as in `embedding_dtype`.
        dtype: its result.
    """
    if asked == "auto" and (own, dtype) == ("float32", "bfloat16"):
        say(
            "embed     products in bfloat16, as embed.dtype='auto' selects on accelerators; "
            "vectors "
            "of all-MiniLM-L6-v2 keep a cosine of 0.99998 to their float32 form (measured on a "
            "CPU); embed.dtype=float32 is exact"
        )
