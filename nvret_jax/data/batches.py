"""Which texts are encoded together, and at what length: few shapes, little padding.

Every distinct (batch size, length) is compiled once, and every position between a text's end and
its row's end is computed for nothing. The choice made here:

- Lengths are rounded up to a bucket: multiples of 8 from 16 to 64, of 16 to 128, of 32 to 256, and
  so on, four a doubling. A row above 16 tokens is never more than a third padding, and a limit of
  256 tokens has at most 15 shapes, one of 512 has 19. Powers of two would have 5 and 6 and compute
  three times the padding; eight a doubling would have 23 and save one position in a hundred.
- Each bucket has one batch size, the most rows that fit the token budget, so a batch costs about
  the same whatever its length. Texts are sorted by length, hence the batches of a bucket are full
  but for its last.
- The rows left over in a bucket go up into the next one when that costs less than a padded batch
  of their own. A few hundred queries then need a handful of shapes, not one for every bucket.
- The longest come first: a job that does not fit into memory fails at once.

Share of computed positions that are padding, at a budget of 1,024 tokens (MiniLM's tokenizer):

    texts                         one length   powers of two   four a doubling   eight
    SciFact passages, 256 tokens        .064            .054              .018    .009
    SQuAD passages, 256 tokens          .859            .296              .099    .092
    pydocs passages, 128 tokens         .209            .075              .021    .015
    SQuAD queries, 256 tokens           .943            .288              .210    .210

(Queries of 9 tokens in rows of 16 make up the last line; they cost next to nothing.)
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvret_jax.errors import InputError

_SHORTEST = 16  # below this a matmul is too narrow for its rows to be worth a shape of their own


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
    """Lengths that texts of at most `max_length` tokens are padded to, ascending.

    16, 24, …, 64, 80, …, 128, 160, …, 256, 320, …; the last one is `max_length` itself.
    """
    if max_length < 1:
        raise InputError(f"max_length={max_length}: expected at least 1 token")
    buckets, length = [], _SHORTEST
    while length < max_length:
        buckets.append(length)
        length += max(8, 2 ** (length.bit_length() - 1) // 4)
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
    order = np.argsort(lengths, kind="stable").astype(np.int32)
    ends = np.searchsorted(lengths[order], buckets, side="right").tolist()
    starts = [0, *ends[:-1]]
    # (length, end of its rows in `order`) of the buckets that some text is as long as
    used = [(b, e) for b, s, e in zip(buckets, starts, ends, strict=True) if e > s]

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
