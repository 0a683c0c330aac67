"""`python -m nvret_jax.plan`: the command `plan`."""

import sys

from nvret_jax import main


def _plan(argv):
    from nvret_jax import commands

    return commands.run("plan", argv[1:])


if __name__ == "__main__":
    main.process(_plan, sys.argv)
