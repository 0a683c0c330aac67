"""What a model card and a report say of a run: its choices, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from nvret_jax.config import sets
from nvret_jax.pipeline.encoders import Side
from nvret_jax.training.options import Training


def recipe(
    config: ConfigDict,
    mined: Mapping[str, tuple[str, str]],
    stages: Mapping[str, Training],
    *,
    student: Side,
    untrained: Side,
    served: Side,
) -> dict[str, Any]:
    """The choices a model card and a report state, by name.

    Args:
        config: of the run.
        mined: of each training set the teachers and the rule, for people.
        stages: of training.
        student, untrained, served: the student as it is trained, before, and as it is exported.
    """
    out: dict[str, Any] = {}
    if config.rounds > 1:
        out["Rounds of mining and training"] = config.rounds
    for name, (models, rule) in mined.items():
        of = f" for {name}" if len(mined) > 1 else ""
        out[f"Teacher{of}"] = models
        out[f"Mining rule{of}"] = rule
    out["Student started from"] = untrained.config.model
    if student.lora is not None:
        lora = student.lora
        out["LoRA"] = f"rank {lora.rank}, alpha {lora.alpha:g} on {', '.join(lora.targets)}"
    for name, stage in stages.items():
        of = f" ({name})" if len(stages) > 1 else ""
        found = _of_stage(stage, sets.sets_of(config, stage.sets), several=len(mined) > 1)
        out |= {f"{key}{of}": value for key, value in found.items()}
    lengths = f"{student.length('query')} / {student.length('passage')} tokens"
    out["Query / passage length"] = lengths
    if "train" in config.stages:
        out["Longest text as exported"] = f"{served.length('passage')} tokens"
    out["Seed"] = config.seed
    return out


def _of_stage(block: Training, names: Sequence[str], *, several: bool) -> dict[str, Any]:
    """The choices of one stage of training, which draws from the sets of some names.

    Args:
        several: whether the run has several sets.
    """
    out: dict[str, Any] = {}
    if several:
        shares = sets.shares_of(block, names)
        parts = [f"{name} {share:g}" for name, share in zip(names, shares, strict=True)]
        out[f"Training sets and their {block.share_unit}"] = ", ".join(parts)
        out["Batches"] = block.batches
    out |= {
        "Hard negatives per query": block.num_negatives,
        "In-batch negatives": "yes" if block.loss.in_batch else "no",
        "Queries per batch": block.batch_size,
        "Training length": _duration(block),
        "Temperature": block.loss.temperature,
        "Learning rate": f"{block.learning_rate} ({block.schedule}, warm-up {block.warmup})",
    }
    if block.loss.distillation:
        out["Distillation"] = block.loss.distillation
    if block.loss.dims:
        out["Matryoshka dimensions"] = ", ".join(map(str, block.loss.dims))
    return out


def _duration(block: Training) -> str:
    """How long a stage of training is, for people."""
    if block.steps:
        return f"{block.steps} steps"
    most = f", at most {block.max_steps} steps" if block.max_steps else ""
    return f"{block.epochs} epochs{most}"
