"""Training rows in the formats of other tools as data sets, their negatives with them.

    flagembedding:train.jsonl      tevatron:DIR/*.jsonl      st-triplet:pairs.parquet

What `interchange` reads is folded like any other source: passages once, judgments once, a split by
the file's name or drawn. Scores of positives and negatives are not used: mining scores them by its
own teacher.
"""

from __future__ import annotations

from absl import logging
from etils import epath

from nvret_jax.data import interchange, splits
from nvret_jax.data.dataset import Asked, Dataset, safe_name
from nvret_jax.data.folding import Fold
from nvret_jax.data.interchange.rows import Rows, content_id
from nvret_jax.data.pairs import SPLIT, split_options
from nvret_jax.files.lines import stem
from nvret_jax.files.records import find_files
from nvret_jax.files.source import Source


def read_rows(source: Source, asked: Asked) -> Dataset:
    """Reads files or folders of a format of `interchange`.

    Raises:
        InputError: whatever is wrong with a file, by line or row.
    """
    source.check(SPLIT)
    path = epath.Path(source.place)
    found = [path] if path.exists() else find_files(source.place, "training rows")
    split_of, shares = split_options(source, [splits.of_name(stem(file)[0]) for file in found])
    fold = Fold(source.shown, allow_empty=asked.allow_empty, drop_blank=asked.drop)
    for file, split in zip(found, split_of, strict=True):
        rows = interchange.read(source.scheme, file, logging.warning)
        fold_rows(fold, rows, str(file), split)
    name = stem(found[0])[0] if len(found) == 1 else path.parent.name
    return fold.build(safe_name(name), shares, asked.splits, ())


def fold_rows(fold: Fold, rows: Rows, where: str, split: str | None) -> None:
    """Folds training rows.

    Args:
        fold: takes them.
        rows: what a reader of `interchange` made.
        where: the file, for messages.
        split: of all rows; None: drawn.
    """
    queries, passages = rows.queries, rows.passages
    row_of = [
        fold.passage(where, passages.texts[p], _name(passages.ids[p], "p", passages, p), title)
        for p, title in enumerate(passages.titles)
    ]
    for number, row in enumerate(rows, 1):
        at = f"{where}, row {number}"
        text, name = queries.texts[row.query], queries.ids[row.query]
        query = fold.query(at, text, _name(name, "q", queries, row.query))
        for passage in row.positives:
            fold.judge(at, query, row_of[passage], 1, split)
        for passage in row.negatives:
            fold.negative(at, query, row_of[passage], split)


def _name(name: str, prefix: str, table: interchange.Texts, row: int) -> str | None:
    """An id of the source; None for one that its reader made of the text."""
    made = name == content_id(prefix, table.texts[row], table.titles[row])
    return None if made else name
