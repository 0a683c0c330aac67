"""Memory of a search: planned before it begins, within a budget, and reported in one line.

The budget is the number of bytes on one device for everything the search puts there. CPU devices
use the host's memory, so there the host's buffers count, too, and the automatic budget is divided
among the devices of a process and the processes of a host. Every process must plan the same shapes,
so an automatic budget is the smallest value that any process finds.

How the budget is spent: passages stay on the devices if they take at most `RESIDENT` of it;
otherwise they are streamed, and the budget goes first to queries and their running lists (split
into passes over the corpus if they take more than half), then to tiles, then to scores. Tiles and
blocks beyond a platform's `tile_rows` and `tile_scores` bring no gain, so a search uses at most
those, however large the budget is.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import re
import socket
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.search.index import grouped, steps

READ_ROWS = 65_536  # rows read from the passages at a time
LEAST_TILE = 8
TILE_BYTES = 1 << 31  # of a tile on one device, at most; the host builds it whole
RESIDENT = 0.9  # of the budget may be passages; the rest is for scores and lists
DEVICE_SHARE = 0.92  # of a device's free memory, if no budget is given
HOST_SHARE = 0.5  # of the host's free memory, likewise
TILES_HELD = 2  # on a device while streaming: the one in use and the next
BLOCKS_IN_FLIGHT = 2
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one search, and the bytes that follow from them; per device except `host_bytes`.

    Attributes:
        shape: (N, D) of the passages.
        dtype: of the passages in memory.
        shards: devices they are split over.
        streams: whether they are streamed tile by tile; else they are resident.
        tile: rows of a tile on one device.
        tiles: steps until every device has seen all of its rows.
        queries: Q.
        pass_queries: queries searched in one pass over the passages.
        query_block: queries scored at a time, padding included.
        budget: bytes allowed.
        passages_bytes: resident passages.
        tile_bytes: tiles held while passages are streamed.
        query_bytes, list_bytes: queries and running lists.
        score_bytes: scores and the buffers for selecting from them.
        host_bytes: buffers between disk and one device, its share of results and of saved lists.
        shared: whether `host_bytes` use the same memory (on a CPU).
    """

    shape: tuple[int, int]
    dtype: str
    shards: int
    streams: bool
    tile: int
    tiles: int
    queries: int
    pass_queries: int
    query_block: int
    budget: int
    passages_bytes: int
    tile_bytes: int
    query_bytes: int
    list_bytes: int
    score_bytes: int
    host_bytes: int
    shared: bool

    @property
    def passes(self) -> int:
        """The number of passes over the passages."""
        return max(1, math.ceil(self.queries / self.pass_queries)) if self.streams else 1

    @property
    def query_blocks(self) -> int:
        """Blocks of queries in one pass."""
        return math.ceil(min(self.queries, self.pass_queries) / self.query_block)

    @property
    def total(self) -> int:
        """Bytes taken from the budget."""
        on_device = self.passages_bytes + self.tile_bytes + self.query_bytes
        on_device += self.list_bytes + self.score_bytes
        return on_device + (self.host_bytes if self.shared else 0)

    def describe(self) -> str:
        """One line: what happens, and how many bytes it takes."""
        n, width = self.shape
        verb = "stream through" if self.streams else "stay on"
        devices = "1 device" if self.shards == 1 else f"{self.shards} devices"
        parts = {
            "passages": self.passages_bytes,
            "tiles": self.tile_bytes,
            "scores": self.score_bytes,
            "queries": self.query_bytes,
            "lists": self.list_bytes,
        }
        held = ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
        host = f"; host {size(self.host_bytes)}" + (" of it" if self.shared else "")
        passes = f", {self.passes} passes" if self.passes > 1 else ""
        return (
            f"search memory: {n:,} x {width} {self.dtype} {verb} {devices} in {self.tiles} "
            f"tile{'s' * (self.tiles > 1)} of {self.tile:,} rows, {self.query_blocks} "
            f"block{'s' * (self.query_blocks != 1)} of {self.query_block} queries{passes}; "
            f"{size(self.total)} of {size(self.budget)} per device ({held}{host})"
        )


def estimate(
    shape: tuple[int, int],
    dtype,
    queries: int,
    k: int,
    shards: int,
    memory_bytes: int,
    *,
    platform: str = "cpu",
    multiply=None,
    streams: bool | None = None,
    tile: int | None = None,
    query_block: int | None = None,
    pass_queries: int | None = None,
    chunk_rows: int = 1,
) -> Plan:
    """The memory of a search, planned before anything is read.

    Args:
        shape: (N, D) of the passages.
        dtype: theirs.
        queries: Q.
        k: hits per query.
        shards: devices the passages are split over.
        memory_bytes: the budget of one device.
        platform: 'cpu', 'gpu' or 'tpu'.
        multiply: dtype of the queries in the product (`steps.query_dtype`); default: the one that
            costs more.
        streams: None decides by the budget.
        tile, query_block, pass_queries: given sizes, not chosen here.
        chunk_rows: least number of rows that the passages' store reads.

    Raises:
        InputError: the budget is too small even for the smallest sizes; names what is needed.
    """
    if tile is not None and tile < 1:
        raise InputError(f"search: tile={tile}; give at least 1 row")
    if multiply is None:
        multiply = steps.FLOAT32 if platform == "cpu" else steps.stored_dtype(dtype)

    def sized(streams: bool, tile: int, per_pass: int, block: int) -> Plan:
        return _plan(
            shape, dtype, queries, k, shards, memory_bytes, platform, np.dtype(multiply), streams,
            tile, block, per_pass, chunk_rows,
        )  # fmt: skip

    everything = _round_up(max(1, queries), steps.PIECES)
    least = None
    for stream in (False, True) if streams is None else (streams,):
        passes = [pass_queries] if pass_queries else _halved(everything, steps.PIECES)
        for per_pass in passes if stream else [everything]:
            for most in [1] if tile else _halved(tile_rows(shape, dtype, platform), LEAST_TILE):
                rows = tile or even_tile(shape[0], shards, most)
                plan = sized(stream, rows, per_pass, query_block or steps.PIECES)
                if least is None or plan.total < least:
                    least = plan.total
                last = tile is not None or most == LEAST_TILE, per_pass == passes[-1]
                if _fits(plan, *last, decided=streams is not None):
                    of_block = functools.partial(sized, stream, rows, per_pass)
                    scores = platforms.limits(platform).tile_scores
                    return of_block(
                        query_block or _largest_block(of_block, scores // rows, per_pass)
                    )
    raise InputError(
        f"search.memory_gib: {memory_bytes:,} bytes per device are too few for {shape[0]:,} "
        f"passages of width {shape[1]} with k={k}; give at least {least:,} bytes ({size(least)})"
    )


def _fits(plan: Plan, smallest_tile: bool, smallest_pass: bool, decided: bool) -> bool:
    """Whether a plan with the smallest block fits the budget and leaves a fair share for the rest.

    Queries and lists may take half, tiles half of the remainder, unless no smaller size exists.
    """
    if plan.total > plan.budget:
        return False
    if not plan.streams:
        return decided or plan.passages_bytes <= RESIDENT * plan.budget
    beside = plan.query_bytes + plan.list_bytes
    tiles = plan.total - beside - plan.score_bytes
    fair_pass = smallest_pass or beside <= plan.budget / 2
    return fair_pass and (smallest_tile or tiles <= (plan.budget - beside) / 2)


def _largest_block(sized, most: int, per_pass: int) -> int:
    """Queries per block: at most this many, as the budget allows, evenly divided over blocks."""
    most = max(steps.PIECES, most // steps.PIECES * steps.PIECES)
    sizes = _halved(min(most, per_pass), steps.PIECES)
    most = next((b for b in sizes if sized(b).total <= sized(b).budget), steps.PIECES)
    blocks = max(1, math.ceil(per_pass / most))
    return _round_up(max(1, math.ceil(per_pass / blocks)), steps.PIECES)


def _halved(largest: int, multiple: int) -> list[int]:
    """`largest`, half of it and so on down to `multiple`, all multiples of `multiple`."""
    out = [_round_up(largest, multiple)]
    while out[-1] > multiple:
        out.append(_round_up(math.ceil(out[-1] / 2), multiple))
    return out


def tile_rows(shape: tuple[int, int], dtype, platform: str) -> int:
    """Rows of the largest tile of passages of this shape on one device of a platform."""
    rows, row = platforms.limits(platform).tile_rows, shape[1] * steps.stored_dtype(dtype).itemsize
    while rows * row > TILE_BYTES and rows > platforms.limits("cpu").tile_rows:
        rows //= 2
    return rows


def even_tile(n: int, shards: int, most: int) -> int:
    """Rows of a tile: evenly split for little padding, and a multiple of the group size."""
    per_shard = math.ceil(n / shards)
    tile = math.ceil(per_shard / math.ceil(per_shard / most))
    return _round_up(tile, grouped.LANES if tile >= 4096 else LEAST_TILE)


def resident_bytes(shape: tuple[int, int], dtype, shards: int, tile: int) -> int:
    """Bytes of passages on each device if they stay there, padding included."""
    n, width = shape
    rows = _round_up(math.ceil(n / shards), tile)
    return rows * width * steps.stored_dtype(dtype).itemsize


def budget_bytes(mesh: Mesh, memory_bytes: int | None) -> int:
    """The budget of one device: as given, or a share of the free memory of the fullest device.

    Args:
        mesh: where the search runs.
        memory_bytes: None or 0 for automatic.

    Raises:
        InputError: a negative number.
    """
    if memory_bytes:
        if memory_bytes < 0:
            raise InputError(f"search.memory_gib: {memory_bytes} bytes; give 0 or more")
        return int(memory_bytes)
    devices = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = [d.memory_stats() or {} for d in devices]
    if stats and all("bytes_limit" in s for s in stats):
        free = min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats)
        return _least_of_all(int(DEVICE_SHARE * free))
    return _least_of_all(int(HOST_SHARE * host_free_bytes() / max(1, len(devices))), shared=True)


def host_free_bytes() -> int:
    """Memory available on this host, as the kernel reports it, within the cgroup."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        free = int(found[1]) * 1024 if found else 4 * GIB
    except OSError:
        free = 4 * GIB  # no /proc: assume a small machine
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass
    return free


def size(count: float) -> str:
    """Bytes in a suitable unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _least_of_all(own: int, shared: bool = False) -> int:
    """The smallest value of all processes; `shared`: divided among those of one host."""
    if jax.process_count() == 1:
        return own
    from jax.experimental import multihost_utils

    host = int.from_bytes(hashlib.sha256(socket.gethostname().encode()).digest()[:3], "little")
    mine = np.array([own >> 20, host], np.int32)  # MiB: int64 would be cut to int32 on the way
    mib, hosts = multihost_utils.process_allgather(mine).reshape(-1, 2).T
    sharers = [np.sum(hosts == h) if shared else 1 for h in hosts]
    return int(min(m // s for m, s in zip(mib, sharers, strict=True))) << 20


def _plan(
    shape,
    dtype,
    queries,
    k,
    shards,
    budget,
    platform,
    multiply,
    streams,
    tile,
    block,
    per_pass,
    chunk,
):
    """The plan with bytes for given sizes."""
    n, width = shape
    stored = steps.stored_dtype(dtype)
    row = width * stored.itemsize
    # A tile whose dtype differs from that of the product is widened within the step.
    in_step = tile * width * multiply.itemsize if multiply != stored else 0
    in_flight = 1 if platform == "cpu" else BLOCKS_IN_FLIGHT  # passing scratch on serialises them
    chunk_bytes = chunk * row if chunk > 1 else 0
    load = tile * row + min(READ_ROWS, tile) * row + 2 * chunk_bytes
    lists = 8 * k * (per_pass if streams else BLOCKS_IN_FLIGHT * block)
    return Plan(
        shape=(int(n), int(width)),
        dtype=stored.name,
        shards=shards,
        streams=streams,
        tile=tile,
        tiles=math.ceil(n / (tile * shards)),
        queries=queries,
        pass_queries=per_pass,
        query_block=block,
        budget=int(budget),
        passages_bytes=0 if streams else resident_bytes(shape, dtype, shards, tile),
        tile_bytes=TILES_HELD * tile * row if streams else 0,
        query_bytes=width * multiply.itemsize * (per_pass if streams else BLOCKS_IN_FLIGHT * block),
        # in addition to the kept ones: a block's before and after
        list_bytes=lists + 4 * 8 * k * block,
        score_bytes=in_flight * (_step_bytes(tile, block, k, platform) + in_step),
        host_bytes=load + 8 * k * queries + (8 * k * per_pass if streams else 0),
        shared=platform == "cpu",
    )


def _step_bytes(tile: int, block: int, k: int, platform: str) -> int:
    """What one step needs in addition to its arguments: scores, group maxima, the k best groups."""
    group = grouped.group_size(tile, k, platform)
    members = k + (k * group if group > 1 else tile)
    masked = 4 * min(grouped.MASKED, block * tile) if platform == "cpu" else 0
    row = platforms.limits(platform)
    copies = int(4 * block * (row.score_copies * tile + row.member_copies * members))
    return copies + masked + 4 * 8 * block * k


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
