"""export: the trained student as a folder other tools load."""

from __future__ import annotations

from nvret_jax.artifacts import Artifact
from nvret_jax.console import say
from nvret_jax.export.model_card import ModelCard, declared
from nvret_jax.export.sentence_transformers import export
from nvret_jax.pipeline.evaluate import read_scores
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run


def _export_artifacts(run: Run) -> list[Artifact]:
    return [run.export()]


def _make_export(run: Run, artifact: Artifact) -> None:
    encoder = run.trained_student if run.trains else run.student.encoder
    spec = encoder.spec
    encoder = encoder.with_texts(
        query_prompt=spec.query_prompt,
        passage_prompt=spec.passage_prompt,
        max_length=run.served.length("passage"),
    )
    scores = [read_scores(run)] if run.evaluates else []
    sets = run.sets.values() if run.trains else ()
    trained_on = {part.config.data.train: part.train_data.name for part in sets}
    card = ModelCard(
        name=f"{run.config.name} retriever",
        base_model=run.untrained.config.model,
        **declared(run.untrained.folder),
        data=[f"{name} ({source})" for source, name in trained_on.items()],
        recipe=run.recipe() if run.trains else {},
        scores=scores,
    )
    last = list(run.stages.values())[-1]
    dims = last.loss.dims if run.trains else ()
    artifact.begin()
    target = artifact.partial / "model"
    export(
        encoder, target, dtype=run.config.export.dtype, card=card, overwrite=True, matryoshka=dims
    )
    artifact.finish_folder("model")
    if encoder.lora is not None:
        change, lost = encoder.merge_rounding(run.config.export.dtype)
        say(
            f"export    the adapters change the weights by {change:.2%}; {run.config.export.dtype} "
            f"rounds {lost:.2%} of that away, which evaluate, with adapters beside the weights, "
            "does not measure"
        )


STAGE = Stage(_export_artifacts, _make_export)
