"""Calls of public functions whose arguments do not fit the signature, in one line.

Python's own TypeError names the argument and no more. Here the line also says which argument is
meant: a name that differs by a letter, or the name another library has for the same thing.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nvret_jax.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])


def checked(others: Mapping[str, str] | None = None) -> Callable[[F], F]:
    """Makes a call that does not fit a function's signature an InputError.

    Args:
        others: name of an argument of another library -> what to give here instead.
    """

    def wrap(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def called(*given: Any, **named: Any) -> Any:
            check(function.__name__, signature, given, named, others)
            return function(*given, **named)

        return called

    return wrap


def check(
    name: str,
    signature: inspect.Signature,
    given: tuple[Any, ...],
    named: Mapping[str, Any],
    others: Mapping[str, str] | None = None,
) -> None:
    """Raises InputError where arguments do not fit a signature.

    Args:
        name: of the function.
        signature: of it.
        given, named: by position and by name.
        others: as of `checked`.
    """
    takes = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        for one in named:
            if one not in takes:
                raise InputError(f"{name}: no argument '{one}'{_meant(one, takes, others or {})}")
    try:
        signature.bind(*given, **named)
    except TypeError as error:
        what = str(error)
        if "too many positional" in what:
            kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            places = [p for p, one in takes.items() if one.kind in kinds and p not in _SELF]
            what = (
                f"{len(given) - (len(_SELF & takes.keys()))} arguments by position, expected at "
                f"most {len(places)} ({', '.join(places)}); give the others by name"
            )
        raise InputError(f"{name}: {what}") from None


_SELF = {"self", "cls"}


def _meant(name: str, takes: Mapping[str, Any], others: Mapping[str, str]) -> str:
    if name in others:
        return f"; {others[name]}"
    known = [one for one in takes if one not in _SELF]
    found = difflib.get_close_matches(name, known, 1, 0.6)
    if found:
        return f"; did you mean '{found[0]}'?"
    return f"; arguments: {', '.join(known)}"
