"""Which texts are encoded together, and at what length: few shapes, little padding.

Every distinct (batch size, length) is compiled once, and every position between a text's end and
its row's end is computed for nothing. The choice made here:

- Lengths are rounded up to a bucket. The buckets to choose from are a fine grid, eight a doubling
  from 16 on: a row above 16 tokens is never more than an eighth padding.
- Of these a call uses the ones that pay: a bucket more is a shape more, and must save as much as
  one whole batch. Which ones pay follows from the lengths of the call, by dynamic programming over
  the grid. A few hundred queries get a handful of shapes, a corpus gets most of the grid, and equal
  calls get equal batches, whatever was encoded before.
- Each bucket has one batch size, the most rows that fit the token budget, so a batch costs about
  the same whatever its length. Texts are sorted by length, hence the batches of a bucket are full
  but for its last.
- The rows left over in a bucket go up into the next one when that costs less than a padded batch
  of their own.
- The longest come first: a job that does not fit into memory fails at once.

Share of computed positions that are padding, and shapes used, at a limit of 256 tokens and a
budget of 1,024 (MiniLM's tokenizer). Before, there were four buckets a doubling in steps of at
least 8, and all of them were used:

    texts                        before        now
    5,183 SciFact passages     .018 in 7     .010 in 9
    13,447 SQuAD passages      .099 in 14    .039 in 24
    22,447 SQuAD queries       .210 in 5     .043 in 11
    300 SQuAD queries          .236 in 3     .342 in 2
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvret_jax.errors import InputError

_SHORTEST = 4  # three words and less are too rare to be worth a shape of their own
_STEP = 2  # the finest grid: below it a shape saves less than its batches cost to schedule
_PER_DOUBLING = 8


@dataclass
class Batch:
    """One rectangle of tokens.

    Attributes:
        rows: int32 [B], the row of the caller's table each line came from; -1 where there is none.
        tokens_bt: int32 [B, T], padded on the right.
        lengths_b: int32 [B], how many tokens of each line count; at least 1, also where rows is -1.
    """

    rows: np.ndarray
    tokens_bt: np.ndarray
    lengths_b: np.ndarray


def length_buckets(max_length: int) -> tuple[int, ...]:
    """Lengths that texts of at most `max_length` tokens may be padded to, ascending.

    4, 6, …, 32, 36, …, 64, 72, …, 128, 144, …, 256, 288, …; the last one is `max_length` itself.
    """
    if max_length < 1:
        raise InputError(f"max_length={max_length}: expected at least 1 token")
    buckets, length = [], _SHORTEST
    while length < max_length:
        buckets.append(length)
        length += max(_STEP, 2 ** (length.bit_length() - 1) // _PER_DOUBLING)
    return (*buckets, max_length)


def bucket(n: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending `buckets` that holds `n` tokens.

    Raises:
        ValueError: none does.
    """
    position = bisect.bisect_left(buckets, n)
    if position == len(buckets):
        raise ValueError(f"a text of {n} tokens does not fit the longest bucket, {buckets[-1]}")
    return buckets[position]


def batch_size(length: int, token_budget: int, multiple_of: int = 1) -> int:
    """Rows per batch at this length: within the budget, but never less than `multiple_of`."""
    return max(1, token_budget // length // multiple_of) * multiple_of


def choose_buckets(lengths: np.ndarray, buckets: Sequence[int], price: int) -> list[int]:
    """The buckets worth a shape of their own, ascending.

    Minimises, over all ways to join neighbouring buckets, the positions that the texts take when
    padded plus `price` for each bucket used.

    Args:
        lengths: [N], none longer than the last bucket.
        buckets: ascending.
        price: positions that a bucket more must save.
    """
    below = [0, *np.searchsorted(np.sort(lengths), buckets, side="right").tolist()]
    # cheapest[j]: of all texts up to bucket j - 1; came_from[j]: where its last bucket begins.
    cheapest, came_from = [0], [0]
    for j, length in enumerate(buckets, 1):
        costs = [
            cheapest[i] + (price + (below[j] - below[i]) * length if below[j] > below[i] else 0)
            for i in range(j)
        ]
        cheapest.append(min(costs))
        came_from.append(costs.index(cheapest[-1]))
    chosen, j = [], len(buckets)
    while j:
        if below[j] > below[came_from[j]]:
            chosen.append(buckets[j - 1])
        j = came_from[j]
    return chosen[::-1]


def plan_batches(
    lengths: Sequence[int] | np.ndarray,
    *,
    max_length: int,
    token_budget: int,
    multiple_of: int = 1,
) -> list[tuple[np.ndarray, int]]:
    """Groups texts into batches; see the module's docstring for how.

    Args:
        lengths: [N] tokens of each text, at most `max_length`.
        max_length: decides the buckets.
        token_budget: most positions (rows × length) in a batch, unless `multiple_of` rows of the
            bucket's length are already more.
        multiple_of: batch sizes are multiples of this: into how many shards a batch is split.

    Returns:
        (rows int32 [B], bucket length) per batch, longest first. B depends on the bucket alone;
        rows is -1 in the lines that the last batch of a bucket lacks. Each text stands in exactly
        one batch.

    Raises:
        InputError: `token_budget` or `multiple_of` is below 1.
        ValueError: a text is longer than `max_length`.
    """
    if token_budget < 1 or multiple_of < 1:
        raise InputError(
            f"token_budget={token_budget}, multiple_of={multiple_of}: both must be at least 1"
        )
    lengths = np.asarray(lengths, dtype=np.int64).reshape(-1)
    buckets = length_buckets(max_length)
    if len(lengths) and lengths.max() > max_length:
        bucket(int(lengths.max()), buckets)  # raises
    buckets = choose_buckets(lengths, buckets, token_budget)
    order = np.argsort(lengths, kind="stable").astype(np.int32)
    ends = np.searchsorted(lengths[order], buckets, side="right").tolist()
    used = list(zip(buckets, ends, strict=True))  # (length, end of its rows in `order`)

    batches: list[tuple[np.ndarray, int]] = []
    start = 0  # rows before it are in a batch
    for (length, end), above in itertools.zip_longest(used, used[1:]):
        size = batch_size(length, token_budget, multiple_of)
        left = (end - start) % size
        if above is not None and left * above[0] <= size * length:
            end -= left
        for first in range(start, end, size):
            rows = np.full(size, -1, np.int32)
            taken = order[first : min(first + size, end)]
            rows[: len(taken)] = taken
            batches.append((rows, length))
        start = end
    return batches[::-1]


def pad_batch(
    token_arrays: Sequence[np.ndarray], rows: np.ndarray, length: int, pad_id: int
) -> Batch:
    """The tokens of `rows` as one rectangle.

    Args:
        token_arrays: token ids of every text of the table, each of shape [≤ length].
        rows: int32 [B] as `plan_batches` gives them, -1 for a line of padding.
        length: T, the width of the result.
        pad_id: fills what no text covers.

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
