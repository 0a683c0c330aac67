"""Know before you rent: compiles the real step for a TPU topology nobody owns, and adds it up.

    pip install libtpu
    python -m nvret_jax.plan --topology=v5e:4x4 --passages=100000000 --width=1024 \\
        --dtype=bfloat16 --queries=4096 --k=100

libtpu compiles without a TPU. What comes out is the program a chip would run; its memory is XLA's
own account. Time is a roofline: the larger of FLOPs over the peak of the matrix units and bytes
over the bandwidth of the memory, a bound from below that leaves out sorting, gathers and the
network. FLOPs and bytes are counted here, because XLA counts the body of a loop once whatever its
length; where a step has no loop, its count stands beside ours.

A step that can be planned is one function that returns a `Step`; `report` prints any of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.search import checks, memory, steps

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip has: bytes of HBM, bfloat16 FLOP/s, HBM bytes/s, chips of one host."""

    hbm: float
    flops: float
    bandwidth: float
    per_host: int


# Google Cloud's pages of each version, cloud.google.com/tpu/docs/{v5e,v5p,v6e}: "Peak compute per
# chip (bf16)", "HBM capacity" and "HBM bandwidth". GB are read as 10^9, the smaller reading.
CHIPS = {
    "v5e": Chip(16e9, 197e12, 819e9, 8),
    "v5p": Chip(95e9, 459e12, 2765e9, 4),
    "v6e": Chip(32e9, 918e12, 1638e9, 8),
}
# A float32 product at Precision.HIGHEST is six bfloat16 products on a TPU's matrix unit.
FLOAT32_PRODUCTS = 6


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step and what one chip does with it.

    Attributes:
        name: what it is.
        compiled: XLA's program.
        calls: how often it runs in the job that is planned.
        flops: of one call on one chip, in products of the inputs' dtype.
        products: bfloat16 products that one of those takes.
        hbm_bytes: moved between memory and the chip in one call.
        held: bytes that lie on the chip beside this program's arguments, by name.
        looped: whether the program has loops, so that XLA's counts are no check.
        notes: lines to print first.
    """

    name: str
    compiled: jax.stages.Compiled
    calls: int
    flops: float
    products: int
    hbm_bytes: float
    held: dict[str, int]
    looped: bool
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes on a chip while the step runs."""
        stats = self.compiled.memory_analysis()
        own = getattr(stats, "peak_memory_in_bytes", 0) or (
            stats.argument_size_in_bytes
            + stats.output_size_in_bytes
            + stats.temp_size_in_bytes
            - stats.alias_size_in_bytes
        )
        return int(own + sum(self.held.values()))

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Roofline times of all calls."""
        return {
            "FLOPs": self.calls * self.flops * self.products / chip.flops,
            "HBM": self.calls * self.hbm_bytes / chip.bandwidth,
        }

    def xla_counts(self) -> tuple[float, float]:
        """(FLOPs, HBM bytes) of one call as XLA counts them."""
        cost = self.compiled.cost_analysis()
        return float(cost.get("flops", 0)), float(cost.get("bytes accessed", 0))


def search_step(
    mesh: Mesh, shape: tuple[int, int], dtype, queries: int, k: int, memory_bytes: int
) -> Step:
    """The step of an exact search with a ceiling per query: `steps.fold`, as both indexes call it.

    Args:
        mesh: of the topology's devices.
        shape: (N, D) of the passages.
        dtype: theirs.
        queries: Q.
        k: hits per query.
        memory_bytes: what the search may hold on a chip.

    Raises:
        InputError: sizes that cannot be, or that do not fit whatever is done.
    """
    n, width = shape
    platform = steps.platform_of(mesh)
    shards = mesh_lib.shards(mesh, "rows")
    plan = memory.estimate(shape, dtype, queries, k, shards, memory_bytes, platform=platform)
    tile, block = plan.tile, plan.query_block
    stored = steps.stored_dtype(dtype)
    whole = mesh_lib.sharding(mesh)
    lists = NamedSharding(mesh, P(steps.ROWS))
    array = jax.ShapeDtypeStruct
    best = tuple(array((shards, block, k), t, sharding=lists) for t in (jnp.float32, jnp.int32))
    tile_nd = array((shards * tile, width), stored, sharding=mesh_lib.sharding(mesh, "rows", None))
    multiply = steps.FLOAT32 if stored == steps.FLOAT32 else steps.BFLOAT16
    queries_qd = array((block, width), multiply, sharding=whole)
    masks = {"ceiling_q": array((block,), jnp.float32, sharding=whole)}
    per_shard = tile if plan.streams else tile * plan.tiles
    # Of the tiles that stream only the last can reach past the end and need a mask for that.
    limit = n if not plan.streams and per_shard * shards > n else None
    with jax.set_mesh(mesh):
        step = steps.fold(mesh, k, per_shard, limit)
        first = array((), jnp.int32, sharding=whole)
        compiled = step.lower(best, None, tile_nd, first, queries_qd, masks).compile()
    tile_bytes = tile * width * stored.itemsize
    notes = (plan.describe(),)
    if plan.streams:
        read = plan.passes * plan.tiles * tile_bytes
        notes += (f"  read from disk, not in the roofline: {read / 1e9:.1f} GB for each chip",)
        held = {
            "the next tile": tile_bytes,
            "queries and lists": plan.query_bytes + plan.list_bytes,
        }
    else:
        held = {"the other passages": plan.passages_bytes - tile_bytes}
    # The scores are written with their group maxima, copied once (read and written) for gathering,
    # and k groups of each query are read.
    group = steps.group_size(tile, k, platform)
    scores = 4 * block * (3 * tile + k * group)
    return Step(
        name=f"search {n:,} x {width} {stored.name}, {queries:,} queries, k = {k}",
        compiled=compiled,
        calls=plan.tiles * plan.query_blocks * plan.passes,
        flops=2.0 * block * tile * width,
        products=1 if multiply == steps.BFLOAT16 else FLOAT32_PRODUCTS,
        hbm_bytes=float(tile_bytes + block * width * multiply.itemsize + scores),
        held=held,
        looped=False,
        notes=notes,
    )


def report(step: Step, chip: Chip, topology: str, chips: int) -> str:
    """What a step takes on each chip, line by line; the last line says whether it fits."""
    stats = step.compiled.memory_analysis()
    seconds = step.seconds(chip)
    binds = max(seconds, key=seconds.get)
    other = min(seconds, key=seconds.get)
    lines = [f"{step.name}, on {topology}: {chips} chips, {-(-chips // chip.per_host)} hosts"]
    lines += step.notes
    rows = [*step.held.items(), ("arguments of the step", stats.argument_size_in_bytes)]
    rows += [("its temporaries", stats.temp_size_in_bytes), ("peak", step.peak)]
    lines += [f"  {name:<24}{count / 1e9:10.3f} GB a chip" for name, count in rows]
    calls = step.calls
    counted = "" if step.looped else "  (XLA counts {:.4g})"
    flops, moved = step.xla_counts()
    lines += [
        f"  {'calls':<24}{calls:10,}",
        f"  {'FLOPs':<24}{calls * step.flops:10.4g} a chip" + counted.format(calls * flops),
        f"  {'HBM bytes':<24}{calls * step.hbm_bytes:10.4g} a chip" + counted.format(calls * moved),
        f"  {'roofline':<24}{seconds[binds]:10.3f} s: {binds} binds; {other} would take "
        f"{seconds[other]:.3f} s, {seconds[other] / seconds[binds]:.0%} of it",
    ]
    if not step.looped:
        slower = max(calls * moved / chip.bandwidth, seconds["FLOPs"])
        lines.append(f"  {'by the bytes XLA counts':<24}{slower:10.3f} s")
    share = step.peak / chip.hbm
    verdict = "fits" if share <= 1 else "DOES NOT FIT"
    lines.append(
        f"{verdict}: {step.peak / 1e9:.2f} of {chip.hbm / 1e9:.0f} GB a chip ({share:.0%})"
    )
    return "\n".join(lines)


def topology_mesh(topology: str) -> tuple[Mesh, Chip]:
    """A mesh over all chips of a topology such as 'v5e:4x4', and what such a chip has.

    Raises:
        InputError: an unknown version or layout, or libtpu is not installed.
    """
    version = topology.split(":")[0]
    if version not in CHIPS or ":" not in topology:
        raise InputError(
            f"--topology={topology}; expected a version out of {', '.join(CHIPS)} and a layout, "
            "such as v5e:4x4"
        )
    # libtpu looks for a TPU machine's metadata and takes a lock meant for TPUs that are in use.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise InputError("compiling for a TPU needs libtpu: pip install libtpu") from None
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--topology={topology}: libtpu does not know it ({reason})") from None
    return mesh_lib.make_mesh(devices=devices), CHIPS[version]


def main(argv: list[str] | None = None) -> int:
    """The command line; 0 if it fits, 1 if not, 2 with one line for a mistake."""
    parser = argparse.ArgumentParser(prog="nvret_jax.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--topology", required=True, help="such as v5e:4x4, v5p:4x4x4, v6e:8x8")
    parser.add_argument("--passages", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument(
        "--memory_gib", type=float, default=0, help="of a chip, for the search; 0: what it has free"
    )
    arguments = parser.parse_args(argv)
    try:
        jax.config.update("jax_platforms", "cpu")  # a TPU of this machine, if any, is left alone
        shape, dtype = (arguments.passages, arguments.width), DTYPES[arguments.dtype]
        checks.check_passages(jax.ShapeDtypeStruct(shape, dtype))
        checks.check_k(arguments.k, arguments.passages)
        if arguments.queries < 1:
            raise InputError(f"--queries={arguments.queries}; give at least 1")
        mesh, chip = topology_mesh(arguments.topology)
        budget = int(arguments.memory_gib * memory.GIB or memory.DEVICE_SHARE * chip.hbm)
        step = search_step(mesh, shape, dtype, arguments.queries, arguments.k, budget)
    except InputError as error:
        print(f"nvret_jax.plan: {error}", file=sys.stderr)
        return 2
    print(report(step, chip, arguments.topology, mesh.size))
    return 0 if step.peak <= chip.hbm else 1


if __name__ == "__main__":
    sys.exit(main())
