"""embed: the vectors of the training data, by every teacher that is an encoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.data.dataset import Dataset, TextTable
from nvret_jax.mesh import say
from nvret_jax.models import precision
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.options import DTYPES
from nvret_jax.options import blocks
from nvret_jax.pipeline import parts as parts_lib
from nvret_jax.pipeline import truncation
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run, once
from nvret_jax.search.embedding import Encoded, embed_texts
from nvret_jax.search.options import Embed
from nvret_jax.search.store import EmbeddingStore


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The texts to embed, and their encoder.

    Attributes:
        encoder: in the dtype in which it embeds.
        table: the texts.
        kind: of the texts, 'query' or 'passage'.
        length: tokens kept of one.
        label: shown in the progress bar.
    """

    encoder: Encoder
    table: TextTable
    kind: str
    length: int
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Embeddings computed on demand.

    Attributes:
        encoded: see `search.embedding`.
        width: D.
        chunk_rows: rows per chunk of their store.
    """

    encoded: Encoded
    width: int
    chunk_rows: int


@once
def artifact(run: Run, role: str, data: Dataset, table: str) -> Artifact:
    """Vectors of one table by a teacher, or by the student before it is trained."""
    return artifact_of(run, role, data, table, {})


def artifact_of(
    run: Run, role: str, data: Dataset, table: str, more: Mapping[str, Any]
) -> Artifact:
    """Vectors of one table.

    Args:
        role: their encoder; see `Run.encoder`.
        more: parts in addition to those of the encoder's block, for a trained one.
    """
    kind, _ = run.table(data, table)
    configured = run.encoder(role)
    parts = {
        **configured.parts(kind),
        "texts": run.texts(data, table),
        **run.values_of(Embed, "embed"),
        **more,
    }
    own, asked = configured.config.dtype, run.config.embed.dtype
    dtype = precision.embedding_dtype(asked, own, run.platform)
    # Training and test data of one name keep their vectors apart.
    test = run.is_test(data)
    train = run.train_data if run.config.data.train and test else None
    folder = parts_lib.folder_name(data, train, test=test)

    def made_in(dtype: str) -> Artifact:
        by = {} if dtype == own else {"embed.dtype": dtype}
        return run.workdir.embeddings(role, folder, table, parts | by, run.about)

    if asked == "auto":
        # Embeddings made by another machine with the same workdir are kept.
        for other in DTYPES:
            if other != dtype and made_in(other).is_recorded():
                return made_in(other)
    return made_in(dtype)


def opened(run: Run, role: str, data: Dataset, table: str) -> EmbeddingStore:
    """Finished vectors, whose checksums were read once in this run."""
    return run.stores.open(artifact(run, role, data, table))


def _artifacts(run: Run) -> list[Artifact]:
    tables = ["passages", f"queries-{run.config.data.train_split}"]
    made = [artifact(run, name, run.train_data, t) for name in run.encoders for t in tables]
    if run.dev_split and run.guide:
        made.append(artifact(run, run.guide, run.train_data, f"queries-{run.dev_split}"))
    return made


def _inputs(run: Run, artifact: Artifact) -> tuple[Inputs, Embed]:
    role = artifact.name.split("/")[1]
    return inputs_with(run, artifact, role, run.train_data, run.encoders[role].encoder)


def inputs_with(
    run: Run, artifact: Artifact, role: str, data: Dataset, encoder: Encoder
) -> tuple[Inputs, Embed]:
    """Inputs of one artefact of embeddings by a given encoder.

    Args:
        role: a teacher's name, 'student-start' or 'student': whose lengths apply.
    """
    table_name = artifact.name.rsplit("/", 1)[1]
    kind, table = run.table(data, table_name)
    say(truncation.of_role(run, role, data, table_name).line())
    dtype = artifact.parts.get("embed.dtype", run.encoder(role).config.dtype)
    precision.say_cost("embed", dtype, run.platform, "embed.dtype")
    precision.say_rounded(run.config.embed.dtype, run.encoder(role).config.dtype, dtype)
    label = f"{truncation.TITLES.get(role, role)}, {table_name}"
    inputs = Inputs(encoder.with_dtype(dtype), table, kind, run.encoder(role).length(kind), label)
    return inputs, blocks.read(Embed, run.config.embed)


def make(inputs: Inputs, options: Embed) -> Vectors:
    """The embeddings of a table, encoded on demand."""
    encoded = functools.partial(
        _encoded, inputs.encoder, inputs.kind, inputs.length, options.token_budget or None
    )
    return Vectors(encoded, inputs.encoder.width, options.chunk_rows)


def _encoded(
    encoder: Encoder,
    kind: str,
    length: int,
    token_budget: int | None,
    texts: Sequence[str],
    wanted: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return encoder.encoded(
        texts, kind=kind, max_length=length, token_budget=token_budget, wanted=wanted
    )


def _write(artifact: Artifact, inputs: Inputs, made: Vectors) -> None:
    embed_texts(
        artifact,
        inputs.table,
        made.encoded,
        made.width,
        chunk_rows=made.chunk_rows,
        label=inputs.label,
    )


STAGE = Stage(_artifacts, _inputs, make, _write, begin=None)
