"""The words of a text in any script, for rankers that count words.

- Scripts with spaces: runs of two or more word characters, lower-cased. No stemming.
- Scripts without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer and a few others): every two
  neighbouring characters are a word, and a character that stands alone is one. A dictionary would
  cut real words, differently in each release; overlapping pairs rank nearly as well, need no data
  and are the same everywhere. Marks stay with the character they stand on, and compatibility forms
  (half-width kana) count as the usual ones.

A text may mix both: 'JAXは速い' has the words jax, は速, 速い.
"""

from __future__ import annotations

import itertools
import re
import unicodedata

from nvret_jax.data.normalize import UNSPACED

_SPACED_WORD = re.compile(r"\b\w\w+\b")
_RUN = re.compile(f"[{UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text, in order; see the module's docstring."""
    text = text.lower()
    if text.isascii():
        return _SPACED_WORD.findall(text)
    out, start = [], 0
    for run in _RUN.finditer(text):
        out += _SPACED_WORD.findall(text[start : run.start()])
        out += _pairs(run.group())
        start = run.end()
    return out + _SPACED_WORD.findall(text[start:])


def _pairs(run: str) -> list[str]:
    """Neighbouring characters of a run, with the marks on them; punctuation separates."""
    out: list[str] = []
    characters: list[str] = []
    for char in unicodedata.normalize("NFKC", run) + " ":
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
