"""What must hold between the keys of a config that are about mining."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

from nvret_jax.mining.options import too_narrow
from nvret_jax.mining.rules import beyond_cosines
from nvret_jax.recipe_checks import is_name

Conflicts = Iterable[tuple[str, str]]  # (key, what is wrong with its value)
_TAKEN = ("teacher", "student", "student-start", "random fill")
_NO_COSINES = ("bm25:", "random:", "run:")  # what models of teachers begin with


def mining_checks(config: ConfigDict) -> Iterator[Conflicts]:
    """The checks, each of which may be ended by a value that is wrong by itself."""
    yield _teachers(config)
    yield _window(config)
    yield _documents(config)
    yield _rescorer(config)
    yield _audited(config)
    yield _cosines(config, "mining", config.mining)
    for name, block in config.sets.items():
        yield _cosines(config, f"sets.{name}", block)


def _teachers(config: ConfigDict) -> Conflicts:
    for name in config.teachers:
        if not is_name(name) or name in _TAKEN:
            yield "teachers", f"{name!r} is no name for a teacher: letters, digits, '-', '_'"
    known = ("teacher", *config.teachers)
    unknown = [name for name in config.mining.teachers if name not in known]
    if unknown:
        yield "mining.teachers", f"unknown {unknown}; known are {', '.join(known)}"


def _window(config: ConfigDict) -> Conflicts:
    mining = config.mining
    rule = {"name": mining.rule, "max_rank": mining.max_rank, "shift": mining.shift}
    wrong = too_narrow(rule, mining.num_negatives)
    if wrong:
        yield "mining.max_rank", wrong


def _documents(config: ConfigDict) -> Conflicts:
    exclude = config.mining.exclude
    if exclude.document_separator and exclude.document_map:
        what = "document_separator is given too, but a passage has one document: give one"
        yield "mining.exclude.document_map", what


def _rescorer(config: ConfigDict) -> Conflicts:
    rescorer, mining = config.rescorer, config.mining
    if rescorer.model and rescorer.order == "teacher" and "auto" in (mining.percent, mining.margin):
        yield "rescorer.order", "a value that is 'auto' is chosen from all scores: use 'rescored'"


def _are_cosines(config: ConfigDict, names: Iterable[str]) -> bool:
    known = {"teacher": config.teacher, **dict(config.teachers.items())}
    return all(
        known[name].normalize and not known[name].model.startswith(_NO_COSINES)
        for name in names
        if name in known
    )


def _audited(config: ConfigDict) -> Conflicts:
    """The same for the values that an audit tries."""
    if not _are_cosines(config, config.mining.teachers):
        return
    for name in ("margin", "threshold"):
        for value in config.audit[f"{name}s"]:
            for _, what in beyond_cosines({name: value}):
                yield f"audit.{name}s", what


def _cosines(config: ConfigDict, at: str, block: ConfigDict) -> Conflicts:
    """Values that no cosine reaches, where the teachers' scores are cosines."""
    if not _are_cosines(config, block.teachers or config.mining.teachers):
        return
    values = {name: block[name] for name in ("margin", "threshold") if name in block}
    for name, what in beyond_cosines(values):
        yield f"{at}.{name}", what
