"""The environment of a process that runs on several virtual CPU devices."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

# Compiles in a third of the time.
QUICK_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# XLA aborts at a flag that it does not know. This one left after jaxlib 0.10; libtpu, which reads
# the same variable, has never had it.
KNOWN = importlib.metadata.version("jaxlib").startswith("0.10.")
if KNOWN and importlib.util.find_spec("libtpu") is None:
    QUICK_COMPILE += " --xla_cpu_use_fusion_emitters=false"


def environment(devices: int, **more: str) -> dict[str, str]:
    """`os.environ` with that many CPU devices, and threads enough for their collectives.

    `nvret_jax.mesh.spare_threads` says why; a test may start its devices before it is called.
    """
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", QUICK_COMPILE),
    }
    if devices > 1:
        settings["NPROC"] = str(8 * devices)
    return {**os.environ, **settings, **more}
