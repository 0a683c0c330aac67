"""Stable 64-bit hashes of ids, and random numbers that depend only on ids.

A random draw for a (query, passage) pair must be the same on every machine, for every order of rows
and for every batch. So no generator is stepped: each number is a hash of the seed and of the two
ids. Ids are hashed by BLAKE2b, once (Python's own `hash` differs between processes); everything
after that is integer arithmetic on whole arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

# Constants of SplitMix64 (Steele, Lea and Flood, 2014): the golden ratio and the two multipliers
# of its finaliser, a bijection of 64-bit words in which each input bit flips half the output bits.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def stable_hash(ids: Sequence[str]) -> np.ndarray:
    """One uint64 per id, the same on every machine: the first 8 bytes of BLAKE2b of its UTF-8."""
    if isinstance(ids, str):
        raise TypeError("stable_hash takes a sequence of ids, got one str")
    blake = hashlib.blake2b
    digests = b"".join(
        blake(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for identifier in ids
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def mix(a: np.ndarray | int, b: np.ndarray | int) -> np.ndarray:
    """A hash of two words, uint64, broadcasting; `mix(a, b)` and `mix(b, a)` differ.

    `a` is scrambled at its own shape, so that mix(a[:, None], b[None, :]) costs one pass per pair.
    """
    with np.errstate(over="ignore"):  # wrap-around is intended
        return _scramble(_scramble(_words(a) + _GOLDEN) + _words(b))


def uniform01(seed: int, query_hash: np.ndarray, passage_hash: np.ndarray) -> np.ndarray:
    """A number for each pair, evenly spread over (0, 1).

    Args:
        seed: any int.
        query_hash, passage_hash: uint64 from `stable_hash`; they broadcast against each other.

    Returns:
        float64, never 0 nor 1, with 52 random bits.
    """
    words = mix(mix(seed, query_hash), passage_hash)
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _words(x: np.ndarray | int) -> np.ndarray:
    """`x` as uint64; ints of any sign and size wrap around."""
    if isinstance(x, int):
        return np.array([x % 2**64], np.uint64)[0]
    return np.asarray(x).astype(np.uint64, copy=False)


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
