"""The definition of a stage: what it makes and reads, and a function of values that makes it.

Only `artifacts`, `inputs` and `note` know a run. `make` gets values: the opened inputs and the
options of the stage; so it can be called without a workdir. The runner puts them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.pipeline.state import Run


def begin(artifact: Artifact, inputs: Any) -> None:
    """Opens the unfinished folder of an artefact that a stage makes piece by piece."""
    artifact.begin()


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        artifacts: names the artefacts of the stage, with the inputs that decide whether existing
            ones are up to date; computes nothing.
        inputs: (run, artifact) -> the arguments of `make`: the opened inputs and the options.
            Raises InputError if something is missing or out of date.
        make: (inputs, options) -> the result, as values.
        write: (artifact, inputs, values): puts them into the workdir.
        begin: (artifact, inputs): opens the artefact's unfinished folder, before `make`; None for
            an artefact that is written at once, or by a function that opens its folder itself.
        note: what a user should know in addition to the reason; '' for nothing. Called on the main
            process.
    """

    artifacts: Callable[[Run], list[Artifact]]
    inputs: Callable[[Run, Artifact], tuple[Any, Any]]
    make: Callable[[Any, Any], Any]
    write: Callable[[Artifact, Any, Any], None]
    begin: Callable[[Artifact, Any], None] | None = begin
    note: Callable[[Run, Artifact], str] = lambda run, artifact: ""

    def bring(self, run: Run, artifact: Artifact) -> None:
        """Makes one of the artefacts."""
        self.bring_from(artifact, *self.inputs(run, artifact))

    def bring_from(self, artifact: Artifact, inputs: Any, options: Any) -> None:
        """Makes an artefact from opened inputs."""
        if self.begin is not None:
            self.begin(artifact, inputs)
        self.write(artifact, inputs, self.make(inputs, options))
