"""`python -m nvret_jax embed MODEL TEXTS TARGET`: texts to a file of vectors.

Texts and vectors may exceed memory: both are read and written as a stream.
"""

from __future__ import annotations

import time

import numpy as np

from nvret_jax.commands import models
from nvret_jax.commands.options import EmbedTexts
from nvret_jax.commands.parser import Asked, Command, Word
from nvret_jax.data.dataset import TextTable
from nvret_jax.data.load import has_scheme
from nvret_jax.data.texts import read_texts
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.processes import log, progress
from nvret_jax.search import vector_file

_MORE = """\
TEXTS is a file (.txt with one text per line, or a table), or a data set such as
beir:DIR, whose passages are embedded (with --kind=query its queries). Two files
in one folder are a teacher for mining, vectors:DIR:
  python -m nvret_jax embed MODEL beir:mine vectors/passages.npy
  python -m nvret_jax embed MODEL beir:mine vectors/queries.npy --kind=query
"""


def run(asked: Asked) -> int:
    """Embeds the texts and writes the file.

    Raises:
        InputError: mistakes in model, texts, target or options; one line.
    """
    given, (word, source, place) = asked.options, asked.words
    target = vector_file.check_target(paths.local(place, "TARGET"))
    if given.texts and target.suffix != ".parquet":
        raise InputError(f"--texts: only a parquet file can hold texts, not {place}")
    table = _texts(source, given)
    encoder = models.encoder(word, given.model)
    length = given.model.query_length if given.kind == "query" else given.model.passage_length
    bar = progress.bar(total=len(table), desc=f"embed {given.kind}", unit=" texts")

    def vectors():
        for rows, found in encoder.encoded(table.texts, kind=given.kind, max_length=length or None):
            bar.update(len(rows))
            yield rows, np.asarray(found)

    begun = time.perf_counter()
    with bar:
        vector_file.write_vectors(
            target, table, vectors(), encoder.width, dtype=given.store, texts=given.texts
        )
    seconds = time.perf_counter() - begun
    log.say(
        f"output    {target}: {len(table):,} x {encoder.width} {given.store} in {seconds:.1f} s"
    )
    return 0


def _texts(source: str, given: EmbedTexts) -> TextTable:
    """The texts that an argument refers to."""
    if given.kind == "query" and has_scheme(source):
        splits = [given.split] if given.split else None
        data = models.dataset(source, given.source, download=given.model.download, splits=splits)
        return data.split_queries(given.split) if given.split else data.queries
    if given.split:
        raise InputError(
            f"--split={given.split}: only for the queries of a data set, with --kind=query"
        )
    if has_scheme(source):
        return models.dataset(source, given.source, download=given.model.download).corpus
    return read_texts(
        source,
        kind=given.kind,
        column=given.column,
        id_column=given.id_column,
        allow_empty=given.source.allow_empty,
    )


COMMAND = Command(
    "Embeds texts, and writes their vectors with their ids. The file appears whole or not at all.",
    (
        Word("MODEL", "A folder, the workdir of a run, or a hub id."),
        Word("TEXTS", "A file, or a data set."),
        Word("TARGET", "The file of vectors: .parquet or .npy."),
    ),
    EmbedTexts,
    run,
    _MORE,
)
