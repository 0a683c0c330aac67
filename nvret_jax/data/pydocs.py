"""`pydocs:`, the dataset that needs no download: docstrings of installed packages.

A query is the summary line of a docstring, its positive is the rest of the same docstring, and the
corpus holds all of these remainders. NumPy, SciPy and JAX document many functions twice in
different words (`numpy.sum`, `jax.numpy.sum`); only one of the two is labelled, so the other is a
real unlabelled positive, the target of positive-aware mining. Choices:

- Summary: the first paragraph, without a leading signature (`dot(a, b, out=None)`), cut after its
  first sentence; the text after the first sentence stays in the passage. Sphinx roles and quotes
  are removed (":func:`~jax.vmap`" becomes "jax.vmap"). If the passage repeats the summary at its
  beginning, that copy is removed, too; otherwise the pair would be a string match.
- Passage: the rest as written, template slots (`%(before_notes)s`) removed. Texts of fewer than 10
  words are not passages.
- Summaries of fewer than 3 words or 15 characters, more than 60 words, or directives such as "..
  deprecated::" are not queries. Such a passage stays in the corpus as a distractor.
- Identical passages (a docstring copied to another name) are one passage with the alphabetically
  first name. Identical summaries are one query with all their passages as positives. A text shared
  by more than 4 names is boilerplate: such a summary ("Return self.") is not a query; such a
  passage is kept once, without a query.
- Split by name: sha256 of the last part of the dotted name, lower case, puts it in train (70 %),
  dev (10 %) or test (20 %), so twins are in the same split. Names linked by a shared query or
  passage are moved together.

Passage ids are the public dotted names; a query has the name of its first passage and a question
mark, so that no query has the id of its passage. The content, and so the fingerprint, depends on
the installed versions: scores compare only within one environment.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from absl import logging

from nvret_jax.data.dataset import Dataset, Qrels, TextTable, content_hash
from nvret_jax.data.pyapi import STDLIB, find_roots, public_docs
from nvret_jax.errors import InputError

PACKAGES = ("numpy", "scipy", "jax", "flax", "optax", STDLIB)
SPLITS = {"train": 0.7, "dev": 0.1, "test": 0.2}  # shares of the names

_MIN_PASSAGE_WORDS = 10
_MIN_QUERY_WORDS, _MIN_QUERY_CHARACTERS, _MAX_QUERY_WORDS = 3, 15, 60
_MAX_SHARED = 4  # names that may share a text before it counts as boilerplate

_SIGNATURE = re.compile(r"[\w.]+\(.*\)\s*(->[^\n]*|:)?", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[^.\s][.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<!vs\.)\s+(?=[A-Z`])")
_ROLE = re.compile(r":[\w:.+-]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`")
_QUOTES = re.compile(r"`+([^`]*)`+_*")
_TEMPLATE = re.compile(r"%\(\w+\)s")
_WORD = re.compile(r"\w+")


def build_pydocs(
    splits: Sequence[str] | None = None, *, packages: Sequence[str] = PACKAGES
) -> Dataset:
    """Builds the dataset from the source files of the installed packages, in a few seconds.

    Args:
        splits: those to keep of 'train', 'dev' and 'test'; None keeps all. Corpus and queries do
            not depend on it.
        packages: packages to read; `pyapi.STDLIB` is the standard library. A package that is not
            installed is skipped with a warning.

    Returns:
        The dataset 'pydocs'. Every judgment has relevance 1; rows are in alphabetical order of id.

    Raises:
        InputError: a split that does not exist.
    """
    wanted = list(SPLITS) if splits is None else list(dict.fromkeys(splits))
    for split in wanted:
        if split not in SPLITS:
            raise InputError(f"pydocs: no split '{split}'; there are {', '.join(SPLITS)}")
    roots, missing = find_roots(packages)
    if missing:
        logging.warning("pydocs: not installed and left out: %s", ", ".join(missing))
    docs: dict[str, str] = {}
    for package, root in roots.items():
        docs.update(public_docs(package, root))
    return _assemble(docs, wanted)


def _assemble(docs: dict[str, str], splits: Sequence[str]) -> Dataset:
    """The dataset of a table name -> docstring; see the module's docstring for the rules."""
    names_of_passage: dict[str, list[str]] = {}
    summary_of: dict[str, str] = {}
    for name in sorted(docs):
        summary, passage = split_docstring(docs[name])
        if len(passage.split()) >= _MIN_PASSAGE_WORDS:
            names_of_passage.setdefault(passage, []).append(name)
            summary_of[name] = summary

    passages = {names[0]: text for text, names in names_of_passage.items()}  # id -> text
    names_of_query: dict[str, list[str]] = {}
    positive_of: dict[str, str] = {}  # name -> id of its passage
    for names in names_of_passage.values():
        if len(names) > _MAX_SHARED:
            continue
        for name in names:
            positive_of[name] = names[0]
            if _is_query(summary_of[name]):
                names_of_query.setdefault(summary_of[name], []).append(name)
    # One function may have several names for the same query.
    names_of_query = {
        query: sorted(names)
        for query, names in names_of_query.items()
        if len({positive_of[name] for name in names}) <= _MAX_SHARED
    }

    ties = _Ties()
    for names in (*names_of_query.values(), *names_of_passage.values()):
        if len(names) <= _MAX_SHARED:
            for name in names[1:]:
                ties.join(_bare(names[0]), _bare(name))
    qrels: dict[str, Qrels] = {split: {} for split in SPLITS}
    queries = {}
    for text, names in sorted(names_of_query.items(), key=lambda item: item[1][0]):
        query_id = f"{names[0]}?"
        queries[query_id] = text
        split = _split_of(ties.first(_bare(names[0])))
        qrels[split][query_id] = {passage: 1 for passage in sorted({positive_of[n] for n in names})}

    ids = sorted(passages)
    corpus = TextTable(tuple(ids), [passages[name] for name in ids])
    table = TextTable(tuple(queries), list(queries.values()))
    qrels = {split: qrels[split] for split in splits}
    return Dataset("pydocs", corpus, table, qrels, content_hash(corpus, table, qrels))


def split_docstring(doc: str) -> tuple[str, str]:
    """(summary, rest) of a docstring cleaned by `inspect.cleandoc`; either may be empty."""
    paragraphs = re.split(r"\n\s*\n", _TEMPLATE.sub("", doc).strip(), maxsplit=1)
    if len(paragraphs) == 2 and _SIGNATURE.fullmatch(paragraphs[0]):
        paragraphs = re.split(r"\n\s*\n", paragraphs[1].strip(), maxsplit=1)
    first, rest = paragraphs[0], paragraphs[1].strip() if len(paragraphs) == 2 else ""
    lines = first.split("\n")
    if len(lines) > 1 and _SIGNATURE.fullmatch(lines[0]):  # the signature has no blank line below
        first = "\n".join(lines[1:])
    sentence, *more = _SENTENCE_END.split(first, maxsplit=1)
    summary = _plain(sentence)
    passage = "\n\n".join(part.strip() for part in (*more, rest) if part.strip())
    while summary and (copy := _opening(passage, summary)):
        passage = passage[copy:].lstrip(" \t\n.:;,")
    return summary, passage


def _plain(text: str) -> str:
    """One line without Sphinx markup."""
    return " ".join(_QUOTES.sub(r"\1", _ROLE.sub(r"\1", text)).split())


def _opening(passage: str, summary: str) -> int:
    """How many characters of `passage` repeat the words of `summary`; 0 if they do not."""
    words, end = _WORD.finditer(passage), 0
    for expected in _WORD.findall(summary):
        word = next(words, None)
        if word is None or word[0].lower() != expected.lower():
            return 0
        end = word.end()
    return end


def _is_query(summary: str) -> bool:
    words = len(summary.split())
    return (
        _MIN_QUERY_WORDS <= words <= _MAX_QUERY_WORDS
        and len(summary) >= _MIN_QUERY_CHARACTERS
        and not summary.startswith("..")
    )


def _bare(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _split_of(bare_name: str) -> str:
    point = int.from_bytes(hashlib.sha256(bare_name.encode()).digest()[:8], "big") / 2**64
    for split, share in SPLITS.items():
        if point < share:
            return split
        point -= share
    return split  # rounding: the last one takes the rest


class _Ties:
    """The names that must share a split: a union of sets, each identified by its first name."""

    def __init__(self):
        self._parent: dict[str, str] = {}

    def first(self, name: str) -> str:
        while (parent := self._parent.get(name, name)) != name:
            name = parent
        return name

    def join(self, a: str, b: str) -> None:
        a, b = sorted((self.first(a), self.first(b)))
        self._parent[b] = a
