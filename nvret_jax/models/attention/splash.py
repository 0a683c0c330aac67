"""Attention by JAX's splash kernel for TPUs, which skips blocks of scores that no query sees.

- Real keys and padding are distinguished by segment ids: keys of the text are 1, padding is 0, and
  all queries are 1, so that those past the end see the real keys, as with 'xla'.
- The kernel works on blocks of a multiple of 128 tokens. Shorter or uneven batches are padded to
  the next multiple here, and cut again: the added positions are never seen.
- A query without a real key in its window gets 0, as with 'xla'; the kernel itself would give it
  the mean over padding.
- No float32: the kernel has no precision setting for its products, so a TPU would round float32
  operands to bfloat16.
- Heads of any width: those of 12 to 256 compile for TPU v5e, forward and backward.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

# Interprets the kernel in Python, on any device and in any dtype: for tests, much slower.
INTERPRET = False
LANES = 128
# Tokens of a block; the largest that divides the length is used. Estimated, not measured: large
# enough to fill the matrix unit, and a block of float32 scores (1 MiB) fits any TPU.
BLOCKS = (512, 384, 256, 128)


def attend(
    q_btngk: jax.Array,
    k_bsnk: jax.Array,
    v_bsnk: jax.Array,
    lengths_b: jax.Array,
    *,
    causal: bool,
    window: int | None,
) -> jax.Array:
    """One device's share; arguments as in `kernels.fused`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    batch, tokens, shared, group, width = q_btngk.shape
    length = -(-tokens // LANES) * LANES

    def filled(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, length - tokens), *((0, 0),) * (x.ndim - 2)))

    scale = jnp.asarray(width**-0.5, q_btngk.dtype)
    q_bhtk = jnp.transpose(filled(q_btngk * scale), (0, 2, 3, 1, 4))
    q_bhtk = q_bhtk.reshape(batch, shared * group, length, width)
    k_bnsk, v_bnsk = (jnp.swapaxes(filled(x), 1, 2) for x in (k_bsnk, v_bsnk))
    real_bs = jnp.arange(length)[None] < lengths_b[:, None]
    segments = SegmentIds(jnp.ones((batch, length), jnp.int32), real_bs.astype(jnp.int32))
    kernel = _kernel(shared * group, length, causal, window)
    mixed_bhtk = jax.vmap(kernel)(q_bhtk, k_bnsk, v_bnsk, segments)
    mixed_bngtk = mixed_bhtk.reshape(batch, shared, group, length, width)
    mixed_btngk = jnp.transpose(mixed_bngtk, (0, 3, 1, 2, 4))[:, :tokens]
    if window is not None:
        sees_bt = jnp.arange(tokens)[None] - window < lengths_b[:, None]
        mixed_btngk = jnp.where(sees_bt[:, :, None, None, None], mixed_btngk, 0)
    return mixed_btngk.astype(v_bsnk.dtype)


def _kernel(heads: int, length: int, causal: bool, window: int | None) -> Any:
    """The kernel for [heads, length, K], forward and backward."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (length, length)
    if window is not None:
        mask = splash.LocalMask(shape, (window, 0 if causal else window), 0)
    else:
        mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    block = next(size for size in BLOCKS if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=INTERPRET,
    )
