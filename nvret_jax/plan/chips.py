"""The chips that can be planned for, their data, and meshes of them without one.

TPUs are compiled for by libtpu, GPUs by JAX's CUDA plugin; both come from PyPI and need no
accelerator. The numbers are the manufacturers' own, the smaller reading if there are two.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.sharding import Mesh

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models.flops import PEAKS

# A float32 product at Precision.HIGHEST is six bfloat16 products on a TPU's matrix unit.
FLOAT32_PRODUCTS = 6


@dataclasses.dataclass(frozen=True)
class Chip:
    """The data of one chip.

    Attributes:
        hbm: bytes of memory.
        flops: bfloat16 FLOP/s.
        bandwidth: bytes/s of that memory.
        per_host: chips of one host.
        network: bytes/s to other chips of the slice or host, all links together.
        float32: float32 FLOP/s, never TF32; 0: `flops` over `FLOAT32_PRODUCTS`.
        lanes: of a TPU, single-element operations of its vector units per cycle.
        clock: of a TPU, cycles/s.
        target: of a GPU, the description for its compiler.
    """

    hbm: float
    flops: float
    bandwidth: float
    per_host: int
    network: float
    float32: float = 0.0
    target: str = ""
    lanes: int = 0
    clock: float = 0.0

    @property
    def platform(self) -> str:
        return "gpu" if self.target else "tpu"

    @property
    def flops32(self) -> float:
        return self.float32 or self.flops / FLOAT32_PRODUCTS

    @property
    def vector(self) -> float:
        """Operations on single elements per second: a TPU's lanes, a GPU's CUDA cores."""
        return self.lanes * self.clock or self.flops32 / 2  # whose FLOP/s count two per cycle


def _target(name: str, major: int, cores: int, memory: float, bandwidth: float, l2: int, **more):
    """An XLA `GpuTargetConfigProto` as text, from NVIDIA's data sheets and CUDA's guide."""
    shared, optin, clock = more["shared"], more["optin"], more["clock"]
    return (
        f"gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 "
        f"shared_memory_per_block: 49152 shared_memory_per_core: {shared} "
        f"shared_memory_per_block_optin: {optin} threads_per_core_limit: 2048 "
        f"core_count: {cores} fpus_per_core: {more['fpus']} block_dim_limit_x: 2147483647 "
        f"block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {int(bandwidth)} "
        f"l2_cache_size: {l2} clock_rate_ghz: {clock} device_memory_size: {int(memory)} "
        f"cuda_compute_capability {{ major: {major} }} registers_per_core_limit: 65536 "
        f"registers_per_block_limit: 65536 }} platform_name: 'CUDA' "
        f"dnn_version_info {{ major: 9 minor: 8 }} "
        f"runtime_version {{ major: {more['cuda']} minor: 0 patch: 0 }} "
        f"device_description_str: '{name}'"
    )


_HOPPER = {"shared": 233472, "optin": 232448, "clock": 1.98, "fpus": 128, "cuda": 13}
_AMPERE = {"shared": 167936, "optin": 166912, "clock": 1.41, "fpus": 64, "cuda": 13}

# A core's vector unit: 8 × 128 lanes, each of which starts four operations per cycle. The clock is
# that at which a chip's matrix units make its FLOP/s: four of 128 × 128 per core, of 256 × 256 on
# v6e, two operations per place and cycle.
_LANES = 4 * 8 * 128

# TPUs: Google Cloud's pages of each version, cloud.google.com/tpu/docs/{v5e,v5p,v6e}: "Peak compute
# per chip (bf16)", "HBM capacity", "HBM bandwidth" and "Inter-chip interconnect bandwidth" (1,600,
# 4,800 and 3,584 Gbps). GPUs: NVIDIA's data sheets of the SXM cards, dense bfloat16, NVLink (900
# and 600 GB/s). GB are read as 10^9, the smaller reading.
CHIPS = {
    "v5e": Chip(16e9, PEAKS["v5e"], 819e9, 8, 200e9, lanes=_LANES, clock=1.5e9),
    "v5p": Chip(95e9, PEAKS["v5p"], 2765e9, 4, 600e9, lanes=2 * _LANES, clock=1.75e9),
    "v6e": Chip(32e9, PEAKS["v6e"], 1638e9, 8, 448e9, lanes=_LANES, clock=1.75e9),
    "a100": Chip(
        80e9, PEAKS["a100"], 2039e9, 8, 600e9, 19.5e12,
        _target("NVIDIA A100-SXM4-80GB", 8, 108, 80e9, 2039e9, 41943040, **_AMPERE),
    ),
    "h100": Chip(
        80e9, PEAKS["h100"], 3350e9, 8, 900e9, 67e12,
        _target("NVIDIA H100 80GB HBM3", 9, 132, 80e9, 3350e9, 52428800, **_HOPPER),
    ),
    "h200": Chip(
        141e9, PEAKS["h200"], 4800e9, 8, 900e9, 67e12,
        _target("NVIDIA H200", 9, 132, 141e9, 4800e9, 52428800, **_HOPPER),
    ),
}  # fmt: skip


def parse(topology: str) -> tuple[str, tuple[int, ...]]:
    """('v5p', (4, 4, 4)) of 'v5p:4x4x4', ('h100', (8,)) of 'h100:8'.

    Raises:
        InputError: an unknown chip, naming the known ones, or a missing layout.
    """
    version, _, layout = topology.partition(":")
    if version not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", layout):
        raise InputError(
            f"topology {topology!r}; expected one of {', '.join(CHIPS)} and a layout, such as "
            "v5e:4x4, v5p:4x4x4, v6e:8x8 or h100:8"
        )
    sizes = tuple(int(size) for size in layout.split("x"))
    if CHIPS[version].platform == "gpu":
        per_host = CHIPS[version].per_host
        if len(sizes) != 1 or (sizes[0] > per_host and sizes[0] % per_host):
            raise InputError(
                f"topology {topology!r}; for GPUs give their number, up to {per_host} or a "
                f"multiple of that, such as {version}:8"
            )
    return version, sizes


def devices_of(topology: str) -> list[jax.Device]:
    """The chips of a topology, to compile for; nothing can run on them.

    Raises:
        InputError: an unknown topology, or a missing compiler for it.
    """
    version, sizes = parse(topology)
    chip = CHIPS[version]
    if chip.platform == "gpu":
        return _gpus(topology, chip, sizes[0])
    return _tpus(topology)


def _tpus(topology: str) -> list[jax.Device]:
    from jax.experimental import topologies

    # libtpu searches for a TPU machine's metadata and takes a lock meant for TPUs in use.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # It also prints on stderr that it finds no TPU, and errors that JAX receives anyway.
    version, sizes = parse(topology)
    kind = {"v5e": "v5litepod"}.get(version, version)
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{kind}-{math.prod(sizes)}")
    for name in ("TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"):
        os.environ.setdefault(name, "3")
    if not _there("libtpu"):
        raise InputError(
            f"compiling for {topology} needs libtpu, not a TPU: pip install libtpu (in a separate "
            f"environment: elsewhere it makes JAX try a TPU first)"
        )
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"topology {topology!r}: libtpu does not know it ({reason})") from None


def _gpus(topology: str, chip: Chip, count: int) -> list[jax.Device]:
    from jax.experimental import topologies

    plugins = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
    if not any(_there(name) for name in plugins):
        raise InputError(
            f"compiling for {topology} needs JAX's CUDA plugin, not a GPU: pip install "
            "'jax[cuda13]'"
        )
    hosts = max(1, count // chip.per_host)
    layout = f"1x{hosts}x{count // hosts}"
    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=chip.target, topology=layout
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"topology {topology!r}: the CUDA plugin refuses it ({reason})") from None
    return found.devices


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def topology_mesh(
    topology: str, data: int = -1, fsdp: int = 1, tensor: int = 1
) -> tuple[Mesh, Chip]:
    """A mesh over all chips of a topology such as 'v5e:4x4', and the data of such a chip.

    Args:
        topology: see `parse`.
        data, fsdp, tensor: sizes of the mesh's axes.

    Raises:
        InputError: as `devices_of`; or the axes do not fit the topology.
    """
    devices = devices_of(topology)
    version, sizes = parse(topology)
    try:
        return mesh_lib.make_mesh(data, fsdp, tensor, devices=devices), CHIPS[version]
    except InputError as error:
        if not isinstance(error.__cause__, NotImplementedError):
            raise
        physical = " × ".join(map(str, sizes))
        raise InputError(
            f"mesh: data={data}, fsdp={fsdp}, tensor={tensor} does not fit {topology}: each axis "
            f"must be a product of some of its sides, {physical}"
        ) from None
