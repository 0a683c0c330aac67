"""The one exception a user is meant to read.

Everything that goes wrong because of what the user gave us (a file, a key, a model, a mesh) is an
`InputError` whose message is a single line: what was expected, what came, and what to do about it.
`main` prints that line and exits with status 2; any other exception is a bug and keeps its trace.
"""


class InputError(ValueError):
    """Bad input. `str(error)` is one line that names the file, line, key or id at fault."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))
