"""One parser for all commands: positional arguments and options, with checks of their values.

A command is a `Command`: its positional arguments, a dataclass of options, and a function. Options
are given as `--depth=50`, `--depth 50`, `--web` or `--noweb`. All mistakes of a command line are
reported in one line. Arguments that begin with `--config` belong to a config file and are passed on
unchanged, to the commands that take one.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nvret_jax.errors import InputError
from nvret_jax.options import Flag, Many, Option, Takes, blocks, conflict, mistake, shown

_WIDTH = 80
_HELP = frozenset(("-h", "-help", "--help", "--helpshort", "--helpfull"))


@dataclasses.dataclass(frozen=True)
class Word:
    """A positional argument of a command.

    Attributes:
        name: in the usage, such as 'MODEL'.
        sentence: its description.
        many: whether more may follow; only for the last one.
        optional: whether it may be left out; only for the last one.
    """

    name: str
    sentence: str
    many: bool = False
    optional: bool = False

    @property
    def shown(self) -> str:
        name = f"{self.name}…" if self.many else self.name
        return f"[{name}]" if self.optional else name


@dataclasses.dataclass(frozen=True)
class Asked:
    """The parsed command line.

    Attributes:
        words: as given.
        options: an instance of the command's dataclass.
        given: key -> value, for options on the command line.
        config: the arguments that belong to a config.
    """

    words: tuple[str, ...]
    options: Any
    given: Mapping[str, Any]
    config: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        about: a description, a sentence or more.
        words: its positional arguments.
        options: the dataclass of its options.
        run: executes it and returns the exit status.
        more: the end of its help text.
        config: whether it takes `--config=FILE` and `--config.KEY=VALUE`.
    """

    about: str
    words: tuple[Word, ...]
    options: type
    run: Callable[[Asked], int]
    more: str = ""
    config: bool = False


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a command line asks for the command's help."""
    return argv[:1] == ["help"] or bool(_HELP.intersection(argv))


def parse(name: str, command: Command, argv: Sequence[str]) -> Asked:
    """Reads the arguments of a command.

    Args:
        name: of the command.
        command: to parse for.
        argv: what follows its name.

    Raises:
        InputError: all mistakes in them, in one line.
    """
    known = dict(blocks.entries(command.options))
    words: list[str] = []
    config: list[str] = []
    given: dict[str, Any] = {}
    wrong: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            words, rest = [*words, *rest], []
        elif not re.match(r"--?[A-Za-z]", argument):
            words.append(argument)
        elif command.config and re.match(r"--?(no)?config(=|\.|$)", argument):
            config.append(argument)
            if "=" not in argument and rest and not rest[0].startswith("--"):
                config.append(rest.pop(0))
        else:
            wrong += _take(argument, rest, known, given)
    wrong += _miscounted(command.words, words)
    values = blocks.default(command.options)
    for key, value in given.items():
        *inside, leaf = key.split(".")
        place = values
        for block in inside:
            place = place[block]
        with place.ignore_type():
            place[leaf] = value
    if not wrong:
        wrong = [
            conflict(f"--{key}", _value(values, key), what)
            for check in blocks.conflicts(command.options, values)
            for key, what in check
        ]
    if wrong:
        raise InputError(f"{name}: {'; '.join(wrong)} (see {name} --help)")
    options = blocks.read(command.options, values)
    return Asked(tuple(words), options, given, tuple(config))


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _take(
    argument: str, rest: list[str], known: Mapping[str, Option], given: dict[str, Any]
) -> list[str]:
    """Adds one option to those given; returns what is wrong with it."""
    key, equals, text = argument.lstrip("-").partition("=")
    key, one = key.replace("-", "_"), None
    if key in known:
        one = known[key]
    elif key.startswith("no") and isinstance(getattr(known.get(key[2:]), "takes", None), Flag):
        key, equals, text = key[2:], "=", "false"
        one = known[key]
    if one is None:
        near = difflib.get_close_matches(key, known, 1)
        return [f"unknown option --{key}" + (f"; did you mean --{near[0]}?" if near else "")]
    takes = one.config_takes
    if not equals:
        if isinstance(takes, Flag):
            text = "true"
        elif rest and not rest[0].startswith("--"):
            text = rest.pop(0)
        else:
            return [f"--{key}: no value; give one, as in --{key}=VALUE"]
    value = value_of(text, takes)
    line = mistake(f"--{key}", value, takes)
    given[key] = value
    return [line] if line else []


def _miscounted(expected: Sequence[Word], words: Sequence[str]) -> list[str]:
    """What is wrong with the number of positional arguments."""
    least = sum(not word.optional for word in expected)
    most = None if expected and expected[-1].many else len(expected)
    if len(words) < least:
        missing = [word.name for word in expected[len(words) : least]]
        return [f"{' and '.join(missing)} missing"]
    if most is not None and len(words) > most:
        takes = " ".join(word.shown for word in expected) or "no words"
        return [f"unexpected argument {shown(words[most])}; expected {takes}"]
    return []


def value_of(text: str, takes: Takes) -> Any:
    """The value of an option from text; the text itself if it is not a value."""
    if text == "None" and takes.unset:
        return None
    if isinstance(takes, Flag):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if isinstance(takes, Many):
        if text[:1] in ("(", "["):
            try:
                return tuple(ast.literal_eval(text))
            except (SyntaxError, ValueError, TypeError):
                return text
        return tuple(value_of(part, takes.item) for part in text.split(",")) if text else ()
    if takes.holds is str:
        return text
    plain = text.isascii() and "_" not in text
    for kind in (int, float):
        if plain and takes.holds in (kind, float, object):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def usage(name: str, command: Command) -> str:
    """The output of `--help`."""
    words = [word.shown for word in command.words]
    if command.config:
        words.append("--config=FILE")
    lines = [f"usage: python -m nvret_jax {' '.join([name, *words])} [options]", ""]
    lines += textwrap.wrap(command.about, _WIDTH)
    lines.append("")
    for word in command.words:
        lines += entry(word.name, word.sentence)
    if command.config:
        lines += entry("--config=FILE", "The config file; ':smoke' after it shrinks the run.")
        lines += entry("--config.KEY=VALUE", "Another value for a key; None unsets it.")
    for key, one in blocks.entries(command.options):
        form = _form(key, one)
        off = isinstance(one.config_takes, Flag) and form != f"--{key}"
        lines += entry(form, f"Turns this off: {one.sentence}" if off else one.sentence)
    lines += entry("--help", "Print this help.")
    if command.more:
        lines += ["", command.more.strip("\n")]
    return "\n".join(lines)


def _form(key: str, one: Option) -> str:
    if isinstance(one.config_takes, Flag):
        return f"--{'no' * (one.config_default is True)}{key}"
    default = one.config_default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    if default in (None, ""):
        what = getattr(one.config_takes, "what", "")
        default = {"a folder": "DIR", "a file": "FILE"}.get(what, "VALUE")
    return f"--{key}={default}"


def entry(left: str, sentence: str) -> list[str]:
    """An item of `--help` and what it is for, in lines of at most 80 columns."""
    indent = " " * 26
    wrapped = textwrap.wrap(sentence, _WIDTH - len(indent)) or [""]
    if len(left) > len(indent) - 4:
        return [f"  {left}", *(indent + line for line in wrapped)]
    first = f"  {left:<{len(indent) - 2}}{wrapped[0]}".rstrip()
    return [first, *(indent + line for line in wrapped[1:])]
