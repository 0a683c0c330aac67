"""What each kind of device can take: the one table of numbers that depend on the platform.

A CPU is fastest when what it works on stays in its cache, an accelerator when its matrix units are
full. Whatever asks which platform it is on asks here: `of` a mesh, which may be of devices that are
only planned for, or `here`, of this process.
"""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Platform:
    """The numbers of one platform.

    Attributes:
        name: 'cpu', 'gpu' or 'tpu'.
        step_tokens: tokens of one step of an encoder, per device the batch is split over.
        narrow_step_tokens: the same where products are in bfloat16 or float16.
        length_step: tokens between two lengths that texts may be padded to, at least; the shortest
            is two steps.
        lengths_per_doubling: such lengths from one power of two to the next.
        shape_share: an additional shape of an encoder's steps saves at least one in this many
            tokens.
        chunk_tokens: tokens a device encodes at a time in training.
        tile_pairs: pairs of texts, or of their tokens, whose scores a loss in tiles holds at a
            time.
        compile_tokens: tokens that a device could train on while it compiles a length group.
        tile_rows: passages of a tile of a search on one device, if it takes at most 2 GiB.
        tile_scores: scores of a search held at a time on one device.
        score_copies: bytes a step of a search needs for each byte of its scores.
        member_copies: the same for each byte of the k best groups' members.
        float32_cost: how many times as long a product takes in float32 as in bfloat16, at most,
            and why; None where float32 is not slower.
    """

    name: str
    step_tokens: int
    narrow_step_tokens: int
    length_step: int
    lengths_per_doubling: int
    shape_share: int
    chunk_tokens: int
    tile_pairs: int
    compile_tokens: int
    tile_rows: int
    tile_scores: int
    score_copies: float
    member_copies: float
    float32_cost: tuple[int, str] | None = None


# Measured on a CPU: steps of about a thousand tokens keep a layer's activations in the cache and
# are 1.4 times as fast as steps of 4,096. For narrow types the weights are laid out anew for every
# product, which larger steps do less often: 2,048 tokens took 8 % less than 1,024, and 4,096 no
# less.
#
# Estimated for accelerators: steps of 65,536 tokens fill the matrix units for a small model, and by
# count take about 3 GB of activations for the largest (1,024 wide, 16 heads, 512 tokens, float32).
# Chunks of 16,384 keep BERT-large's activations under about 25 GiB. Tiles are 64 MiB of float32
# scores, of which most compilers keep two or three; 4 MiB on a CPU. A length group takes as long to
# compile as a small model trains on 16,384 tokens on a CPU, or a large one on 262,144 on an
# accelerator.
#
# Measured on an H100: a shape of a MiniLM takes 5 s to compile, in which it encodes 40 million
# tokens. So an accelerator has few shapes; those of a plan are compiled side by side, and kept on
# disk for the next run.
#
# Measured on an H100, 8,192 queries and 1,000,000 passages of width 1,024 in bfloat16: tiles of
# 2^17 and 2^26 scores took 114 ms, 2^17 and 2^28 93 ms, 2^20 and 2^28 89 ms, 2^20 and 2^29 73 ms.
# Fewer tiles have fewer candidates to sort, and more queries at a time make products faster.
#
# The copies of a search's scores are from XLA's own account of the compiled step, with a ceiling
# and excluded rows; for a GPU they are assumed: the measured peak is lower.
PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(
            "cpu",
            step_tokens=1024,
            narrow_step_tokens=2048,
            length_step=2,
            lengths_per_doubling=8,
            shape_share=400,
            chunk_tokens=1024,
            tile_pairs=2**20,
            compile_tokens=16_384,
            tile_rows=2**17,
            tile_scores=2**26,
            score_copies=1.1,
            member_copies=1.1,
        ),
        Platform(
            "gpu",
            step_tokens=65_536,
            narrow_step_tokens=65_536,
            length_step=8,
            lengths_per_doubling=4,
            shape_share=100,
            chunk_tokens=16_384,
            tile_pairs=2**24,
            compile_tokens=262_144,
            tile_rows=2**20,
            tile_scores=2**29,
            score_copies=2.25,
            member_copies=2.25,
            float32_cost=(
                15,
                "989 against 67 TFLOP/s on an H100, by its data sheet; TF32 is not used",
            ),
        ),
        Platform(
            "tpu",
            step_tokens=65_536,
            narrow_step_tokens=65_536,
            length_step=8,
            lengths_per_doubling=4,
            shape_share=100,
            chunk_tokens=16_384,
            tile_pairs=2**24,
            compile_tokens=262_144,
            tile_rows=2**17,
            tile_scores=2**26,
            score_copies=1.05,
            member_copies=4.0,
            float32_cost=(6, "6 bfloat16 products make a float32 one on a TPU's matrix unit"),
        ),
    )
}


def here() -> str:
    """'cpu', 'gpu' or 'tpu': what this process computes on."""
    return jax.default_backend()


def of(mesh: Mesh) -> str:
    """'cpu', 'gpu' or 'tpu': what the devices of a mesh are, whatever this process runs on."""
    return mesh.devices.flat[0].platform


def limits(name: str = "") -> Platform:
    """The row of a platform; '': of this process. A platform without one is taken for a GPU."""
    return PLATFORMS.get(name or here(), PLATFORMS["gpu"])


def step_tokens(name: str, dtype: str) -> int:
    """Tokens of a step of an encoder whose products are in `dtype`, per device."""
    row = limits(name)
    return row.step_tokens if dtype == "float32" else row.narrow_step_tokens
