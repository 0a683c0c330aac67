"""Groups of texts that are equal or nearly so, over a whole table, in one pass.

Two texts are near copies if they share most of their word triples (Jaccard similarity of at least
0.8; in scripts without spaces, triples of characters), and a text of fewer than three words is a
near copy only of an equal one. Choices:

- MinHash: of 64 hash functions the least value over a text's triples, in 16 bands of 4. A pair at
  the threshold shares a band with probability 0.9998, a nearer one with a higher one.
- Two texts that share a band are compared, as arrays of all such pairs, by the lengths and by the
  64 least values, of which a pair at the threshold shares at least 36 but for one in 100,000. Those
  that pass are compared by their triples, so that no group is joined wrongly.
- A text is compared with the 200 texts before it that share the band, except those already in its
  group, so the cost of boilerplate is not quadratic in its copies.
- All triples of a block of texts are hashed together, as arrays. Hashes depend only on the words,
  so the groups are the same on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nvret_jax.data.hashing import mix
from nvret_jax.data.normalize import words

THRESHOLD = 0.8
_BANDS, _ROWS = 16, 4
_WIDTH = 3
_COMPARED = 200
_SHARED = 36
_PAIRS = 1 << 16
_BLOCK = 512
_REMEMBERED = 1 << 21  # pairs, some 100 bytes each


class _Sketches(NamedTuple):
    """Of N texts.

    Attributes:
        bands_nb: uint64 [N, bands].
        signs_ns: a byte of each of the least values, uint8 [N, bands · rows].
    """

    bands_nb: np.ndarray
    signs_ns: np.ndarray


class Groups:
    """A union of sets over rows 0 … N-1; the least row of a set is its name."""

    def __init__(self, count: int):
        self._parent = np.arange(count)

    def find(self, row: int) -> int:
        """The name of a row's set."""
        parent = self._parent
        while parent[row] != row:
            parent[row] = row = int(parent[parent[row]])
        return int(row)

    def join(self, a: int, b: int) -> None:
        """Makes one set of two rows' sets."""
        a, b = sorted((self.find(a), self.find(b)))
        self._parent[b] = a

    def join_first(self, count: int) -> None:
        """Makes one set of the sets of the first rows."""
        for name in np.unique(self.names(np.arange(count))).tolist():
            self.join(0, name)

    def names(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The name of each row's set, int64, for all rows or those given."""
        found = self._parent if rows is None else self._parent[rows]
        while not np.array_equal(above := self._parent[found], found):
            found = above
        return found


def join_near(texts: Iterable[str], groups: Groups) -> int:
    """Joins the groups of all texts that are near copies of each other.

    Args:
        texts: N texts, read once.
        groups: over N rows. Rows that are in one group already are not compared.

    Returns:
        How many pairs joined two groups.
    """
    held: list[np.ndarray] = []  # the distinct triples of each text, ascending
    sketches: list[_Sketches] = []
    for triples, sketch in _sketches(texts):
        held += triples
        sketches.append(sketch)
    if not held:
        return 0
    counts = np.array([len(triples) for triples in held])
    bands_nb, signs_ns = (np.concatenate(parts) for parts in zip(*sketches, strict=True))
    full = np.flatnonzero(counts)
    joined, apart = 0, set()  # numbers of pairs that were compared and are not copies
    for band in range(_BANDS):
        order = full[np.argsort(bands_nb[full, band], kind="stable")]
        for begin, other in _neighbours(bands_nb[order, band]):
            a, b = order[begin], order[other]
            kept = groups.names(a) != groups.names(b)
            a, b = a[kept], b[kept]
            kept = _alike(a, b, counts, signs_ns)
            for row, later in zip(a[kept].tolist(), b[kept].tolist(), strict=True):
                pair = row * len(held) + later
                if pair in apart or groups.find(row) == groups.find(later):
                    continue
                if jaccard(held[row], held[later]) >= THRESHOLD:
                    groups.join(row, later)
                    joined += 1
                elif len(apart) < _REMEMBERED:
                    apart.add(pair)
    return joined


def _neighbours(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of places with equal keys, at most `_COMPARED` places apart, nearest first.

    Args:
        keys: [N], ascending.

    Yields:
        Places of the earlier and the later member of pairs, at most `_PAIRS` of them.
    """
    later = np.arange(len(keys))
    for offset in range(1, _COMPARED + 1):
        later = later[later >= offset]
        later = later[keys[later] == keys[later - offset]]
        if not len(later):
            return
        for begin in range(0, len(later), _PAIRS):
            part = later[begin : begin + _PAIRS]
            yield part - offset, part


def _alike(a: np.ndarray, b: np.ndarray, counts: np.ndarray, signs_ns: np.ndarray) -> np.ndarray:
    """Which pairs of rows can reach the threshold, by their lengths and signatures; bool."""
    lengths_a, lengths_b = counts[a], counts[b]
    found = np.minimum(lengths_a, lengths_b) >= THRESHOLD * np.maximum(lengths_a, lengths_b)
    rows = np.flatnonzero(found)
    shared = (signs_ns[a[rows]] == signs_ns[b[rows]]).sum(axis=1)
    found[rows] = shared >= _SHARED
    return found


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared over all values of two ascending arrays of distinct values; 0 for empty ones."""
    if min(len(a), len(b)) < THRESHOLD * max(len(a), len(b)):
        return 0.0  # cannot reach the threshold
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared) if shared else 0.0


def _sketches(texts: Iterable[str]) -> Iterator[tuple[list[np.ndarray], _Sketches]]:
    """Triples of a block of texts, and their sketches."""
    known: dict[str, int] = {}
    block: list[np.ndarray] = []
    for text in texts:
        block.append(_triples(words(text), known))
        if len(known) > 1 << 20:
            known.clear()
        if len(block) == _BLOCK:
            yield block, _sketch(block)
            block = []
    if block:
        yield block, _sketch(block)


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


def _sketch(block: Sequence[np.ndarray]) -> _Sketches:
    """Bands and signatures of texts; those of a text without words are zero."""
    counts = np.array([len(triples) for triples in block], np.int64)
    full = np.flatnonzero(counts)
    bands_nb = np.zeros((len(block), _BANDS), np.uint64)
    signs_ns = np.zeros((len(block), _BANDS * _ROWS), np.uint8)
    if not len(full):
        return _Sketches(bands_nb, signs_ns)
    flat = np.concatenate([block[i] for i in full])
    starts = np.concatenate([[0], np.cumsum(counts[full])[:-1]])
    for band in range(_BANDS):
        key = np.full(len(full), band, np.uint64)
        for row in range(_ROWS):
            number = band * _ROWS + row
            least = np.minimum.reduceat(mix(np.uint64(number + 1), flat), starts)
            key = mix(key, least)
            signs_ns[full, number] = least & np.uint64(0xFF)
        bands_nb[full, band] = key
    return _Sketches(bands_nb, signs_ns)
