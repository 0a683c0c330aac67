"""The parsed text that names a data set: `scheme:place?key=value&key=value`.

The options after the question mark belong to the source: the columns to read, the encoding of a
file, the share of the queries for testing. A question mark that is part of a file's name, or a
wildcard in it, does not start options: what follows must have the form `key=value`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nvret_jax.errors import InputError
from nvret_jax.files.lines import shown
from nvret_jax.files.numbers import decimal, whole_number

_OPTIONS = re.compile(r"\?([A-Za-z_]+=[^&]*(?:&[A-Za-z_]+=[^&]*)*)$")


@dataclasses.dataclass(frozen=True)
class Source:
    """The name of a data set.

    Attributes:
        scheme: the text before the colon.
        place: a path or a name.
        options: key -> value, as written; '%26' means '&'.
    """

    scheme: str
    place: str
    options: Mapping[str, str]

    @property
    def shown(self) -> str:
        """For messages."""
        return f"{self.scheme}:{self.place}"

    def check(self, known: Iterable[str]) -> None:
        """Raises InputError for an option that is not among `known`."""
        known = tuple(known)
        for key in self.options:
            if key not in known:
                there = ", ".join(known) or "none"
                raise InputError(f"{self.shown}: no option '{key}'; options: {there}")

    def value(self, key: str, read: Callable[[str], Any], default: Any, expected: str) -> Any:
        """The parsed value of an option; `default` if it is not given.

        Raises:
            InputError: `read` raises ValueError.
        """
        if key not in self.options:
            return default
        try:
            return read(self.options[key])
        except ValueError:
            raise InputError(
                f"{self.shown}: option {key}={shown(self.options[key])}: expected {expected}"
            ) from None

    def share(self, key: str, default: float | None) -> float | None:
        """An option that is a share: 0 or more, below 1."""

        def read(word: str) -> float:
            found = decimal(word)
            if not 0 <= found < 1:
                raise ValueError
            return found

        return self.value(key, read, default, "a share of the queries: 0 or more, below 1")

    def number(self, key: str, default: float) -> float:
        """An option that is a finite number."""

        def read(word: str) -> float:
            found = decimal(word)
            if not math.isfinite(found):
                raise ValueError
            return found

        return self.value(key, read, default, "a finite number")

    def whole(self, key: str, default: int) -> int:
        """An option that is a whole number, 0 or more."""

        def read(word: str) -> int:
            found = whole_number(word)
            if found < 0:
                raise ValueError
            return found

        return self.value(key, read, default, "a whole number, 0 or more")

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """An option that is one of some words."""
        choices = tuple(choices)

        def read(word: str) -> str:
            if word not in choices:
                raise ValueError
            return word

        return self.value(key, read, default, " or ".join(map(repr, choices)))


def parse(spec: str) -> Source:
    """Parses the name of a data set.

    Raises:
        InputError: an option is given twice.
    """
    scheme, _, rest = spec.partition(":")
    match = _OPTIONS.search(rest)
    if not match or os.path.lexists(os.path.expanduser(rest)):
        return Source(scheme, rest, {})
    options: dict[str, str] = {}
    for pair in match[1].split("&"):
        key, _, value = pair.partition("=")
        if key in options:
            raise InputError(f"{scheme}:{rest}: option '{key}' is given twice")
        options[key] = urllib.parse.unquote(value)
    return Source(scheme, rest[: match.start()], options)
