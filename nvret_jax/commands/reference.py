"""`python -m nvret_jax options [WORD]`: the options of a config, or those that match a word."""

from __future__ import annotations

from nvret_jax.commands.options import Plain
from nvret_jax.commands.parser import Asked, Command, Word
from nvret_jax.config import reference


def run(asked: Asked) -> int:
    """Prints the requested options.

    Raises:
        InputError: no option matches.
    """
    print(reference.text(*asked.words))
    return 0


COMMAND = Command(
    "Lists the options of a config with default, values and purpose. WORD is a key, a "
    "block such as mining, or any word, which is searched for in keys, values and descriptions.",
    (Word("WORD", "A key, a block or any word.", optional=True),),
    Plain,
    run,
)
