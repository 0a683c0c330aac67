"""`python -m nvret_jax plan --topology=…`: the cost of a config, or only of a search, on chips.

Status 0 if everything fits, else 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nvret_jax.commands.options import Plan
from nvret_jax.commands.parser import Asked, Command
from nvret_jax.config import checks, overrides
from nvret_jax.errors import InputError

_OF_A_SEARCH = ("width", "dtype", "queries", "k", "memory_gib")
_MORE = """\
With a config, its training, embedding and search are planned; else a search:
  python -m nvret_jax plan --topology=v5p:4x4x4 \\
    --config=configs/nv_retriever_v1.py
  python -m nvret_jax plan --topology=v5e:4x4 --passages=100000000 --width=1024
Compiling for TPUs needs libtpu, for GPUs JAX's CUDA plugin, and no chip."""


def run(asked: Asked) -> int:
    """Compiles for the topology and prints the cost of each step.

    Raises:
        InputError: conflicting options, or as `plan.command`.
    """
    wrong = [f"--{key}: {what}" for key, what in _wrong(asked)]
    if wrong:
        raise InputError(f"plan: {'; '.join(wrong)}")
    given = asked.options
    config = None
    if asked.config:
        config, misread = overrides.read_arguments(asked.config)
        checks.validate(config, misread)
    from nvret_jax.plan import command  # seconds of imports

    if config is not None:
        return command.run(
            config,
            given.topology,
            stages=given.stages,
            passages=given.passages,
            data=given.data,
        )
    return command.run_search(
        given.topology,
        given.passages,
        given.width,
        dtype=given.dtype,
        queries=given.queries,
        k=given.k,
        memory_gib=given.memory_gib,
    )


def _wrong(asked: Asked) -> Iterator[tuple[str, str]]:
    given: dict[str, Any] = dict(asked.given)
    if not given.get("topology"):
        yield "topology", "give the chips, as in --topology=v5e:4x4"
    if asked.config:
        for key in _OF_A_SEARCH:
            if key in given:
                yield key, "is only for a search without a config"
        return
    for key in ("passages", "width"):
        if not given.get(key):
            yield key, "give a number above 0, or a whole run with --config=FILE"
    for key in ("data", "stages"):
        if given.get(key):
            yield key, "needs --config=FILE"


COMMAND = Command(
    "Compiles the steps of a run, or only of a search, for chips that are not present, and prints "
    "memory, operations and limits of each. The exit status is 3 if any step does not fit.",
    (),
    Plan,
    run,
    _MORE,
    config=True,
)
