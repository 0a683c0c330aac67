"""Classification, clustering and similarity sets as retrieval data sets for training.

    labels:FILE              texts retrieve their label, among all labels
    examples:FILE            texts retrieve others of their class, among all texts
    sts:FILE?min_score=4     sentences retrieve those paired with them at a score of 4 or more

`labels:pydocs:` and `examples:pydocs:` need no file: the summaries of docstrings (pydocs.py), each
labelled with the module it is from.

This is how stage 2 of NV-Embed, which NV-Retriever's follows, turns such sets into queries and
passages (NV-Embed, section 4.2: labels in its version 1, examples in version 2, pairs of score 4
and more in both directions). Choices:

- A text counts once however often it occurs in the file: two copies would be each other's
  positives. It has the labels of all its rows of a split.
- Ids follow the rows of the file, counted from 1: the text that first occurs in row 17 is
  'text-17', the sentences of a pair 'text-17-1' and 'text-17-2'. A label has its own words as id.
- Where queries are passages, both have the same id, so that evaluation leaves a query's own text
  out of its ranking; mining drops a passage with the query's own text by default.
- Everything is split 'train', unless the file has a column 'split'. The corpus of examples then has
  only the texts of 'train': a text of 'test' finds its class there, and no training query has test
  texts as positives, or as unlabelled negatives.
- Labels are used as written. A file whose labels are all numbers is refused as labels: "3" is
  meaningless to an encoder.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from absl import logging
from etils import epath

from nvret_jax.data.dataset import (
    Dataset,
    Qrels,
    TextTable,
    content_hash,
    safe_name,
    split_name,
)
from nvret_jax.data.pydocs import build_pydocs
from nvret_jax.errors import InputError
from nvret_jax.files.fields import kind
from nvret_jax.files.lines import Mistakes, shown, stem
from nvret_jax.files.numbers import decimal
from nvret_jax.files.records import PLAIN, Layout, Records, open_records

TRAIN = "train"
MIN_SCORE = 4.0
MAX_JUDGMENTS = 4_000_000  # held as Python objects, some 100 bytes each

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_ID_LENGTH = 80


@dataclass
class _Texts:
    """Distinct texts, each with its first id."""

    ids: dict[str, str] = field(default_factory=dict)  # text -> id

    def add(self, text: str, identifier: str) -> str:
        return self.ids.setdefault(text, identifier)

    def table(self) -> TextTable:
        return TextTable(tuple(self.ids.values()), list(self.ids))


@dataclass
class _Labelled:
    """The content of a file of labelled texts.

    Attributes:
        texts: all of them.
        labels: split -> text id -> its labels, in file order.
    """

    texts: _Texts
    labels: dict[str, dict[str, list[str]]]

    def all_labels(self) -> list[str]:
        """Distinct labels of all splits, in the order of the splits and of their rows."""
        of_text = itertools.chain.from_iterable(split.values() for split in self.labels.values())
        return list(dict.fromkeys(itertools.chain.from_iterable(of_text)))


def read_labels(
    path: epath.PathLike,
    splits: Sequence[str] | None = None,
    *,
    allow_empty: bool = False,
    layout: Layout = PLAIN,
) -> Dataset:
    """Texts as queries, their labels as passages.

    Args:
        path: .jsonl, .csv, .tsv or .parquet with the columns 'text' (or 'sentence') and
            'label_text' (or, without it, 'label'); 'split' is optional.
        splits: those whose judgments to keep; None: all. Corpus and queries do not depend on it.
        allow_empty: keep blank texts.
        layout: of a text file, where its bytes do not show it.

    Returns:
        The dataset, in the order of the file.

    Raises:
        InputError: the file cannot be read, a value is missing or of the wrong kind, all labels are
            numbers, or there is no such split.
    """
    path = epath.Path(path)
    found = _read_labelled(path, allow_empty, layout)
    labels = found.all_labels()
    if all(_NUMBER.fullmatch(label) for label in labels):
        raise InputError(
            f"{path}: all {len(labels)} labels are numbers ('{labels[0]}'), which are meaningless "
            f"as passages; add a column 'label_text', or read it as 'examples:'"
        )
    ids = _label_ids(labels)
    qrels = {
        split: {text: {ids[label]: 1 for label in of_text} for text, of_text in table.items()}
        for split, table in _kept(found.labels, splits, path).items()
    }
    return _dataset(path, TextTable(tuple(ids.values()), labels), found.texts.table(), qrels)


def read_examples(
    path: epath.PathLike,
    splits: Sequence[str] | None = None,
    *,
    allow_empty: bool = False,
    layout: Layout = PLAIN,
) -> Dataset:
    """Texts as queries and as passages; those that share a label are each other's positives.

    Args:
        path: as in `read_labels`; the texts of split 'train' are the corpus.
        splits: those whose judgments to keep; None: all. Corpus and queries do not depend on it.
        allow_empty: keep blank texts.
        layout: of a text file, where its bytes do not show it.

    Returns:
        The dataset, in the order of the file. The only text of a class is a passage but not a
        query; the number of such texts is logged.

    Raises:
        InputError: as `read_labels` but for numbers; also if the file has splits but no 'train', or
            if there would be more than `MAX_JUDGMENTS` judgments.
    """
    path = epath.Path(path)
    found = _read_labelled(path, allow_empty, layout)
    if TRAIN not in found.labels:
        raise InputError(
            f"{path}: examples are retrieved from the split '{TRAIN}', but its splits are "
            f"{', '.join(found.labels)}; name the one for training '{TRAIN}'"
        )
    members: dict[str, list[str]] = {}  # label -> ids of passages
    for text, of_text in found.labels[TRAIN].items():
        for label in of_text:
            members.setdefault(label, []).append(text)
    kept = _kept(found.labels, splits, path)
    _check_judgments(path, kept, members)

    qrels: dict[str, Qrels] = {}
    for split, table in kept.items():
        qrels[split] = {}
        for text, of_text in table.items():
            others = (other for label in of_text for other in members.get(label, ()))
            judged = {other: 1 for other in others if other != text}
            if judged:
                qrels[split][text] = judged
        alone = len(table) - len(qrels[split])
        if not qrels[split]:
            raise InputError(
                f"{path}, split '{split}': none of {alone} texts shares its label with another "
                f"text of '{TRAIN}', so there is no positive; read it as 'labels:'"
            )
        if alone:
            logging.warning(
                "%s, split '%s': %d of %d texts are alone in their class and are not queries",
                path,
                split,
                alone,
                len(table),
            )
    queries = found.texts.table()
    corpus = queries.select(text for text in queries.ids if text in found.labels[TRAIN])
    return _dataset(path, corpus, queries, qrels)


def read_sts(
    path: epath.PathLike,
    splits: Sequence[str] | None = None,
    *,
    min_score: float = MIN_SCORE,
    allow_empty: bool = False,
    layout: Layout = PLAIN,
) -> Dataset:
    """Sentences as queries and as passages; pairs with a high enough score are each other's
    positives.

    Args:
        path: .jsonl, .csv, .tsv or .parquet with the columns 'sentence1', 'sentence2' and
            'score'; 'split' is optional.
        splits: those whose judgments to keep; None: all. Corpus and queries do not depend on it.
        min_score: the lowest score that makes a positive, on the file's own scale.
        allow_empty: keep blank sentences.
        layout: of a text file, where its bytes do not show it.

    Returns:
        The dataset, in the order of the file. Pairs that score less are not judgments, nor is a
        sentence paired with itself.

    Raises:
        InputError: the file cannot be read, a value is missing or of the wrong kind, there is no
            such split, or no pair of a split scores enough.
    """
    path = epath.Path(path)
    records = open_records(path, "pairs of sentences with scores", layout)
    columns = [records.column(name) for name in ("sentence1", "sentence2", "score")]
    texts, pairs, mistakes = _Texts(), {}, Mistakes()
    for number, row in enumerate(_rows(records, columns, allow_empty, mistakes, _score), 1):
        if row is None:
            continue
        split, (first, second, score) = row
        first, second = texts.add(first, f"text-{number}-1"), texts.add(second, f"text-{number}-2")
        pairs.setdefault(split, []).append((first, second, score))
    mistakes.check()

    qrels: dict[str, Qrels] = {}
    for split, scored in _kept(pairs, splits, path).items():
        found: Qrels = {}
        for first, second, score in scored:
            if score >= min_score and first != second:
                found.setdefault(first, {})[second] = 1
                found.setdefault(second, {})[first] = 1
        if not found:
            highest = max(score for *_, score in scored)
            raise InputError(
                f"{path}, split '{split}': no pair of two sentences scores {min_score:g} or more, "
                f"the highest score is {highest:g}; name a lower one, as in "
                f"'sts:{path.name}?min_score={highest * 0.8:g}'"
            )
        qrels[split] = found
    table = texts.table()
    return _dataset(path, table, table, qrels)


def _read_labelled(path: epath.Path, allow_empty: bool, layout: Layout) -> _Labelled:
    if str(path) == "pydocs:":
        return _labelled_pydocs()
    records = open_records(path, "texts with labels", layout)
    columns = [records.column("text", "sentence"), records.column("label_text", "label")]
    found, mistakes = _Labelled(_Texts(), {}), Mistakes()
    for number, row in enumerate(_rows(records, columns, allow_empty, mistakes, _label), 1):
        if row is None:
            continue
        split, (text, label) = row
        identifier = found.texts.add(text, f"text-{number}")
        labels = found.labels.setdefault(split, {}).setdefault(identifier, [])
        if label not in labels:
            labels.append(label)
    mistakes.check()
    return found


def _labelled_pydocs() -> _Labelled:
    """Summaries of docstrings by the module they are from, with pydocs' splits."""
    data = build_pydocs()
    found = _Labelled(_Texts(), {})
    for split, judged in data.qrels.items():
        labels = found.labels.setdefault(split, {})
        for query, passages in judged.items():
            identifier = found.texts.add(data.queries.texts[data.queries.row[query]], query)
            labels[identifier] = list(dict.fromkeys(p.rpartition(".")[0] for p in passages))
    return found


def _rows(
    records: Records,
    columns: Sequence[str],
    allow_empty: bool,
    mistakes: Mistakes,
    last: Callable[[object], object],
) -> Iterator[tuple[str, list] | None]:
    """(split, values) of each row; None for one with a mistake, which is noted.

    Args:
        records: the file.
        columns: texts, and one that `last` reads.
        allow_empty: whether a text may be blank.
        mistakes: gets what is wrong, by line and column.
        last: parses a value of the last column, or raises ValueError.
    """
    has_split = "split" in records.names
    for where, record in records.read([*columns, "split"] if has_split else columns):
        values = []
        try:
            for name in columns[:-1]:
                values.append(_named(record, name, lambda value: _text(value, allow_empty)))
            values.append(_named(record, columns[-1], last))
            split = TRAIN
            if has_split:
                split = _named(record, "split", _split)
            elif "split" in record:
                raise ValueError("has a column 'split', but the first line has none")
        except ValueError as error:
            mistakes.add(f"{where}: {error}")
            yield None
            continue
        yield split, values


def _named(record: dict, name: str, read: Callable[[object], object]) -> object:
    if name not in record:
        raise ValueError(f"column '{name}' is missing; there are {', '.join(map(str, record))}")
    try:
        return read(record[name])
    except ValueError as error:
        raise ValueError(f"column '{name}' must be {error}") from None


def _text(value: object, allow_empty: bool) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a string, got {kind(value)}")
    text = value.strip()
    if not text and not allow_empty:
        raise ValueError("a text, and is blank; remove the row")
    return text


def _split(value: object) -> str:
    return split_name(_text(value, False))


def _label(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"a string or a whole number, got {kind(value)}")
    return _text(value, False)


def _score(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"a number, got {kind(value)}")
    try:
        score = decimal(value.strip()) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"a number, got {shown(str(value))}") from None
    if not np.isfinite(score):
        raise ValueError(f"a finite number, got {value!r}")
    return score


def _label_ids(labels: Sequence[str]) -> dict[str, str]:
    """label -> id: its letters, digits, '.', '_' and '-', in lower case; '-2' where taken."""
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for label in labels:
        slug = re.sub(r"[^\w.-]+", "-", label.lower()).strip("-")[:_ID_LENGTH] or "label"
        tries = itertools.chain([slug], (f"{slug}-{n}" for n in itertools.count(2)))
        ids[label] = next(name for name in tries if name not in taken)
        taken.add(ids[label])
    return ids


def _kept(found: dict, splits: Sequence[str] | None, path: epath.Path) -> dict:
    """The requested splits, in that order."""
    wanted = list(found) if splits is None else list(dict.fromkeys(splits))
    for split in wanted:
        if split not in found:
            raise InputError(f"{path}: no split '{split}'; splits there: {', '.join(found)}")
    return {split: found[split] for split in wanted}


def _check_judgments(
    path: epath.Path, kept: dict[str, dict[str, list[str]]], members: dict[str, list[str]]
) -> None:
    count = sum(
        len(members.get(label, ()))
        for table in kept.values()
        for of_text in table.values()
        for label in of_text
    )
    if count > MAX_JUDGMENTS:
        largest = max(members, key=lambda label: len(members[label]))
        raise InputError(
            f"{path}: texts of the same class are {count:,} pairs (label '{largest}' has "
            f"{len(members[largest]):,} texts), more than {MAX_JUDGMENTS:,} judgments; read it as "
            "'labels:', or take fewer rows"
        )


def _dataset(
    path: epath.Path, corpus: TextTable, queries: TextTable, qrels: dict[str, Qrels]
) -> Dataset:
    fingerprint = content_hash(corpus, queries, qrels)
    return Dataset(safe_name(stem(path)[0]), corpus, queries, qrels, fingerprint)
