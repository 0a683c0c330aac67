"""Rotary position embeddings (RoFormer, arXiv 2104.09864), as in Llama's descendants.

A head's K numbers are K / 2 pairs (i, i + K / 2), and pair i of token t is turned by the angle
t · theta^(-2i/K). Three ways to set the frequencies are supported, under HF's names:

    default   as above
    linear    all divided by `factor`
    llama3    long waves divided by `factor`, short ones kept, those between interpolated

Frequencies that depend on the length of the text ('dynamic', 'yarn', 'longrope') are refused: the
embedding of a text must not depend on the other texts of its batch. 'mrope' (Qwen's, with positions
for time, height and width) equals the default for text alone: all three are the token's number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvret_jax.models.pretrained.folder import Fields, shown

KINDS = ("default", "linear", "llama3")
LARGEST = 1e12  # of a number in a rope's settings; the largest theta in use is 1e9
_ALIASES = {"mrope": "default"}


@dataclasses.dataclass(frozen=True)
class Rope:
    """The settings of the angles; field names are HF's."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        wrong: list[str],
        *,
        scaling: Mapping[str, Any] | None = None,
        theta: float | None = None,
    ) -> Rope:
        """Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (4).

        Args:
            config: HF's config.json.
            wrong: mistakes are appended here, to be reported with the others of the config.
            scaling, theta: used instead of the config's values of these names.
        """
        fields = Fields(config, wrong)
        if scaling is None:
            scaling = fields.object("rope_parameters", {}) or fields.object("rope_scaling", {})
        inner = Fields(scaling, wrong)
        kind = inner.text("rope_type", None) or inner.text("type", "default")
        kind = _ALIASES.get(kind, kind)
        if kind not in KINDS:
            wrong.append(f"rope_type={shown(kind)}, supported: {', '.join(KINDS)}")
            return cls()
        if theta is None:
            theta = scaling.get("rope_theta", config.get("rope_theta", 10000.0))
        partial = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        if partial not in (None, 1.0):
            wrong.append(f"partial_rotary_factor={shown(partial)}, supported: 1.0")
        values: dict[str, Any] = {"theta": theta}
        needed = {"default": (), "linear": ("factor",)}.get(
            kind,
            (
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ),
        )
        values.update({name: scaling.get(name) for name in needed})
        for name, value in values.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value <= LARGEST:
                called = "rope_theta" if name == "theta" else f"rope_scaling.{name}"
                wrong.append(
                    f"{called}={shown(value)}, expected a positive number of at most {LARGEST:g}"
                )
        return cls(kind=kind, **values)


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """float32 [K / 2]: the angle of each pair from one token to the next, in radians.

    float32 throughout, as in torch: over thousands of tokens the rounding matters.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (np.float32(1.0) / np.float32(rope.theta) ** exponent).astype(np.float32)
    if rope.kind == "linear":
        return (inverse / np.float32(rope.factor)).astype(np.float32)
    if rope.kind == "default":
        return inverse
    length = rope.original_max_position_embeddings
    wave = 2 * math.pi / inverse
    slow = inverse / np.float32(rope.factor)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (length / wave - low) / (high - low)
    between = (1 - smooth) * slow + smooth * inverse
    out = np.where(wave > length / low, slow, np.where(wave < length / high, inverse, between))
    return out.astype(np.float32)


def angles(rope: Rope, head_dim: int, tokens: int) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), float32 [T, K / 2], of the first `tokens` positions."""
    positions_t1 = jnp.arange(tokens, dtype=jnp.float32)[:, None]
    angles_tk = positions_t1 * jnp.asarray(inverse_frequencies(rope, head_dim))[None]
    return jnp.cos(angles_tk), jnp.sin(angles_tk)


def rotate(x_bthk: jax.Array, cos_tk: jax.Array, sin_tk: jax.Array) -> jax.Array:
    """x [B, T, any heads, K], each head's pairs turned by the token's angles; same dtype.

    The rotation itself is float32: a bfloat16 angle is off by several percent after 100 tokens.
    """
    shape = (cos_tk.shape[0], *(1,) * (x_bthk.ndim - 3), cos_tk.shape[1])
    cos, sin = cos_tk.reshape(shape), sin_tk.reshape(shape)
    first, second = jnp.split(x_bthk.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_bthk.dtype)
