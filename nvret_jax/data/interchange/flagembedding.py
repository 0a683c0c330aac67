"""FlagEmbedding's training file: one JSON object per line.

    {"query": str, "pos": [str], "neg": [str], "pos_scores": [number], "neg_scores": [number], …}

The scores are optional, and so is `neg` before mining. `prompt`, `type` and any other key are kept
with the row. A bare string for `pos` or `neg` becomes a list and is noted: FlagEmbedding itself
would split it into letters. Passages have neither ids nor titles here.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from nvret_jax.data.interchange.rows import Builder, Row, Rows, need_rows, tell_losses
from nvret_jax.errors import InputError
from nvret_jax.files import atomic, fields, json_lines
from nvret_jax.files.fields import Json, Notes

_OWN = frozenset(("query", "pos", "neg", "pos_scores", "neg_scores"))


def read(path: epath.Path, notes: Notes) -> Rows:
    """Reads a FlagEmbedding file.

    Raises:
        InputError: a line that is not as above, by file, line and key.
    """
    builder = Builder()
    for where, record in json_lines.json_lines(path, "training rows of FlagEmbedding"):
        query = builder.query(where, fields.text(record, "query", where))
        rows, scores = [], []
        for key in ("pos", "neg"):
            if key == "pos" and fields.need(record, key, where) is None:
                raise InputError(f"{where}: key 'pos' must be a list of strings, got null")
            texts = fields.texts(record, key, where, notes)
            rows.append([builder.passage(where, text) for text in texts])
            scores.append(fields.scores(record, f"{key}_scores", len(texts), key, where))
        builder.add(query, *rows, *scores, fields.rest(record, _OWN, where))
    return builder.build()


def write(rows: Rows, path: epath.Path, notes: Notes) -> int:
    """Writes a FlagEmbedding file, scores for rows that have any; returns how many lines."""
    need_rows(rows, str(path))
    tell_losses(rows, {"scores", "extra"}, str(path), notes)
    with atomic.whole_file(path) as file:
        return json_lines.write_json_lines(file, _records(rows, str(path), notes))


def _records(rows: Rows, where: str, notes: Notes) -> Iterator[Json]:
    for row in rows:
        yield fields.with_extra(_record(rows, row), row.extra, where, notes)


def _record(rows: Rows, row: Row) -> Json:
    record = {
        "query": rows.queries.texts[row.query],
        "pos": [rows.passages.full(p) for p in row.positives],
        "neg": [rows.passages.full(n) for n in row.negatives],
    }
    for key, values in (("pos_scores", row.positive_scores), ("neg_scores", row.negative_scores)):
        found = [fields.known_or_null(value) for value in values]
        if any(value is not None for value in found):
            record[key] = found
    return record
