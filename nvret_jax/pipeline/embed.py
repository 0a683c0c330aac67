"""embed: the vectors of the training data, by every teacher that is an encoder."""

from __future__ import annotations

from nvret_jax import precision
from nvret_jax.artifacts import Artifact
from nvret_jax.console import say
from nvret_jax.data.dataset import Dataset
from nvret_jax.models.encoder import Encoder
from nvret_jax.pipeline import truncation
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run
from nvret_jax.search.embedding import embed_texts


def _embed_artifacts(run: Run) -> list[Artifact]:
    tables = ["passages", f"queries-{run.config.data.train_split}"]
    made = [run.embeddings(name, run.train_data, t) for name in run.encoders for t in tables]
    if run.dev_split and run.guide:
        made.append(run.embeddings(run.guide, run.train_data, f"queries-{run.dev_split}"))
    return made


def _make_embeddings(run: Run, artifact: Artifact) -> None:
    role = artifact.name.split("/")[1]
    embed_with(run, artifact, role, run.train_data, run.encoders[role].encoder)


def embed_with(run: Run, artifact: Artifact, role: str, data: Dataset, encoder: Encoder) -> None:
    """Makes one artefact of embeddings with a given encoder.

    Args:
        role: a teacher's name, 'student-start' or 'student': whose lengths apply.
    """
    table_name = artifact.name.rsplit("/", 1)[1]
    kind, table = run.table(data, table_name)
    length = run.side(role).length(kind)
    budget = run.config.embed.token_budget or None
    say(truncation.of_role(run, role, data, table_name).line())
    dtype = run.embedding_dtype(artifact, role)
    precision.say_cost("embed", dtype, run.platform, "embed.dtype")
    precision.say_rounded(run.config.embed.dtype, run.side(role).config.dtype, dtype)
    encoder = encoder.with_dtype(dtype)

    embed_texts(
        artifact,
        table,
        lambda texts, wanted: encoder.encoded(
            texts, kind=kind, max_length=length, token_budget=budget, wanted=wanted
        ),
        encoder.width,
        chunk_rows=run.config.embed.chunk_rows,
        label=f"{truncation.TITLES.get(role, role)}, {table_name}",
    )


STAGE = Stage(_embed_artifacts, _make_embeddings)
