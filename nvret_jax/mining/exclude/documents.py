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
from nvret_jax.files import paths
from nvret_jax.files.lines import Mistakes, lines

NO_DOCUMENT = -1
_PASSAGE_NAMES = {"passage_id", "passage-id", "corpus_id", "corpus-id", "_id", "id"}
_DOCUMENT_NAMES = {"document_id", "document-id", "doc_id", "doc-id", "document"}


def by_separator(passage_ids: Sequence[str], separator: str) -> np.ndarray:
    """Documents from ids: 'book#12' and 'book#7' are parts of 'book' for the separator '#'.

    The last occurrence counts; an id without the separator is itself the document, so 'book' and
    'book#1' belong together.

    Returns:
        int64 [N], equal numbers for equal documents.

    Raises:
        InputError: no id has the separator.
    """
    if not separator:
        raise InputError(
            "exclusions: the document separator is empty; give the one that the ids use"
        )
    numbers: dict[str, int] = {}
    out = np.empty(len(passage_ids), np.int64)
    any_part = False
    for row, identifier in enumerate(passage_ids):
        head, found, _ = identifier.rpartition(separator)
        any_part = any_part or bool(found)
        out[row] = numbers.setdefault(head if found else identifier, len(numbers))
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
    numbers: dict[str, int] = {}
    out = np.full(len(passage_ids), NO_DOCUMENT, np.int64)
    for row, identifier in enumerate(passage_ids):
        document = document_of.get(identifier)
        if document is not None:
            out[row] = numbers.setdefault(document, len(numbers))
    if not numbers:
        example = f", such as {passage_ids[0]!r}" if len(passage_ids) else ""
        raise InputError(
            f"{source}: none of its {len(document_of)} passage ids is among the "
            f"{len(passage_ids)} of the corpus{example}"
        )
    return out


def read(path: epath.PathLike) -> dict[str, str]:
    """The mapping in a file of lines `passage id <tab> document id`, with or without a header.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line is invalid; names the line.
    """
    path = paths.local(path, "document_map")
    mistakes, found, at = Mistakes(), {}, {}
    for number, line in lines(path, "documents of the passages"):
        fields = [field.strip() for field in line.split("\t")]
        if not found and not mistakes.count and len(fields) == 2:
            if fields[0].lower() in _PASSAGE_NAMES and fields[1].lower() in _DOCUMENT_NAMES:
                continue
        if len(fields) != 2 or not all(fields):
            got = f"{len(fields)}" if len(fields) != 2 else "an empty one"
            mistakes.add(
                f"{path}:{number}: expected 2 columns (passage id, document id) separated by a "
                f"tab, got {got}"
            )
        elif found.setdefault(fields[0], fields[1]) != fields[1]:
            mistakes.add(
                f"{path}:{number}: passage '{fields[0]}' is in document '{fields[1]}' here and in "
                f"'{found[fields[0]]}' on line {at[fields[0]]}"
            )
        else:
            at.setdefault(fields[0], number)
    if not found and not mistakes.count:
        mistakes.add(f"{path}: empty; expected lines of passage id, tab, document id")
    mistakes.check()
    return found
