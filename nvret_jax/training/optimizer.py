"""AdamW with warm-up, decay and clipping, all of it optax."""

from __future__ import annotations

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from nvret_jax.errors import InputError

# Parameters whose name ends so are not decayed: biases and what LayerNorm scales by.
NOT_DECAYED = ("bias", "scale")


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """The learning rate by step: up over the warm-up, then linear, cosine or constant.

    The first step already has a rate above zero, and the decay reaches zero after the last.

    Args:
        config: `warmup` is a share of the steps below 1, from 2 on their number.
        steps: of the stage.

    Raises:
        InputError: the warm-up is as long as the stage, or longer.
    """
    peak = config.learning_rate
    rising = round(config.warmup * steps) if config.warmup < 1 else round(config.warmup)
    if config.warmup >= 1 and rising >= steps:
        raise InputError(
            f"train.warmup={rising} steps, and the stage has {steps}; give fewer, or a share of "
            "them such as 0.1"
        )
    falling = max(1, steps - rising)
    after = {
        "linear": optax.linear_schedule(peak, 0.0, falling),
        "cosine": optax.cosine_decay_schedule(peak, falling),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if not rising:
        return after
    up = optax.linear_schedule(peak / rising, peak, max(1, rising - 1))
    return optax.join_schedules([up, after], [rising])


def decay_mask(params: Any) -> Any:
    """True for the leaves weight decay applies to, by the names on their path."""

    def decayed(path, _):
        names = [str(getattr(part, "key", getattr(part, "name", part))) for part in path]
        return not any(name.endswith(NOT_DECAYED) for name in names)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer of `config.train` for a run of `steps` steps."""
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    parts.append(
        optax.adamw(
            schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )
    )
    return optax.chain(*parts)
