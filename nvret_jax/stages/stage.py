"""What a stage is: `artifacts(run)` and `make(run, artifact)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nvret_jax.artifacts import Artifact
from nvret_jax.run import Run


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        artifacts: names what the stage would make, with the inputs that decide whether an earlier
            one still holds; computes nothing.
        make: makes one of them.
    """

    artifacts: Callable[[Run], list[Artifact]]
    make: Callable[[Run, Artifact], None]
