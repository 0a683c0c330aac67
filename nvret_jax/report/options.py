"""The options of the report."""

from __future__ import annotations

import dataclasses

from nvret_jax.options import option, whole


@dataclasses.dataclass(frozen=True)
class Report:
    """The page that a run ends with."""

    queries: int = option(
        15,
        whole(0, 10_000),
        "Test queries shown with their rankings before and after: gains, losses, and the worst.",
    )
    examples: int = option(
        12,
        whole(0, 10_000),
        "Training queries shown with the negatives that were kept and those that were rejected.",
    )
