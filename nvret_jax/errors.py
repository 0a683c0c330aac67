"""The one exception a user is meant to read.

Everything that goes wrong because of what the user gave us (a file, a key, a model, a mesh) is an
`InputError` whose message is a single line: what was expected, what came, and what to do about it.
`main` prints that line and exits with status 2; any other exception is a bug and keeps its trace.
"""


class InputError(ValueError):
    """Bad input. `str(error)` is one line that names the file, line, key or id at fault."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


class Preempted(Exception):
    """The run was asked to end (SIGTERM) and has saved what it had; not a fault of anybody's.

    `main` prints `str(error)` and exits with 143, as a process that SIGTERM ended does.

    Attributes:
        stage: the stage of training it stopped in.
        step: steps of that stage that are done, and saved.
    """

    def __init__(self, stage: str, step: int, steps: int):
        super().__init__(
            f"train: SIGTERM; stopped and saved after step {step} of {steps} of stage {stage!r}; "
            "the same command goes on from there"
        )
        self.stage, self.step = stage, step
