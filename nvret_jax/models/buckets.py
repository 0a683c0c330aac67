"""Plans which texts are encoded together, and at what length: few shapes, little padding.

Every distinct (batch size, length) is compiled once, and every position between a text's end and
its row's end is wasted, as is every row without a text. Choices:

- Lengths are rounded up to a bucket. On a CPU the available buckets are a fine grid, eight per
  doubling from 16 on: at most an eighth of a row above 16 tokens is padding. An accelerator, which
  takes seconds to compile a shape, has four per doubling, all multiples of 8.
- Texts are sorted by length and processed from the longest down: a job that does not fit into
  memory fails at once. A bucket's batches have as many rows as fit the token budget; if fewer texts
  are left (on many devices, possibly the whole corpus), a smaller batch may follow. Free rows of a
  batch are filled with the next shorter texts, so that only the very last batch has empty rows.
- The buckets and sizes of a call follow from its lengths, by dynamic programming: an additional
  shape must save its price, a whole batch or a share of all tokens, whichever is less: on a CPU a
  four-hundredth, on an accelerator a hundredth (`platforms.Platform.shape_share`). A few hundred
  queries get a handful of shapes, a corpus gets most of the grid, and equal calls get equal
  batches, whatever was encoded before.
- Other texts would get other small sizes. With several calls, or several blocks of a table, small
  sizes are powers of two times the devices (`few_sizes`), which soon repeat.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvret_jax import platforms
from nvret_jax.errors import InputError

_LEAST_PRICE = 1024  # tokens: the least price of a shape, however little there is to encode
_FOLLOWED = 4  # beginnings of runs in one bucket; more bring almost no gain


@dataclass
class Batch:
    """One rectangle of tokens.

    Attributes:
        rows: int32 [B], the row in the caller's table of each line; -1 for an empty line.
        tokens_bt: int32 [B, T], padded on the right.
        lengths_b: int32 [B], how many tokens of each line are real; at least 1, even where rows is
            -1.
    """

    rows: np.ndarray
    tokens_bt: np.ndarray
    lengths_b: np.ndarray


def length_buckets(max_length: int, platform: str = "cpu") -> tuple[int, ...]:
    """Lengths to which texts of at most `max_length` tokens may be padded, ascending.

    4, 6, …, 32, 36, …, 64, 72, …, 128, 144, …, 256, 288, … on a CPU, and 16, 24, …, 64, 80, …, 128,
    160, …, 256, 320, … elsewhere; the last one is `max_length` itself.
    """
    if max_length < 1:
        raise InputError(f"max_length={max_length}: expected at least 1 token")
    row = platforms.limits(platform)
    # Shorter texts are too rare to justify a shape, and below the step a shape saves less than its
    # batches cost to schedule.
    buckets, length = [], 2 * row.length_step
    while length < max_length:
        buckets.append(length)
        doubled = 2 ** (length.bit_length() - 1)
        length += max(row.length_step, doubled // row.lengths_per_doubling)
    return (*buckets, max_length)


def bucket(n: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending `buckets` that holds `n` tokens.

    Raises:
        ValueError: no bucket holds it.
    """
    position = bisect.bisect_left(buckets, n)
    if position == len(buckets):
        raise ValueError(f"a text of {n} tokens does not fit the longest bucket, {buckets[-1]}")
    return buckets[position]


def batch_size(length: int, token_budget: int, multiple_of: int = 1) -> int:
    """Rows per batch at this length: within the budget, but at least `multiple_of`."""
    return max(1, token_budget // length // multiple_of) * multiple_of


def plan_batches(
    lengths: Sequence[int] | np.ndarray,
    *,
    max_length: int,
    token_budget: int,
    multiple_of: int = 1,
    few_sizes: bool = False,
    platform: str = "cpu",
) -> list[tuple[np.ndarray, int]]:
    """Groups texts into batches; see the module's docstring for how.

    Args:
        lengths: [N] tokens of each text, at most `max_length`.
        max_length: determines the buckets.
        token_budget: largest number of positions (rows × length) in a batch, unless `multiple_of`
            rows of the bucket's length already exceed it.
        multiple_of: the number of shards of a batch; batch sizes are multiples of it.
        few_sizes: the number of rows of a batch smaller than the budget is a power of two times
            `multiple_of`; for one of several calls.
        platform: where they are encoded, which decides how many shapes there are.

    Returns:
        (rows int32 [B], bucket length) per batch, longest first. B is the bucket's `batch_size`, or
        less; rows is -1 in the empty lines of the last batch. Each text is in exactly one batch.

    Raises:
        InputError: `token_budget` or `multiple_of` is below 1.
        ValueError: a text is longer than `max_length`.
    """
    if token_budget < 1 or multiple_of < 1:
        raise InputError(
            f"token_budget={token_budget}, multiple_of={multiple_of}: both must be at least 1"
        )
    lengths = np.asarray(lengths, dtype=np.int64).reshape(-1)
    buckets = length_buckets(max_length, platform)
    if len(lengths) and lengths.max() > max_length:
        bucket(int(lengths.max()), buckets)  # raises
    share = int(lengths.sum()) // platforms.limits(platform).shape_share
    price = min(token_budget, max(_LEAST_PRICE, share))
    order = np.argsort(-lengths, kind="stable").astype(np.int32)
    padded = np.asarray(buckets, np.int64)[np.searchsorted(buckets, lengths[order])]

    batches: list[tuple[np.ndarray, int]] = []
    start = 0  # rows before it are in a batch
    for size, length in _cheapest(padded, token_budget, multiple_of, price, few_sizes):
        rows = np.full(size, -1, np.int32)
        taken = order[start : start + size]
        rows[: len(taken)] = taken
        batches.append((rows, length))
        start += len(taken)
    return batches


def _cheapest(
    padded: np.ndarray, token_budget: int, multiple_of: int, price: int, few_sizes: bool
) -> list[tuple[int, int]]:
    """(rows, length) of the cheapest batches, by their positions and the price of shapes.

    Each bucket has a price, and a size other than the full one costs it again: calls that encode
    one or two texts get a full batch if that is as cheap, and the next call compiles nothing.

    A plan is a sequence of runs. One begins with the longest remaining text, whose bucket is its
    length, and extends about to the last text of some bucket; between those ends there is never a
    better position to change the length. Among the positions in one bucket at which a run may
    begin, only the most promising are explored.

    Args:
        padded: the bucket of each text, descending.
    """
    ends = [*(np.flatnonzero(np.diff(padded)) + 1).tolist(), len(padded)] if len(padded) else []
    cost = {0: 0}  # of all texts before this one
    came: dict[int, tuple[int, int, int]] = {}  # the run that ends there: (begin, whole, rest)
    begins: list[list[int]] = [[] for _ in [*ends, 0]]
    begins[0].append(0)
    for number, end in enumerate(ends):
        length = int(padded[end - 1])
        most = batch_size(length, token_budget, multiple_of)
        places = sorted(begins[number], key=lambda start: cost[start] + (end - start) * length)
        for start in places[:_FOLLOWED]:
            for stop in ends[number:]:
                for whole, rest in _ways(stop - start, most, multiple_of, few_sizes):
                    rows = whole * most + rest
                    price_here = price * (1 + (rest > 0))
                    total, behind = cost[start] + rows * length + price_here, start + rows
                    behind = min(behind, len(padded))
                    if behind < end:
                        continue  # the same bucket again: a run with a smaller batch is as good
                    if behind not in cost:
                        begins[bisect.bisect_right(ends, behind)].append(behind)
                    if total < cost.get(behind, total + 1):
                        cost[behind], came[behind] = total, (start, whole, rest)
    found: list[tuple[int, int]] = []
    stop = len(padded)
    while stop:
        stop, whole, rest = came[stop]
        length = int(padded[stop])
        most = batch_size(length, token_budget, multiple_of)
        found = [(most, length)] * whole + [(rest, length)] * (rest > 0) + found
    return found


def _ways(count: int, most: int, multiple_of: int, few_sizes: bool) -> list[tuple[int, int]]:
    """(whole batches, rows of a smaller one or 0) for about this many texts."""
    whole, rest = divmod(int(count), int(most))  # numpy's integers have no bit_length
    if not rest:
        return [(whole, 0)]
    above = -(-rest // multiple_of)
    below = rest // multiple_of
    if few_sizes:
        above, below = 1 << (above - 1).bit_length(), 1 << below.bit_length() >> 1
    ways = [(whole + 1, 0)]
    ways += [(whole, size * multiple_of) for size in {above, below}]
    return [(n, size) for n, size in ways if size < most and n * most + size]


def pad_batch(
    token_arrays: Sequence[np.ndarray], rows: np.ndarray, length: int, pad_id: int
) -> Batch:
    """The tokens of `rows` as one rectangle.

    Args:
        token_arrays: token ids of every text of the table, each of shape [≤ length].
        rows: int32 [B] from `plan_batches`, -1 for a line of padding.
        length: T, the width of the result.
        pad_id: fills the padding.

    Raises:
        ValueError: a text is longer than `length`.
    """
    tokens_bt = np.full((len(rows), length), pad_id, np.int32)
    lengths_b = np.ones(len(rows), np.int32)
    for line, row in enumerate(rows.tolist()):
        if row < 0:
            continue
        tokens = token_arrays[row]
        if len(tokens) > length:
            raise ValueError(f"row {row} has {len(tokens)} tokens; the batch is {length} wide")
        tokens_bt[line, : len(tokens)] = tokens
        # A text without a token still needs a position to attend to.
        lengths_b[line] = max(1, len(tokens))
    return Batch(np.asarray(rows, np.int32), tokens_bt, lengths_b)
