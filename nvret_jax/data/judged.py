"""A corpus, queries and judgments as three kinds of tables, in any format that `records` reads.

Data sets of BEIR's kind have this form on the Hugging Face hub and in TensorFlow Datasets: columns
`_id`, `title`, `text`; `_id`, `text`; `query-id`, `corpus-id`, `score`. The rules are those of a
BEIR folder (beir.py): ids are text and a whole number is read as its digits, a row that repeats an
earlier one counts once and one that contradicts it is a mistake, judgments of missing queries or
passages are refused or left out. Tables are read row by row, and texts and ids of a large corpus
are mapped files, so that it may exceed memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from nvret_jax.data.dataset import Asked, Dataset, Qrels, TextTable, content_hash
from nvret_jax.data.mapped import TextWriter, distinct
from nvret_jax.data.normalize import half_pair
from nvret_jax.data.roles import plain
from nvret_jax.errors import InputError
from nvret_jax.files import numbers
from nvret_jax.files.fields import Json, kind
from nvret_jax.files.lines import Mistakes, is_plain, shown
from nvret_jax.files.records import Records

# In the form of `roles.plain`, the usual one first.
PASSAGE_ID = ("id", "corpus_id", "docid", "doc_id", "document_id", "pid", "passage_id")
QUERY_ID = ("id", "query_id", "qid", "question_id")
PASSAGE_TEXT = ("text", "passage", "document", "contents", "content", "body", "passage_text")
QUERY_TEXT = ("text", "query", "question", "query_text")
TITLE = ("title",)
JUDGED_QUERY = ("query_id", "qid", "question_id")
JUDGED_PASSAGE = PASSAGE_ID[1:]
SCORE = ("score", "relevance", "label", "rel", "grade")


def column(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """The column with the first of these names that exists."""
    by_name = {plain(name): name for name in reversed(names)}
    return next((by_name[name] for name in usual if name in by_name), None)


def is_corpus(names: Sequence[str]) -> bool:
    """Whether these may be the columns of a corpus or of queries."""
    return bool(column(names, PASSAGE_ID) and column(names, PASSAGE_TEXT))


def is_judgments(names: Sequence[str]) -> bool:
    """Whether these are the columns of judgments."""
    return bool(column(names, JUDGED_QUERY) and column(names, JUDGED_PASSAGE))


def read_judged(
    name: str,
    corpus: Iterable[Records],
    queries: Iterable[Records],
    judgments: Mapping[str, Iterable[Records]],
    asked: Asked,
) -> Dataset:
    """Reads and checks a data set of three kinds of tables.

    Args:
        name: of the data set.
        corpus, queries: their tables.
        judgments: split -> its tables.
        asked: what the caller requests; the splits are those of `judgments`.

    Raises:
        InputError: see the module's docstring.
    """
    mistakes = Mistakes()
    passages = _table(corpus, "passage", PASSAGE_ID, PASSAGE_TEXT, asked, mistakes)
    asks = _table(queries, "query", QUERY_ID, QUERY_TEXT, asked, mistakes)
    mistakes.check()
    qrels = {
        split: _judgments(split, tables, asks, passages, asked, mistakes)
        for split, tables in judgments.items()
    }
    mistakes.check()
    extra = ["allow_empty"] if asked.allow_empty else []
    fingerprint = content_hash(passages, asks, qrels, extra=extra)
    return Dataset(name, passages, asks, qrels, fingerprint)


def _need(records: Records, usual: Sequence[str], what: str) -> str:
    found = column(records.names, usual)
    if found is None:
        there = ", ".join(records.names)
        raise InputError(
            f"{records.path}: no column with the {what} ({', '.join(usual)}); columns: {there}"
        )
    return found


def _table(
    tables: Iterable[Records],
    what: str,
    id_names: Sequence[str],
    text_names: Sequence[str],
    asked: Asked,
    mistakes: Mistakes,
) -> TextTable:
    ids, texts = TextWriter(), TextWriter()
    places: list[tuple[int, Records]] = []  # first row, file
    numbered = 0
    for records in tables:
        places.append((len(ids), records))
        id_name = _need(records, id_names, f"id of a {what}")
        text_name = _need(records, text_names, f"text of a {what}")
        title_name = column(records.names, TITLE) if what == "passage" else None
        names = [id_name, text_name, *([title_name] if title_name else [])]
        for where, record in records.read(names):
            found = _row(where, record, what, names, asked, mistakes)
            if found is None:
                continue
            numbered += not isinstance(record[id_name], str)
            ids.add(found[0])
            texts.add(found[1])
    if numbered:
        logging.warning(
            "%s: ids of the %s that are numbers, read as text: %d",
            places[0][1].path,
            "passages" if what == "passage" else "queries",
            numbered,
        )
    return _without_twins(what, ids.done(), texts.done(), places, mistakes)


def _row(
    where: str, record: Json, what: str, names: Sequence[str], asked: Asked, mistakes: Mistakes
) -> tuple[str, str] | None:
    """(id, text) of a row; None for one with a mistake, which is noted."""
    name, text = numbers.identifier(record.get(names[0])), record.get(names[1])
    title = record.get(names[2]) if len(names) > 2 else None
    if name is None:
        mistakes.add(
            f"{where}: column '{names[0]}' must be an id (a string or a whole number), got "
            f"{kind(record.get(names[0]))}"
        )
        return None
    for key, value in ((names[1], text), (names[-1], title or "")):
        if not isinstance(value, str):
            mistakes.add(f"{where}: column '{key}' must be a string, got {kind(value)}")
            return None
    text = f"{title} {text}".strip() if title else text.strip()
    wrong = None
    if not is_plain(name):
        wrong = "has an id that is empty or has white space, which a TREC run cannot hold"
    elif not text and not asked.allow_empty:
        wrong = "is blank; remove it, or allow empty texts"
    elif half := half_pair(text):
        wrong = f"has {half}, which is not valid Unicode"
    if wrong:
        mistakes.add(f"{where}: {what} {shown(name)} {wrong}")
        return None
    return name, text


def _without_twins(
    what: str,
    ids: Sequence[str],
    texts: Sequence[str],
    places: list[tuple[int, Records]],
    mistakes: Mistakes,
) -> TextTable:
    """The table with each id once."""

    def is_wrong(first: int, second: int) -> bool:
        if texts[first] == texts[second]:
            return False
        file = [records.path for start, records in places if start <= second][-1]
        mistakes.add(f"{file}: {what} id {shown(ids[second])} has two texts")
        return True

    found_ids, found_texts, repeated = distinct(ids, texts, is_wrong)
    file = places[0][1].path if places else "no file"
    if repeated:
        logging.warning("%s: rows that repeat an earlier one, counted once: %d", file, repeated)
    if not len(ids) and not mistakes.count:
        mistakes.add(f"{file}: holds no {what}")
    return TextTable(tuple(found_ids) if isinstance(found_ids, list) else found_ids, found_texts)


def _judgments(
    split: str,
    tables: Iterable[Records],
    queries: TextTable,
    corpus: TextTable,
    asked: Asked,
    mistakes: Mistakes,
) -> Qrels:
    qrels: Qrels = {}
    repeated, positives, before, path = 0, 0, mistakes.count, None
    left_out = {"queries": 0, "passages": 0}
    for records in tables:
        path = records.path
        names = [
            _need(records, JUDGED_QUERY, "judged query"),
            _need(records, JUDGED_PASSAGE, "judged passage"),
        ]
        score = column(records.names, SCORE)
        for where, record in records.read([*names, *([score] if score else [])]):
            query, passage = (numbers.identifier(record.get(name)) for name in names)
            grade = _grade(record[score]) if score else 1
            if query is None or passage is None or grade is None:
                key = score if None not in (query, passage) else names[query is not None]
                expected = "a whole number" if key == score else "an id"
                got = kind(record.get(key))
                mistakes.add(f"{where}: column '{key}' must be {expected}, got {got}")
                continue
            missing = "queries" if query not in queries.row else ""
            missing = missing or ("passages" if passage not in corpus.row else "")
            if missing and asked.drop:
                left_out[missing] += 1
            elif missing:
                what, name = ("query", query) if missing == "queries" else ("passage", passage)
                mistakes.add(
                    f"{where}: {what} id {shown(name)} is not among the {missing}; "
                    "data.missing='drop' leaves such judgments out"
                )
            elif (was := qrels.setdefault(query, {}).setdefault(passage, grade)) != grade:
                mistakes.add(
                    f"{where}: query {shown(query)} and passage {shown(passage)} were already "
                    f"judged {was}, and {grade} here"
                )
            else:
                repeated += 1
                positives += grade >= 1
    repeated -= sum(map(len, qrels.values()))
    gone = ", ".join(f"{count:,} for {side}" for side, count in left_out.items() if count)
    if not positives and mistakes.count == before:
        mistakes.add(
            f"{path}, split '{split}': no judgment has a score of 1 or more, so no query has a "
            "positive"
            + (f"; judgments of missing queries or passages were left out: {gone}" if gone else "")
        )
    if gone:
        logging.warning("%s: judgments of missing queries or passages, left out: %s", path, gone)
    if repeated:
        logging.warning(
            "%s: judgments that repeat an earlier one, counted once: %d", path, repeated
        )
    return {query: judged for query, judged in qrels.items() if judged}


def _grade(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return numbers.whole_number(value.strip() if isinstance(value, str) else repr(value))
    except ValueError:
        return None
