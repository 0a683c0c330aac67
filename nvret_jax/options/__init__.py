"""The definition of options, and everything derived from it.

An option is a field of a frozen dataclass: its default, the values it takes, one sentence, and
whether it counts, that is, whether an artefact depends on it.

    margin: float = option(0.05, number(0, 2), "margin_pos: how far below the anchor.")

Each package has its dataclasses in its `options.py`. Everything else reads them: `config.base()` is
made of them (`options/blocks.py`), configs, the command line and the arguments of Python functions
are checked by them, fingerprints take their parts from them, and the docs list them. So a mistake
always has the same text; only the key before it differs.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nvret_jax.errors import InputError
from nvret_jax.options.takes import (
    INT32,
    Anything,
    Choice,
    Combined,
    Either,
    Flag,
    Many,
    Number,
    Path,
    Takes,
    Text,
    choice,
    flag,
    is_unicode,
    many,
    number,
    or_unset,
    or_word,
    path,
    shown,
    shown_number,
    text,
    whole,
)

__all__ = [
    "INT32",
    "MESH_AXIS",
    "SEED",
    "Anything",
    "Block",
    "Choice",
    "Combined",
    "Either",
    "Flag",
    "Many",
    "Named",
    "Number",
    "Option",
    "Path",
    "Takes",
    "Text",
    "block",
    "check",
    "check_arguments",
    "choice",
    "conflict",
    "flag",
    "is_unicode",
    "key_of",
    "many",
    "mistake",
    "mistakes",
    "named",
    "number",
    "option",
    "or_unset",
    "or_word",
    "parts_of",
    "path",
    "shown",
    "shown_number",
    "takes_of",
    "text",
    "whole",
]

Counts = bool | Callable[[Any], bool]
SEED = whole(0, INT32)
# The size of an axis of the mesh. It is here and not in mesh.py, which loads JAX.
MESH_AXIS = whole(1, 1 << 20, also={-1: "the remaining devices"})


@dataclasses.dataclass(frozen=True)
class Option:
    """The definition of one option.

    Attributes:
        default: of the field.
        takes: the values it takes.
        sentence: what it is for.
        key: its name in a config; '' if a config does not have it.
        config_default, config_takes: the same in a config, which may also hold a word such as
            'auto', or None; such a value leaves the field at its default.
        counts: whether an artefact made with these options depends on this one: always, never, or
            if a function of the whole dataclass says so.
        replaces: for an option that a part of a run may override: the key of the run's option that
            it replaces.
    """

    default: Any
    takes: Takes
    sentence: str
    key: str
    config_default: Any
    config_takes: Takes
    counts: Counts
    replaces: str


@dataclasses.dataclass(frozen=True)
class Block:
    """A field that holds other options.

    Attributes:
        cls: their dataclass.
        key: of the block in a config; '' if its options are among those of this dataclass.
        beside: for some of its options, by name, their keys among this dataclass's.
    """

    cls: type
    key: str
    beside: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Named:
    """A field that holds any number of blocks by name; `cls`: the dataclass of each."""

    cls: type


def option(
    default: Any,
    takes: Takes,
    sentence: str = "",
    *,
    key: str | None = None,
    config: tuple[Any, Takes] | None = None,
    counts: Counts = True,
    replaces: str = "",
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: see `Option`, as for all arguments.
        takes: the values it takes.
        sentence: what it is for.
        key: None: the field's own name.
        config: default and values in a config, if they differ.
        counts: whether artefacts depend on it.
        replaces: the key of another option that this one replaces.
    """
    config_default, config_takes = config or (default, takes)
    spec = {
        "takes": takes,
        "sentence": sentence,
        "key": key,
        "config_default": config_default,
        "config_takes": config_takes,
        "counts": counts,
        "replaces": replaces,
    }
    return dataclasses.field(default=default, metadata={"option": spec})


def block(
    cls: type,
    *,
    key: str | None = None,
    flat: bool = False,
    beside: Mapping[str, str] | None = None,
) -> Any:
    """A field that holds other options, of a dataclass of options.

    Args:
        cls: that dataclass.
        key: of the block in a config; None: the field's name.
        flat: a config has the options of the block among those around it.
        beside: for some of its options, by name, their keys among those around it.
    """
    spec = {"cls": cls, "key": "" if flat else key, "beside": beside or {}}
    return dataclasses.field(default_factory=cls, metadata={"block": spec})


def named(cls: type) -> Any:
    """A field that holds blocks by name; `cls`: the dataclass of each."""
    return dataclasses.field(default_factory=dict, metadata={"named": cls})


@functools.cache
def fields_of(cls: type) -> Mapping[str, Option | Block | Named]:
    """Name -> definition, for each field made by `option`, `block` or `named`."""
    found: dict[str, Option | Block | Named] = {}
    for field in dataclasses.fields(cls):
        if spec := field.metadata.get("option"):
            key = field.name if spec["key"] is None else spec["key"]
            found[field.name] = Option(default=field.default, **{**spec, "key": key})
        elif spec := field.metadata.get("block"):
            key = field.name if spec["key"] is None else spec["key"]
            found[field.name] = Block(**{**spec, "key": key})
        elif "named" in field.metadata:
            found[field.name] = Named(field.metadata["named"])
    return types.MappingProxyType(found)


def takes_of(cls: type) -> dict[str, Takes]:
    """Name -> the values it takes, for each option of a dataclass."""
    return {
        name: found.takes for name, found in fields_of(cls).items() if isinstance(found, Option)
    }


def key_of(cls: type, name: str) -> str:
    """The key of an option of a dataclass in a config, relative to the dataclass's own block.

    Args:
        cls: the dataclass.
        name: of a field; of an option of a block 'block.name'.
    """
    outer, _, rest = name.partition(".")
    found = fields_of(cls)[outer]
    if isinstance(found, Option):
        return found.key or outer
    if rest in found.beside:
        return found.beside[rest]
    return (f"{found.key}." if found.key else "") + key_of(found.cls, rest)


class _Values(Mapping):
    """The fields of an instance by name, those of its blocks included."""

    def __init__(self, instance: Any):
        self._instance = instance

    def __getitem__(self, name: str) -> Any:
        value = getattr(self._instance, name)
        return _Values(value) if dataclasses.is_dataclass(value) else value

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self._instance))

    def __len__(self) -> int:
        return len(vars(self._instance))


def parts_of(instance: Any, at: str = "") -> dict[str, Any]:
    """The values that count, by key: those on which an artefact made with these options depends.

    Args:
        instance: of a dataclass of options.
        at: before each key, such as 'mining.'.
    """
    parts: dict[str, Any] = {}
    for name, found in fields_of(type(instance)).items():
        value = getattr(instance, name)
        if isinstance(found, Option):
            counts = found.counts(instance) if callable(found.counts) else found.counts
            if counts and found.key:
                parts[at + found.key] = value
        elif isinstance(found, Block):
            inside = f"{found.key}." if found.key else ""
            beside = {inside + key_of(found.cls, n): key for n, key in found.beside.items()}
            for key, part in parts_of(value, inside).items():
                parts[at + beside.get(key, key)] = part
    return parts


def mistake(key: str, value: Any, takes: Takes) -> str | None:
    """What is wrong with one value, one line with its key; None if nothing is."""
    if takes.fits(value):
        return None
    said = f"{key}={shown(value)}: "
    if value is None:
        said += "cannot be unset; "
    return f"{said}expected {takes.words}{takes.hint(value)}"


def mistakes(
    cls: type, values: Mapping[str, Any], at: str = "", *, by_key: bool = True
) -> list[str]:
    """What is wrong with values of the options of a dataclass.

    Args:
        cls: that dataclass. If it has a static method `conflicts(values)`, that returns checks of
            combinations of values, each of which yields (name, what is wrong); it is called if each
            value is valid on its own.
        values: of some or all of its options.
        at: before each name, such as 'mining.'.
        by_key: whether a line names an option as in a config, or as in the dataclass.

    Returns:
        One line for each mistake.
    """

    def named(name: str) -> str:
        return at + (key_of(cls, name) if by_key else name)

    found = [
        mistake(named(name), values[name], takes)
        for name, takes in takes_of(cls).items()
        if name in values
    ]
    wrong = [line for line in found if line]
    if not wrong and hasattr(cls, "conflicts"):
        wrong = [
            conflict(named(name), _value(values, name), what)
            for check in cls.conflicts(values)
            for name, what in check
        ]
    return wrong


def _value(values: Mapping[str, Any], name: str) -> Any:
    for one in name.split("."):
        values = values[one]
    return values


def conflict(key: str, value: Any, what: str) -> str:
    """One line about a value that conflicts with others."""
    return f"{key}={shown(value)}: {what}"


def check(instance: Any, at: str, *, by_key: bool = True) -> None:
    """Raises InputError, one line, for mistakes in the options of a dataclass.

    Args:
        instance: of the dataclass.
        at, by_key: see `mistakes`.
    """
    cls = type(instance)
    wrong = [
        f"{at}{name}={shown(value)}: expected a {found.cls.__name__}"
        for name, found in fields_of(cls).items()
        if isinstance(found, Block) and not isinstance(value := getattr(instance, name), found.cls)
    ] or mistakes(cls, _Values(instance), at, by_key=by_key)
    if wrong:
        raise InputError("; ".join(wrong))


def check_arguments(at: str, values: Mapping[str, Any], known: Mapping[str, Takes]) -> None:
    """Raises InputError, one line, for invalid arguments of a function.

    Args:
        at: the function, such as 'mine'.
        values: name -> value, such as `locals()` at the beginning; others are ignored.
        known: name -> what it takes; may have more names.
    """
    found = [mistake(name, values[name], known[name]) for name in known if name in values]
    wrong = [line for line in found if line]
    if wrong:
        raise InputError(f"{at}: {'; '.join(wrong)}")
