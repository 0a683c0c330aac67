"""The document that a passage is part of: from its id, or from a mapping.

Long documents are cut into passages before they are embedded, and a passage next to a positive
often answers the same question. Documents are numbers here, one per passage, so that "same
document" is a comparison of integers; -1 means no document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.files import numbers, paths
from nvret_jax.files.lines import Mistakes, stem
from nvret_jax.files.records import Layout, open_records

NO_DOCUMENT = -1
PASSAGE_NAMES = ("passage_id", "passage-id", "corpus_id", "corpus-id", "_id", "id")
DOCUMENT_NAMES = ("document_id", "document-id", "doc_id", "doc-id", "document")
_NAMED = (".csv", ".jsonl", ".json", ".parquet", ".arrow", ".feather")  # have column names


def by_separator(passage_ids: Sequence[str], separator: str) -> np.ndarray:
    """Documents from ids: 'book#12' and 'book#7' are parts of 'book' for the separator '#'.

    The last occurrence counts; an id without the separator is itself the document, so 'book' and
    'book#1' are parts of the same document.

    Returns:
        int64 [N], equal numbers for equal documents.

    Raises:
        InputError: no id has the separator.
    """
    if not separator:
        raise InputError(
            "exclusions: the document separator is empty; give the one that the ids use"
        )
    number_of: dict[str, int] = {}
    out = np.empty(len(passage_ids), np.int64)
    any_part = False
    for row, identifier in enumerate(passage_ids):
        head, found, _ = identifier.rpartition(separator)
        any_part = any_part or bool(found)
        out[row] = number_of.setdefault(head if found else identifier, len(number_of))
    if not any_part:
        example = f", such as {passage_ids[0]!r}" if len(passage_ids) else ""
        raise InputError(
            f"exclusions: no passage id has the document separator {separator!r}{example}; give "
            "the separator that the ids use, or a document_map"
        )
    return out


def by_map(
    passage_ids: Sequence[str], document_of: Mapping[str, str], source: str = "document_map"
) -> np.ndarray:
    """Documents from a mapping of passage ids; a passage that is not in it has none (-1).

    Ids that are not in the corpus are ignored: the mapping may cover more than the corpus.

    Raises:
        InputError: none of the passages is in it.
    """
    number_of: dict[str, int] = {}
    out = np.full(len(passage_ids), NO_DOCUMENT, np.int64)
    for row, identifier in enumerate(passage_ids):
        document = document_of.get(identifier)
        if document is not None:
            out[row] = number_of.setdefault(document, len(number_of))
    if not number_of:
        example = f", such as {passage_ids[0]!r}" if len(passage_ids) else ""
        raise InputError(
            f"{source}: none of its {len(document_of)} passage ids is among the "
            f"{len(passage_ids)} of the corpus{example}"
        )
    return out


def read(path: epath.PathLike) -> dict[str, str]:
    """The mapping in a file of passage ids and document ids.

    Args:
        path: lines `passage id <tab> document id`, with or without a header; or a csv, json, jsonl,
            parquet or arrow file with one of the columns `PASSAGE_NAMES` and one of
            `DOCUMENT_NAMES`.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line is invalid; names the line.
    """
    path = paths.local(path, "document_map")
    what, mistakes = "documents of the passages", Mistakes()
    found: dict[str, str] = {}
    at: dict[str, str] = {}
    if stem(path)[1] in _NAMED:
        records = open_records(path, what)
        names = (records.column(*PASSAGE_NAMES), records.column(*DOCUMENT_NAMES))
    else:
        records = open_records(path, what, Layout(header=False), suffix=".tsv")
        names = ("1", "2")
        if records.names != [*names]:
            raise InputError(
                f"{path}:1: expected 2 columns (passage id, document id) separated by a tab, got "
                f"{len(records.names)}"
            )
    for number, (place, record) in enumerate(records.read(names, mistakes)):
        cells = [numbers.identifier(record.get(name)) for name in names]
        passage, document = ((cell or "").strip() for cell in cells)
        if not number and passage.lower() in PASSAGE_NAMES and document.lower() in DOCUMENT_NAMES:
            continue
        if not passage or not document:
            mistakes.add(f"{place}: expected a passage id and a document id, got an empty one")
        elif found.setdefault(passage, document) != document:
            mistakes.add(
                f"{place}: passage '{passage}' is in document '{document}' here and in "
                f"'{found[passage]}' in {at[passage]}"
            )
        else:
            at.setdefault(passage, place)
    if not found and not mistakes.count:
        mistakes.add(f"{path}: empty; expected lines of passage id, tab, document id")
    mistakes.check()
    return found
