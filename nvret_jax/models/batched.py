"""Encodes texts with one compiled step, in batches of similar lengths: one loop for all encoders.

Texts are sorted by length in blocks, whose size grows with the devices. Results are fetched one
step late, so that devices never wait for the host. Meanwhile, a thread prepares the next block: it
tokenises the texts and plans their batches. With several processes, each tokenises its share, and
they exchange the tokens in the middle of a block's steps, so that the next block is ready in time.
The shapes of a block are compiled side by side, and a step waits only for its own.

The caller decides what a text is (a query, a passage, a pair of both) and what the result is (a
vector, one per token, a score): for this module, tokens are the input and arrays the output.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.models.buckets import Batch, pad_batch, plan_batches
from nvret_jax.processes import progress as progress_lib

# The least number of texts tokenised, sorted by length and encoded at a time: enough that sorting
# leaves little padding, few enough that the host never holds the tokens of a whole corpus. A kill
# loses the encoded part of a block, so the small steps of a CPU have smaller blocks: 4,096 texts
# lose 0.5 to 5 % to padding there. On many devices a block holds this many of their steps.
SMALL_BLOCK, BLOCK = 4096, 16384
SMALL_BLOCK_STEPS, BLOCK_STEPS = 64, 8
COMPILERS = 8  # shapes compiled at a time, at most; each may take a gigabyte meanwhile

Tokens = list[np.ndarray]


def block_rows(token_budget: int, max_length: int) -> int:
    """The number of texts sorted by length at a time.

    Args:
        token_budget: of a step on all devices.
        max_length: tokens of the longest text.
    """
    step = token_budget // max_length
    return max(SMALL_BLOCK, min(BLOCK, SMALL_BLOCK_STEPS * step), BLOCK_STEPS * step)


@dataclasses.dataclass
class Block:
    """Texts that are sorted by length together.

    Attributes:
        start: the first one's row.
        tokens: for each text, those that get a vector.
        seen: for each, how many of them are attended to.
        unpooled: int [texts], how many at the beginning are not pooled; None: all are pooled.
        left: texts without embeddings so far.
        plan: (rows, length) of each batch, from `plan_batches`.
    """

    start: int
    tokens: Tokens
    seen: Sequence[int]
    unpooled: np.ndarray | None
    left: int
    plan: list[tuple[np.ndarray, int]]


# One compiled step per (kind of model, shape of batch, mesh), shared by all models of the process:
# the weights are an argument, so that other weights compile nothing.
@functools.partial(jax.jit, static_argnums=0)
def apply(
    graphdef: Any,
    state: Any,
    tokens_bt: jax.Array,
    lengths_b: jax.Array,
    unpooled_b: jax.Array | None = None,
) -> jax.Array:
    """What a model makes of one batch, whole on every device; call it under `jax.set_mesh`.

    Args:
        graphdef, state: of a module that is called with the rest, and with `unpooled` if it is not
            None.
        tokens_bt: int32 [B, T], sharded over "batch".
        lengths_b: int32 [B], real tokens of each.
        unpooled_b: int32 [B], tokens at the beginning that are not pooled; None: all are.
    """
    more = {} if unpooled_b is None else {"unpooled": unpooled_b}
    out = nnx.merge(graphdef, state)(tokens_bt, lengths_b, **more)
    return jax.reshard(out, P(*(None,) * out.ndim))  # replicated, so that every process can read it


def plain(tokens: Tokens) -> tuple[Tokens, Sequence[int], np.ndarray | None]:
    """`Batched.prepare` where every token is seen and pooled."""
    return tokens, [len(ids) for ids in tokens], None


@dataclasses.dataclass(frozen=True)
class Batched:
    """How texts become what a model makes of them.

    Attributes:
        mesh: where it is computed.
        model: (graphdef, state) as of `apply`.
        tokenize: texts -> tokens of each.
        max_length: tokens of the longest text.
        pad_id: fills what no text covers.
        prepare: tokens -> (tokens that get a vector, how many are seen, how many are not pooled).
        token_budget: tokens (padding included) of a step per device the batch is split over; None:
            by platform and `dtype`.
        dtype: of the products.
        few_sizes: of `plan_batches`; more than one block has few sizes anyway.
        noun: of the results, for messages: 'the embedding of text'.
        folder: the model's, likewise.
    """

    mesh: Mesh
    model: tuple[Any, Any]
    tokenize: Callable[[Sequence[Any]], Tokens]
    max_length: int
    pad_id: int
    prepare: Callable[[Tokens], tuple[Tokens, Sequence[int], np.ndarray | None]] = plain
    token_budget: int | None = None
    dtype: str = "float32"
    few_sizes: bool = True
    noun: str = "the embedding of text"
    folder: epath.PathLike = ""

    @property
    def shards(self) -> int:
        """Devices that a batch is split over; the rows of a step are a multiple of it."""
        return mesh_lib.shards(self.mesh, "batch")

    @property
    def step_tokens(self) -> int:
        """Tokens of a step on all devices."""
        budget = self.token_budget
        if budget is None:
            budget = platforms.step_tokens(platforms.of(self.mesh), self.dtype)
        return budget * self.shards

    def run(
        self,
        texts: Sequence[Any],
        wanted: np.ndarray | None = None,
        *,
        bar: tuple[str, str] | None = None,
    ) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
        """Yields (block, rows in it, what the model makes of them) step by step; all are finite.

        All processes must call it, and take what it yields at the same pace.

        Args:
            texts: the same on every process.
            wanted: bool [len(texts)]; a block without a wanted text is left out. None: all are.
            bar: (what is done, the unit) of a progress bar on the main process; None: no bar.

        Raises:
            InputError: a result is not finite; names the first such text.
        """
        progress = progress_lib.bar(
            total=len(texts),
            desc=bar[0] if bar else "",
            unit=bar[1] if bar else "",
            show=bar is not None and mesh_lib.is_main(),
        )
        bad: list[int] = []  # rows of the present block that are not finite
        with progress:
            for block, rows, out in self._steps(texts, wanted):
                progress.update(len(rows))
                finite = np.isfinite(out).reshape(len(rows), -1).all(axis=1)
                bad += (block.start + rows[~finite]).tolist()
                if bad and not block.left:
                    raise InputError(
                        f"{self.noun} {min(bad)} is not finite ({len(bad)} such in this block of "
                        f"{len(block.tokens)}); the weights in {self.folder} are damaged, or dtype "
                        "overflows: try dtype='float32'"
                    )
                if not bad:
                    yield block, rows, out

    def _steps(
        self, texts: Sequence[Any], wanted: np.ndarray | None
    ) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
        size = block_rows(self.step_tokens, self.max_length)
        starts = [
            start
            for start in range(0, len(texts), size)
            if wanted is None or wanted[start : start + size].any()
        ]
        few_sizes = self.few_sizes or len(texts) > size
        shapes: dict[tuple[int, int], concurrent.futures.Future[None]] = {}
        waiting: collections.deque[tuple[Block, np.ndarray, jax.Array]] = collections.deque()

        def count(number: int) -> int:
            return min(size, len(texts) - starts[number])

        def own_share(number: int) -> Tokens:
            first, last = _share(count(number))
            own = texts[starts[number] + first : starts[number] + last]
            return self.tokenize(own) if len(own) else []

        def prepared(number: int, tokens: Tokens) -> Block:
            tokens, seen, unpooled = self.prepare(tokens)
            plan = plan_batches(
                [len(ids) for ids in tokens],
                max_length=self.max_length,
                token_budget=self.step_tokens,
                multiple_of=self.shards,
                few_sizes=few_sizes,
                platform=platforms.of(self.mesh),
            )
            return Block(starts[number], tokens, seen, unpooled, len(tokens), plan)

        def fetched() -> tuple[Block, np.ndarray, np.ndarray]:
            block, rows, array = waiting.popleft()
            real = rows >= 0
            block.left -= int(real.sum())
            return block, rows[real], np.asarray(array.addressable_data(0))[real]

        with concurrent.futures.ThreadPoolExecutor(1) as thread, _compiler() as compiler:
            # (its own share of the tokens, the block) of the next block
            tokenised = [thread.submit(own_share, number) for number in range(len(starts[:1]))]
            coming: list[concurrent.futures.Future[Block]] = []

            def exchange(number: int) -> None:
                # In the main thread, at the same point in all processes, because this synchronises
                # them.
                tokens = _exchanged(tokenised.pop().result(), count(number))
                coming.append(thread.submit(prepared, number, tokens))
                if number + 1 < len(starts):
                    tokenised.append(thread.submit(own_share, number + 1))

            for number in range(len(starts)):
                if not coming:
                    exchange(number)
                block = coming.pop().result()
                new = {(len(rows), length) for rows, length in block.plan} - shapes.keys()
                if len(new) > 1:  # a single one compiles when it is called
                    for shape in sorted(new, key=lambda shape: -shape[1]):
                        shapes[shape] = compiler.submit(
                            self._compiled, *shape, block.unpooled is not None
                        )
                for step, (rows, length) in enumerate(block.plan):
                    if (len(rows), length) in shapes:
                        shapes[len(rows), length].result()
                    waiting.append((block, rows, self._dispatched(block, rows, length)))
                    if step == len(block.plan) // 2 and tokenised:
                        exchange(number + 1)
                    if len(waiting) > 1:
                        yield fetched()
            while waiting:
                yield fetched()

    def _compiled(self, rows: int, length: int, unpooled: bool) -> None:
        """Compiles a step of this shape; the call that follows finds it in the cache of `apply`."""

        def like(shape: tuple[int, ...], *axes: str | None) -> jax.ShapeDtypeStruct:
            target = mesh_lib.sharding(self.mesh, *axes)
            return jax.ShapeDtypeStruct(shape, np.int32, sharding=target)

        with jax.set_mesh(self.mesh):
            apply.lower(
                *self.model,
                like((rows, length), "batch", None),
                like((rows,), "batch"),
                like((rows,), "batch") if unpooled else None,
            ).compile()

    def _dispatched(self, block: Block, rows: np.ndarray, length: int) -> jax.Array:
        batch = pad_batch(block.tokens, rows, length, self.pad_id)
        lengths_b = [max(1, block.seen[row]) if row >= 0 else 1 for row in rows.tolist()]
        batch = dataclasses.replace(batch, lengths_b=np.asarray(lengths_b, np.int32))
        unpooled_b = (
            None if block.unpooled is None else np.where(rows >= 0, block.unpooled[rows], 0)
        )
        return self._applied(batch, unpooled_b)

    def _applied(self, batch: Batch, unpooled_b: np.ndarray | None) -> jax.Array:
        """Dispatches one batch; returns at once, with an array that is still being computed."""

        def put(x: np.ndarray, *axes: str | None) -> jax.Array:
            # Every process holds the whole batch and passes its devices their part.
            target = mesh_lib.sharding(self.mesh, *axes)
            return jax.make_array_from_callback(x.shape, target, lambda index: x[index])

        with jax.set_mesh(self.mesh):  # not longer: who encodes may have another one
            return apply(
                *self.model,
                put(batch.tokens_bt, "batch", None),
                put(batch.lengths_b, "batch"),
                None if unpooled_b is None else put(unpooled_b.astype(np.int32), "batch"),
            )


@contextlib.contextmanager
def _compiler() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    """Threads that compile; at the end what has not begun is dropped."""
    pool = concurrent.futures.ThreadPoolExecutor(min(COMPILERS, os.cpu_count() or 1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _share(count: int) -> tuple[int, int]:
    """The range of `count` texts that this process tokenises."""
    index, processes = mesh_lib.process_index(), mesh_lib.process_count()
    return count * index // processes, count * (index + 1) // processes


def _exchanged(own: Tokens, count: int) -> Tokens:
    """The tokens of `count` texts, from every process's share of them."""
    if mesh_lib.process_count() == 1:
        return own
    from jax.experimental import multihost_utils

    counts = np.full(-(-count // mesh_lib.process_count()), -1, np.int32)
    counts[: len(own)] = [len(ids) for ids in own]
    counts = np.asarray(multihost_utils.process_allgather(counts))
    most = int(np.maximum(counts, 0).sum(axis=1).max())
    ids = np.zeros(1 << most.bit_length(), np.int32)  # not `most`: each size is compiled
    mine = np.concatenate([np.zeros(0, np.int32), *own])
    ids[: len(mine)] = mine
    everything = np.asarray(multihost_utils.process_allgather(ids))
    out = []
    for counts_n, ids_t in zip(counts, everything, strict=True):
        ends = np.cumsum(counts_n[counts_n >= 0])
        out += np.split(ids_t, ends)[: len(ends)]
    return out
