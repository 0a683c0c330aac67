"""The formats by name, for the command, its help and the documentation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from nvret_jax.data.interchange import (
    arctic,
    beir,
    flagembedding,
    nemo,
    sentence_transformers,
    tevatron,
    three_table,
)
from nvret_jax.data.interchange.rows import Rows
from nvret_jax.errors import InputError
from nvret_jax.files import paths, runs
from nvret_jax.files.fields import Notes
from nvret_jax.files.runs import TrecRun

Say = Callable[[str], None]


class Format(NamedTuple):
    """One format.

    Attributes:
        about: a line for the help.
        kind: 'rows' or 'run'; one does not convert to the other.
        read: (path, notes) -> Rows or TrecRun.
        write: (Rows or TrecRun, path, notes) -> records written: lines, or rows of the main table.
    """

    about: str
    kind: str
    read: Callable[[epath.Path, Notes], Rows | TrecRun]
    write: Callable[[Rows | TrecRun, epath.Path, Notes], int]


_ST = {
    "triplet": "anchor, positive, negative",
    "n-tuple": "anchor, positive, negative_1 … negative_n",
    "labeled-pair": "anchor, positive, label",
    "labeled-list": "anchor, positive [texts], labels",
}


def _st_formats() -> dict[str, Format]:
    found = {}
    for form, columns in _ST.items():
        read = sentence_transformers.reader(form)
        write = functools.partial(sentence_transformers.writer, form)
        scored = columns.removesuffix(", labels").removesuffix(", label")
        score = "score" if form == "labeled-pair" else "scores"
        about = "sentence-transformers, .parquet or .jsonl: "
        found[f"st-{form}"] = Format(about + columns, "rows", read, write(scored=False))
        found[f"st-{form}-scores"] = Format(
            f"{about}{scored}, {score}", "rows", read, write(scored=True)
        )
    return found


def _run_format(form: str) -> Format:
    columns = runs.FORMS[form]
    return Format(
        f"a run of {len(columns)} columns: {' '.join(columns)}",
        "run",
        lambda path, notes: runs.read_run(path, form),
        lambda run, path, notes: runs.write_run(run, path, form),
    )


FORMATS: dict[str, Format] = {
    "flagembedding": Format(
        "FlagEmbedding .jsonl: query, pos, neg, pos_scores, neg_scores, prompt, type",
        "rows",
        flagembedding.read,
        flagembedding.write,
    ),
    "tevatron": Format(
        "Tevatron .jsonl: query_id, query, positive_passages, negative_passages",
        "rows",
        tevatron.read,
        tevatron.write,
    ),
    "tevatron-ids": Format(
        "Tevatron by id, a folder: train.jsonl and corpus.jsonl",
        "rows",
        tevatron.read_ids,
        tevatron.write_ids,
    ),
    "nemo": Format(
        "NVIDIA NeMo, a folder: train.json and corpus/",
        "rows",
        nemo.read,
        nemo.write,
    ),
    "nemo-inline": Format(
        "NVIDIA NeMo .jsonl with texts inside: query, pos_doc, neg_doc",
        "rows",
        nemo.read_inline,
        nemo.write_inline,
    ),
    **_st_formats(),
    "three-table": Format(
        "PyLate, LightOn, resolve_ids; a folder: train, queries, documents (.parquet)",
        "rows",
        three_table.read,
        three_table.write,
    ),
    "arctic": Format(
        "Snowflake Arctic, a folder: relations, queries, documents (.parquet)",
        "rows",
        arctic.read,
        arctic.write,
    ),
    "beir": Format(
        "BEIR, a folder or its qrels/<split>.tsv: corpus, queries, qrels, negatives",
        "rows",
        beir.read,
        beir.write,
    ),
    **{form: _run_format(form) for form in runs.FORMS},
}


def find(name: str) -> Format:
    """The format of this name.

    Raises:
        InputError: there is none.
    """
    if name not in FORMATS:
        raise InputError(f"unknown format {name!r}; known formats: {', '.join(FORMATS)}")
    return FORMATS[name]


def read(name: str, path: epath.PathLike, say: Say = print) -> Rows | TrecRun:
    """Reads a file or folder.

    Args:
        name: a key of `FORMATS`.
        path: a file or a folder.
        say: called with a line for each kind of repair or omission.

    Raises:
        InputError: one line that names the file, the line or row, and the key.
    """
    notes = Notes()
    found = find(name).read(paths.local(path, "source"), notes)
    notes.report(say)
    return found


def write(content: Rows | TrecRun, name: str, path: epath.PathLike, say: Say = print) -> int:
    """Writes a file or a new folder, whole or not at all.

    Args:
        content: `Rows`, or a run for a format of runs.
        name: a key of `FORMATS`.
        path: the target; a file is replaced, a folder must be empty.
        say: called with a line for each kind of data that the format cannot hold.

    Returns:
        How many records were written: lines, or rows of the main table.

    Raises:
        InputError: the content does not fit the format, or the path cannot be written.
    """
    form = find(name)
    kind = "rows" if isinstance(content, Rows) else "run"
    if kind != form.kind:
        have = {"rows": "training rows", "run": "a run (ids and scores, no texts)"}
        raise InputError(f"format {name!r} holds {have[form.kind]}; the source is {have[kind]}")
    notes = Notes()
    count = form.write(content, paths.local(path, "target"), notes)
    notes.report(say)
    return count
