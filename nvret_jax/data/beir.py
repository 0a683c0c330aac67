"""Reads a dataset in the layout of BEIR: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.

Choices:

- A passage is `(title + " " + text).strip()`, as in the readers of BEIR and mteb.
- Each file may be compressed (.gz, .zst).
- Everything is checked while it is read, because an invalid id should not surface after hours of
  embedding. Mistakes are collected: the first three are named by file and line, the rest counted.
- Judgments may be BEIR's (header, then query-id, corpus-id, score by tabs) or TREC's (no header;
  query, iteration, passage, relevance by any white space).
- A line that repeats an earlier one exactly counts once; one that contradicts an earlier one is a
  mistake. Published sets have both.
- negatives/<split>.jsonl, which a conversion writes in addition to the judgments, holds given
  negatives ({"query_id", "negative_ids"}); other files of the folder are not read.
- Ids are text. A JSON number is read as its digits, which is what the judgments hold.
- Ids must be free of white space and control characters: a TREC run is split at white space, so
  such an id would be read back differently.
"""

from __future__ import annotations

import array
from collections.abc import Sequence

from absl import logging
from etils import epath

from nvret_jax.data.dataset import (
    MISSING,
    Dataset,
    Qrels,
    TextTable,
    content_hash,
    safe_name,
    split_name,
)
from nvret_jax.data.mapped import TextWriter, distinct
from nvret_jax.data.normalize import half_pair
from nvret_jax.errors import InputError
from nvret_jax.files import numbers, paths
from nvret_jax.files.lines import (
    Mistakes,
    find_file,
    is_plain,
    json_kind,
    json_value,
    lines,
    shown,
    stem,
)

_HEADER = ("query-id", "corpus-id", "score")


def read_beir(
    folder: epath.PathLike,
    splits: Sequence[str] | None = None,
    *,
    allow_empty: bool = False,
    missing: str = "error",
    given: bool = True,
) -> Dataset:
    """Reads and checks one BEIR folder.

    Args:
        folder: holds corpus.jsonl ({"_id", "title"?, "text"} per line), queries.jsonl ({"_id",
            "text"}) and qrels/, plain or compressed.
        splits: names of the qrels files to read; None reads all.
        allow_empty: keep passages and queries without any text.
        missing: how to treat judgments whose query or passage does not exist: 'error', or 'drop',
            which leaves them out and logs how many.
        given: also read the given negatives.

    Returns:
        The dataset, in file order. Each file is read once.

    Raises:
        InputError: see the module's docstring.
    """
    if missing not in MISSING:
        raise InputError(f"missing={missing!r}: choose one of {', '.join(MISSING)}")
    folder = paths.local(folder, "folder")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected corpus.jsonl, queries.jsonl, qrels/")
    splits = find_splits(folder) if splits is None else list(dict.fromkeys(splits))
    mistakes = Mistakes()
    for split in splits:
        try:
            split_name(split)
        except ValueError as error:
            raise InputError(f"{folder}: a split must be {error}") from None
    corpus = _read_table(folder / "corpus.jsonl", "passage", True, allow_empty, mistakes)
    queries = _read_table(folder / "queries.jsonl", "query", False, allow_empty, mistakes)
    mistakes.check()  # before the judgments, which would report every id of a broken line again
    qrels = {
        split: _read_qrels(
            folder / "qrels" / f"{split}.tsv", queries, corpus, missing == "drop", mistakes
        )
        for split in splits
    }
    negatives = {
        split: _read_negatives(
            folder / "negatives" / f"{split}.jsonl", qrels[split], corpus, mistakes
        )
        for split in (splits if given else ())
    }
    negatives = {split: of_split for split, of_split in negatives.items() if of_split}
    mistakes.check()
    extra = ["allow_empty"] if allow_empty else []
    return Dataset(
        name=safe_name(epath.Path(folder.resolve()).name),
        corpus=corpus,
        queries=queries,
        qrels=qrels,
        fingerprint=content_hash(corpus, queries, qrels, extra=extra, given=negatives),
        given=negatives,
    )


def find_splits(folder: epath.Path) -> list[str]:
    """Names of the splits of a BEIR folder: train, dev and test first, then others by name.

    Raises:
        InputError: there is none.
    """
    qrels = folder / "qrels"
    named = [stem(path) for path in qrels.iterdir()] if qrels.is_dir() else []
    found = sorted({name for name, suffix in named if suffix == ".tsv"})
    if not found:
        raise InputError(f"{qrels}: no judgments; expected files such as {qrels / 'test.tsv'}")
    usual = [split for split in ("train", "dev", "test") if split in found]
    return usual + [split for split in found if split not in usual]


def _read_table(
    path: epath.Path, what: str, has_title: bool, allow_empty: bool, mistakes: Mistakes
) -> TextTable:
    path = find_file(path)
    plural = {"passage": "passages", "query": "queries"}[what]
    ids, texts = TextWriter(), TextWriter()
    places = array.array("q")  # the line of each row, negative if the id is a JSON number
    before = mistakes.count
    for number, line in lines(path, plural):
        try:
            record = json_value(line)
        except ValueError as error:
            mistakes.add(f"{path}:{number}: {error}")
            continue
        if not isinstance(record, dict):
            mistakes.add(f"{path}:{number}: expected a JSON object, got {json_kind(record)}")
            continue
        identifier, text = record.get("_id"), record.get("text")
        title = record.get("title") if has_title else None
        spelled = not isinstance(identifier, str)
        if spelled:
            identifier = numbers.identifier(identifier)
        if identifier is None or not isinstance(text, str):
            key = "text" if identifier is not None else "_id"
            wanted = "a string" if key == "text" else "a string or a whole number"
            got = f"got {json_kind(record[key])}" if key in record else "there is none"
            mistakes.add(f"{path}:{number}: key '{key}' must be {wanted}, {got}")
            continue
        if title is not None and not isinstance(title, str):
            mistakes.add(f"{path}:{number}: key 'title' must be a string, got {json_kind(title)}")
            continue
        if not is_plain(identifier):
            mistakes.add(
                f"{path}:{number}: _id {shown(identifier)} is empty or has white space or control "
                "characters, which a TREC run cannot hold"
            )
            continue
        text = f"{title} {text}".strip() if title else text.strip()
        if not text and not allow_empty:
            where = "title and text are" if has_title else "text is"
            mistakes.add(
                f"{path}:{number}: {what} {shown(identifier)} is empty ({where} blank); "
                "remove it, or allow empty texts"
            )
            continue
        if half := half_pair(text):
            mistakes.add(
                f"{path}:{number}: {what} {shown(identifier)} has {half}, which is not valid "
                f"Unicode"
            )
            continue
        ids.add(identifier)
        texts.add(text)
        places.append(-number if spelled else number)
    if not len(ids) and mistakes.count == before:
        mistakes.add(f"{path}: empty; expected one JSON object per line, with the {plural}")

    def is_wrong(first: int, second: int) -> bool:
        name, line, earlier = shown(ids[second]), abs(places[second]), abs(places[first])
        if (places[first] < 0) != (places[second] < 0):
            mistakes.add(
                f"{path}:{line}: _id {name} is a number here or on line {earlier}, and text on the "
                "other; ids are text, so both are one id"
            )
        elif texts[first] != texts[second]:
            mistakes.add(
                f"{path}:{line}: _id {name} was already used on line {earlier}, with another text"
            )
        else:
            return False
        return True

    found_ids, found_texts, repeated = distinct(ids.done(), texts.done(), is_wrong)
    as_numbers = sum(place < 0 for place in places)
    if as_numbers:
        logging.warning("%s: ids that are JSON numbers, read as text: %d", path, as_numbers)
    if repeated:
        logging.warning("%s: lines that repeat an earlier one, counted once: %d", path, repeated)
    return TextTable(tuple(found_ids) if isinstance(found_ids, list) else found_ids, found_texts)


def _read_negatives(
    path: epath.Path, qrels: Qrels, corpus: TextTable, mistakes: Mistakes
) -> dict[str, tuple[str, ...]]:
    """The negatives that a converted folder has in addition to its judgments, by query."""
    path = find_file(path)
    if not path.exists():
        return {}
    found: dict[str, dict[str, None]] = {}
    for number, line in lines(path, "negatives"):
        try:
            record = json_value(line)
        except ValueError as error:
            mistakes.add(f"{path}:{number}: {error}")
            continue
        record = record if isinstance(record, dict) else {}
        query = numbers.identifier(record.get("query_id"))
        passages = record.get("negative_ids", [])
        passages = passages if isinstance(passages, list) else [None]
        passages = [numbers.identifier(passage) for passage in passages]
        if query is None or None in passages:
            mistakes.add(
                f"{path}:{number}: expected 'query_id' and 'negative_ids', ids of passages"
            )
            continue
        for passage in passages:
            if passage not in corpus.row:
                mistakes.add(f"{path}:{number}: passage id {shown(passage)} is not in corpus.jsonl")
            elif qrels.get(query, {}).get(passage, 0) >= 1:
                mistakes.add(
                    f"{path}:{number}: passage {shown(passage)} is a negative of query "
                    f"{shown(query)}, and judged {qrels[query][passage]}"
                )
        found.setdefault(query, {}).update(dict.fromkeys(passages))
    return {query: tuple(passages) for query, passages in found.items() if passages}


def _read_qrels(
    path: epath.Path, queries: TextTable, corpus: TextTable, drop: bool, mistakes: Mistakes
) -> Qrels:
    folder, path = path.parent.parent, find_file(path)
    if not path.exists():
        there = ", ".join(find_splits(folder))
        raise InputError(f"{path}: no such file; splits in this folder: {there}")
    qrels: Qrels = {}
    seen: dict[tuple[str, str], int] = {}  # (query, passage) -> line
    known_queries, known_passages = queries.row, corpus.row
    width, positives, before = 0, 0, mistakes.count
    left_out, repeated = {"queries": 0, "passages": 0}, 0
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
            relevance = numbers.whole_number(score.strip())
        except ValueError:
            mistakes.add(f"{path}:{number}: score must be a whole number, got {shown(score)}")
            continue
        if query not in known_queries or passage not in known_passages:
            side = "queries" if query not in known_queries else "passages"
            if drop:
                left_out[side] += 1
                continue
            what, name = ("query", query) if side == "queries" else ("passage", passage)
            file = "queries.jsonl" if side == "queries" else "corpus.jsonl"
            mistakes.add(
                f"{path}:{number}: {what} id {shown(name)} is not in {file}; "
                "data.missing='drop' leaves such judgments out"
            )
        elif (query, passage) in seen:
            if qrels[query][passage] == relevance:
                repeated += 1
                continue
            mistakes.add(
                f"{path}:{number}: query {shown(query)} and passage {shown(passage)} were already "
                f"judged {qrels[query][passage]} on line {seen[query, passage]}, and "
                f"{relevance} here"
            )
        else:
            seen[query, passage] = number
            qrels.setdefault(query, {})[passage] = relevance
            positives += relevance >= 1
    gone = ", ".join(f"{count:,} for {side}" for side, count in left_out.items() if count)
    if not positives and mistakes.count == before:
        also = f"; judgments of missing queries or passages were left out: {gone}" if gone else ""
        mistakes.add(
            f"{path}: no judgment has a score of 1 or more, so no query has a positive{also}"
        )
    if gone:
        logging.warning("%s: judgments of missing queries or passages, left out: %s", path, gone)
    if repeated:
        logging.warning(
            "%s: judgments that repeat an earlier one, counted once: %d", path, repeated
        )
    return qrels
