"""`python -m nvret_jax COMMAND …`; see `main.py`."""

import sys

from nvret_jax.main import cli

if __name__ == "__main__":
    if sys.argv[1:] in (["--help"], ["-h"]):  # of all commands; without a command it is `train`
        sys.argv[1:] = ["help"]
    cli()
