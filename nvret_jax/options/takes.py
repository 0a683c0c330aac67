"""The values that an option takes, and their description in messages.

    number(0, 2, "a distance between scores")    a number from 0 to 2
    choice("auto", "device", "faiss")            one of these words
    path("a file", empty=True)                   a path on this machine, or none

A check never casts. '5' is not a number, True is not 1, 2.0 is not a whole number; numpy's scalars
count as the numbers they are. A check costs no more than reading the value, however large it is.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

INT32 = 2**31 - 1
_SHOWN = 100  # characters of a value shown in a message
_MOST = 1000  # items of a tuple
_LEAST = 2.0**-126  # smaller numbers are 0 in float32 on accelerators


class Takes:
    """The values that an option takes.

    Attributes:
        words: their description, after 'expected'.
        unset: whether None is one of them.
        holds: the type of the values; `object` if they have several types.
    """

    words: str
    unset: bool
    holds: type = object

    def fits(self, value: Any) -> bool:
        """Whether it takes this value."""
        raise NotImplementedError

    def hint(self, value: Any) -> str:
        """A hint about an invalid value, beginning with ';', or ''."""
        return ""


@dataclasses.dataclass(frozen=True)
class Number(Takes):
    """A finite number in a range; see `number` and `whole`."""

    low: float
    high: float
    what: str = ""
    whole: bool = False
    above: bool = False
    below: bool = False
    also: tuple[tuple[Any, str], ...] = ()
    unset: bool = False
    integral: bool = False  # 2.0 is a whole number, too: for options that hold a float

    def fits(self, value: Any) -> bool:
        if value is None:
            return self.unset
        words = [word for word, _ in self.also if isinstance(word, str) == isinstance(value, str)]
        if isinstance(value, str):
            return value in words
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        is_whole = isinstance(value, numbers.Integral)
        if self.whole and not is_whole:
            return False
        if value in words:
            return True
        if not is_whole and (not math.isfinite(value) or (self.integral and value != int(value))):
            return False
        lowest = value > self.low if self.above else value >= self.low
        if self.above and self.low == 0:
            lowest = value >= _LEAST
        return bool(lowest and (value < self.high if self.below else value <= self.high))

    def hint(self, value: Any) -> str:
        plain = isinstance(value, float) and self.above and self.low == 0
        return "; float32 makes this 0" if plain and 0 < value < _LEAST else ""

    @property
    def holds(self) -> type:
        if any(isinstance(word, str) for word, _ in self.also):
            return object
        return int if self.whole else float

    @property
    def words(self) -> str:
        kind = "a whole number" if self.whole or self.integral else "a number"
        low, high = shown_number(self.low), shown_number(self.high)
        if self.above or self.below:
            low = f"{'above' if self.above else 'of at least'} {low}"
            span = f"{low} and {'below' if self.below else 'at most'} {high}"
        else:
            span = f"from {low} to {high}"
        out = [f"{word!r}" + f" ({meaning})" * bool(meaning) for word, meaning in self.also]
        out.append(f"{kind} {span}" + f" ({self.what})" * bool(self.what))
        return " or ".join(out) + ", or None" * self.unset


def number(
    low: float,
    high: float,
    what: str = "",
    *,
    above: bool = False,
    below: bool = False,
    also: Mapping[Any, str] | None = None,
    unset: bool = False,
) -> Number:
    """Numbers from `low` to `high`; never NaN or infinite.

    Args:
        what: what the number means, if that is not obvious.
        above, below: the bound is excluded from the range.
        also: other values it takes, such as 'auto' or 0, and what they mean.
        unset: whether None is allowed.
    """
    return Number(low, high, what, False, above, below, tuple((also or {}).items()), unset)


def whole(
    low: int,
    high: int = INT32,
    what: str = "",
    *,
    also: Mapping[Any, str] | None = None,
    unset: bool = False,
) -> Number:
    """Whole numbers from `low` to `high`; arguments as in `number`."""
    return Number(low, high, what, True, False, False, tuple((also or {}).items()), unset)


@dataclasses.dataclass(frozen=True)
class Either(Takes):
    """The union of several ranges."""

    parts: tuple[Number, ...]
    unset: bool = False
    holds = float

    def fits(self, value: Any) -> bool:
        return any(part.fits(value) for part in self.parts)

    @property
    def words(self) -> str:
        return ", or ".join(part.words for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Choice(Takes):
    """One of some words; see `choice`."""

    known: tuple[str, ...]
    unset: bool = False
    holds = str

    def fits(self, value: Any) -> bool:
        return self.unset if value is None else isinstance(value, str) and value in self.known

    @property
    def words(self) -> str:
        listed = ", ".join(word or "''" for word in self.known)
        return f"one of {listed}" + ", or None" * self.unset

    def hint(self, value: Any) -> str:
        words = [word for word in self.known if word] if isinstance(value, str) else []
        found = difflib.get_close_matches(value[:_SHOWN], words, 1, 0.6) if words else []
        return f"; did you mean {found[0]}?" if found else ""


def choice(*known: str, unset: bool = False) -> Choice:
    """One of some words; '' may be among them."""
    return Choice(tuple(known), unset)


@dataclasses.dataclass(frozen=True)
class Combined(Choice):
    """One or more distinct words, joined by '+'."""

    known: tuple[str, ...]
    unset: bool = False

    def fits(self, value: Any) -> bool:
        if not isinstance(value, str):
            return value is None and self.unset
        names = value.split("+")
        return set(names) <= set(self.known) and len(set(names)) == len(names)

    def hint(self, value: Any) -> str:
        return "" if isinstance(value, str) and "+" in value else super().hint(value)

    @property
    def words(self) -> str:
        listed = ", ".join(self.known)
        return f"one of {listed}, or several different ones joined by '+'" + ", or None" * (
            self.unset
        )


@dataclasses.dataclass(frozen=True)
class Flag(Takes):
    """True or False; see `flag`."""

    unset: bool = False
    holds = bool

    def fits(self, value: Any) -> bool:
        return self.unset if value is None else isinstance(value, bool) or _is_numpy_bool(value)

    @property
    def words(self) -> str:
        return "True or False" + ", or None" * self.unset


def flag(*, unset: bool = False) -> Flag:
    """True or False, no other truth values."""
    return Flag(unset)


@dataclasses.dataclass(frozen=True)
class Text(Takes):
    """A text; see `text`."""

    what: str
    empty: bool
    lines: bool
    longest: int
    without: str
    unset: bool
    holds = str

    def fits(self, value: Any) -> bool:
        if not isinstance(value, str):
            return value is None and self.unset
        return not self._fault(value)

    def _fault(self, value: str) -> str:
        """Why a text is not accepted, or ''."""
        if not self.lines and not value.strip() and (value or not self.empty):
            return "it is empty" if not value else "it is only white space"
        if len(value) > self.longest:
            return f"it has {len(value):,} characters, at most {self.longest:,} are allowed"
        if not is_unicode(value):
            return "it has half of a surrogate pair, which cannot be written to a file"
        bad = next((letter for letter in "\0" + self.without if letter in value), None)
        if bad is None and not self.lines:
            bad = next((letter for letter in "\n\r" if letter in value), None)
        return f"it has {bad!r} in it" if bad else ""

    @property
    def words(self) -> str:
        kind = self.what or "text"
        none = ", or '' for none" * (self.empty and not self.lines)
        return kind + none + ", or None" * self.unset

    def hint(self, value: Any) -> str:
        return f"; {self._fault(value)}" if isinstance(value, str) else ""


def text(
    what: str = "",
    *,
    empty: bool = False,
    lines: bool = False,
    longest: int = 4096,
    without: str = "",
    unset: bool = False,
) -> Text:
    """Text that can be written as UTF-8, without NUL.

    Args:
        what: what it names, for the message.
        empty: whether '' is allowed; only white space never is, unless `lines`.
        lines: whether it may be any text, with several lines or none.
        longest: characters.
        without: characters it must not have.
        unset: whether None is allowed.
    """
    return Text(what, empty, lines, longest, without, unset)


@dataclasses.dataclass(frozen=True)
class Path(Text):
    """A text that is a path, or has one after a word and a colon; see `path`."""

    schemes: tuple[str, ...] = ()

    def path_in(self, value: str) -> str:
        """The path in a valid value, without the word and the colon."""
        word, colon, rest = value.partition(":")
        return rest if colon and word in self.schemes else value


def path(
    what: str, *, empty: bool = False, unset: bool = False, schemes: tuple[str, ...] = ()
) -> Path:
    """A path on this machine.

    Args:
        what: what it is a path of, for the message.
        empty: whether '' is allowed, for none.
        unset: whether None is allowed.
        schemes: words that may precede it, such as 'run' in 'run:FILE'.
    """
    return Path(what, empty, False, 4096, "", unset, schemes)


@dataclasses.dataclass(frozen=True)
class Many(Takes):
    """A tuple of items; see `many`."""

    item: Takes
    least: int = 0
    distinct: bool = False
    unset: bool = False
    holds = tuple

    def fits(self, value: Any) -> bool:
        if value is None:
            return self.unset
        if not isinstance(value, tuple | list) or not self.least <= len(value) <= _MOST:
            return False
        if not all(self.item.fits(item) for item in value):
            return False
        return not self.distinct or len(set(value)) == len(value)

    @property
    def words(self) -> str:
        what = f"{self.least} or more " * bool(self.least) + "different " * self.distinct
        return f"a tuple of {what}items, each {self.item.words}" + ", or None" * self.unset

    def hint(self, value: Any) -> str:
        if not isinstance(value, tuple | list):
            return ""
        if len(value) > _MOST:
            return f"; it has {len(value):,} items, at most {_MOST:,} are allowed"
        for number, item in enumerate(value):
            if not self.item.fits(item):
                return f"; item {number} is {shown(item)}" + self.item.hint(item)
        return "; an item occurs twice" if len(value) >= self.least else ""


def many(item: Takes, *, least: int = 0, distinct: bool = False, unset: bool = False) -> Many:
    """A tuple (or list) of at most 1,000 items.

    Args:
        item: the values of each.
        least: their least number.
        distinct: whether all must differ.
        unset: whether None is allowed.
    """
    return Many(item, least, distinct, unset)


@dataclasses.dataclass(frozen=True)
class Anything(Takes):
    """A value that its owner checks: a path, a mapping, another block of options."""

    words: str
    kinds: tuple[type, ...]
    unset: bool = False

    def fits(self, value: Any) -> bool:
        return self.unset if value is None else isinstance(value, self.kinds)


def shown(value: Any) -> str:
    """A value for a message: truncated, and never itself an error."""
    try:
        is_scalar = type(value).__module__ == "numpy" and hasattr(value, "item") and not value.ndim
        said = repr(value.item() if is_scalar else value)
    except Exception:  # numbers with more digits than Python prints; objects of other packages
        said = f"a value of type {type(value).__name__}"
    said = " ".join(said.split())
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"


def shown_number(value: float) -> str:
    """A bound in readable form: 1,000,000 and 0.05."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.12f}".rstrip("0") if abs(value) < 1e-3 else f"{value:g}"


def is_unicode(value: str) -> bool:
    """Whether a text is valid: without half of a surrogate pair."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_numpy_bool(value: Any) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")


def or_unset(takes: Takes) -> Takes:
    """The same values, or None."""
    return dataclasses.replace(takes, unset=True)


def or_word(takes: Number, word: str, meaning: str) -> Number:
    """The same numbers, or a word."""
    return dataclasses.replace(takes, also=(*takes.also, (word, meaning)))


def paths_in(takes: Takes, value: Any) -> Iterator[str]:
    """The paths in a value of an option, valid or not."""
    if isinstance(takes, Many):
        for item in value if isinstance(value, tuple | list) else ():
            yield from paths_in(takes.item, item)
    elif isinstance(takes, Path) and isinstance(value, str):
        yield takes.path_in(value)
