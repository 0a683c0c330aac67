"""Where am I: versions, devices, and the two rates that bound everything else on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import time
from collections.abc import Callable

from benchmarks.accelerator.sizes import Sizes

PACKAGES = (
    "nvret_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "torch",
    "sentence-transformers",
    "transformers",
)


def where(sizes: Sizes, place: pathlib.Path) -> dict:
    """Versions, devices, memory; measured bfloat16 FLOP/s and copied bytes/s of one device."""
    import jax
    import jax.numpy as jnp

    device = jax.local_devices()[0]
    n = sizes.matmul
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    b = jax.random.normal(jax.random.key(1), (n, n), jnp.bfloat16)
    product = jax.jit(lambda a, b: a @ b)
    copied = jnp.ones((sizes.copy_bytes // 4,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    stats = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "memory_bytes": stats.get("bytes_limit"),
        "driver": _driver(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "matmul_tflops": 2 * n**3 / best(lambda: product(a, b)) / 1e12,
        "copy_gb_per_s": 2 * copied.nbytes / best(lambda: copy(copied)) / 1e9,
        "versions": {"python": platform.python_version()} | versions(),
    }


def best(call: Callable[[], object], rounds: int = 5, repeats: int = 4) -> float:
    """Seconds of one call: the shortest of some rounds, each of several calls in flight."""
    import jax

    jax.block_until_ready(call())
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready([call() for _ in range(repeats)])
        seconds.append((time.perf_counter() - start) / repeats)
    return min(seconds)


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _driver() -> str | None:
    """NVIDIA's driver version, where there is one."""
    file = pathlib.Path("/proc/driver/nvidia/version")
    return file.read_text().splitlines()[0] if file.exists() else None
