"""`python -m nvret_jax.plan`: see the package."""

import sys

from nvret_jax import main


def _plan(argv):
    from nvret_jax.plan import command

    return command.main(argv)


main.process(_plan, sys.argv[1:])
