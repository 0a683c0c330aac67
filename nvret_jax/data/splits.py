"""The split of a query, if the data do not give it.

By file: from a name such as `train.csv`, `dev-00000-of-00002.parquet` or `faq_test.jsonl`. By
chance: queries are drawn in groups. A group is a connected component: a query and its passages,
equal texts under any id, near copies (`near_copies`). So no passage, equal text or near copy is in
two splits, and a test score does not measure memory. Choices:

- A group's position follows from a hash of the seed and its smallest text, so the order of rows
  does not matter; groups are taken in that order until a split has its share of the queries.
- The groups of dev and test are drawn from those that fit the rest of the share. A larger group
  goes to train, whatever its hash.
- Negatives do not connect groups: they come from the whole corpus.
- The draw for a large set is kept in the user's cache folder, under a hash of everything it depends
  on, because the search for near copies takes minutes and each command reads the data again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence

import numpy as np
from absl import logging

from nvret_jax.data.near_copies import Groups, join_near
from nvret_jax.data.normalize import keys
from nvret_jax.errors import InputError
from nvret_jax.files import paths

TRAIN, DEV, TEST = "train", "dev", "test"
KEPT = 20_000  # number of texts from which on the draw is kept
_FORMAT = 1  # raised whenever the same data are split differently
_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "dev": DEV,
    "development": DEV,
    "valid": DEV,
    "validation": DEV,
    "val": DEV,
    "eval": DEV,
    "test": TEST,
    "testing": TEST,
}


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of the queries that are drawn for dev and for test.

    Attributes:
        dev, test: 0 or more; together below 1. The rest is for training.
        seed: of the draw.
        near: whether near copies are one group, which takes some 0.1 ms per text.
    """

    dev: float = 0.1
    test: float = 0.1
    seed: int = 0
    near: bool = True

    def __post_init__(self):
        if self.dev + self.test >= 1:
            raise InputError(
                f"dev={self.dev:g} and test={self.test:g}: leave no query to train on; expected "
                "shares that sum to less than 1"
            )


def usual(name: str) -> str:
    """Maps 'validation' and 'val' to 'dev', the name used in this project."""
    return _WORDS.get(name.strip().lower(), name)


def of_name(name: str) -> str | None:
    """The split in the name of a file or folder, or None: 'my_test-2.csv' is 'test'."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    found = {_WORDS[word] for word in words if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def draw(
    queries: Sequence[str],
    passages: Sequence[str],
    positives: Sequence[Sequence[int]],
    shares: Shares,
    where: str,
) -> list[str]:
    """A split for each query.

    Args:
        queries, passages: Q and N texts.
        positives: the passages' rows of each query.
        shares: how many queries, and the seed.
        where: the source, for messages.

    Returns:
        Q names of splits; a split with a share has at least one query.

    Raises:
        InputError: there are too few groups.
    """
    count = len(queries)
    if not shares.dev and not shares.test:
        return [TRAIN] * count
    texts = _Chained(queries, passages)
    text_keys = keys(texts)
    file = _file(text_keys, positives, shares) if len(texts) >= KEPT else None
    found = _read(file, count)
    if found is None:
        found = _drawn(texts, text_keys.tolist(), positives, shares, where)
        _write(file, found)
    return found


def _file(text_keys: np.ndarray, positives: Sequence[Sequence[int]], shares: Shares) -> str | None:
    """The file for the draw of these texts; None if there is no cache folder."""
    folder = paths.cache("splits")
    if folder is None:
        return None
    digest = hashlib.sha256(repr((_FORMAT, shares, len(positives))).encode())
    digest.update(text_keys.tobytes())
    for rows in positives:
        digest.update(np.asarray([len(rows), *rows], np.int64).tobytes())
    return os.path.join(folder, f"{digest.hexdigest()}.npy")


def _read(file: str | None, count: int) -> list[str] | None:
    names = (TRAIN, DEV, TEST)
    with contextlib.suppress(OSError, ValueError, EOFError, TypeError):
        kept = np.load(file, allow_pickle=False)
        if kept.shape == (count,) and kept.dtype == np.uint8 and kept.max() < len(names):
            return [names[number] for number in kept.tolist()]
    return None


def _write(file: str | None, found: Sequence[str]) -> None:
    if file is None:
        return
    names = {TRAIN: 0, DEV: 1, TEST: 2}
    aside = f"{file}.{os.getpid()}.npy"
    with contextlib.suppress(OSError):
        np.save(aside, np.array([names[split] for split in found], np.uint8))
        os.replace(aside, file)


def _drawn(
    texts: Sequence[str],
    text_keys: list[bytes],
    positives: Sequence[Sequence[int]],
    shares: Shares,
    where: str,
) -> list[str]:
    """See `draw`; the queries' texts come first."""
    count = len(positives)
    groups = Groups(len(texts))
    first: dict[bytes, int] = {}
    for row, key in enumerate(text_keys):
        if (other := first.setdefault(key, row)) != row:
            groups.join(other, row)
    for query, rows in enumerate(positives):
        for row in rows:
            groups.join(query, count + row)
    if shares.near:
        join_near(texts, groups)
    least: dict[int, bytes] = {}
    members: dict[int, list[int]] = {}
    for row in range(len(texts)):
        name = groups.find(row)
        least[name] = min(least.get(name, text_keys[row]), text_keys[row])
        if row < count:
            members.setdefault(name, []).append(row)

    def place(name: int) -> bytes:
        return hashlib.sha256(b"%d:" % shares.seed + least[name]).digest()

    order = sorted(members, key=place)
    found = [TRAIN] * count
    for split, share in ((TEST, shares.test), (DEV, shares.dev)):
        wanted = max(1, round(share * count)) if share else 0
        left: list[int] = []
        for name in order:
            if len(members[name]) <= wanted:
                wanted -= len(members[name])
                for query in members[name]:
                    found[query] = split
            else:
                left.append(name)
        if (share and split not in found) or not left:
            raise InputError(
                f"{where}: {count:,} queries form {len(members):,} groups that share passages, "
                f"equal texts or near copies, too few for a split '{split}' of {share:g}; add a "
                "column 'split', or leave the split out with "
                + ("?test=0" if split == TEST else "?dev=0")
            )
        order = left
    largest = max(map(len, members.values()))
    if largest > count // 2:
        logging.warning(
            "%s: %d of %d queries share passages or near copies with each other and are all in "
            "'train'",
            where,
            largest,
            count,
        )
    return found


class _Chained(Sequence):
    """Two sequences of texts, concatenated without a copy."""

    def __init__(self, *parts: Sequence[str]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self):
        for part in self._parts:
            yield from part

    def __getitem__(self, row):
        for part in self._parts:
            if row < len(part):
                return part[row]
            row -= len(part)
        raise IndexError(row)
