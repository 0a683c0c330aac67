"""Passages that can never be negatives of a query, determined before any rule is applied.

A passage may be relevant to a query although it was not judged: it is the query itself, a positive
under another id, nearly a positive, a part of a positive's document, or a judge has rejected it as
a negative. Such passages are excluded from the searches, so that they take no place among the k
best, and each has a reason. Choices:

- Judged positives are not listed: mining knows them already. A passage judged below the relevance
  of a positive is an ordinary passage.
- Everything is a join over arrays: passages are hashed or numbered once, and pairs of query and
  passage are single int64 numbers. No array has the size positives × passages.
- Near copies by vectors are exact: the search from each positive continues, twice as deep each
  time, until it is below the threshold (neighbours.py). Near copies by words come from MinHash and
  are confirmed one by one (overlap.py).
- Every list is ascending, so the result does not depend on the order in which anything was found.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nvret_jax import options
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.normalize import keys, normalize
from nvret_jax.data.ragged import Ragged, union
from nvret_jax.data.same_text import SameText
from nvret_jax.errors import InputError
from nvret_jax.mining.exclude import documents, overlap
from nvret_jax.mining.exclude.neighbours import neighbours
from nvret_jax.mining.options import Exclude
from nvret_jax.options import number
from nvret_jax.search.rankers.ranker import Search

FORMS: dict[str, Callable[[str], str]] = {"normalized": normalize, "strip": str.strip}
_BLOCK = 1024  # positives whose vectors are held at a time
_KEYS = 1 << 20  # keys looked up at a time


class Reason(enum.IntEnum):
    """Why a passage is excluded; the first of several reasons counts."""

    OWN_TEXT = 1  # its text is the query's own
    SAME_TEXT = 2  # its text is a positive's
    NEAR_COPY = 3  # nearly a positive, by vectors or by words
    SAME_DOCUMENT = 4  # from the document of a positive
    VERDICT = 5  # a judge has rejected it


@dataclasses.dataclass(frozen=True)
class Exclusions:
    """Excluded passages, a row per query.

    Attributes:
        rows: int32 passage rows, ascending and unique; no judged positive of the query among them.
        reasons: int8 values of `Reason`, aligned with `rows`.
    """

    rows: Ragged
    reasons: Ragged

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self) -> dict[str, int]:
        """Pairs of query and passage by reason, every reason present, lower case."""
        found = np.bincount(self.reasons.values, minlength=max(Reason) + 1)
        return {reason.name.lower(): int(found[reason]) for reason in Reason}

    def take(self, numbers: np.ndarray) -> Exclusions:
        """The exclusions of some queries, in the given order."""
        return Exclusions(self.rows.take(numbers), self.reasons.take(numbers))

    def reason_of(self, rows_qk: np.ndarray) -> np.ndarray:
        """The reason to exclude each passage of a table, int8 [Q, K]; 0 where there is none.

        Args:
            rows_qk: int [Q, K], passage rows; -1 for padding.
        """
        at_qk = self.rows.find(np.arange(len(rows_qk))[:, None], rows_qk)
        if not len(self.reasons.values):
            return np.zeros(rows_qk.shape, np.int8)
        return np.where(at_qk >= 0, self.reasons.values[at_qk], 0).astype(np.int8)

    def for_search(self, positive_rows: Ragged) -> Ragged:
        """Rows a search must not return: excluded passages and positives, ascending, unique."""
        return union(self.rows, positive_rows)


def build(
    query_texts: Sequence[str],
    corpus: TextTable,
    positive_rows: Ragged,
    settings: Exclude,
    *,
    passages_nd=None,
    search: Search | None = None,
    verdict_rows: Ragged | None = None,
    texts: SameText | None = None,
) -> Exclusions:
    """All exclusions that `settings` enable, combined.

    Args:
        query_texts: Q texts.
        corpus: N passages.
        positive_rows: int32, judged positives of each query.
        settings: which exclusions.
        passages_nd, search: see `near_copies`; needed for `settings.cosine` only.
        verdict_rows: int32, passages a judge has rejected per query; see verdicts.py.
        texts: of the corpus, if available.

    Returns:
        The exclusions. With `settings.same_text`, copies of an excluded passage are excluded for
        the same reason.

    Raises:
        InputError: an exclusion cannot be computed; see the functions below.
    """
    if len(positive_rows) != len(query_texts):
        raise ValueError(f"{len(query_texts)} queries and {len(positive_rows)} rows of positives")
    parts: list[tuple[Reason, Ragged]] = []
    if texts is None and (settings.same_text or settings.own_text == "normalized"):
        texts = SameText.of(corpus.texts)
    if settings.own_text != "off":
        form = settings.own_text
        shared = texts.keys_n if form == "normalized" else None
        made = own_text(query_texts, corpus.texts, form, corpus_keys=shared)
        parts.append((Reason.OWN_TEXT, made))
    if settings.same_text:
        parts.append((Reason.SAME_TEXT, texts.copies(positive_rows)))
    if settings.cosine:
        if passages_nd is None or search is None:
            raise InputError(
                f"exclusions: cosine={settings.cosine} needs passage vectors and a search over "
                f"them; use jaccard, or a teacher that embeds"
            )
        made = near_copies(positive_rows, passages_nd, search, settings.cosine)
        parts.append((Reason.NEAR_COPY, made))
    if settings.jaccard:
        made = overlapping(positive_rows, corpus.texts, settings.jaccard, seed=settings.seed)
        parts.append((Reason.NEAR_COPY, made))
    document_n = _documents(corpus, settings)
    if document_n is not None:
        parts.append((Reason.SAME_DOCUMENT, same_document(positive_rows, document_n)))
    if verdict_rows is not None:
        parts.append((Reason.VERDICT, verdict_rows))
    if settings.same_text:  # what excludes a passage excludes its copies
        parts = [
            (reason, rows if reason == Reason.OWN_TEXT else texts.copies(rows))
            for reason, rows in parts
        ]
    return combine(parts, positive_rows)


def combine(parts: Sequence[tuple[Reason, Ragged]], positive_rows: Ragged) -> Exclusions:
    """One list per query from lists by reason, without positives; see `Reason` for the order."""
    count = len(positive_rows)
    for reason, rows in parts:
        if len(rows) != count:
            raise ValueError(f"{reason.name}: {len(rows)} rows for {count} queries")
    row_of, values, reasons = (
        np.concatenate([np.zeros(0, dtype), *arrays])
        for dtype, arrays in (
            (np.int64, [rows.row_of for _, rows in parts]),
            (np.int32, [rows.values for _, rows in parts]),
            (np.int8, [np.full(len(rows.values), reason, np.int8) for reason, rows in parts]),
        )
    )
    order = np.lexsort((reasons, values, row_of))
    row_of, values, reasons = row_of[order], values[order], reasons[order]
    again = (row_of[1:] == row_of[:-1]) & (values[1:] == values[:-1])
    keep = np.append(True, ~again)[: len(values)] & ~positive_rows.contains(row_of, values)
    rows = Ragged.grouped(row_of[keep], values[keep], count)
    return Exclusions(rows, rows.like(reasons[keep]))


# --- one maker per reason ------------------------------------------------------------------------


def own_text(
    query_texts: Sequence[str],
    corpus_texts: Sequence[str],
    form: str = "normalized",
    *,
    corpus_keys: np.ndarray | None = None,
) -> Ragged:
    """Passages whose text is that of the query.

    Args:
        query_texts: Q texts.
        corpus_texts: N texts.
        form: how texts are compared: 'normalized' (`data.normalize`) or 'strip'.
        corpus_keys: `normalize.keys` of the corpus in that form, if already known.

    Returns:
        int32 rows, ascending; a judged positive that repeats the query is among them.
    """
    if form not in FORMS:
        raise InputError(f"exclusions: unknown form={form!r}; choose one of {', '.join(FORMS)}")
    if corpus_keys is None:
        corpus_keys = keys(corpus_texts, FORMS[form])
    wanted, group_q = np.unique(keys(query_texts, FORMS[form]), return_inverse=True)
    return _members(wanted, corpus_keys).take(group_q)


def near_copies(positive_rows: Ragged, passages_nd, search: Search, threshold: float) -> Ragged:
    """All passages whose cosine to a positive is at least `threshold`.

    A cosine is the float32 score of `search`; 1e-6 below the threshold still counts, so that a
    threshold of 1 finds equal vectors.

    Args:
        positive_rows: int32, a row per query.
        passages_nd: float [N, D], an array or a store that slices by rows; the passages `search`
            ranks. Vectors that are not of unit length go through `UnitRows` first, here and in
            the index behind `search`.
        search: (vectors_qd, k) -> scores_qk, rows_qk over unit vectors.
        threshold: above 0, at most 1.

    Returns:
        int32 rows, ascending; the positives are among them. A zero vector has no copies.

    Raises:
        InputError: an invalid threshold, a vector that is not finite, or `search` ranks vectors
            that are not of unit length.
    """
    _check_threshold(threshold, "cosine")
    distinct, group = np.unique(positive_rows.values, return_inverse=True)
    parts = [
        neighbours(distinct[start : start + _BLOCK], passages_nd, search, threshold)
        for start in range(0, len(distinct), _BLOCK)
    ]
    return _spread(_stack(parts), group, positive_rows)


def overlapping(
    positive_rows: Ragged, corpus_texts: Sequence[str], threshold: float, *, seed: int = 0
) -> Ragged:
    """Passages that share at least `threshold` of their word 3-shingles with a positive.

    The similarity is Jaccard's, exact for every reported pair; see overlap.py for what can be
    missed. The positives are among the rows.

    Raises:
        InputError: an invalid threshold.
    """
    _check_threshold(threshold, "jaccard")
    distinct, group = np.unique(positive_rows.values, return_inverse=True)
    copies = overlap.near_copies(distinct, corpus_texts, threshold, seed=seed)
    return _spread(copies, group, positive_rows)


def same_document(positive_rows: Ragged, document_n: np.ndarray) -> Ragged:
    """Passages of the document of a positive; the positives are among them.

    Args:
        positive_rows: int32, a row per query.
        document_n: int64 [N], the document of each passage; -1 for none.
    """
    wanted, group = np.unique(document_n[positive_rows.values], return_inverse=True)
    # A passage without a document gets a number that no positive has, so that it matches none.
    unused = document_n.max(initial=0) + 1
    members = _members(wanted, np.where(document_n < 0, unused, document_n))
    return _spread(members, group, positive_rows)


def _documents(corpus: TextTable, settings: Exclude) -> np.ndarray | None:
    """The document of each passage, if the settings need it."""
    if settings.document_separator:
        return documents.by_separator(corpus.ids, settings.document_separator)
    if settings.document_map is None:
        return None
    if isinstance(settings.document_map, Mapping):
        return documents.by_map(corpus.ids, settings.document_map)
    path = settings.document_map
    return documents.by_map(corpus.ids, documents.read(path), str(path))


def _check_threshold(value: float, name: str) -> None:
    wrong = options.mistake(f"exclusions: {name}", value, number(0, 1, above=True))
    if wrong:
        raise InputError(wrong)


# --- joins ---------------------------------------------------------------------------------------


def _members(wanted: np.ndarray, key_n: np.ndarray) -> Ragged:
    """The rows that have each of some ascending, unique keys, int32 ascending."""
    if not len(wanted):
        return Ragged(np.zeros(1, np.int64), np.zeros(0, np.int32))
    rows, groups = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for start in range(0, len(key_n), _KEYS):
        block = key_n[start : start + _KEYS]
        at = np.minimum(np.searchsorted(wanted, block), len(wanted) - 1)
        hit = np.flatnonzero(wanted[at] == block)
        rows.append((hit + start).astype(np.int32))
        groups.append(at[hit])
    rows, groups = np.concatenate(rows), np.concatenate(groups)
    counts = np.bincount(groups, minlength=len(wanted))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Ragged(offsets, rows[np.argsort(groups, kind="stable")])


def _spread(members: Ragged, group: np.ndarray, positive_rows: Ragged) -> Ragged:
    """Members per query from the members of the group of each positive, ascending and unique."""
    lists = members.take(group.reshape(-1))
    query = np.repeat(positive_rows.row_of, lists.counts)
    return Ragged.distinct(query, lists.values, len(positive_rows))


def _stack(parts: Sequence[Ragged]) -> Ragged:
    """One `Ragged` from consecutive ones."""
    counts = np.concatenate([np.zeros(0, np.int64), *(part.counts for part in parts)])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Ragged(
        offsets, np.concatenate([np.zeros(0, np.int32), *(part.values for part in parts)])
    )
