"""`pairs:`, tables of questions and answers.

    pairs:faq.csv                                   question, answer
    pairs:data/*.jsonl.gz                           several files, by a pattern or a folder
    pairs:faq.csv?query=Frage&passage=Antwort       columns named
    pairs:triplets.parquet                          anchor, positive, negative …
    pairs:judged.tsv                                query, passage, label
    pairs:faq.csv?corpus=docs.csv                   more passages, without queries

A row is a query with one passage or a list of them, negatives if it has any, and a grade if it has
one. Options of the source, separated by '&':

- `query`, `passage`, `title`, `negatives`, `score`, `split_column`: the columns, if they do not
  have usual names (`roles`); `score=` without a value ignores a column.
- `min_score`: for scored pairs, the lowest score of a positive; pairs below it are left out.
  Without it a score is a grade: whole, 1 or more for a positive, 0 or less for a negative.
- `split`: the split of all rows. Otherwise it is given by a column `split`, or by the names of the
  files (`train.csv`, `test.csv`), or drawn.
- `dev`, `test`, `seed`, `near`: how it is drawn (`splits`): shares of the queries, 0.1 each; the
  seed; whether near copies count (yes or no).
- `corpus`: a file, folder or pattern of further passages.
- `encoding`, `delimiter`, `header`: of text files (`records`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging
from etils import epath

from nvret_jax.data import roles as roles_lib
from nvret_jax.data import splits as splits_lib
from nvret_jax.data.dataset import Asked, Dataset, safe_name, split_name
from nvret_jax.data.folding import Fold
from nvret_jax.data.roles import Roles
from nvret_jax.data.splits import Shares
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.files.fields import Json, kind
from nvret_jax.files.lines import shown, stem
from nvret_jax.files.numbers import decimal, whole_number
from nvret_jax.files.records import LAYOUT, Records, find_files, layout_of, open_records
from nvret_jax.files.source import Source

SPLIT = ("split", "dev", "test", "seed", "near")
OPTIONS = (*roles_lib.OPTIONS, "min_score", *SPLIT, "corpus", *LAYOUT)
_WHAT = "pairs of queries and passages"
_GRADES = (-1, 10)  # values outside are probably counts of votes or the like


def read_pairs(source: Source, asked: Asked) -> Dataset:
    """Reads tables of pairs.

    Raises:
        InputError: an invalid option or column, or mistakes in the rows, by file and line.
    """
    source.check(OPTIONS)
    layout = layout_of(source)
    found = find_files(source.place, _WHAT)
    tables = [
        (open_records(path, _WHAT, layout), splits_lib.of_name(stem(path)[0])) for path in found
    ]
    return fold_tables(source, asked, tables, _name(source, found))


def _name(source: Source, found: list[epath.Path]) -> str:
    """The file's name; for several files the folder's."""
    path = epath.Path(source.place)
    if len(found) == 1:
        return safe_name(stem(found[0])[0])
    return safe_name((path if path.is_dir() else path.parent).resolve().name)


def fold_tables(
    source: Source, asked: Asked, tables: Iterable[tuple[Records, str | None]], name: str
) -> Dataset:
    """The data set of tables of pairs.

    Args:
        source: its options are read.
        asked: what the caller asks for.
        tables: each with its split, if known.
        name: of the data set.
    """
    tables = list(tables)
    split_of, shares = split_options(source, [split for _, split in tables])
    fold = Fold(source.shown, allow_empty=asked.allow_empty, drop_blank=asked.drop)
    reported: set[str] = set()
    for (records, _), split in zip(tables, split_of, strict=True):
        _fold_table(fold, records, source, split, reported)
    if "corpus" in source.options:
        _fold_corpus(fold, source)
    return fold.build(name, shares, asked.splits, ())


def split_options(source: Source, known: Sequence[str | None]) -> tuple[list[str | None], Shares]:
    """The split of each file, None if it is drawn, and how it is drawn.

    Args:
        source: its options are read.
        known: the split of each file, or None.

    Raises:
        InputError: an invalid option.
    """
    asked = {split: source.share(split, None) for split in ("dev", "test")}
    if "split" in source.options:
        try:
            split = split_name(source.options["split"])
        except ValueError as error:
            raise InputError(f"{source.shown}: option split: expected {error}") from None
        return [split] * len(known), Shares()
    found, default = list(known), 0.1
    if any(known):
        # Rows for training are drawn from only on request.
        rest = None if any(asked.values()) else splits_lib.TRAIN
        found = [rest if split in (None, splits_lib.TRAIN) else split for split in known]
        asked = {split: 0.0 if split in found else share for split, share in asked.items()}
        default = 0.0
    shares = {split: default if share is None else share for split, share in asked.items()}
    near = source.choice("near", ("yes", "no"), "yes") == "yes"
    return found, Shares(**shares, seed=source.whole("seed", 0), near=near)


def _fold_table(
    fold: Fold, records: Records, source: Source, split: str | None, reported: set[str]
) -> None:
    named = {role: source.options[role] for role in roles_lib.OPTIONS if role in source.options}
    where = str(records.path)
    roles, known = roles_lib.recognise(records.names, where, named), len(records.names)
    least = source.number("min_score", 0.0) if "min_score" in source.options else None
    if least is not None and roles.score is None:
        raise InputError(
            f"{where}: min_score is given, but no column has scores; name one: ?score="
        )
    if roles.described() not in reported:
        reported.add(roles.described())
        logging.info("%s: %s", where, roles.described())
    for place, record in records.read(roles.columns):
        if len(records.names) != known:  # a key that JSON lines have from here on
            roles, known = roles_lib.recognise(records.names, where, named), len(records.names)
        try:
            _fold_row(fold, place, record, roles, split, least)
        except ValueError as error:
            fold.mistakes.add(f"{place}: {error}")


def _fold_row(
    fold: Fold, where: str, record: Json, roles: Roles, split: str | None, least: float | None
) -> None:
    if roles.split is not None and split is None:
        split = _split(record.get(roles.split), roles.split)
    query = fold.query(where, _text(record, roles.query))
    title = record.get(roles.title) if roles.title else None
    if title is not None and not isinstance(title, str):
        raise ValueError(f"column '{roles.title}' must be text, got {kind(title)}")
    passages = _texts(record, roles.passage)
    grades = _grades(record, roles, len(passages), least)
    for text, grade in zip(passages, grades, strict=True):
        if grade is None:
            fold.counts.below += 1
        else:
            fold.judge(where, query, fold.passage(where, text, title=title), grade, split)
    for name in roles.negatives:
        for text in _texts(record, name, blank=True):
            if text.strip():
                fold.negative(where, query, fold.passage(where, text), split)


def _text(record: Json, name: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"column '{name}' must be text, got {kind(value)}")
    return value


def _texts(record: Json, name: str, *, blank: bool = False) -> list[str]:
    """The texts of a cell that may hold one or a list of them."""
    value = record.get(name)
    if value is None:
        return [] if blank else [""]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                raise ValueError(
                    f"column '{name}' holds objects; give the text's column, or convert the file"
                )
            if item is not None and not isinstance(item, str):
                raise ValueError(f"column '{name}' must hold texts, got {kind(item)}")
        found = [item for item in value if item is not None]
        return found if found or blank else [""]
    raise ValueError(f"column '{name}' must be text or a list of texts, got {kind(value)}")


def _split(value: Any, name: str) -> str:
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"column '{name}' is empty; it must name a split in every row")
    if not isinstance(value, str):
        raise ValueError(f"column '{name}' must name a split, got {kind(value)}")
    try:
        return splits_lib.usual(split_name(value.strip()))
    except ValueError as error:
        raise ValueError(f"column '{name}' must be {error}") from None


def _grades(record: Json, roles: Roles, count: int, least: float | None) -> list[int | None]:
    """A grade for each passage of a row; None: it scores less than `least`."""
    if roles.score is None:
        return [1] * count
    values = record.get(roles.score)
    values = values if isinstance(values, list) else [values]
    if len(values) != count:
        raise ValueError(f"column '{roles.score}' has {len(values)} values for {count} passages")
    return [_grade(value, roles.score, least) for value in values]


def _grade(value: Any, name: str, least: float | None) -> int | None:
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, int | float | str):
        raise ValueError(f"column '{name}' must be a number, got {kind(value)}")
    word = value.strip() if isinstance(value, str) else repr(value)
    try:
        if least is not None:
            return 1 if decimal(word) >= least else None
        grade = whole_number(word)
    except ValueError:
        raise ValueError(
            f"column '{name}' must be a whole number (1 or more for a positive, 0 for a negative), "
            f"got {shown(word)}; for scores give the lowest of a positive, as in ?min_score=0.8, "
            f"or "
            "leave the column out with ?score="
        ) from None
    if not _GRADES[0] <= grade <= _GRADES[1]:
        raise ValueError(
            f"column '{name}' must be a grade from {_GRADES[0]} to {_GRADES[1]}, got {grade}; "
            f"give the lowest of a positive, as in ?min_score=5, or leave the column out with "
            f"?score="
        )
    return grade


def _fold_corpus(fold: Fold, source: Source) -> None:
    place = str(paths.local(source.options["corpus"], f"{source.shown}: corpus"))
    for path in find_files(place, "passages"):
        for where, text, title in passages_of(open_records(path, "passages", layout_of(source))):
            fold.passage(where, text, title=title)


def passages_of(records: Records) -> Iterator[tuple[str, str, str | None]]:
    """(place, text, title) of each row of a table of passages.

    Raises:
        InputError: no column with texts, or a value that is not text.
    """
    name, titled = roles_lib.recognise_passages(records.names, str(records.path), {})
    for where, record in records.read([name, titled] if titled else [name]):
        try:
            text = _text(record, name)
            title = _text(record, titled) if titled else None
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        yield where, text, title
