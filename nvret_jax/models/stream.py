"""Texts through an encoder, as one stream that keeps the devices busy.

Texts are sorted by length in blocks, which grow with the devices. Results come back one step late.
A thread prepares the next block meanwhile: it tokenises the texts and plans their batches. Of
several processes each tokenises its share, and they exchange the tokens in the middle of a block's
steps, so that the next block is ready when its turn comes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from nvret_jax import mesh as mesh_lib
from nvret_jax.models.buckets import Batch, pad_batch, plan_batches

# Texts tokenised, sorted by length and encoded at a time, at least: enough that sorting leaves
# little padding, few enough that the host never holds the tokens of a whole corpus. A kill costs
# what was encoded of a block, so small steps, as of a CPU, have smaller blocks: 4,096 texts lose
# 0.5 to 5 % to padding there. On many devices a block has room for so many of their steps.
SMALL_BLOCK, BLOCK = 4096, 16384
SMALL_BLOCK_STEPS, BLOCK_STEPS = 64, 8

Tokens = list[np.ndarray]


def block_rows(token_budget: int, max_length: int) -> int:
    """Texts that are sorted by length at a time.

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
        tokens: of each, those that get a vector.
        seen: of each, how many of them others see.
        skip: int [texts], how many at the beginning are not pooled; None: all are.
        left: texts whose embeddings have not come yet.
        plan: (rows, length) of each batch, as `plan_batches` gives them.
    """

    start: int
    tokens: Tokens
    seen: Sequence[int]
    skip: np.ndarray | None
    left: int
    plan: list[tuple[np.ndarray, int]]


@dataclasses.dataclass(frozen=True)
class Stream:
    """How texts become embeddings.

    Attributes:
        tokenize: texts -> tokens of each.
        prepare: tokens -> (tokens that get a vector, how many are seen, how many are not pooled).
        step: (batch, tokens not pooled [B] or None) -> embeddings, whole on every process; it only
            dispatches.
        max_length: tokens of the longest text.
        token_budget: of a step on all devices.
        multiple_of: rows of a step are a multiple of this.
        pad_id: fills what no text covers.
        few_sizes: of `plan_batches`; a stream of more than one block has few sizes anyway.
    """

    tokenize: Callable[[Sequence[str]], Tokens]
    prepare: Callable[[Tokens], tuple[Tokens, Sequence[int], np.ndarray | None]]
    step: Callable[[Batch, np.ndarray | None], jax.Array]
    max_length: int
    token_budget: int
    multiple_of: int
    pad_id: int
    few_sizes: bool = True

    def run(
        self, texts: Sequence[str], wanted: np.ndarray | None = None
    ) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
        """Yields (block, rows in it, their embeddings) step by step.

        Args:
            texts: the same on every process.
            wanted: bool [len(texts)]; a block without a wanted text is left out. None: all are.
        """
        size = block_rows(self.token_budget, self.max_length)
        starts = [
            start
            for start in range(0, len(texts), size)
            if wanted is None or wanted[start : start + size].any()
        ]
        few_sizes = self.few_sizes or len(texts) > size
        waiting: collections.deque[tuple[Block, np.ndarray, jax.Array]] = collections.deque()

        def count(number: int) -> int:
            return min(size, len(texts) - starts[number])

        def own_share(number: int) -> Tokens:
            first, last = _share(count(number))
            own = texts[starts[number] + first : starts[number] + last]
            return self.tokenize(own) if len(own) else []

        def prepared(number: int, tokens: Tokens) -> Block:
            tokens, seen, skip = self.prepare(tokens)
            plan = plan_batches(
                [len(ids) for ids in tokens],
                max_length=self.max_length,
                token_budget=self.token_budget,
                multiple_of=self.multiple_of,
                few_sizes=few_sizes,
            )
            return Block(starts[number], tokens, seen, skip, len(tokens), plan)

        def fetched() -> tuple[Block, np.ndarray, np.ndarray]:
            block, rows, array = waiting.popleft()
            real = rows >= 0
            block.left -= int(real.sum())
            return block, rows[real], np.asarray(array.addressable_data(0))[real]

        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            # (its own share of the tokens, the block) of the one that comes next
            tokenised = [thread.submit(own_share, number) for number in range(len(starts[:1]))]
            coming: list[concurrent.futures.Future[Block]] = []

            def exchange(number: int) -> None:
                # In the main thread, at the same place in all processes: they meet here.
                tokens = _exchanged(tokenised.pop().result(), count(number))
                coming.append(thread.submit(prepared, number, tokens))
                if number + 1 < len(starts):
                    tokenised.append(thread.submit(own_share, number + 1))

            for number in range(len(starts)):
                if not coming:
                    exchange(number)
                block = coming.pop().result()
                for step, (rows, length) in enumerate(block.plan):
                    waiting.append((block, rows, self._dispatched(block, rows, length)))
                    if step == len(block.plan) // 2 and tokenised:
                        exchange(number + 1)
                    if len(waiting) > 1:
                        yield fetched()
            while waiting:
                yield fetched()

    def _dispatched(self, block: Block, rows: np.ndarray, length: int) -> jax.Array:
        batch = pad_batch(block.tokens, rows, length, self.pad_id)
        lengths_b = [max(1, block.seen[row]) if row >= 0 else 1 for row in rows.tolist()]
        batch = dataclasses.replace(batch, lengths_b=np.asarray(lengths_b, np.int32))
        skip_b = None if block.skip is None else np.where(rows >= 0, block.skip[rows], 0)
        return self.step(batch, skip_b)


def _share(count: int) -> tuple[int, int]:
    """The stretch of so many texts that this process tokenises."""
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
