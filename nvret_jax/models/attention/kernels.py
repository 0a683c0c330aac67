"""Attention by somebody else's kernel: what each can do, and how it is run on a mesh.

    cudnn     NVIDIA GPUs, bfloat16 or float16; see `cudnn.py`
    splash    TPUs, bfloat16; see `splash.py`

Scores never lie in memory, so time and memory of long texts are a fraction of those of 'xla', whose
numbers they give up to rounding. What a kernel cannot do is refused with one line before anything
is computed: by `check_options` when a model is configured, by `check_platform` and `check_heads`
when it is built, by `fused` when it is traced.

A kernel sees one device's share of batch and heads: `jax.shard_map` cuts them, as the mesh does.
"""

from __future__ import annotations

import functools

import jax

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models.attention import cudnn, splash
from nvret_jax.models.options import ATTENTION

_KERNELS = {"cudnn": cudnn.attend, "splash": splash.attend}
_DTYPES = {"cudnn": ("bfloat16", "float16"), "splash": ("bfloat16",)}
_PLATFORMS = {"cudnn": ("gpu", "an NVIDIA GPU"), "splash": ("tpu", "a TPU")}


def _interpreted(name: str) -> bool:
    return name == "splash" and splash.INTERPRET


def check_options(name: str, *, dtype: str, drops: bool) -> str:
    """`name`, if there is such an implementation and it does what is asked.

    Args:
        name: of `options.ATTENTION`.
        dtype: of the products.
        drops: whether probabilities are dropped in training.

    Raises:
        InputError: unknown, or not for this dtype, or not with dropout.
    """
    if name not in ATTENTION:
        known = ", ".join(ATTENTION)
        raise InputError(f"attention implementation {name!r} is unknown; known: {known}")
    if name == "xla":
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
    """Raises InputError where devices of a platform ('cpu', 'gpu', 'tpu') have no such kernel."""
    if name == "xla" or _interpreted(name):
        return
    needed, words = _PLATFORMS[name]
    if platform != needed:
        raise InputError(
            f"attention={name!r} needs {words}, and this mesh is of {platform!r} devices; set "
            "attention='xla'"
        )


def check_heads(name: str, head_dim: int, *, windowed: bool = False) -> None:
    """Raises InputError where a kernel does not take heads this wide, or no window.

    Args:
        name: of `options.ATTENTION`.
        head_dim: K.
        windowed: whether some layers see only so many tokens to either side.
    """
    if name != "cudnn":
        return
    if head_dim % 8 or head_dim > cudnn.MAX_HEAD_DIM:
        raise InputError(
            f"attention='cudnn' takes heads of a width that is a multiple of 8 and at most "
            f"{cudnn.MAX_HEAD_DIM}, and this model's are {head_dim} wide; set attention='xla'"
        )
    if windowed:
        raise InputError(
            "attention='cudnn' has no window to both sides, which this model's local layers need; "
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
    """softmax(q·k / sqrt(K)) · v by a kernel; arguments and result as of `grouped_attention`.

    Args:
        window: a Python int, as the kernel is compiled for it.
        drops: whether the caller has a dropout for the probabilities.

    Raises:
        InputError: something this kernel does not do.
    """
    check_options(name, dtype=str(q_btngk.dtype), drops=drops)
    if window is not None and window >= q_btngk.shape[1] - 1:
        window = None  # nobody is further away
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
    # Kernels do not say how what they make varies over the mesh, so that is not checked. Each
    # operand with a gradient is cut along every axis: no sum over devices is left to be forgotten.
    rest = set(mesh.axis_names) - set(mesh.manual_axes)
    if not rest:
        return run(q_btngk, k_bsnk, v_bsnk, lengths_b)
    run = jax.shard_map(run, in_specs=specs, out_specs=q_spec, axis_names=rest, check_vma=False)
    operands = (q_btngk, k_bsnk, v_bsnk, lengths_b)
    return run(*(jax.reshard(x, spec) for x, spec in zip(operands, specs, strict=True)))
