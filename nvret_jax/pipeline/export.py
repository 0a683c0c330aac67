"""export: the trained student as a folder that other tools load."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from etils import epath

from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.export.model_card import ModelCard, declared
from nvret_jax.export.options import Export
from nvret_jax.export.sentence_transformers import export
from nvret_jax.mesh import say
from nvret_jax.models.encoder import Encoder
from nvret_jax.options import blocks
from nvret_jax.pipeline import evaluate, recipe, trained
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of an export.

    Attributes:
        encoder: with the prompts and the length of the export.
        card: the content of the model card.
        folder: where it is built.
        dims: the trained prefixes of an embedding.
    """

    encoder: Encoder
    card: ModelCard
    folder: epath.Path
    dims: Sequence[int] = ()


def artifact(run: Run) -> Artifact:
    """The folder that other tools load."""
    parts = {**trained.parts(run), **run.values_of(Export, "export")}
    parts["said"] = recipe.part(run)
    return run.workdir.export(parts | evaluate.scores_parts(run), run.about)


def _artifacts(run: Run) -> list[Artifact]:
    return [artifact(run)]


def _inputs(run: Run, artifact: Artifact) -> tuple[Inputs, Export]:
    encoder = trained.student(run) if run.trains else run.student.encoder
    spec = encoder.spec
    encoder = encoder.with_texts(
        query_prompt=spec.query_prompt,
        passage_prompt=spec.passage_prompt,
        max_length=run.served.length("passage"),
    )
    scores = [evaluate.read_scores(run)] if run.evaluates else []
    sets = run.sets.values() if run.trains else ()
    trained_on = {set_run.config.data.train: set_run.train_data.name for set_run in sets}
    card = ModelCard(
        name=f"{run.config.name} retriever",
        base_model=run.untrained.config.model,
        **declared(run.untrained.folder),
        data=[f"{name} ({source})" for source, name in trained_on.items()],
        recipe=recipe.of(run) if run.trains else {},
        scores=scores,
    )
    last = list(run.training_stages.values())[-1]
    dims = last.loss.dims if run.trains else ()
    inputs = Inputs(encoder, card, artifact.partial / "model", dims)
    return inputs, blocks.read(Export, run.config.export)


def make(inputs: Inputs, options: Export) -> epath.Path:
    """Writes the encoder to the folder of the inputs, and returns that."""
    encoder, dtype = inputs.encoder, options.dtype
    export(
        encoder,
        inputs.folder,
        dtype=dtype,
        card=inputs.card,
        overwrite=True,
        matryoshka=inputs.dims,
    )
    if encoder.lora is not None:
        change, lost = encoder.merge_rounding(dtype)
        say(
            f"export    the adapters change the weights by {change:.2%}; {dtype} rounds "
            f"{lost:.2%} of that away, unlike evaluate, which keeps adapters separate "
            "measure"
        )
    return inputs.folder


def _write(artifact: Artifact, inputs: Inputs, folder: epath.Path) -> None:
    artifact.finish_folder(folder.name)


STAGE = Stage(_artifacts, _inputs, make, _write)
