"""What a retrieval dataset is here, and the one door through which all of them come in.

A dataset is a corpus of passages, a table of queries, and per split the judgments (qrels) that
tie them together. `load_dataset("scheme:rest")` looks the scheme up in `READERS`; a new source is
one function and one line there. Choices:

- Text is held in memory: retrieval corpora that fit a training host's disk of vectors fit its
  memory as text. Everything downstream refers to passages and queries by id or by row number.
- The order of rows is the order of the source, and every derived list has a stated order, so two
  runs over the same files agree to the last bit.
- `fingerprint` is a hash of the content, never of paths or times: a moved folder is the same data.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nvret_jax import options, paths
from nvret_jax.data.numbers import shown
from nvret_jax.errors import InputError

Qrels = dict[str, dict[str, int]]  # query id -> passage id -> relevance


@dataclass(frozen=True)
class TextTable:
    """Ids and texts, row by row.

    Attributes:
        ids: unique, in source order.
        texts: as many strings.
    """

    ids: tuple[str, ...]
    texts: Sequence[str]

    def __post_init__(self):
        if len(self.ids) != len(self.texts):
            raise ValueError(f"{len(self.ids)} ids for {len(self.texts)} texts")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"TextTable({len(self):,} texts)"

    @functools.cached_property
    def row(self) -> dict[str, int]:
        """id -> row number."""
        return {identifier: row for row, identifier in enumerate(self.ids)}

    def select(self, ids: Iterable[str]) -> TextTable:
        """The rows of these ids, in the order given."""
        ids = tuple(ids)
        return TextTable(ids, [self.texts[self.row[identifier]] for identifier in ids])


@dataclass(frozen=True)
class Dataset:
    """A corpus, its queries and the judgments of some splits.

    Attributes:
        name: short and safe in a file name, e.g. 'scifact'.
        corpus: passages; title and text are already one string.
        queries: the queries of all splits.
        qrels: split -> query id -> passage id -> relevance (0 = judged and not relevant).
        fingerprint: sha256, hex, of the content; see `content_hash`.
    """

    name: str
    corpus: TextTable
    queries: TextTable
    qrels: dict[str, Qrels]
    fingerprint: str

    def __repr__(self) -> str:
        shown = [f"{split} {len(judged):,}" for split, judged in self.qrels.items()]
        splits = ", ".join(shown[:6] + ["…"] * (len(shown) > 6))
        return (
            f"Dataset({self.name!r}: {len(self.corpus):,} passages, {len(self.queries):,} queries; "
            f"judged queries per split: {splits or 'none'})"
        )

    def split_qrels(self, split: str) -> Qrels:
        """The judgments of one split.

        Raises:
            InputError: the dataset has no such split, or it was not asked for when loading.
        """
        if split not in self.qrels:
            known = ", ".join(self.qrels) or "none"
            raise InputError(f"dataset '{self.name}': no split '{split}'; loaded splits: {known}")
        return self.qrels[split]

    def split_queries(self, split: str) -> TextTable:
        """Queries with at least one judgment in `split`, in the order of `queries`."""
        judged = self.split_qrels(split)
        return self.queries.select(query for query in self.queries.ids if query in judged)

    def positives(self, split: str, min_relevance: int = 1) -> dict[str, list[str]]:
        """Passages judged relevant, for each query of `split` that has any.

        Args:
            split: name of a loaded split.
            min_relevance: the lowest relevance that counts as positive.

        Returns:
            query id -> passage ids, most relevant first and in corpus order among equals. Queries
            come in the order of `queries`; those without a positive are left out.

        Raises:
            InputError: the split is unknown, or no judgment in it reaches `min_relevance`.
        """
        qrels = self.split_qrels(split)
        row = self.corpus.row
        found = {}
        for query in self.queries.ids:
            judged = qrels.get(query, {})
            passages = [passage for passage, grade in judged.items() if grade >= min_relevance]
            if passages:
                found[query] = sorted(passages, key=lambda p, j=judged: (-j[p], row[p]))
        if not found:
            raise InputError(
                f"dataset '{self.name}', split '{split}': no judgment of relevance "
                f">= {min_relevance}, so there is no positive"
            )
        return found


def split_name(text: str) -> str:
    """The name of a split, which becomes part of names of files.

    Raises:
        ValueError: it is longer than 100 bytes, or has a slash or a NUL.
    """
    if len(text.encode("utf-8", "surrogatepass")) > 100 or set(text) & set("/\\\0"):
        raise ValueError(f"a name of at most 100 bytes without a slash, got {shown(text)}")
    return text


def safe_name(text: str) -> str:
    """`text` as a file name: lower case, anything but letters, digits, '.', '_' and '-' a '-'."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.") or "dataset"


def content_hash(
    corpus: TextTable, queries: TextTable, qrels: dict[str, Qrels], *, extra: Sequence[str] = ()
) -> str:
    """sha256, hex, over everything a reader of the dataset can see.

    The order of corpus and queries counts (it breaks ties); the order of judgments and of splits
    does not. Each string is preceded by its length, so no two contents share a byte stream.
    """
    digest = hashlib.sha256()

    def add(strings: Iterable[str]) -> None:
        block = []
        for string in strings:
            data = string.encode("utf-8", "surrogatepass")
            block.append(b"%d:" % len(data))
            block.append(data)
        digest.update(b"%d;" % (len(block) // 2))
        digest.update(b"".join(block))

    add(extra)
    for table in (corpus, queries):
        add(table.ids)
        add(table.texts)
    for split in sorted(qrels):
        add([split])
        add(
            f"{query}\t{passage}\t{grade}"
            for query, judged in sorted(qrels[split].items())
            for passage, grade in sorted(judged.items())
        )
    return digest.hexdigest()


def _read_beir(rest: str, splits: Sequence[str] | None, allow_empty: bool, missing: str) -> Dataset:
    from nvret_jax.data.beir import read_beir

    if not rest:
        raise InputError("dataset 'beir:': name the folder, as in 'beir:/data/scifact'")
    return read_beir(rest, splits, allow_empty=allow_empty, missing=missing)


def _read_pydocs(
    rest: str, splits: Sequence[str] | None, allow_empty: bool, missing: str
) -> Dataset:
    from nvret_jax.data.pydocs import build_pydocs

    if rest:
        raise InputError(f"dataset 'pydocs:{rest}': 'pydocs:' takes nothing after the colon")
    return build_pydocs(splits)


def _read_labels(
    rest: str, splits: Sequence[str] | None, allow_empty: bool, missing: str
) -> Dataset:
    from nvret_jax.data.labelled import read_labels

    return read_labels(_file("labels", rest), splits, allow_empty=allow_empty)


def _read_examples(
    rest: str, splits: Sequence[str] | None, allow_empty: bool, missing: str
) -> Dataset:
    from nvret_jax.data.labelled import read_examples

    return read_examples(_file("examples", rest), splits, allow_empty=allow_empty)


def _read_sts(rest: str, splits: Sequence[str] | None, allow_empty: bool, missing: str) -> Dataset:
    from nvret_jax.data.labelled import parse_sts, read_sts

    file, min_score = parse_sts(_file("sts", rest))
    return read_sts(file, splits, min_score=min_score, allow_empty=allow_empty)


def _file(scheme: str, rest: str) -> str:
    if not rest:
        raise InputError(f"dataset '{scheme}:': name the file, as in '{scheme}:/data/train.jsonl'")
    return rest


# scheme -> reader(rest of the spec, splits or None for all, allow_empty, missing) -> Dataset
READERS: dict[str, Callable[[str, Sequence[str] | None, bool, str], Dataset]] = {
    "beir": _read_beir,
    "pydocs": _read_pydocs,
    "labels": _read_labels,
    "examples": _read_examples,
    "sts": _read_sts,
}


_TAKES = {
    "spec": options.text("a data set, such as beir:DIR"),
    "splits": options.many(options.text("the name of a split"), unset=True),
    "allow_empty": options.flag(),
    "missing": options.choice("error", "drop"),
}


def load_dataset(
    spec: str | os.PathLike,
    *,
    splits: str | Sequence[str] | None = None,
    allow_empty: bool = False,
    missing: str = "error",
) -> Dataset:
    """Reads the dataset that `spec` names.

    Args:
        spec: 'beir:FOLDER' (BEIR layout on disk), 'pydocs:' (docstrings of the installed packages;
            nothing to download), or 'labels:FILE', 'examples:FILE', 'sts:FILE' (see labelled.py).
            A path, such as `pathlib.Path("data/scifact")`, is a folder in BEIR layout.
        splits: the splits to read, all of which must exist, or one; None reads all there are.
        allow_empty: keep passages and queries without any text instead of refusing them.
        missing: 'error', or 'drop' to leave out judgments of passages and queries that are not
            there; of 'beir:' alone, as other sources make their judgments themselves.

    Raises:
        InputError: unknown scheme, or whatever is wrong with the data, in one line.
    """
    if isinstance(spec, os.PathLike):
        spec = f"beir:{os.fspath(spec)}"
    splits = (splits,) if isinstance(splits, str) else splits
    options.check_arguments("load_dataset", locals(), _TAKES)
    scheme, _, rest = spec.partition(":")
    if scheme not in READERS:
        known = ", ".join(f"'{name}:'" for name in READERS)
        if ":" not in spec:
            raise InputError(
                f"dataset '{spec}': no scheme; known are {known}, as in 'beir:{spec}' for a folder"
            )
        raise InputError(f"dataset '{spec}': unknown scheme '{scheme}'; known are {known}")
    place = str(paths.local(rest, f"dataset '{scheme}:'")) if rest else rest
    return READERS[scheme](place, splits, allow_empty, missing)
