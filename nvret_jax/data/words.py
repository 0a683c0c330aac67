"""The words of a text in any script, for rankers that count words.

- Scripts with spaces: runs of two or more word characters, lower-cased. No stemming. A mark belongs
  to its character (vowel signs of Hindi, Bengali or Tamil, points of Hebrew, accents that are
  written apart), and soft hyphens and joiners separate nothing. A syllable of Korean is a word by
  itself.
- Scripts without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer and a few others): every two
  neighbouring characters are a word, and an isolated character is one. A dictionary would cut real
  words, differently in each release; overlapping pairs rank nearly as well, need no data and are
  the same everywhere. Marks stay with the character they stand on.
- Compatibility forms (half-width kana, full-width letters, ligatures) count as the usual ones.

A text may mix both: 'JAXは速い' has the words jax, は速, 速い.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata

from nvret_jax.data.normalize import UNSPACED, Table

_SPACED_WORD = re.compile(r"\b\w\w+\b")
_RUN = re.compile(f"[{UNSPACED}]+")
_JOINERS = "\u00ad\u200c\u200d"  # soft hyphen, zero-width non-joiner and joiner


def words(text: str) -> list[str]:
    """The words of a text, in order; see the module's docstring."""
    if text.isascii():
        return _SPACED_WORD.findall(text.lower())
    text = unicodedata.normalize("NFKC", text).lower()
    out, start = [], 0
    for run in _RUN.finditer(text):
        out += _spaced(text[start : run.start()])
        out += _pairs(run.group())
        start = run.end()
    return out + _spaced(text[start:])


def _spaced(text: str) -> list[str]:
    """Words between spaces and punctuation, those of one letter left out."""
    runs = text.translate(_separated()).split()
    return [run for run in runs if len(run) > 1 or "\uac00" <= run <= "\ud7a3"]


@functools.cache
def _separated() -> Table:
    """Word characters and their marks stay, joiners go, and all else is a space.

    The marks are why no regular expression does this: `\\w` of `re` has none of them.
    """

    def decide(char: str) -> str | None:
        if char in _JOINERS:
            return None
        stays = char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"
        return char if stays else " "

    return Table(decide)


def _pairs(run: str) -> list[str]:
    """Neighbouring characters of a run, with the marks on them; punctuation separates."""
    out: list[str] = []
    characters: list[str] = []
    for char in run + " ":
        if char.isalnum():
            characters.append(char)
        elif unicodedata.category(char)[0] == "M":
            if characters:
                characters[-1] += char
        else:
            pairs = [a + b for a, b in itertools.pairwise(characters)]
            out += pairs or characters
            characters = []
    return out
