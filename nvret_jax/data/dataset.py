"""What a retrieval dataset is here, and the one door through which all of them come in.

A dataset is a corpus of passages, a table of queries, and per split the judgments (qrels) that
tie them together. `load_dataset("scheme:rest")` looks the scheme up in `READERS`; a new source is
one function and one line there. Choices:

- Text is held in memory up to a bound, and beyond it in a mapped file (`mapped`). Everything
  downstream refers to passages and queries by id or by row number.
- The order of rows is the order of the source, and every derived list has a stated order, so two
  runs over the same files agree to the last bit.
- `fingerprint` is a hash of the content, never of paths or times: a moved folder is the same data.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nvret_jax import options, paths
from nvret_jax.data.mapped import IdRows
from nvret_jax.data.numbers import shown
from nvret_jax.data.source import Source, parse
from nvret_jax.errors import InputError

_HASHED = 4096  # strings hashed at a time

Qrels = dict[str, dict[str, int]]  # query id -> passage id -> relevance
# split -> query id -> ids of passages that the source calls negatives, in its order
Given = dict[str, dict[str, tuple[str, ...]]]


@dataclass(frozen=True)
class TextTable:
    """Ids and texts, row by row.

    Attributes:
        ids: unique, in source order; a tuple, or `MappedTexts` of a corpus that is large.
        texts: as many strings.
    """

    ids: Sequence[str]
    texts: Sequence[str]

    def __post_init__(self):
        if len(self.ids) != len(self.texts):
            raise ValueError(f"{len(self.ids)} ids for {len(self.texts)} texts")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"TextTable({len(self):,} texts)"

    @functools.cached_property
    def row(self) -> Mapping[str, int]:
        """id -> row number."""
        if not isinstance(self.ids, tuple):
            return IdRows(self.ids)
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
        given: negatives that the source has for queries of a split.
    """

    name: str
    corpus: TextTable
    queries: TextTable
    qrels: dict[str, Qrels]
    fingerprint: str
    given: Given = field(default_factory=dict)

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
            hint = ""
            if [*self.qrels] == ["train"]:
                hint = f"; of a source of pairs, '?{split}=0.1' draws one from the training queries"
            raise InputError(
                f"dataset '{self.name}': no split '{split}'; loaded splits: {known}"
                + (hint if split in ("dev", "test") else "")
            )
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
    corpus: TextTable,
    queries: TextTable,
    qrels: dict[str, Qrels],
    *,
    extra: Sequence[str] = (),
    given: Given | None = None,
) -> str:
    """sha256, hex, over everything a reader of the dataset can see.

    The order of corpus and queries counts (it breaks ties), and that of given negatives; the order
    of judgments and of splits does not. Each string is preceded by its length, so no two contents
    share a byte stream.
    """
    digest = hashlib.sha256()

    def add(strings: Iterable[str], count: int) -> None:
        digest.update(b"%d;" % count)
        strings = iter(strings)
        while block := list(itertools.islice(strings, _HASHED)):
            found = []
            for string in block:
                data = string.encode("utf-8", "surrogatepass")
                found.append(b"%d:" % len(data))
                found.append(data)
            digest.update(b"".join(found))

    add(extra, len(extra))
    for table in (corpus, queries):
        add(table.ids, len(table.ids))
        add(table.texts, len(table.texts))
    for split in sorted(qrels):
        add([split], 1)
        add(
            (
                f"{query}\t{passage}\t{grade}"
                for query, judged in sorted(qrels[split].items())
                for passage, grade in sorted(judged.items())
            ),
            sum(map(len, qrels[split].values())),
        )
    for split, of_split in sorted(given.items()) if given else ():
        add(["given", split], 2)
        for query, passages in sorted(of_split.items()):
            add((query, *passages), 1 + len(passages))
    return digest.hexdigest()


@dataclass(frozen=True)
class Asked:
    """What a caller of `load_dataset` asks of a source.

    Attributes:
        splits: those whose judgments are read; None: all.
        allow_empty: keep texts that are blank.
        missing: 'error', or 'drop' to leave out what refers to texts that are not there.
        download: whether a source may use the network.
    """

    splits: Sequence[str] | None = None
    allow_empty: bool = False
    missing: str = "error"
    download: bool = False

    @property
    def drop(self) -> bool:
        """Whether what refers to missing texts is left out."""
        return self.missing == "drop"


def _read_beir(source: Source, asked: Asked) -> Dataset:
    from nvret_jax.data.beir import read_beir

    source.check(())
    folder = _place(source, "folder", "/data/scifact")
    return read_beir(folder, asked.splits, allow_empty=asked.allow_empty, missing=asked.missing)


def _read_pydocs(source: Source, asked: Asked) -> Dataset:
    from nvret_jax.data.pydocs import build_pydocs

    source.check(())
    if source.place:
        raise InputError(f"dataset '{source.shown}': 'pydocs:' takes nothing after the colon")
    return build_pydocs(asked.splits)


def _read_labelled(source: Source, asked: Asked) -> Dataset:
    from nvret_jax.data import labelled
    from nvret_jax.data.records import LAYOUT, layout_of

    readers = {"labels": labelled.read_labels, "examples": labelled.read_examples}
    source.check(LAYOUT)
    file, layout = _place(source, "file", "/data/train.jsonl"), layout_of(source)
    read = readers[source.scheme]
    return read(file, asked.splits, allow_empty=asked.allow_empty, layout=layout)


def _read_sts(source: Source, asked: Asked) -> Dataset:
    from nvret_jax.data.labelled import MIN_SCORE, read_sts
    from nvret_jax.data.records import LAYOUT, layout_of

    source.check(("min_score", *LAYOUT))
    file, layout = _place(source, "file", "/data/train.jsonl"), layout_of(source)
    score, empty = source.number("min_score", MIN_SCORE), asked.allow_empty
    return read_sts(file, asked.splits, min_score=score, allow_empty=empty, layout=layout)


def _read_pairs(source: Source, asked: Asked) -> Dataset:
    from nvret_jax.data.pairs import read_pairs

    _place(source, "file", "/data/faq.csv")
    return read_pairs(source, asked)


def _read_rows(source: Source, asked: Asked) -> Dataset:
    from nvret_jax.data.training_rows import read_rows

    _place(source, "file or folder", "/data/train.jsonl")
    return read_rows(source, asked)


def _read_hf(source: Source, asked: Asked) -> Dataset:
    from nvret_jax.data.hub import read_hub

    _place(source, "folder or the hub's data set", "mteb/scifact")
    return read_hub(source, asked)


def _read_tfds(source: Source, asked: Asked) -> Dataset:
    from nvret_jax.data.tfds import read_tfds

    _place(source, "prepared data set", "beir/scifact")
    return read_tfds(source, asked)


def _place(source: Source, what: str, example: str) -> str:
    if not source.place:
        scheme = source.scheme
        raise InputError(f"dataset '{scheme}:': name the {what}, as in '{scheme}:{example}'")
    return source.place


# The formats of training rows that are read without being converted first; `interchange` has them.
ROW_FORMATS = (
    "flagembedding",
    "tevatron",
    "tevatron-ids",
    "nemo",
    "nemo-inline",
    "st-triplet",
    "st-triplet-scores",
    "st-n-tuple",
    "st-n-tuple-scores",
    "st-labeled-pair",
    "st-labeled-pair-scores",
    "st-labeled-list",
    "st-labeled-list-scores",
    "three-table",
    "arctic",
)
READERS: dict[str, Callable[[Source, Asked], Dataset]] = {
    "beir": _read_beir,
    "pairs": _read_pairs,
    "hf": _read_hf,
    "tfds": _read_tfds,
    "pydocs": _read_pydocs,
    "labels": _read_labelled,
    "examples": _read_labelled,
    "sts": _read_sts,
    **dict.fromkeys(ROW_FORMATS, _read_rows),
}
# Sources whose place may be a name on a server in the place of a path.
NAMED = ("hf", "tfds")


_TAKES = {
    "spec": options.text("a data set, such as beir:DIR"),
    "splits": options.many(options.text("the name of a split"), unset=True),
    "allow_empty": options.flag(),
    "missing": options.choice("error", "drop"),
    "download": options.flag(),
}


def load_dataset(
    spec: str | os.PathLike,
    *,
    splits: str | Sequence[str] | None = None,
    allow_empty: bool = False,
    missing: str = "error",
    download: bool = False,
) -> Dataset:
    """Reads the dataset that `spec` names.

    Args:
        spec: 'pairs:FILE' (questions and answers, triplets, scored pairs; see pairs.py),
            'beir:FOLDER' (BEIR layout), 'hf:FOLDER' or 'hf:OWNER/NAME' (Hugging Face), 'tfds:NAME'
            (TensorFlow Datasets, prepared), 'pydocs:' (docstrings of the installed packages),
            'labels:FILE', 'examples:FILE', 'sts:FILE' (see labelled.py), or a format of training
            rows and its file, such as 'flagembedding:FILE'. Options follow a question mark:
            'pairs:faq.csv?query=ask&test=0.2'. A path, such as
            `pathlib.Path("data/scifact")`, is a folder in BEIR layout, or a table of pairs.
        splits: the splits to read, all of which must exist, or one; None reads all there are.
        allow_empty: keep passages and queries without any text instead of refusing them.
        missing: 'error', or 'drop' to leave out judgments of passages and queries that are not
            there, and rows of pairs with a blank text.
        download: whether the Hugging Face hub may be asked; else its local cache alone is read.

    Raises:
        InputError: unknown scheme, or whatever is wrong with the data, in one line.
    """
    if isinstance(spec, os.PathLike):
        spec = f"{'pairs' if os.path.isfile(spec) else 'beir'}:{os.fspath(spec)}"
    splits = (splits,) if isinstance(splits, str) else splits
    options.check_arguments("load_dataset", locals(), _TAKES)
    scheme = spec.partition(":")[0]
    if scheme not in READERS:
        names = [name for name in READERS if name not in ROW_FORMATS]
        known = ", ".join(f"'{name}:'" for name in names) + ", and formats such as 'flagembedding:'"
        hint = f"'pairs:{spec}' for a table" if "." in spec else f"'beir:{spec}' for a folder"
        if ":" not in spec:
            raise InputError(f"dataset '{spec}': no scheme; known are {known}; as in {hint}")
        raise InputError(
            f"dataset '{spec}': unknown scheme '{scheme}'; known are {known}; tables of any kind "
            "are read as 'pairs:FILE'"
        )
    source = parse(spec)
    if source.place:
        place = paths.local(source.place, f"dataset '{scheme}:'")
        source = dataclasses.replace(source, place=str(place))
    return READERS[scheme](source, Asked(splits, allow_empty, missing, download))
