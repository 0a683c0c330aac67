"""Groups of texts that are equal or nearly so, over a whole table, in one pass.

Two texts are near copies if they share most of their word triples (Jaccard similarity of at least
0.8; in scripts without spaces, triples of characters), and a text of fewer than three words is a
near copy only of an equal one. Choices:

- MinHash: of 64 hash functions the least value over a text's triples, in 16 bands of 4. Two texts
  that share a band are compared by their triples, so that no group is joined wrongly. A pair at the
  threshold shares a band with probability 0.9998, a nearer one with a higher one.
- A text is compared with the 200 texts before it that share the band, except those already in its
  group, so the cost of boilerplate is not quadratic in its copies.
- All triples of a block of texts are hashed together, as arrays. Hashes depend only on the words,
  so the groups are the same on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from nvret_jax.data.hashing import mix
from nvret_jax.data.normalize import words

THRESHOLD = 0.8
_BANDS, _ROWS = 16, 4
_WIDTH = 3
_COMPARED = 200
_BLOCK = 512
_REMEMBERED = 1 << 21  # pairs, some 100 bytes each


class Groups:
    """A union of sets over rows 0 … N-1; the least row of a set is its name."""

    def __init__(self, count: int):
        self._parent = list(range(count))

    def find(self, row: int) -> int:
        """The name of a row's set."""
        parent = self._parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join(self, a: int, b: int) -> None:
        """Makes one set of two rows' sets."""
        a, b = sorted((self.find(a), self.find(b)))
        self._parent[b] = a

    def names(self) -> list[int]:
        """The name of each row's set."""
        return [self.find(row) for row in range(len(self._parent))]


def join_near(texts: Iterable[str], groups: Groups) -> int:
    """Joins the groups of all texts that are near copies of each other.

    Args:
        texts: N texts, read once.
        groups: over N rows.

    Returns:
        How many pairs joined two groups.
    """
    held: list[np.ndarray] = []  # the distinct triples of each text, ascending
    bands: list[np.ndarray] = []
    for triples, keys_nb in _sketches(texts):
        held += triples
        bands.append(keys_nb)
    full = np.array([len(triples) > 0 for triples in held], bool)
    keys_nb = np.concatenate(bands) if bands else np.zeros((0, _BANDS), np.uint64)
    joined, apart = 0, set()  # numbers of pairs that were compared and are not copies
    for band in range(_BANDS):
        order = np.flatnonzero(full)[np.argsort(keys_nb[full, band], kind="stable")]
        sorted_keys = keys_nb[order, band]
        begins = np.flatnonzero(np.append(True, sorted_keys[1:] != sorted_keys[:-1]))[: len(order)]
        ends = np.append(begins[1:], len(order))
        several = ends - begins > 1
        for begin, end in zip(begins[several].tolist(), ends[several].tolist(), strict=True):
            members = order[begin:end].tolist()
            for place, row in enumerate(members):
                for other in members[max(0, place - _COMPARED) : place]:
                    pair = other * len(held) + row
                    if pair in apart or groups.find(other) == groups.find(row):
                        continue
                    if jaccard(held[other], held[row]) >= THRESHOLD:
                        groups.join(other, row)
                        joined += 1
                    elif len(apart) < _REMEMBERED:
                        apart.add(pair)
    return joined


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared over all values of two ascending arrays of distinct values; 0 for empty ones."""
    if min(len(a), len(b)) < THRESHOLD * max(len(a), len(b)):
        return 0.0  # cannot reach the threshold
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared) if shared else 0.0


def _sketches(texts: Iterable[str]) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Triples of a block of texts, and their bands: uint64 [texts, bands]."""
    known: dict[str, int] = {}
    block: list[np.ndarray] = []
    for text in texts:
        block.append(_triples(words(text), known))
        if len(known) > 1 << 20:
            known.clear()
        if len(block) == _BLOCK:
            yield block, _banded(block)
            block = []
    if block:
        yield block, _banded(block)


def _triples(found: Sequence[str], known: dict[str, int]) -> np.ndarray:
    """Hashes of the distinct word triples, uint64, ascending; few words are one triple."""
    if not found:
        return np.zeros(0, np.uint64)
    hashes = np.array([known.get(word) or known.setdefault(word, _hash(word)) for word in found])
    hashes = hashes.astype(np.uint64)
    if len(hashes) < _WIDTH:
        whole = hashes[0]
        for word in hashes[1:]:
            whole = mix(whole, word)
        return np.atleast_1d(mix(np.uint64(len(hashes)), whole))
    return np.unique(mix(mix(hashes[:-2], hashes[1:-1]), hashes[2:]))


def _hash(word: str) -> int:
    data = word.encode("utf-8", "surrogatepass")
    return zlib.crc32(data) << 32 | zlib.crc32(b"\1" + data) or 1


def _banded(block: Sequence[np.ndarray]) -> np.ndarray:
    """The bands of each text, uint64 [texts, bands]; 0 for a text without words."""
    counts = np.array([len(triples) for triples in block], np.int64)
    full = np.flatnonzero(counts)
    found = np.zeros((len(block), _BANDS), np.uint64)
    if not len(full):
        return found
    flat = np.concatenate([block[i] for i in full])
    starts = np.concatenate([[0], np.cumsum(counts[full])[:-1]])
    for band in range(_BANDS):
        key = np.full(len(full), band, np.uint64)
        for row in range(_ROWS):
            seed = np.uint64(band * _ROWS + row + 1)
            key = mix(key, np.minimum.reduceat(mix(seed, flat), starts))
        found[full, band] = key
    return found
