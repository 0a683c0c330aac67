"""`python -m nvret_jax.plan`: the command `plan`."""

import sys

from nvret_jax import main

if __name__ == "__main__":
    main.process(main.run, [sys.argv[0], "plan", *sys.argv[1:]])
