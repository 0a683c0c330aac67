"""A whole run: the stages of a config in a workdir, one file each, and their shared parts.

`run(config, workdir)` is the entry point; `runner.py` describes it.
"""

from nvret_jax.pipeline.result import Result
from nvret_jax.pipeline.runner import mistakes, run

__all__ = ["Result", "mistakes", "run"]
