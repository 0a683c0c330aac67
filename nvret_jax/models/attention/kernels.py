"""Attention by library kernels: what each supports, and how it is run on a mesh.

    cudnn     NVIDIA GPUs, bfloat16 or float16; see `cudnn.py`
    splash    TPUs, bfloat16; see `splash.py`

Scores are never stored in memory, so time and memory for long texts are a fraction of those of
'xla'; results are the same up to rounding. What a kernel does not support is refused with one line
before anything is computed: by `check_options` when a model is configured, by `check_platform` and
`check_heads` when it is built, by `fused` when it is traced. 'auto' is decided when a model is
traced (`chosen`), so that the same encoder may train with dropout by 'xla' and embed by a kernel.

A kernel gets one device's share of batch and heads: `jax.shard_map` splits them like the mesh.
"""

from __future__ import annotations

import functools

import jax
from absl import logging

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.models.attention import cudnn, splash
from nvret_jax.models.options import ATTENTION

_KERNELS = {"cudnn": cudnn.attend, "splash": splash.attend}
_DTYPES = {"cudnn": ("bfloat16", "float16"), "splash": ("bfloat16",)}
_PLATFORMS = {"cudnn": ("gpu", "an NVIDIA GPU"), "splash": ("tpu", "a TPU")}


def _interpreted(name: str) -> bool:
    return name == "splash" and splash.INTERPRET


def check_options(name: str, *, dtype: str, drops: bool) -> str:
    """`name`, if there is such an implementation and it supports the request.

    Args:
        name: of `options.ATTENTION`.
        dtype: of the products.
        drops: whether probabilities are dropped in training.

    Raises:
        InputError: unknown, or not for this dtype, or not with dropout.
    """
    if name not in ATTENTION:
        known = ", ".join(ATTENTION)
        raise InputError(f"unknown attention implementation {name!r}; known: {known}")
    if name in ("auto", "xla"):
        return name
    if dtype not in _DTYPES[name] and not _interpreted(name):
        able = " or ".join(_DTYPES[name])
        raise InputError(
            f"attention={name!r} computes in {able}, not in {dtype}; set dtype='bfloat16', or "
            "attention='xla'"
        )
    if drops:
        raise InputError(
            f"attention={name!r} cannot drop attention probabilities; set dropout=0, or "
            "attention='xla'"
        )
    return name


def check_platform(name: str, platform: str) -> None:
    """Raises InputError if a platform ('cpu', 'gpu', 'tpu') has no such kernel."""
    if name in ("auto", "xla") or _interpreted(name):
        return
    needed, words = _PLATFORMS[name]
    if platform != needed:
        raise InputError(
            f"attention={name!r} needs {words}, but this mesh has {platform!r} devices; set "
            "attention='xla'"
        )


def chosen(name: str, q: jax.Array, *, window: int | jax.Array | None, drops: bool) -> str:
    """The implementation that computes this attention: `name`, and for 'auto' the fastest known.

    That is 'cudnn' where it supports the request, and 'xla' everywhere else. On an H100 a MiniLM
    encodes 2.6 times as many texts of 512 tokens with it, and 1.6 times as many of 192. 'splash'
    has not been timed on a TPU. Where only dropout, a window or the head width keeps a GPU from
    'cudnn', that is reported once.

    Args:
        name: of `options.ATTENTION`.
        q: queries, [..., head width], in the dtype of the products.
        window: as of `grouped_attention`.
        drops: whether probabilities are dropped.
    """
    if name != "auto":
        return name
    capability = _compute_capability()
    widest = cudnn.MAX_HEAD_DIM if capability >= cudnn.HOPPER else cudnn.MAX_HEAD_DIM // 2
    if capability < cudnn.AMPERE or str(q.dtype) not in _DTYPES["cudnn"]:
        return "xla"
    reasons = {
        "dropout": drops,
        "a window": window is not None,
        f"heads {q.shape[-1]} wide": q.shape[-1] % 8 or q.shape[-1] > widest,
    }
    if why := [reason for reason, holds in reasons.items() if holds]:
        logging.log_first_n(
            logging.WARNING,
            "attention='auto': XLA computes it, because cuDNN does not support %s; on an H100 that "
            "took 2.6 times as long for texts of 512 tokens",
            1,
            " and ".join(why),
        )
        return "xla"
    return "cudnn"


def _compute_capability() -> float:
    """Of the NVIDIA GPUs that the present mesh, or else this process, computes on; 0: of none."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    if (platforms.here() if device is None else device.platform) != "gpu":
        return 0.0
    try:
        return float(jax.local_devices(backend="gpu")[0].compute_capability)
    except (RuntimeError, ValueError, AttributeError):  # only planned for, or of another maker
        return 0.0


def check_heads(name: str, head_dim: int, *, windowed: bool = False) -> None:
    """Raises InputError if a kernel does not support heads of this width, or a window.

    Args:
        name: of `options.ATTENTION`.
        head_dim: K.
        windowed: whether some layers attend within a window to both sides.
    """
    if name != "cudnn":
        return
    if head_dim % 8 or head_dim > cudnn.MAX_HEAD_DIM:
        raise InputError(
            f"attention='cudnn' needs a head width that is a multiple of 8 and at most "
            f"{cudnn.MAX_HEAD_DIM}, but this model's is {head_dim}; set attention='xla'"
        )
    if windowed:
        raise InputError(
            "attention='cudnn' does not support windows to both sides, which this model's local "
            "layers need; "
            "set attention='xla'"
        )


def fused(
    name: str,
    q_btngk: jax.Array,
    k_bsnk: jax.Array,
    v_bsnk: jax.Array,
    lengths_b: jax.Array,
    *,
    causal: bool = False,
    window: int | None = None,
    drops: bool = False,
) -> jax.Array:
    """softmax(q·k / sqrt(K)) · v by a kernel; arguments and result as in `grouped_attention`.

    Args:
        window: a Python int, as the kernel is compiled for it.
        drops: whether the caller wants dropout on the probabilities.

    Raises:
        InputError: something that this kernel does not support.
    """
    check_options(name, dtype=str(q_btngk.dtype), drops=drops)
    if window is not None and window >= q_btngk.shape[1] - 1:
        window = None  # no token is further away
    check_heads(name, q_btngk.shape[-1], windowed=window is not None)
    run = functools.partial(_KERNELS[name], causal=causal, window=window)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(q_btngk, k_bsnk, v_bsnk, lengths_b)
    if mesh.abstract_device is not None:
        check_platform(name, mesh.abstract_device.platform)
    q_spec = mesh_lib.spec("batch", None, "kv_heads", None, None)
    k_spec = mesh_lib.spec("batch", None, "kv_heads", None)
    specs = (q_spec, k_spec, k_spec, mesh_lib.spec("batch"))
    # Kernels do not declare how their results vary over the mesh, so that is not checked. Each
    # operand with a gradient is split along every axis, so no sum over devices can be missed.
    rest = set(mesh.axis_names) - set(mesh.manual_axes)
    if not rest:
        return run(q_btngk, k_bsnk, v_bsnk, lengths_b)
    run = jax.shard_map(run, in_specs=specs, out_specs=q_spec, axis_names=rest, check_vma=False)
    operands = (q_btngk, k_bsnk, v_bsnk, lengths_b)
    return run(*(jax.reshard(x, spec) for x, spec in zip(operands, specs, strict=True)))
