"""Whether training helped on the dev queries, in numbers and in a sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nvret_jax.training.checkpoint import SCORE, Finished
from nvret_jax.training.options import BEST


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Dev scores (nDCG@10) of a finished training.

    Attributes:
        before: of the model as training found it.
        last: at the end.
        best: the highest after the first step, and `step`, where it was.
        after: of the weights that are the result.
        pick: 'last' or 'best': which weights those are.
    """

    before: float
    last: float
    best: float
    step: int
    after: float
    pick: str

    @property
    def helped(self) -> bool:
        """Whether the result scores higher than the model before training."""
        return self.after > self.before

    def __str__(self) -> str:
        if self.helped:
            where = f"at step {self.step}, the best" if self.pick == BEST else "at the end"
            return f"dev nDCG@10 {self.before:.4f} before training, {self.after:.4f} {where}"
        said = f"training did not help on dev: nDCG@10 {self.before:.4f} before it"
        if self.pick == BEST:
            return (
                f"{said}, {self.best:.4f} at best (step {self.step}); result.pick='best' keeps "
                "the weights from before"
            )
        other = f"takes step {self.step}, {self.best:.4f}"
        if self.best <= self.before:
            other = "keeps the weights from before"
        return f"{said}, {self.last:.4f} after it; result.pick='best' {other}"


def outcome(lines: Sequence[Mapping[str, Any]], done: Finished | None, pick: str) -> Outcome | None:
    """Whether a finished training helped; None where its start or its end has no score.

    Args:
        lines: of metrics.jsonl.
        done: the record of the last stage, if it is finished.
        pick: 'last' or 'best'; see `options.Result`.
    """
    scores = {line["step"]: line[SCORE] for line in lines if SCORE in line}
    later = {step: score for step, score in scores.items() if step}
    if done is None or 0 not in scores or not later:
        return None
    step = max(later, key=lambda at: (later[at], -at))
    last = later[max(later)]
    after = done.score if pick == BEST and done.score is not None else last
    return Outcome(scores[0], last, later[step], step, after, pick)
