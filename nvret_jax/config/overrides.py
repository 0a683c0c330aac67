"""The config file and the overrides of the command line, with all mistakes in one line.

`ml_collections.config_flags` does the parsing; it stops at the first mistake and reports it with
the error of some Python call. So the same arguments are checked here first: the file is run, each
override is tried separately, and all mistakes are reported together, by file, line and key. Running
the file twice is harmless: it only builds a dict.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import pathlib
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from nvret_jax.config import flat_keys, keys_of, near
from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.options import Takes, mistake, shown

_PACKAGE = pathlib.Path(__file__).parents[1]
_UNSET = "None"
NO_CONFIG = "--config is missing; for a first run: --config=configs/quickstart.py"
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "a tuple, such as \"('embed','search')\"",
}


def from_arguments(arguments: Sequence[str]) -> ConfigDict:
    """The config from `--config=FILE` and `--config.KEY=VALUE` of a command line.

    Args:
        arguments: those of the command line that belong to a config.

    Raises:
        InputError: no file is given, or all mistakes in them, in one line.
    """
    config, misread = read_arguments(arguments)
    _refuse(misread)
    return config


def read_arguments(arguments: Sequence[str]) -> tuple[ConfigDict, dict[str, str]]:
    """The config of a command line without the overrides that cannot be read, and those.

    So that its other mistakes can be reported with them, in one line.

    Args:
        arguments: those of the command line that belong to a config.

    Returns:
        (the config, key -> what is wrong with its override).

    Raises:
        InputError: no file is given, or it is invalid.
    """
    argv, gone, misread = _checked(located(["", *arguments]))
    alone = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", None, flag_values=alone, sys_argv=argv)
    alone["config"].parser = File()  # a folder's name may hold colons
    try:
        alone(argv)
        if holder.value is None:
            raise InputError(NO_CONFIG)
        unset(holder.value, gone)
    except flags.Error as error:
        said = re.sub(r"\('(.*)', .*\)$", r"\1", str(error))  # absl prints a tuple
        raise InputError(f"flags: {said}") from None
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"config: {error}") from None
    return holder.value, misread


def check(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Checks `--config=FILE[:arg]` and every `--config.key=value` of a command line.

    A number is decimal and ASCII; `None` unsets a value that can be unset.

    Args:
        argv: with the program's name first.

    Returns:
        (the command line without the values that are unset, their keys): `config_flags` cannot
        parse None, so the caller that parses the rest calls `unset` afterwards.

    Raises:
        InputError: an invalid file, or overrides with unknown keys or values of a wrong type; one
            line with all of these.
    """
    left, unset, misread = _checked(argv)
    _refuse(misread)
    return left, unset


def _refuse(misread: Mapping[str, str]) -> None:
    """Raises InputError if any override cannot be read."""
    if misread:
        raise InputError("config: " + "; ".join(misread.values()))


def _checked(argv: Sequence[str]) -> tuple[list[str], list[str], dict[str, str]]:
    """See `check`; what is wrong is returned by key, without these arguments."""
    path, changes = _split(argv)
    if not path:
        if changes or path == "":
            raise InputError(NO_CONFIG)
        return list(argv), [], {}
    config = load(path)
    known = keys_of(config)
    wrong: dict[str, str] = {}
    left, unset = list(argv), []
    for key, arguments in _grouped(config, changes):
        if _text(arguments) == _UNSET and key in known and _type(config, key):
            problem = mistake(key, None, known[key])
            left = _without(left, arguments)
            unset.append(key)
        else:
            problem = _problem(config, key, arguments, known.get(key))
            unset = [other for other in unset if other != key]
        if problem:
            wrong[key] = f"{wrong[key]}; {problem}" if key in wrong else problem
            left = _without(left, arguments)
    return left, unset, wrong


def unset(config: ConfigDict, keys: Sequence[str]) -> None:
    """Unsets the values of a config that `check` returned."""
    for key in keys:
        target, (*blocks, leaf) = config, key.split(".")
        for name in blocks:
            target = target[name]
        target[leaf] = None


def located(argv: Sequence[str]) -> list[str]:
    """A command line whose `--config=configs/…` names a file that exists.

    The project's own configs are found from any folder: if the working directory has no such file,
    the one installed with the package is used, which is printed.
    """
    out = list(argv)
    for i, argument in enumerate(out):
        match = re.fullmatch(r"(--?config=)?(configs/[^:]+)(:.*)?", argument, re.DOTALL)
        if not match or not (match[1] or out[i - 1] in ("--config", "-config")):
            continue
        if pathlib.Path(match[2]).exists():
            continue
        # In a wheel configs/ is inside the package; in a checkout, next to it.
        for root in (_PACKAGE, _PACKAGE.parent):
            if (root / match[2]).is_file():
                out[i] = f"{match[1] or ''}{root / match[2]}{match[3] or ''}"
                print(f"config: {root / match[2]}, which came with nvret_jax", flush=True)
                break
    return out


def load(spec: str) -> ConfigDict:
    """The config from `FILE` or `FILE:arg`.

    Raises:
        InputError: there is no such file, it is not Python, raises, or does not return a
            ConfigDict.
    """
    name, arg = _file_and_argument(str(paths.local(spec, "--config")))
    path = pathlib.Path(name)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"--config={spec}: {what}; expected a file such as configs/quickstart.py")
    loader = importlib.machinery.SourceFileLoader("config_file", name)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    try:
        loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise InputError("the file defines no function get_config()")
        config = module.get_config(arg) if arg else module.get_config()
        if not isinstance(config, ConfigDict):
            raise InputError(f"get_config() returns {type(config).__name__}, not a ConfigDict")
    except InputError as error:
        raise InputError(f"--config={spec}: {error}") from None
    except SyntaxError as error:
        raise InputError(f"{error.filename or name}:{error.lineno}: {error.msg}") from None
    except Exception as error:  # any exception of the user's code
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f":{f.lineno}" for f in reversed(frames) if f.filename == name), "")
        # A ConfigDict appends all its values to the message.
        text = str(error).split(" Other fields present", 1)[0].strip("'\"")
        raise InputError(f"{name}{line}: {type(error).__name__}: {text}") from None
    return config


def read(spec: str) -> ConfigDict:
    """`load`, which finds files installed with the package from any folder; see `located`."""
    return load(located(["", f"--config={spec}"])[1].removeprefix("--config="))


class File(flags.ArgumentParser):
    """Parses the value of --config with `load`."""

    def parse(self, argument: str) -> ConfigDict:
        """The config, locked."""
        return load(argument).lock()

    def flag_type(self) -> str:
        """For --help."""
        return "config file"


def _file_and_argument(spec: str) -> tuple[str, str]:
    """Splits 'FILE:arg'. Names of folders may contain colons: the longest existing file is used."""
    name, colon = spec, ":"
    while colon:
        if _is_file(name):
            return name, spec[len(name) + 1 :]
        name, colon, _ = name.rpartition(":")
    name, _, arg = spec.partition(":")
    return name, arg


def _is_file(name: str) -> bool:
    try:
        return pathlib.Path(name).is_file()
    except OSError:  # for example a name that is too long
        return False


def _split(argv: Sequence[str]) -> tuple[str | None, list[tuple[str, str, str | None]]]:
    """The value of --config, and (key, argument, the next argument) of each override."""
    path, changes = None, []
    arguments = list(argv[1:])
    if "--" in arguments:
        arguments = arguments[: arguments.index("--")]
    for i, argument in enumerate(arguments):
        behind = arguments[i + 1] if i + 1 < len(arguments) else None
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            path = match[1] if match[1] is not None else behind
        elif match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            changes.append((match[1], argument, behind))
    return path, changes


def _grouped(config: ConfigDict, changes) -> Iterator[tuple[str, list[str]]]:
    """(key, arguments to try together): one flag, perhaps with its value as the next argument.

    A tuple may be given by several flags, which make one value.
    """
    tuples: dict[str, list[str]] = {}
    for key, argument, behind in changes:
        unit, kind = [argument], _type(config, key)
        if "=" not in argument and behind is not None and kind is not bool:
            unit.append(behind)
        if kind is tuple:
            tuples.setdefault(key, []).extend(unit)
        else:
            yield key, unit
    yield from tuples.items()


def _type(config: ConfigDict, key: str) -> type | None:
    """The type of a key's value; None if there is no such key."""
    node, (*blocks, leaf) = config, key.split(".")
    for block in blocks:
        node = node.get(block) if isinstance(node, ConfigDict) else None
    return node.get_type(leaf) if isinstance(node, ConfigDict) and leaf in node else None


def _text(arguments: list[str]) -> str:
    """The value of an override, as written."""
    return arguments[0].partition("=")[2] if "=" in arguments[0] else arguments[-1]


def _without(argv: list[str], arguments: list[str]) -> list[str]:
    """A command line without some arguments that follow each other."""
    count = len(arguments)
    found = [i for i in range(len(argv)) if argv[i : i + count] == arguments]
    gone = {i + j for i in found for j in range(count)}
    return [argument for i, argument in enumerate(argv) if i not in gone]


def _is_plain(kind: type, value: str) -> bool:
    """Whether the numbers in a value are plain decimal: no '1_0', '0x10', '１０'."""
    if kind in (int, float):
        return value.isascii() and _is_decimal(value)
    if kind in (tuple, object):
        try:
            tree = ast.parse(value.strip(), mode="eval")
        except Exception:  # words
            return True
        return not any(
            isinstance(node, ast.Constant)
            and isinstance(node.value, int | float | complex)
            and not _is_decimal(ast.get_source_segment(value.strip(), node) or "")
            for node in ast.walk(tree)
        )
    return True


def _is_decimal(number: str) -> bool:
    return "_" not in number and not re.match(r"\s*[+-]?0[box]", number, re.IGNORECASE)


def _literal(value: str) -> Any:
    """A number, a truth value or a tuple if the text is one; otherwise the text itself."""
    try:
        return ast.literal_eval(value)
    except Exception:
        return value


def _problem(config: ConfigDict, key: str, arguments: list[str], takes: Takes | None) -> str | None:
    """What is wrong with one override, or None; `takes`: the values of its key, if known."""
    kind = _type(config, key)
    if kind is None:
        return f"{key}: no such key{near(config, key)}"
    if kind is ConfigDict:
        inside = next(k for k in flat_keys(config) if k.startswith(f"{key}."))
        return f"{key}: a block of values; set one of them, as in --config.{inside}=…"
    name, *behind = arguments
    if kind is not bool and len(arguments) <= 2 and "=" not in name:
        if not behind or behind[0].startswith("--"):
            return f"{key}: no value; give one, as in --config.{key}=VALUE"
    # Tried on a config of this one value: config_flags prints the config it is given as YAML.
    arguments = [
        re.sub(rf"^(--?(?:no)?config\.){re.escape(key)}", r"\g<1>value", a) for a in arguments
    ]
    alone = flags.FlagValues()
    value = _text(arguments)
    expected = takes.words if takes else _EXPECTED.get(kind)
    if not _is_plain(kind, value):
        return f"{key}={value!r}: expected {expected}, in plain decimal digits"
    try:
        config_flags.DEFINE_config_dict(
            "config", _only(config, key), flag_values=alone, sys_argv=["", *arguments]
        )
        alone(["", *arguments])
    except Exception as error:  # flags.Error, and exceptions of value parsers
        if kind in _EXPECTED and value != arguments[0]:
            return f"{key}={shown(_literal(value))}: expected {expected}"
        return f"{key}: {error}".replace("config.value", f"config.{key}")
    return None


def _only(config: ConfigDict, key: str) -> ConfigDict:
    """A config that holds one value of another, under the name 'value'."""
    for block in key.split("."):
        last, config = config, config[block]
    kind, value = last.get_type(block), config
    if value is None:
        value = config_dict.placeholder(kind)
    elif kind is object:  # a number or a word
        value = config_dict.FieldReference(value, field_type=object)
    return ConfigDict({"value": value})
