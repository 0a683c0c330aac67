"""The files of a model's folder: found inside it, and read with limits.

A model is untrusted input, and so is every name and number in its files.

- **Nothing outside the folder is read.** A file may refer to another (`modules.json`, the index of
  sharded weights) only by a relative path that stays inside, and a link may lead only to a file
  inside. The only exception is the cache of the Hugging Face hub, whose snapshots are links into
  the `blobs` of the same repository.
- **Values have types and bounds.** `Fields` reads them from a JSON object one by one; one message
  reports everything that is wrong with an object. Limits of parsers (depth, digits of a number) are
  handled.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from nvret_jax.errors import InputError

LARGEST_JSON = 64 << 20  # bytes; about the size of the index of a model with a million tensors
INT32 = 2**31 - 1
_SHOWN = 60  # characters of a value in a message
_REQUIRED = object()


def inside(folder: epath.PathLike, name: Any, said_by: epath.PathLike | None = None) -> epath.Path:
    """The path of a file or folder `name` inside a model's folder, which need not exist.

    Args:
        folder: of the model.
        name: relative to it, '' for the folder itself.
        said_by: the file that names it, for messages; None: a name from this package.

    Raises:
        InputError: it is not a relative path, leads out of the folder, directly or through a link,
            or is neither a file nor a folder.
    """
    start = f"{said_by}: " if said_by is not None else ""
    if not isinstance(name, str):
        raise InputError(f"{start}path {shown(name)}: expected a string")
    windows = pathlib.PureWindowsPath(name)
    parts = {*windows.parts, *pathlib.PurePosixPath(name).parts}
    if windows.anchor or name.startswith("/") or ".." in parts or "\0" in name:
        raise InputError(
            f"{start}path {shown(name)} leads out of the model's folder; expected a relative path "
            "inside it"
        )
    path = epath.Path(folder) / name if name else epath.Path(folder)
    text = os.fspath(path)
    if "://" in text:
        return path
    try:
        root, target = os.path.realpath(os.fspath(folder)), os.path.realpath(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{start}path {shown(name)}: {error}") from None
    if target != root and not any(target.startswith(r + os.sep) for r in _roots(root)):
        raise InputError(
            f"{text}: a link to {target}, which is outside the model's folder and is not read; "
            "copy the file into the folder"
        )
    # Opening a pipe would wait for a writer.
    if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        raise InputError(f"{text}: neither a file nor a folder")
    return path


def _roots(root: str) -> list[str]:
    """Where files of this folder may be: itself, and for a hub snapshot the repository's blobs."""
    found = [root]
    for parent in pathlib.PurePath(root).parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            found.append(os.fspath(parent.parent / "blobs"))
    return found


def read_json(path: epath.PathLike) -> Any:
    """A JSON file's content; InputError with file and line if it is not readable JSON."""
    path = epath.Path(path)
    try:
        size = path.stat().length
        if size > LARGEST_JSON:
            raise InputError(
                f"{path}: {size:,} bytes of JSON; at most {LARGEST_JSON:,} are read from a model"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from None
    except RecursionError:
        raise InputError(f"{path}: not usable JSON (nested too deeply)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except InputError:
        raise
    except ValueError:  # of int(): more digits than Python converts
        raise InputError(f"{path}: not usable JSON (a number of thousands of digits)") from None


def read_object(folder: epath.PathLike, *names: str) -> dict[str, Any]:
    """The JSON object in the first of these files in a model's folder; {} if there is none.

    The names are alternative names of one file.

    Raises:
        InputError: it is not readable, not an object, or outside the folder.
    """
    for name in names:
        path = inside(folder, name)
        if path.exists():
            content = read_json(path)
            if not isinstance(content, dict):
                raise InputError(f"{path}: expected a JSON object, got {type(content).__name__}")
            if content or name == names[-1]:
                return content
    return {}


def shown(value: Any) -> str:
    """A value for a message, in at most about sixty characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, a deep list
        return f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


class Fields:
    """Values of one JSON object, checked as they are read. None counts as a missing key.

    Mistakes are collected in `wrong`; for a wrong value a method returns its default, or None
    without one. `check` reports all at once.
    """

    def __init__(self, content: Mapping[str, Any], wrong: list[str] | None = None):
        self.content = content
        self.wrong: list[str] = [] if wrong is None else wrong

    def check(self, where: object) -> None:
        """Raises InputError, beginning with `where`, if anything was wrong."""
        if self.wrong:
            raise InputError(f"{where}: {'; '.join(dict.fromkeys(self.wrong))}")

    def _value(self, name: str, default: Any) -> tuple[Any, Any]:
        value = self.content.get(name)
        if value is None and default is _REQUIRED:
            self.wrong.append(f"{name} is missing")
        return value, None if default is _REQUIRED else default

    def _refuse(self, name: str, value: Any, expected: str) -> None:
        self.wrong.append(f"{name}={shown(value)}, expected {expected}")

    def integer(
        self, name: str, default: Any = _REQUIRED, *, low: int = 1, high: int = INT32
    ) -> Any:
        """An int from `low` to `high`."""
        value, default = self._value(name, default)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            kind = {0: "an int of at least 0", 1: "a positive int"}.get(low)
            self._refuse(name, value, kind or f"an int of at least {low}")
            return default
        if value > high:
            self._refuse(name, value, f"an int of at most {high:,}")
            return default
        return value

    def number(self, name: str, default: Any = _REQUIRED, *, high: float, low: float = 0.0) -> Any:
        """A finite number above `low`, up to `high`."""
        value, default = self._value(name, default)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(name, value, "a positive number")
            return default
        if not value > low:  # NaN, too
            self._refuse(name, value, "a positive number" if low == 0 else f"more than {low:g}")
            return default
        if value > high:
            self._refuse(name, value, f"a positive number of at most {high:g}")
            return default
        return value

    def limit(self, name: str) -> int | None:
        """A limit in tokens; None if there is none. Some tools write 1e30 for "unknown"."""
        value = self.content.get(name)
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 1 <= value < float("inf") or (value < 1e9 and value != int(value)):
            self._refuse(name, value, "a positive int")
            return None
        return int(value)

    def flag(self, name: str, default: Any = False) -> Any:
        """true or false."""
        value, default = self._value(name, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._refuse(name, value, "true or false")
            return default
        return value

    def text(
        self, name: str, default: Any = _REQUIRED, *, choices: Iterable[str] | None = None
    ) -> Any:
        """A string, one of `choices` if there are any."""
        value, default = self._value(name, default)
        if value is None:
            return default
        if not isinstance(value, str) or not encodable(value):
            self._refuse(name, value, "a string")
            return default
        if choices is not None and value not in choices:
            self.wrong.append(f"{name}={shown(value)}, supported: {', '.join(choices)}")
            return default
        return value

    def texts(self, name: str, default: Any = _REQUIRED) -> Any:
        """A list of strings, as a tuple."""
        value, default = self._value(name, default)
        if value is None:
            return default
        if not isinstance(value, list) or not all(
            isinstance(v, str) and encodable(v) for v in value
        ):
            self._refuse(name, value, "a list of strings")
            return default
        return tuple(value)

    def object(self, name: str, default: Any = _REQUIRED) -> Any:
        """An object, as a dict."""
        value, default = self._value(name, default)
        if value is None:
            return default
        if not isinstance(value, dict):
            self._refuse(name, value, "an object")
            return default
        return value

    def only(self, name: str, plain: Sequence[Any], why: str = "") -> None:
        """Refuses a value that is not one of `plain`; a missing one is accepted."""
        value = self.content.get(name)
        if value is not None and not any(type(value) is type(p) and value == p for p in plain):
            known = ", ".join(json.dumps(p) for p in plain)
            self.wrong.append(
                f"{name}={shown(value)} changes what the model computes and is not supported"
                f"{f' (supported: {known})' if known else ''}{why}"
            )

    def known(self, names: Iterable[str]) -> None:
        """Refuses keys that are not among `names`."""
        for name in self.content:
            if name not in names:
                self.wrong.append(f"{shown(name)} is not a known setting")


def encodable(text: str) -> bool:
    """Whether a string is valid Unicode: tokenizers do not accept an unpaired surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
