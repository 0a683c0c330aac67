"""A whole run: the stages of a config in a workdir, one file each, and what they have in common.

`run(config, workdir)` is the whole of it for callers; `runner.py` says what it does.
"""

from nvret_jax.pipeline.result import Result
from nvret_jax.pipeline.runner import mistakes, run

__all__ = ["Result", "mistakes", "run"]
