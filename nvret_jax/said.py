"""What a model card and a report say of a run: its choices, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nvret_jax import sets, teachers
from nvret_jax.training.options import Training

if TYPE_CHECKING:
    from nvret_jax.run import Run


def recipe(run: Run) -> dict[str, Any]:
    """The choices a model card and a report state, by name."""
    out: dict[str, Any] = {}
    if run.config.rounds > 1:
        out["Rounds of mining and training"] = run.config.rounds
    for name, part in run.sets.items():
        of = f" for {name}" if len(run.sets) > 1 else ""
        out[f"Teacher{of}"] = teachers.describe(part)
        out[f"Mining rule{of}"] = part.mining_rule
    out["Student started from"] = run.untrained.config.model
    if run.student.lora is not None:
        lora = run.student.lora
        out["LoRA"] = f"rank {lora.rank}, alpha {lora.alpha:g} on {', '.join(lora.targets)}"
    for name, block in run.stages.items():
        of = f" ({name})" if len(run.stages) > 1 else ""
        out |= {f"{key}{of}": value for key, value in _of_stage(run, block).items()}
    out["Query / passage length"] = (
        f"{run.student.length('query')} / {run.student.length('passage')} tokens"
    )
    if run.trains:
        out["Longest text as exported"] = f"{run.served.length('passage')} tokens"
    out["Seed"] = run.config.seed
    return out


def _of_stage(run: Run, block: Training) -> dict[str, Any]:
    """The choices of one stage of training."""
    out: dict[str, Any] = {}
    names = sets.sets_of(run.config, block.sets)
    if len(run.sets) > 1:
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
