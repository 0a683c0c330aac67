"""`python -m nvret_jax options [WORD]`: the options of a config, and those that a word is about."""

from __future__ import annotations

from nvret_jax.commands.options import Plain
from nvret_jax.commands.parser import Asked, Command, Word
from nvret_jax.config import reference


def run(asked: Asked) -> int:
    """Prints what was asked for.

    Raises:
        InputError: no option has to do with it.
    """
    print(reference.text(*asked.words))
    return 0


COMMAND = Command(
    "Lists the options of a config with default, values and what each is for. WORD is a key, a "
    "block such as mining, or any word: then the options are listed that have it in their key, "
    "values or sentence.",
    (Word("WORD", "What the options are about.", optional=True),),
    Plain,
    run,
)
