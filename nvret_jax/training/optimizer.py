"""AdamW with warm-up, decay and clipping, from optax."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import optax

from nvret_jax.errors import InputError
from nvret_jax.training.options import Training

# Parameters with these last names are not decayed: biases and the scales of norms.
NOT_DECAYED = ("bias", "scale")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate by step: up over the warm-up, then linear, cosine or constant.

    The first step already has a rate above zero, and the decay reaches zero after the last. Called
    with a traced count it is an optax schedule. `at` gives the same on the host: evaluating optax
    outside of a compiled step would run eight programs on every device of the mesh.

    Attributes:
        peak: the highest rate.
        rising: steps of the warm-up.
        falling: steps after it, at least 1.
        shape: 'linear', 'cosine' or 'constant'.
    """

    peak: float
    rising: int
    falling: int
    shape: str

    def __call__(self, count: Any) -> jax.Array:
        """The rate of the step with this number, counted from 0, by optax."""
        after = {
            "linear": optax.linear_schedule(self.peak, 0.0, self.falling),
            "cosine": optax.cosine_decay_schedule(self.peak, self.falling),
            "constant": optax.constant_schedule(self.peak),
        }[self.shape]
        if not self.rising:
            return after(count)
        first, rising = self.peak / self.rising, max(1, self.rising - 1)
        up = optax.linear_schedule(first, self.peak, rising)
        return optax.join_schedules([up, after], [self.rising])(count)

    def at(self, step: int) -> float:
        """The same number, equal to float32 rounding, without touching a device."""
        if step < self.rising:
            return self.peak * (step + 1) / self.rising
        done = min(step - self.rising, self.falling) / self.falling
        if self.shape == "linear":
            return self.peak * (1 - done)
        if self.shape == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * done))
        return self.peak


def schedule(config: Training, steps: int) -> Schedule:
    """The learning rate of a stage.

    Args:
        config: `warmup` below 1 is a share of the steps, from 2 on their number.
        steps: of the stage.

    Raises:
        InputError: the warm-up is as long as the stage, or longer.
    """
    rising = round(config.warmup * steps) if config.warmup < 1 else round(config.warmup)
    if config.warmup >= 1 and rising >= steps:
        raise InputError(
            f"train.warmup={rising} steps, and the stage has {steps}; give fewer, or a share of "
            "them such as 0.1"
        )
    return Schedule(config.learning_rate, rising, max(1, steps - rising), config.schedule)


def decay_mask(params: Any) -> Any:
    """True for the leaves weight decay applies to, by the names on their path."""

    def decayed(path, _):
        names = [str(getattr(part, "key", getattr(part, "name", part))) for part in path]
        return not any(name.endswith(NOT_DECAYED) for name in names)

    return jax.tree_util.tree_map_with_path(decayed, params)


@dataclasses.dataclass(frozen=True)
class Own:
    """A caller's schedule, with `Schedule`'s two ways to be read."""

    rate: optax.Schedule

    def __call__(self, count: Any) -> jax.Array:
        """The rate of the step with this number, counted from 0."""
        return self.rate(count)

    def at(self, step: int) -> float:
        """The same number, on the host."""
        return float(self.rate(step))


def make_optimizer(
    config: Training, steps: int, rate: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """The optimizer of a stage of training.

    Args:
        config: of the stage.
        steps: how many it has.
        rate: a caller's schedule; None: the config's.
    """
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    parts.append(
        optax.adamw(
            schedule(config, steps) if rate is None else rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )
    )
    return optax.chain(*parts)
