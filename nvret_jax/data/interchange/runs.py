"""Runs: what a search returned, in the three forms people keep it.

    trec          query Q0 passage rank score tag, by white space
    tevatron-run  query, passage, score, by tabs
    msmarco       query, passage, rank, by tabs

In memory a run is {query id: {passage id: score}}, best first. A rank is read as the score
1 / rank, so that the order and the reciprocal rank are both there. TREC's ranks and tag are checked
or dropped: tools sort by score. Scores are written with as many digits as give the same float back;
who needs ties broken for tools that sort as they like has to break them before writing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from etils import epath

from nvret_jax.errors import InputError
from nvret_jax.files import streams
from nvret_jax.files.lines import is_plain
from nvret_jax.files.numbers import decimal

Run = dict[str, dict[str, float]]
FORMS = ("trec", "tevatron-run", "msmarco")
_COLUMNS = {
    "trec": "query Q0 passage rank score tag",
    "tevatron-run": "query, passage, score",
    "msmarco": "query, passage, rank",
}


def read_run(path: epath.PathLike, form: str = "trec") -> Run:
    """Reads a run.

    Args:
        path: the file, read line by line.
        form: 'trec', 'tevatron-run' or 'msmarco'.

    Returns:
        {query id: {passage id: score}}: queries in the order of the file, passages best first,
        those with the same score in the order of the file.

    Raises:
        InputError: no such file, an empty one, or a bad line, named as file:line: too few or too
            many columns, a rank that is no whole number from 1, a score that is no finite number,
            a passage (in msmarco a rank) twice for one query.
    """
    path = epath.Path(path)
    _check_form(form, str(path))
    run: Run = {}
    ranks: set[tuple[str, int]] = set()
    for where, line in streams.lines(path, f"a run ({_COLUMNS[form]})"):
        query, passage, rank, score = _columns(line, form, where)
        if form == "msmarco":
            if (query, rank) in ranks:
                raise InputError(f"{where}: rank {rank} again for query {query!r}")
            ranks.add((query, rank))
        hits = run.setdefault(query, {})
        if passage in hits:
            raise InputError(f"{where}: passage {passage!r} again for query {query!r}")
        hits[passage] = score
    if not run:
        raise InputError(f"{path}: empty; expected lines of {_COLUMNS[form]}")
    return {query: dict(_best_first(hits)) for query, hits in run.items()}


def _check_form(form: str, where: str) -> None:
    if form not in FORMS:
        raise InputError(f"{where}: a run has no form {form!r}; known are {', '.join(FORMS)}")


def _columns(line: str, form: str, where: str) -> tuple[str, str, int, float]:
    columns = line.split("\t") if form != "trec" and "\t" in line else line.split()
    expected = 6 if form == "trec" else 3
    if len(columns) != expected:
        raise InputError(f"{where}: {len(columns)} columns, expected {expected} ({_COLUMNS[form]})")
    rank, score = 0, 0.0
    if form == "trec":
        query, _, passage, rank, score, _ = columns
        rank, score = _rank(rank, where, least=0), _score(score, where)
    else:
        query, passage, last = columns
        if form == "msmarco":
            rank = _rank(last, where, least=1)
            score = 1 / rank
        else:
            score = _score(last, where)
    if not query or not passage:
        raise InputError(f"{where}: an id is empty")
    return query, passage, rank, score


def _rank(word: str, where: str, *, least: int) -> int:
    word = word.strip()
    if not (word.isascii() and word.isdigit() and len(word) < 16 and int(word) >= least):
        raise InputError(f"{where}: rank {word[:40]!r} is not a whole number from {least}")
    return int(word)


def _score(word: str, where: str) -> float:
    try:
        value = decimal(word.strip())
    except ValueError:
        raise InputError(f"{where}: score {word[:40]!r} is not a number") from None
    if not math.isfinite(value):
        raise InputError(f"{where}: score {word[:40]!r} is not a finite number")
    return value


def _best_first(hits: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(hits.items(), key=lambda hit: -hit[1])


def write_run(
    run: Mapping[str, Mapping[str, float]],
    path: epath.PathLike,
    form: str = "trec",
    *,
    tag: str = "nvret_jax",
) -> int:
    """Writes a run, whole or not at all.

    Args:
        run: {query id: {passage id: score}}; written best first, equal scores in the order given.
        path: the file; it is replaced.
        form: 'trec', 'tevatron-run' or 'msmarco', which keeps the order and not the scores.
        tag: TREC's last column, one word.

    Returns:
        How many hits were written.

    Raises:
        InputError: an id or the tag cannot stand in a column; a score is not finite; no hit.
    """
    path = epath.Path(path)
    where = str(path)
    _check_form(form, where)
    if not any(run.values()):
        raise InputError(f"{where}: the run is empty; there is nothing to write")
    if not is_plain(tag):
        raise InputError(f"{where}: tag {tag!r} must be one word")
    with streams.whole_file(path) as file:
        count = 0
        for line in _lines(run, form, tag, where):
            file.write(line.encode())
            count += 1
    return count


def _lines(
    run: Mapping[str, Mapping[str, float]], form: str, tag: str, where: str
) -> Iterator[str]:
    for query, hits in run.items():
        _check_id(query, "query", form, where)
        for rank, (passage, score) in enumerate(_best_first(hits), 1):
            _check_id(passage, "passage", form, where)
            if not math.isfinite(score):
                raise InputError(f"{where}: query {query!r}, passage {passage!r}: score {score}")
            if form == "trec":
                yield f"{query} Q0 {passage} {rank} {float(score)!r} {tag}\n"
            elif form == "tevatron-run":
                yield f"{query}\t{passage}\t{float(score)!r}\n"
            else:
                yield f"{query}\t{passage}\t{rank}\n"


def _check_id(name: str, what: str, form: str, where: str) -> None:
    bad = not is_plain(name) if form == "trec" else not name or set(name) & set("\t\r\n")
    if bad:
        raise InputError(f"{where}: {what} id {name!r} cannot stand in a column of {form}")
