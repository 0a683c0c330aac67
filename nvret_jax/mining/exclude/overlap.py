"""Near copies by words: passages that share most of their word 3-shingles with a given one.

A shingle is three consecutive words of the normal form of a text (`data.normalize.words`; in
scripts without spaces, three characters); a text of fewer words is one shingle. The similarity of
two texts is Jaccard's: shared shingles over all shingles. Choices:

- MinHash with locality-sensitive hashing (`datasketch`) proposes pairs, and each is confirmed with
  the shingles themselves, so no pair is reported wrongly.
- The bands are chosen so that a pair exactly at the threshold is proposed with a probability of at
  least 0.999 (nearer pairs more surely): confirming a proposal is cheap, but a missed copy is lost.
  Thresholds below about 0.2 cannot be reached with 128 permutations and are refused.
- Only the given passages are in the index; the corpus is streamed once and not kept.
- Hashes are crc32 and the permutations depend on the seed: the same pairs on every machine.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence

import numpy as np

from nvret_jax.data.normalize import words
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError

PERMUTATIONS = 128
SURE = 0.999  # probability of proposing a pair at the threshold
LOWEST = math.ceil(1000 * (1 - (1 - SURE) ** (1 / PERMUTATIONS))) / 1000  # share to be sure of
_WIDTH = 3
_DOUBT = 0.15  # an estimate this far below the threshold is conclusive: more than 4 deviations
_HELD = 4096  # sets of shingles kept while pairs are confirmed


def shingles(text: str) -> set[str]:
    """The distinct word 3-shingles of a text; a shorter text is a single shingle, '' has none."""
    found = words(text)
    if len(found) <= _WIDTH:
        return {" ".join(found)} if found else set()
    return {" ".join(found[i : i + _WIDTH]) for i in range(len(found) - _WIDTH + 1)}


def jaccard(a: set[str], b: set[str]) -> float:
    """Shared over all shingles; 0 for two empty sets."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if shared else 0.0


def near_copies(
    rows: np.ndarray, texts: Sequence[str], threshold: float, *, seed: int = 0
) -> Ragged:
    """The passages whose Jaccard similarity to each of some passages is at least the threshold.

    Args:
        rows: int [P], ascending and unique.
        texts: N texts.
        threshold: about 0.2 to 1.
        seed: of the permutations.

    Returns:
        int32, a row per entry of `rows`, ascending; a passage is its own near copy, unless it has
        no words.

    Raises:
        InputError: the threshold is too low.
    """
    from datasketch import MinHashLSH  # it loads scipy, so it is imported only here

    index = MinHashLSH(num_perm=PERMUTATIONS, params=_bands(threshold))
    sketch = _sketcher(seed)
    sizes_p = np.zeros(len(rows), np.int64)
    hashes_pk = np.zeros((len(rows), PERMUTATIONS), np.uint32)
    for number, row in enumerate(rows.tolist()):
        own = shingles(texts[row])
        if own:
            one = sketch(own)
            index.insert(number, one, check_duplication=False)
            sizes_p[number], hashes_pk[number] = len(own), one.hashvalues
    known = functools.lru_cache(maxsize=_HELD)(lambda number: shingles(texts[int(rows[number])]))
    owners, found = [], []
    for row, text in enumerate(texts):
        own = shingles(text)
        if not own:
            continue
        one = sketch(own)
        proposed = np.asarray(index.query(one), np.int64)
        if not len(proposed):
            continue
        sizes = sizes_p[proposed]
        likely = np.minimum(sizes, len(own)) / np.maximum(sizes, len(own)) >= threshold
        estimates = (hashes_pk[proposed] == one.hashvalues).mean(axis=1)
        for number in proposed[likely & (estimates >= threshold - _DOUBT)].tolist():
            if jaccard(own, known(number)) >= threshold:
                owners.append(number)
                found.append(row)
    owners, found = np.asarray(owners, np.int64), np.asarray(found, np.int32)
    order = np.lexsort((found, owners))
    counts = np.bincount(owners, minlength=len(rows))
    return Ragged(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), found[order])


def _bands(threshold: float) -> tuple[int, int]:
    """(bands, rows per band) with the widest bands that propose pairs with probability `SURE`."""
    for width in range(PERMUTATIONS // 2, 0, -1):
        bands = PERMUTATIONS // width
        if 1 - (1 - threshold**width) ** bands >= SURE:
            return bands, width
    raise InputError(
        f"exclusions: jaccard={threshold} is too low for {PERMUTATIONS} MinHash permutations; "
        f"give at least {LOWEST}"
    )


def _sketcher(seed: int):
    """The MinHash of a set of shingles; all of one sketcher share their permutations."""
    from datasketch import MinHash

    blank = MinHash(PERMUTATIONS, seed=seed, hashfunc=zlib.crc32)

    def sketch(own: set[str]) -> MinHash:
        one = blank.copy()
        one.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in own])
        return one

    return sketch
