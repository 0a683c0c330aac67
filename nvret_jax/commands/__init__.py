"""One file per command, and the table of them.

A new command is a file with a `COMMAND` (see `parser.Command`) and a row in `COMMANDS`. Files are
imported when their command runs: a mistyped word does not wait for JAX.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from nvret_jax.commands import parser
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.options import shown
from nvret_jax.processes import log


class Row(NamedTuple):
    """A command: its module in this package, and a description for the list."""

    module: str
    about: str


COMMANDS = {
    "train": Row("train", "mine, train, evaluate and export, as a config says"),
    "evaluate": Row("evaluate", "score a model on data sets"),
    "embed": Row("embed", "texts to a file of vectors, parquet or npy"),
    "search": Row("search", "search a corpus: typed, from a file, or on a local page"),
    "mine": Row("mine", "hard negatives for training data, in any tool's format"),
    "convert": Row("convert", "training data and runs between the formats of tools"),
    "plan": Row("plan", "the cost of a run on chips that are not present"),
    "options": Row("reference", "the options of a config: default, values, purpose"),
}
_USAGE = """\
usage: python -m nvret_jax COMMAND …       (COMMAND --help has the options of each)

"""
_MORE = """

  --version   the versions of this package, JAX and Python

A first run, then a search with the model it makes:
  python -m nvret_jax train --config=configs/quickstart.py --workdir=runs/quickstart
  python -m nvret_jax search runs/quickstart pydocs: --web"""


def load(name: str) -> parser.Command:
    """The command of a name in `COMMANDS`."""
    return importlib.import_module(f"{__name__}.{COMMANDS[name].module}").COMMAND


def run(name: str, argv: Sequence[str]) -> int:
    """Runs a command.

    Args:
        name: of the command.
        argv: what follows the name.

    Returns:
        The exit status.

    Raises:
        InputError: no such command, or a mistake in its arguments; one line.
    """
    if name == "help":
        if not argv:
            print(listing())
            return 0
        name, argv = argv[0], ["--help"]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"unknown command {shown(name)}{hint}; expected one of {', '.join(COMMANDS)}"
        )
    command = load(name)
    if parser.asks_for_help(argv):
        print(parser.usage(name, command))
        return 0
    asked = parser.parse(name, command, argv)
    common = asked.options.common
    file = paths.local(common.log_file, "--log_file") if common.log_file else ""
    log.configure(quiet=common.quiet, file=file)
    # A fixed place for compiled programs: the second run of a command starts at once.
    if cache := paths.cache("xla"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    return command.run(asked)


def listing() -> str:
    """The output of `python -m nvret_jax help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {row.about}" for name, row in COMMANDS.items()]
    return _USAGE + "\n".join(lines) + _MORE
