"""Reads a dataset in the layout of BEIR: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.

Choices:

- A passage is `(title + " " + text).strip()`, as the readers of BEIR and mteb do.
- Everything is checked while it is read, because a bad id found after hours of embedding is found
  too late. Mistakes are collected: the first three are named by file and line, the rest counted.
- Judgments may be BEIR's (header, then query-id, corpus-id, score by tabs) or TREC's (no header;
  query, iteration, passage, relevance by any white space).
- Ids must be free of white space and control characters: a TREC run is split at white space, so
  such an id would be read back as something else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from etils import epath

from nvret_jax import paths
from nvret_jax.data.dataset import Dataset, Qrels, TextTable, content_hash, safe_name
from nvret_jax.data.lines import Mistakes, is_plain, json_kind, lines
from nvret_jax.errors import InputError

_HEADER = ("query-id", "corpus-id", "score")


def read_beir(
    folder: epath.PathLike, splits: Sequence[str] | None = None, *, allow_empty: bool = False
) -> Dataset:
    """Reads and checks one BEIR folder.

    Args:
        folder: holds corpus.jsonl ({"_id", "title"?, "text"} a line), queries.jsonl
            ({"_id", "text"}) and qrels/.
        splits: names of the qrels files to read; None reads all there are.
        allow_empty: keep passages and queries with no text at all.

    Returns:
        The dataset, in file order. Each file is read once.

    Raises:
        InputError: see the module's docstring.
    """
    folder = paths.local(folder, "folder")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected corpus.jsonl, queries.jsonl, qrels/")
    splits = _find_splits(folder) if splits is None else list(dict.fromkeys(splits))
    mistakes = Mistakes()
    corpus = _read_table(folder / "corpus.jsonl", "passage", True, allow_empty, mistakes)
    queries = _read_table(folder / "queries.jsonl", "query", False, allow_empty, mistakes)
    mistakes.check()  # before the judgments, which would report every id of a broken line again
    qrels = {
        split: _read_qrels(folder / "qrels" / f"{split}.tsv", queries, corpus, mistakes)
        for split in splits
    }
    mistakes.check()
    extra = ["allow_empty"] if allow_empty else []
    return Dataset(
        name=safe_name(epath.Path(folder.resolve()).name),
        corpus=corpus,
        queries=queries,
        qrels=qrels,
        fingerprint=content_hash(corpus, queries, qrels, extra=extra),
    )


def _find_splits(folder: epath.Path) -> list[str]:
    qrels = folder / "qrels"
    found = sorted(p.stem for p in qrels.iterdir() if p.suffix == ".tsv") if qrels.is_dir() else []
    if not found:
        raise InputError(f"{qrels}: no judgments; expected files such as {qrels / 'test.tsv'}")
    # The order in which people think of them; any others follow by name.
    usual = [split for split in ("train", "dev", "test") if split in found]
    return usual + [split for split in found if split not in usual]


def _read_table(
    path: epath.Path, what: str, has_title: bool, allow_empty: bool, mistakes: Mistakes
) -> TextTable:
    plural = {"passage": "passages", "query": "queries"}[what]
    found: dict[str, int] = {}  # id -> line it came from
    texts: list[str] = []
    before = mistakes.count
    loads = json.loads
    for number, line in lines(path, plural):
        try:
            record = loads(line)
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
            column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            mistakes.add(f"{path}:{number}: not valid JSON ({_reason(error)}{column})")
            continue
        if not isinstance(record, dict):
            mistakes.add(f"{path}:{number}: expected a JSON object, got {json_kind(record)}")
            continue
        identifier, text = record.get("_id"), record.get("text")
        title = record.get("title") if has_title else None
        if not isinstance(identifier, str) or not isinstance(text, str):
            key = "text" if isinstance(identifier, str) else "_id"
            got = f"got {json_kind(record[key])}" if key in record else "there is none"
            mistakes.add(f"{path}:{number}: key '{key}' must be a string, {got}")
            continue
        if title is not None and not isinstance(title, str):
            mistakes.add(f"{path}:{number}: key 'title' must be a string, got {json_kind(title)}")
            continue
        if not is_plain(identifier):
            mistakes.add(
                f"{path}:{number}: _id {identifier!r} is empty or has white space or control "
                "characters, which a TREC run cannot hold"
            )
            continue
        if identifier in found:
            first = found[identifier]
            mistakes.add(f"{path}:{number}: _id '{identifier}' was already used on line {first}")
            continue
        text = f"{title} {text}".strip() if title else text.strip()
        if not text and not allow_empty:
            where = "title and text are" if has_title else "text is"
            mistakes.add(
                f"{path}:{number}: {what} '{identifier}' is empty ({where} blank); "
                "remove it, or allow empty texts"
            )
            continue
        try:
            text.encode()  # JSON can escape half of a surrogate pair, which no tokenizer takes
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            mistakes.add(
                f"{path}:{number}: {what} '{identifier}' has half of a surrogate pair "
                f"(\\u{code:04x}), which is not text"
            )
            continue
        found[identifier] = number
        texts.append(text)
    if not texts and mistakes.count == before:
        mistakes.add(f"{path}: empty; expected one JSON object a line, with the {plural}")
    return TextTable(tuple(found), texts)


def _read_qrels(
    path: epath.Path, queries: TextTable, corpus: TextTable, mistakes: Mistakes
) -> Qrels:
    if not path.exists():
        there = ", ".join(_find_splits(path.parent.parent))
        raise InputError(f"{path}: no such file; splits in this folder: {there}")
    qrels: Qrels = {}
    seen: dict[tuple[str, str], int] = {}  # (query, passage) -> line
    known_queries, known_passages = queries.row, corpus.row
    width, positives, before = 0, 0, mistakes.count
    for number, line in lines(path, "judgments"):
        fields = line.split("\t")
        if len(fields) not in (3, 4):
            fields = line.split()
        if not width:
            width = 4 if len(fields) == 4 else 3
            if tuple(name.strip().lower() for name in fields) == _HEADER:
                continue
        if len(fields) != width:
            expected = "query-id, corpus-id, score" if width == 3 else "query, 0, passage, score"
            mistakes.add(
                f"{path}:{number}: expected {width} columns ({expected}), got {len(fields)}"
            )
            continue
        query, passage, score = fields[0], fields[-2], fields[-1]
        try:
            relevance = int(score)
        except ValueError:
            mistakes.add(f"{path}:{number}: score must be a whole number, got {score!r}")
            continue
        if query not in known_queries:
            mistakes.add(f"{path}:{number}: query id '{query}' is not in queries.jsonl")
        elif passage not in known_passages:
            mistakes.add(f"{path}:{number}: passage id '{passage}' is not in corpus.jsonl")
        elif (query, passage) in seen:
            mistakes.add(
                f"{path}:{number}: query '{query}' and passage '{passage}' were already judged "
                f"on line {seen[query, passage]}"
            )
        else:
            seen[query, passage] = number
            qrels.setdefault(query, {})[passage] = relevance
            positives += relevance >= 1
    if not positives and mistakes.count == before:
        mistakes.add(f"{path}: no judgment has a score of 1 or more, so no query has a positive")
    return qrels


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)
