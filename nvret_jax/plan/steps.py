"""Compiled steps, and those that embed and search, for chips that are not present.

Each is the function that a run calls, on shapes instead of arrays. A function here returns a
`Step`; `report` prints any of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.models import batched
from nvret_jax.models.batched import block_rows
from nvret_jax.models.buckets import plan_batches
from nvret_jax.plan import flops as flops_lib
from nvret_jax.plan.chips import Chip
from nvret_jax.plan.flops import Flops
from nvret_jax.plan.hlo import Collective, Program
from nvret_jax.plan.models import Sketch, bytes_per_chip, placed
from nvret_jax.search.index import memory
from nvret_jax.search.index import steps as search_steps
from nvret_jax.search.index.grouped import group_size

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a program on one chip, by XLA's own account.

    Attributes:
        arguments, temporaries: of the program.
        peak: while it runs.
        refused: XLA's line, if it refused to compile a program that does not fit.
    """

    arguments: int
    temporaries: int
    peak: int
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step and its cost on one chip.

    Attributes:
        name: a description.
        stage: 'train', 'embed' or 'search'.
        compiled: XLA's program; None if it does not fit.
        memory: of the program.
        calls: its number of runs in the planned job.
        flops: of one call on one chip, recomputation included.
        needed: operations of the model in one call on one chip, without recomputation; 0: no model.
        hbm_bytes: moved between memory and the chip in one call.
        sorting: single-element operations of sorts in one call.
        network: what a chip exchanges with others in one call; None: the program cannot be read.
        held: bytes on the chip in addition to this program's arguments, by name.
        parts: of the arguments, by name.
        looped: whether the program has loops, so that XLA's counts are not comparable.
        items: what a call processes, over all chips, and their name.
        at_once: tokens that a chip encodes at a time; 0: none.
        chosen: settings that already make it smaller: 'remat', 'bfloat16' (products), 'small
            weights', 'lora', 'ring'.
        notes: lines to print first.
    """

    name: str
    stage: str
    compiled: jax.stages.Compiled | None
    memory: Memory
    calls: int
    flops: Flops
    needed: float
    hbm_bytes: float
    network: tuple[Collective, ...] | None
    held: dict[str, int]
    parts: dict[str, int]
    looped: bool
    items: tuple[int, str]
    sorting: float = 0.0
    at_once: int = 0
    chosen: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes on a chip while the step runs."""
        return self.memory.peak + sum(self.held.values())

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Roofline times of all calls."""
        exchanged = sum(c.bytes for c in self.network or ())
        return {
            "FLOPs": self.calls
            * (self.flops.fast / chip.flops + self.flops.float32 / chip.flops32),
            "HBM": self.calls * self.hbm_bytes / chip.bandwidth,
            "sorting": self.calls * self.sorting / chip.vector,
            "network": self.calls * exchanged / chip.network,
        }

    def mfu(self, chip: Chip) -> float:
        """Model FLOPs utilisation at the roofline, an upper bound."""
        return self.calls * self.needed / (chip.flops * max(self.seconds(chip).values()))

    def xla_counts(self) -> tuple[float, float]:
        """(FLOPs, HBM bytes) of one call as counted by XLA; 0 if a compiler does not count."""
        cost = self.compiled.cost_analysis() or {}
        return float(cost.get("flops", 0)), float(cost.get("bytes accessed", 0))


def memory_of(compiled: jax.stages.Compiled) -> Memory:
    """XLA's account of a compiled program."""
    stats = compiled.memory_analysis()
    peak = getattr(stats, "peak_memory_in_bytes", 0) or (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
        - stats.alias_size_in_bytes
    )
    return Memory(stats.argument_size_in_bytes, stats.temp_size_in_bytes, int(peak))


def read_back(compiled: jax.stages.Compiled) -> Program | None:
    """The program as text; None if JAX cannot read the format of a newer compiler."""
    try:
        with _silence():
            return Program(compiled.as_text())
    except jax.errors.JaxRuntimeError:
        return None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps XLA's own output, such as stack traces, off the standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def refused(error: Exception, arguments: int) -> Memory | None:
    """The memory of a program that a compiler refused for its size; None for another error.

    Args:
        error: of `Lowered.compile`.
        arguments: bytes of its arguments on a chip.
    """
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text:
        return None
    sizes = re.findall(r"(\d+(?:\.\d+)?)\s?([KMGT])\b", text)
    wanted = int(float(sizes[0][0]) * _UNITS[sizes[0][1]]) if sizes else 0
    line = text.split(" See ")[0][:300]
    if "temporaries" in text:
        return Memory(arguments, wanted, arguments + wanted, line)
    peak = max(wanted, arguments)
    return Memory(arguments, peak - arguments, peak, line)


def compile_step(function: Callable[..., Any], arguments: tuple, mesh: Mesh, **step: Any) -> Step:
    """Traces, compiles and adds up the cost.

    Args:
        function: jitted.
        arguments: shapes with shardings.
        mesh: of the topology.
        **step: fields of a `Step` that do not come from the program.
    """
    chips = mesh.size
    with jax.set_mesh(mesh):
        traced = function.trace(*arguments)
        done = flops_lib.done(traced.jaxpr, chips) * (1 / chips)
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            found = refused(error, bytes_per_chip(arguments))
            if found is None:
                raise
            empty = {"compiled": None, "memory": found, "hbm_bytes": 0.0, "network": ()}
            return Step(flops=done, looped=True, **empty, **step)
    program = read_back(compiled)
    notes = step.pop("notes", ())
    if done.kernels:
        notes += ("  FLOPs inside attention's kernel are counted only for the model",)
    if program is None:
        moved, sure = float((compiled.cost_analysis() or {}).get("bytes accessed", 0)), True
        notes += ("  the HBM bytes are XLA's, which count a loop's body once",)
    else:
        moved, sure = program.hbm_bytes()
    if not sure or done.loops:
        notes += ("  has loops of unknown length, which are counted once",)
    return Step(
        compiled=compiled,
        memory=memory_of(compiled),
        flops=done,
        hbm_bytes=moved,
        sorting=0.0 if program is None else program.sorting(),
        network=None if program is None else tuple(program.collectives(chips)),
        looped=program is None or program.loops,
        notes=notes,
        **step,
    )


def chosen(model: Sketch) -> frozenset[str]:
    """The config's settings that make a step smaller: see `Step.chosen`."""
    found = {
        "remat": model.options.remat != "none",
        "bfloat16": model.spec.dtype == "bfloat16",
        "small weights": model.spec.param_dtype != "float32",
        "lora": model.lora is not None,
    }
    return frozenset(name for name, holds in found.items() if holds)


# --- embed ---------------------------------------------------------------------------------------


def embed_step(
    model: Sketch, mesh: Mesh, passages: int, *, token_budget: int = 0, who: str = "teacher"
) -> Step:
    """A step that embeds passages of full length: `models.batched.apply`.

    Args:
        model: the encoder.
        mesh: of the topology.
        passages: their number; all are assumed to have full length.
        token_budget: `config.embed.token_budget`.
        who: the encoder's role in the run.
    """
    tokens = model.lengths["passage"]
    budget = token_budget or platforms.step_tokens(platforms.of(mesh), model.spec.dtype)
    shards = mesh_lib.shards(mesh, "batch")
    block = min(passages, block_rows(budget * shards, tokens))
    few = passages > block
    how = (tokens, budget * shards, shards, few, platforms.of(mesh))
    sizes = _step_rows(block, *how) * (passages // block)
    sizes += _step_rows(passages % block, *how)
    rows = max(sizes)
    unpooled = None
    if model.spec.prompt_in_pooling != "all":
        unpooled = jax.ShapeDtypeStruct((), jnp.int32)
    whole = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    arguments = (
        model.graphdef,
        model.state,
        placed(whole, mesh, "batch", None),
        placed(jax.ShapeDtypeStruct((rows,), jnp.int32), mesh, "batch"),
        unpooled,
    )
    return compile_step(
        batched.apply,
        arguments,
        mesh,
        name=f"embed ({who}): {model.describe()}",
        stage="embed",
        calls=-(-sum(sizes) // rows),
        needed=model.shape.forward(rows, tokens) / mesh.size,
        held={},
        parts={"weights": bytes_per_chip(model.state), "batch": 4 * rows * tokens // shards},
        items=(rows, "passages"),
        at_once=tokens * rows // shards,
        chosen=chosen(model),
        notes=(
            f"  {passages:,} passages of {tokens} tokens, {rows:,} per step, sorted in blocks of "
            f"{block:,}",
        ),
    )


def _step_rows(
    passages: int, tokens: int, token_budget: int, shards: int, few: bool, platform: str
) -> list[int]:
    """Rows of each step for a block of passages of one length, as `Encoder` plans them."""
    plan = plan_batches(
        np.full(passages, tokens),
        max_length=tokens,
        token_budget=token_budget,
        multiple_of=shards,
        few_sizes=few,
        platform=platform,
    )
    return [len(rows) for rows, _ in plan]


# --- search --------------------------------------------------------------------------------------


def search_step(
    mesh: Mesh, shape: tuple[int, int], dtype, queries: int, k: int, memory_bytes: int
) -> Step:
    """The step of an exact search with a ceiling per query: `search.index.steps.fold`.

    Its bytes are read from the program: XLA's own count includes every operand of every operation,
        even those that stay in on-chip memory.

    Args:
        mesh: of the topology's devices.
        shape: (N, D) of the passages.
        dtype: theirs.
        queries: Q.
        k: hits per query.
        memory_bytes: what the search may hold on a chip.

    Raises:
        InputError: invalid sizes, or sizes that cannot fit.
    """
    n, width = shape
    platform = platforms.of(mesh)
    shards = mesh_lib.shards(mesh, "rows")
    plan = memory.estimate(shape, dtype, queries, k, shards, memory_bytes, platform=platform)
    tile, block = plan.tile, plan.query_block
    stored = search_steps.stored_dtype(dtype)
    whole = mesh_lib.sharding(mesh)
    lists = NamedSharding(mesh, P(search_steps.ROWS))
    array = jax.ShapeDtypeStruct
    best = tuple(array((shards, block, k), t, sharding=lists) for t in (jnp.float32, jnp.int32))
    tile_nd = array((shards * tile, width), stored, sharding=mesh_lib.sharding(mesh, "rows", None))
    multiply = search_steps.FLOAT32 if stored == search_steps.FLOAT32 else search_steps.BFLOAT16
    queries_qd = array((block, width), multiply, sharding=whole)
    masks = {"ceiling_q": array((block,), jnp.float32, sharding=whole)}
    per_shard = tile if plan.streams else tile * plan.tiles
    # Of the streamed tiles, only the last can reach past the end and needs a mask.
    limit = n if not plan.streams and per_shard * shards > n else None
    with jax.set_mesh(mesh):
        step = search_steps.fold(mesh, k, per_shard, limit)
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
    if program := read_back(compiled):
        moved, _ = program.hbm_bytes()
    else:
        # The scores are written with their group maxima, and k groups of each query are read.
        scores = 4 * block * (tile + k * group_size(tile, k, platform))
        moved = float(tile_bytes + block * width * multiply.itemsize + scores)
        notes += ("  HBM bytes are estimated and sorts left out: JAX cannot read the program",)
    products = 2.0 * block * tile * width
    is_fast = multiply == search_steps.BFLOAT16
    return Step(
        name=f"search {n:,} x {width} {stored.name}, {queries:,} queries, k = {k}",
        stage="search",
        compiled=compiled,
        memory=memory_of(compiled),
        calls=plan.tiles * plan.query_blocks * plan.passes,
        flops=Flops(products, 0.0) if is_fast else Flops(0.0, products),
        needed=0.0,
        hbm_bytes=moved,
        sorting=0.0 if program is None else program.sorting(),
        network=(),  # each chip keeps separate lists; they are merged once, at the end
        held=held,
        parts={"a tile of passages": tile_bytes},
        looped=False,
        items=(block, "queries of a tile"),
        notes=notes,
    )


DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
