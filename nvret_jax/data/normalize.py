"""Equality of texts: a normal form, and short keys to compare it.

Two texts have the same normal form if a reader would call them the same sentence, typed or typeset
differently. The form decides which passages can never be negatives, so it is careful in both
directions:

- Equal: letter case (casefold, so 'ß' is 'ss'), Unicode compatibility forms (NFKC: full width, half
  width, ligatures, subscripts), white space of any kind and amount, invisible format characters and
  variation selectors, and punctuation: quotes, brackets, commas, periods, colons,
  dashes, exclamation and question marks, apostrophes, backticks, in any script.
- Different: words, accents, digits, and marks that carry meaning: symbols (+ < = > $ ^ | ~ and all
  of Unicode's classes S but © ® ™), # % & * @ / \\ _ (C is not C#, foo_bar is not foobar),
  a period, comma, colon or dash between two digits (3.5 is not 35 or 3 5), a minus or point before
  a number (-5 is not 5). A superscript digit is a power (10² is 10^2, not 102), and ½ is 1/2.
- Chinese, Japanese and other scripts without spaces keep every character; only their punctuation
  becomes a space.
- A text of nothing but such marks ('?!') keeps them: only white space and case are normalised.

`keys` turns texts into 128-bit hashes of a form. The chance that any two of 10 million different
texts share one is below 1e-24, so equal keys count as equal texts, and only 16 bytes per text are
held.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np

KEY_DTYPE = np.dtype("S16")  # 16 raw bytes; only compared with other keys

_MEANINGFUL = frozenset("#%&*@/\\‰")  # punctuation to Unicode, part of the word to a reader
# . , : - stay between two digits, . and - also before a number; anywhere else they are removed.
# (The mark comes first in the pattern, which is many times faster than beginning with a
# lookbehind.)
_LOOSE_MARK = re.compile(r"[.,:-](?:(?!\d)|(?<=[^\W\d].)|(?<=[,:])(?<!\d.))")
# Characters of scripts that put no space between words, as ranges of a regular expression.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Thai, Lao, Burmese
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f"  # kana, bopomofo
    "\u3400-\u9fff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"  # Han, old kana
)
_WORD = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")


class Table(dict):
    """A table for str.translate whose entries are decided when a character first occurs."""

    def __init__(self, decide: Callable[[str], str | None]):
        super().__init__()
        self._decide = decide

    def __missing__(self, code: int) -> str | None:
        self[code] = found = self._decide(chr(code))
        return found


def half_pair(text: str) -> str | None:
    """Where a text has half of a surrogate pair, which no tokenizer accepts; None if it has none.

    JSON escapes can contain one, and so can text that was cut within an emoji.
    """
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        return f"half of a surrogate pair (\\u{code:04x}, character {error.start + 1})"
    return None


def normalize(text: str) -> str:
    """The normal form of a text, see the module's docstring; idempotent."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_before()))
        # Casefolding can undo NFKC, so it is applied again.
        text = unicodedata.normalize("NFKC", text.casefold())
    else:
        text = text.lower()
    words = _LOOSE_MARK.sub(" ", text.translate(_after())).split()
    return " ".join(words or text.split())


def words(text: str) -> list[str]:
    """The words of the normal form; in scripts without spaces each character is a word."""
    form = normalize(text)
    return form.split() if form.isascii() else _WORD.findall(form)


def keys(texts: Iterable[str], form: Callable[[str], str] = normalize) -> np.ndarray:
    """128-bit hashes, the same on every machine; equal keys mean equal forms.

    Args:
        texts: N texts, read once, one at a time.
        form: what is compared; `str.strip` ignores only surrounding space.

    Returns:
        `KEY_DTYPE` [N].
    """
    blake2b = hashlib.blake2b
    hashes = (
        blake2b(form(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for text in texts
    )
    return np.fromiter(hashes, KEY_DTYPE)


@functools.cache
def _before() -> Table:
    """Replacements that must happen before NFKC."""

    def decide(char: str) -> str | None:
        if unicodedata.category(char) == "Cf" or 0xFE00 <= ord(char) <= 0xFE0F:
            return None
        if char in "©®™℠":
            return " "
        kind = unicodedata.decomposition(char)
        if kind.startswith("<super>") and unicodedata.digit(char, None) is not None:
            return "^" + char
        if kind.startswith("<fraction>"):
            return " " + char  # 1½ is not 11/2
        return char

    return Table(decide)


@functools.cache
def _after() -> Table:
    """Replaces dashes by one dash, punctuation and control characters by a space."""

    def decide(char: str) -> str:
        category = unicodedata.category(char)
        if category == "Pd" or char == "\u2212":
            return "-"
        if char == "\u2044":  # the slash inside a fraction
            return "/"
        if char in ".,:" or char in _MEANINGFUL:
            return char
        if category[0] == "P" and category != "Pc":
            return " "
        return " " if category == "Cc" or char in "`\u02bc" else char

    return Table(decide)
