"""Which arithmetic 'auto' means, and what float32 costs on an accelerator.

float32 means float32 here, never TF32 and never a single bfloat16 product: results agree between
platforms to rounding. Matrix units are made for bfloat16, so on accelerators that has a price.
"""

from __future__ import annotations

import functools

from nvret_jax import platforms
from nvret_jax.mesh import say


def embedding_dtype(asked: str, own: str, platform: str) -> str:
    """The dtype in which an encoder embeds.

    Args:
        asked: `embed.dtype`.
        own: `dtype` of the encoder's block, which is also that of its training.
        platform: 'cpu', 'gpu' or 'tpu'.

    Returns:
        what is asked for. For 'auto': 'bfloat16' on accelerators, and for an encoder whose own
        dtype that is; else 'float32'.
    """
    if asked != "auto":
        return asked
    return "bfloat16" if own == "bfloat16" or platform != "cpu" else "float32"


def cost(dtype: str, platform: str) -> str | None:
    """What float32 costs on an accelerator, for people; None elsewhere."""
    found = platforms.limits(platform).float32_cost
    if dtype != "float32" or found is None:
        return None
    factor, why = found
    return f"products in float32 take up to {factor} times as long as in bfloat16 ({why})"


@functools.cache
def say_cost(stage: str, dtype: str, platform: str, key: str) -> None:
    """Says once for a stage what float32 costs, and which key changes it."""
    found = cost(dtype, platform)
    if found:
        say(f"{stage:<10}{found}; {key}=bfloat16 avoids it")


@functools.cache
def say_rounded(asked: str, own: str, dtype: str) -> None:
    """Says once that 'auto' embeds in bfloat16 an encoder whose own dtype is float32.

    Args:
        asked, own: as of `embedding_dtype`.
        dtype: what that gave.
    """
    if asked == "auto" and (own, dtype) == ("float32", "bfloat16"):
        say(
            "embed     products in bfloat16, as embed.dtype='auto' has it on accelerators; vectors "
            "of all-MiniLM-L6-v2 keep a cosine of 0.99998 to their float32 form (measured on a "
            "CPU); embed.dtype=float32 is exact"
        )
