"""`python -m nvret_jax.plan`: see the package."""

import sys

from nvret_jax.plan.command import main

sys.exit(main())
