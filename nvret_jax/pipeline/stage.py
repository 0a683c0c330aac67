"""What a stage is: `artifacts(run)`, `make(run, artifact)` and `note(run, artifact)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nvret_jax.artifacts import Artifact
from nvret_jax.pipeline.state import Run


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        artifacts: names what the stage would make, with the inputs that decide whether an earlier
            one still holds; computes nothing.
        make: makes one of them.
        note: what a user should know beside the reason why one is made; '' for nothing. Asked on
            the main process.
    """

    artifacts: Callable[[Run], list[Artifact]]
    make: Callable[[Run, Artifact], None]
    note: Callable[[Run, Artifact], str] = lambda run, artifact: ""
