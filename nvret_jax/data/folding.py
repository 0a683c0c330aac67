"""Folds rows of any source into a data set: distinct texts, judgments and negatives.

Every source that is not a corpus with judgments goes through `Fold`: pairs, triplets, lists, the
training rows of other tools. Choices:

- A text without an id has one by its content: the same text has the same id on every machine. White
  space around a text is not part of it.
- A judgment that is repeated is counted and kept once. One that contradicts an earlier one (two
  grades, or a positive that is also a negative) is a mistake, with both places.
- Mistakes are collected as in every reader: the first three are spelled out.
- A split is named by the source, row by row, or drawn (`splits`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from absl import logging

from nvret_jax.data import splits as splits_lib
from nvret_jax.data.dataset import Dataset, Given, Qrels, TextTable, content_hash
from nvret_jax.data.interchange.rows import content_id
from nvret_jax.data.mapped import TextWriter
from nvret_jax.data.normalize import half_pair
from nvret_jax.data.splits import Shares
from nvret_jax.errors import InputError
from nvret_jax.files.lines import Mistakes, is_plain, shown


@dataclasses.dataclass
class Counts:
    """What was folded or left out.

    Attributes:
        rows: judgments that came in.
        repeated: those that were there already.
        blank: rows left out because a text of theirs is blank.
        below: scored pairs below the least score of a positive.
        negatives: given negatives, each once.
    """

    rows: int = 0
    repeated: int = 0
    blank: int = 0
    below: int = 0
    negatives: int = 0


class Fold:
    """Collects rows and makes a data set of them.

    Attributes:
        counts: what happened so far.
        mistakes: what is wrong so far.
    """

    def __init__(self, where: str, *, allow_empty: bool = False, drop_blank: bool = False):
        """A fold.

        Args:
            where: the source, for messages.
            allow_empty: keep blank texts.
            drop_blank: leave rows with a blank text out, with a count, in place of refusing them.
        """
        self._where = where
        self._allow_empty, self._drop_blank = allow_empty, drop_blank
        self._queries, self._passages = _Table("query", "q"), _Table("passage", "p")
        # (split, query, passage) -> (grade, None for a negative; place)
        self._judged: dict[tuple[str | None, int, int], tuple[int | None, str]] = {}
        self.counts = Counts()
        self.mistakes = Mistakes()

    def query(self, where: str, text: str, name: str | None = None) -> int | None:
        """Row of a query; None where the row that has it is left out, or wrong."""
        return self._enter(self._queries, where, text, name)

    def passage(
        self, where: str, text: str, name: str | None = None, title: str | None = None
    ) -> int | None:
        """Row of a passage, whose title goes in front of the text; see `query`."""
        text = text.strip()
        return self._enter(self._passages, where, f"{title} {text}" if title else text, name)

    def _enter(self, table: _Table, where: str, text: str, name: str | None) -> int | None:
        text = text.strip()
        if not text and not self._allow_empty:
            if self._drop_blank:
                self.counts.blank += 1
                return None
            self.mistakes.add(
                f"{where}: the {table.what} is missing or blank; remove the row, or leave such "
                "rows out with missing='drop' (in a config data.missing)"
            )
            return None
        if half := half_pair(text):
            self.mistakes.add(f"{where}: the {table.what} has {half}, which is not valid Unicode")
            return None
        if name is not None and not is_plain(name):
            self.mistakes.add(
                f"{where}: {table.what} id {shown(name)} is empty or has white space or control "
                "characters, which a TREC run cannot hold"
            )
            return None
        try:
            return table.row(where, text, name)
        except InputError as error:
            self.mistakes.add(str(error))
            return None

    def judge(
        self, where: str, query: int | None, passage: int | None, grade: int, split: str | None
    ) -> None:
        """Takes a judgment: a grade of 1 or more is a positive."""
        if query is None or passage is None:
            return
        self.counts.rows += 1
        self._say(where, (split, query, passage), grade)

    def negative(
        self, where: str, query: int | None, passage: int | None, split: str | None
    ) -> None:
        """Adds a negative that the source gives for a query."""
        if query is None or passage is None:
            return
        self._say(where, (split, query, passage), None)

    def _say(self, where: str, key: tuple[str | None, int, int], grade: int | None) -> None:
        before = self._judged.get(key)
        if before is None:
            self._judged[key] = grade, where
            self.counts.negatives += grade is None
        elif before[0] == grade:
            self.counts.repeated += grade is not None
        elif (before[0] or 0) <= 0 and (grade or 0) <= 0:  # not relevant, expressed in two ways
            self._judged[key] = (before[0] if grade is None else grade), before[1]
        else:
            query, passage = self._queries.ids[key[1]], self._passages.ids[key[2]]
            was, now = (_shown_grade(g) for g in (before[0], grade))
            self.mistakes.add(
                f"{where}: passage {passage} is {now} for query {query} "
                f"({shown(self._queries.texts[key[1]], 40)}), and {was} at {before[1]}"
            )

    def build(
        self, name: str, shares: Shares | None, wanted: Sequence[str] | None, extra: Sequence[str]
    ) -> Dataset:
        """The data set.

        Args:
            name: of the data set.
            shares: how rows without a split are split; None: they are all 'train'.
            wanted: splits whose judgments are kept; None: all.
            extra: further input of the fingerprint.

        Raises:
            InputError: any mistake that was noted, no positive, or no split of a wanted name.
        """
        self.mistakes.check()
        queries, passages = self._queries.table(), self._passages.table()
        split_of = self._splits(shares, queries, passages)
        found: dict[str, Qrels] = {}
        given: dict[str, dict[str, list[str]]] = {}
        for (split, query, passage), (grade, _) in self._judged.items():
            split = split_of[query] if split is None else split
            query_id, passage_id = queries.ids[query], passages.ids[passage]
            if grade is not None:
                found.setdefault(split, {}).setdefault(query_id, {})[passage_id] = grade
            if grade is None or grade <= 0:
                given.setdefault(split, {}).setdefault(query_id, []).append(passage_id)
        for split in list(found):
            if not any(g >= 1 for judged in found[split].values() for g in judged.values()):
                raise InputError(f"{self._where}, split '{split}': no query has a positive")
        if not found:
            raise InputError(f"{self._where}: no query has a positive")
        found = kept(found, wanted, self._where)
        self._tell()
        negatives: Given = {
            split: {query: tuple(ids) for query, ids in given[split].items()}
            for split in found
            if split in given
        }
        fingerprint = content_hash(passages, queries, found, extra=extra, given=negatives)
        return Dataset(name, passages, queries, found, fingerprint, negatives)

    def _splits(self, shares: Shares | None, queries: TextTable, passages: TextTable) -> list[str]:
        open_rows: list[list[int]] = [[] for _ in range(len(queries))]
        drawn = False
        for (split, query, passage), (grade, _) in self._judged.items():
            drawn |= split is None
            if split is None and grade is not None and grade > 0:
                open_rows[query].append(passage)
        if shares is None or not drawn:
            return [splits_lib.TRAIN] * len(queries)
        asked = [query for query, rows in enumerate(open_rows) if rows]
        if not asked:
            raise InputError(f"{self._where}: no query has a positive")
        texts = [queries.texts[query] for query in asked]
        rows = [open_rows[query] for query in asked]
        of_asked = splits_lib.draw(texts, passages.texts, rows, shares, self._where)
        out = [splits_lib.TRAIN] * len(queries)
        for query, split in zip(asked, of_asked, strict=True):
            out[query] = split
        return out

    def _tell(self) -> None:
        counts, where = self.counts, self._where
        if counts.repeated:
            logging.warning(
                "%s: judgments that repeat an earlier one, counted once: %d", where, counts.repeated
            )
        if counts.blank:
            logging.warning("%s: blank texts, left out: %d", where, counts.blank)
        if counts.below:
            logging.warning(
                "%s: pairs that score below min_score, left out: %d", where, counts.below
            )


def kept(found: dict, wanted: Sequence[str] | None, where: str) -> dict:
    """The requested splits, in that order; by default train, dev, test, then others.

    Raises:
        InputError: one does not exist.
    """
    first = [s for s in (splits_lib.TRAIN, splits_lib.DEV, splits_lib.TEST) if s in found]
    there = first + [split for split in found if split not in first]
    names = there if wanted is None else list(dict.fromkeys(wanted))
    for split in names:
        if split not in found:
            raise InputError(f"{where}: no split '{split}'; splits there: {', '.join(there)}")
    return {split: found[split] for split in names}


def _shown_grade(grade: int | None) -> str:
    return "a negative" if grade is None else f"judged {grade}"


class _Table:
    """Distinct texts, each under its id."""

    def __init__(self, what: str, prefix: str):
        self.what, self._prefix = what, prefix
        self.ids: list[str] = []
        self.texts = TextWriter()
        self._row: dict[str, int] = {}

    def row(self, where: str, text: str, name: str | None) -> int:
        content = content_id(self._prefix, text) if name is None else name
        row = self._row.get(content)
        if row is None:
            row = self._row[content] = len(self.ids)
            self.ids.append(content)
            self.texts.add(text)
        elif name is not None and self.texts[row] != text:
            raise InputError(
                f"{where}: {self.what} id {shown(name)} had another text before; an id must have "
                f"one text"
            )
        return row

    def table(self) -> TextTable:
        return TextTable(tuple(self.ids), self.texts.done())
