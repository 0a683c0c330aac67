"""A config as blocks of options: made from dataclasses, read into them, and checked by them.

A config is a tree of `ConfigDict`s, so that files and the command line can change any value. Each
of its blocks belongs to a dataclass of options (`options.py`), which defines its content.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from nvret_jax.options import Block, Named, Option, Takes, calls, fields_of, key_of

# A check of a condition between values: yields (key, what is wrong with its value).
Conflicts = Iterable[tuple[str, str]]


def entries(cls: type, at: str = "") -> Iterator[tuple[str, Option]]:
    """Key and option of everything that a config has for a dataclass, except named blocks.

    Args:
        cls: the dataclass.
        at: before each key, such as 'mining.'.
    """
    for found in fields_of(cls).values():
        if isinstance(found, Option) and found.key:
            yield at + found.key, found
        elif isinstance(found, Block):
            inside = f"{found.key}." if found.key else ""
            beside = {inside + key_of(found.cls, n): key for n, key in found.beside.items()}
            for key, one in entries(found.cls, inside):
                yield at + beside.get(key, key), one


def values(instance: Any, at: str = "") -> dict[str, Any]:
    """The options of an instance of a dataclass by the keys of a config, as `entries` lists them.

    Args:
        instance: of the dataclass.
        at: before each key, such as 'mining.'.
    """
    found: dict[str, Any] = {}
    for name, field in fields_of(type(instance)).items():
        value = getattr(instance, name)
        if isinstance(field, Option) and field.key:
            # What a config cannot say is what it leaves unset.
            found[at + field.key] = value if field.config_takes.fits(value) else None
        elif isinstance(field, Block):
            inside = f"{field.key}." if field.key else ""
            beside = {inside + key_of(field.cls, n): key for n, key in field.beside.items()}
            for key, one in values(value, inside).items():
                found[at + beside.get(key, key)] = one
    return found


def named_blocks(cls: type) -> dict[str, type]:
    """Key -> dataclass, for blocks to which others are added by name."""
    return {name: found.cls for name, found in fields_of(cls).items() if isinstance(found, Named)}


def default(cls: type) -> ConfigDict:
    """The block of a dataclass, every option at its default."""
    tree: dict[str, Any] = {name: {} for name in named_blocks(cls)}
    for key, one in entries(cls):
        *blocks, leaf = key.split(".")
        place = tree
        for name in blocks:
            place = place.setdefault(name, {})
        place[leaf] = _held(one)
    return ConfigDict(tree)


def _held(one: Option) -> Any:
    """A default in a config, with the type of its possible replacements."""
    if one.config_default is None:
        return config_dict.placeholder(one.config_takes.holds)
    if one.config_takes.holds is object:
        return config_dict.FieldReference(one.config_default, field_type=object)
    return one.config_default


def read(cls: type, config: Any, **given: Any) -> Any:
    """The options of a dataclass from a config.

    Args:
        cls: that dataclass.
        config: its block; only its items are read.
        **given: values of fields that a config does not have, or that are already known.
    """
    return _read(cls, View(cls, config), **given)


def _read(cls: type, values: View, **given: Any) -> Any:
    found = {}
    for name, field in fields_of(cls).items():
        if name in given or name not in values:
            continue
        value = values[name]
        if isinstance(field, Block):
            found[name] = _read(field.cls, value)
        elif isinstance(field, Named):
            found[name] = {key: read(field.cls, inside) for key, inside in value.items()}
        # Values that only a config takes ('auto', None) leave the default.
        elif field.takes.fits(value) or not field.config_takes.fits(value):
            found[name] = value
    return cls(**found, **given)


class View(Mapping):
    """The block of a config that belongs to a dataclass, by the names of the fields.

    Values are read from the config on access. Inner blocks are views, too.
    """

    def __init__(self, cls: type, config: Any, beside: Mapping[str, str] | None = None, outer=None):
        """A view.

        Args:
            cls: the dataclass.
            config: its block.
            beside: for some fields the key in `outer`, the block around it.
            outer: that block.
        """
        self._fields, self._config = fields_of(cls), config
        self._beside, self._outer = beside or {}, outer

    def __getitem__(self, name: str) -> Any:
        if name in self._beside:
            return self._outer[self._beside[name]]
        field = self._fields[name]
        if isinstance(field, Option):
            if not field.key:
                raise KeyError(name)
            return self._config[field.key]
        if isinstance(field, Named):
            return self._config[name]
        inside = self._config[field.key] if field.key else self._config
        return View(field.cls, inside, field.beside, self._config)

    def __contains__(self, name: object) -> bool:
        return any(name == one for one in self)

    def __iter__(self) -> Iterator[str]:
        for name, field in self._fields.items():
            if name in self._beside or not isinstance(field, Option) or field.key:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)


def conflicts(cls: type, config: Any, at: str = "") -> Iterator[Conflicts]:
    """The checks of conditions within the block of a dataclass and within its inner blocks.

    Args:
        cls: the dataclass; see `options.mistakes` for its method `conflicts`.
        config: its block.
        at: before each key.
    """
    yield from _conflicts(cls, View(cls, config), cls, "", at)


def _conflicts(
    cls: type, values: Mapping[str, Any], root: type, path: str, at: str
) -> Iterator[Conflicts]:
    for check in cls.conflicts(values) if hasattr(cls, "conflicts") else ():
        yield ((at + key_of(root, path + name), what) for name, what in check)
    for name, field in fields_of(cls).items():
        if isinstance(field, Block):
            yield from _conflicts(field.cls, values[name], root, f"{path}{name}.", at)


def keywords(
    cls: type,
    *,
    others: Mapping[str, str] | None = None,
    leave_out: Iterable[str] = (),
    **more: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes the options of a dataclass keyword arguments of a function that ends in `**how`.

    The function gets all of them, by the keys of a config, and its signature lists them. A call
    that does not fit the signature is an InputError; see `calls`.

    Args:
        cls: the dataclass. Options of blocks inside it, whose keys have a dot, are left out.
        others: name of an argument of another library -> what to give here instead.
        leave_out: keys that the function does not take.
        **more: further arguments with their defaults.
    """
    defaults = {key: one.config_default for key, one in entries(cls)} | more
    for key in list(defaults):
        if "." in key or key in leave_out:
            del defaults[key]

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
            for name, value in defaults.items()
        ]
        signature = signature.replace(parameters=[*own, *added])

        @functools.wraps(function)
        def called(*given: Any, **named: Any) -> Any:
            calls.check(function.__name__, signature, given, named, others)
            return function(*given, **{**defaults, **named})

        called.__signature__ = signature
        return called

    return wrap


def takes_by_key(cls: type, at: str = "") -> dict[str, Takes]:
    """Key -> the values it takes, for everything that a config has for a dataclass."""
    return {key: one.config_takes for key, one in entries(cls, at)}
