"""The settings of a run that a model card and a report state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvret_jax.artifacts import fingerprints
from nvret_jax.artifacts.fingerprints import Digest, digest
from nvret_jax.config import sets
from nvret_jax.pipeline.state import Run
from nvret_jax.training.options import Draw, Training


def part(run: Run) -> Digest:
    """The text about the run in a card and a report, as a part of these artefacts."""
    models = [f"{block}.model" for block in ("teacher", "student")]
    models += [f"teachers.{name}.model" for name in run.config.teachers]
    content = digest([run.config.name, of(run)])
    return Digest(content, fingerprints.SAID, ("name", "rounds", *models))


def rule(run: Run) -> str:
    """The mining rule and its values, in words."""
    found = run.options.rule.describe()
    if run.calibrated:
        found = f"{run.config.mining.rule}, {' and '.join(run.calibrated)} calibrated"
    budget = run.options.risk_budget
    return f"{found}, risk budget {budget:g}" if budget else found


def of(run: Run) -> dict[str, Any]:
    """The settings that a model card and a report state, by name."""
    config, stages, student = run.config, run.training_stages, run.student
    mined = {name: (set_run.teacher_models, rule(set_run)) for name, set_run in run.sets.items()}
    out: dict[str, Any] = {}
    if config.rounds > 1:
        out["Rounds of mining and training"] = config.rounds
    for name, (models, its_rule) in mined.items():
        of = f" for {name}" if len(mined) > 1 else ""
        out[f"Teacher{of}"] = models
        out[f"Mining rule{of}"] = its_rule
    out["Student started from"] = run.untrained.config.model
    if student.lora is not None:
        lora = student.lora
        out["LoRA"] = f"rank {lora.rank}, alpha {lora.alpha:g} on {', '.join(lora.targets)}"
    if config.mining.targets:
        out["Scores that distillation fits"] = f"the mean of {', '.join(config.mining.targets)}"
    for name, stage in stages.items():
        of = f" ({name})" if len(stages) > 1 else ""
        found = _of_stage(stage, sets.sets_of(config, stage.sets), several=len(mined) > 1)
        out |= {f"{key}{of}": value for key, value in found.items()}
    lengths = f"{student.length('query')} / {student.length('passage')} tokens"
    out["Query / passage length"] = lengths
    if "train" in config.stages:
        out["Longest text as exported"] = f"{run.served.length('passage')} tokens"
    out["Seed"] = config.seed
    return out


def _of_stage(block: Training, names: Sequence[str], *, several: bool) -> dict[str, Any]:
    """The settings of one training stage, which draws from sets with these names.

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
        **_drawn(block.draw),
        "In-batch negatives": "yes" if block.loss.in_batch else "no",
        "Queries per batch": block.batch_size,
        "Training length": _duration(block),
        "Temperature": block.loss.temperature,
        "Learning rate": f"{block.learning_rate} ({block.schedule}, warm-up {block.warmup})",
    }
    if block.loss.distillation:
        out["Distillation"] = block.loss.distillation
    if block.loss.vectors:
        out["Fitted to the teacher's vectors"] = block.loss.vectors
    if block.num_distilled:
        out["Candidates per query for distillation alone"] = block.num_distilled
    if block.loss.dims:
        out["Matryoshka dimensions"] = ", ".join(map(str, block.loss.dims))
    return out


def _duration(block: Training) -> str:
    """The length of a training stage, in words."""
    if block.steps:
        return f"{block.steps} steps"
    least = f", at least {block.min_steps} steps" if block.min_steps else ""
    most = f", at most {block.max_steps} steps" if block.max_steps else ""
    return f"{block.epochs} epochs{least}{most}"


def _drawn(draw: Draw) -> dict[str, Any]:
    """How a step takes negatives, where it does not take the best."""
    if draw.how == "top":
        return {}
    values = {"softmax": f", temperature {draw.temperature:g}"}
    values["simans"] = f", a {draw.a:g}, b {draw.b:g}"
    pool = f" from the {draw.pool} best" if draw.pool else ""
    return {"Negatives drawn in each step": f"{draw.how}{pool}{values.get(draw.how, '')}"}
