"""Phrases that a native reader stumbles over stay out of pages, docstrings, comments and messages.

Each pattern is an idiom translated word for word, or an "a" that means "per". A phrase that is
right in its place is listed in `RIGHT` with the reason.
"""

from __future__ import annotations

import io
import re
import tokenize

import doc_blocks
import pytest
from doc_blocks import ROOT

NUMBER = r"(?:\d[\d,]*(?:\.\d+)?|one|two|three|four|five|eight|ten|several|once|twice)"
UNIT = (
    r"(?:query|passage|text|token|batch|step|epoch|stage|row|line|device|chip|process|host|set|side"
    r"|task|doubling|positive|thread|second|minute|chunk|block|layer|round|run|tile)"
)
# Words after which "a" is the article: "one text for a query".
LINK = (
    r"(?:of|in|on|for|as|and|or|with|to|is|by|at|from|than|that|among|over|within|into|per|where|if"
    r"|when)\b"
)
# What to write instead -> the pattern of what is wrong.
PATTERNS = {
    "'per', not 'a', for rates": (rf"\b{NUMBER}(?: (?!{LINK})[\w-]+){{0,2}} an? {UNIT}\b(?! of)"),
    "name who: nobody, somebody": r"\b(?:no|some)body\b",
    "'separate' or 'own': of its own": r"\bof (?:its|their) own\b(?! [a-z])",
    "'unchanged': as it is": r"\bas (?:it is|they are)\b(?! \w)",
    "'this many': so many": r"\bso many\b",
    "report, describe: told, tells": r"\b(?:told|tells?|telling)\b",
    "check, examine: look at": r"\blook(?:s|ed|ing)? (?:at|into|after)\b",
    "continue: goes on": r"\b(?:go|goes|going|gone|went) on\b",
    "rebuild, repeat: made again": r"\b(?:made again|written anew|made anew)\b",
    "skip, ignore: passed over": r"\bpassed over\b",
    "is: lies, stands": r"\b(?:lies|stands|stood)\b(?! for\b)",
    "'not a': is no name": r"(?<!there )\b(?:is|are|was|were) no (?!longer\b|more\b|\w+er\b)\w+",
    "discard: thrown away": r"\bthr(?:ow|own|ew|ows) (?:it |them )?away\b",
    "a noun for the clause: which who": r"\b(?:which|what|where|that) who\b",
    "layout, package: the house": r"\b(?:the house|the rooms?|a room|at hand)\b",
    "result, be: comes out": r"\b(?:come|comes|came|coming) out\b",
}
PATTERNS = {wrong: re.compile(pattern) for wrong, pattern in PATTERNS.items()}
# A phrase that is right -> why.
RIGHT: dict[str, str] = {}


def sentences_of(source: str) -> list[tuple[int, str]]:
    """(line, text) of every docstring, comment and message of Python source; code left out."""
    found: list[tuple[int, str]] = []
    names = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    in_comment = False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.strip("#: ") if token.type == tokenize.COMMENT else token.string
        if token.type == tokenize.COMMENT:
            if in_comment:
                text = f"{found.pop()[1]} {text}"
            found.append((token.start[0], text))
        elif token.type in names and " " in text:
            if re.match(r"[rR]?[fF]", text):
                text = re.sub(r"\{[^{}]*\}", "…", text)  # one token until Python 3.12
            found.append((token.start[0], text))
        in_comment = token.type == tokenize.COMMENT or (in_comment and token.type == tokenize.NL)
    return found


def faults(text: str) -> list[tuple[str, str]]:
    """(what is wrong, the words around it) in a text; white space does not matter."""
    text = " ".join(text.split())
    text = re.sub(r"\bAn? ", "The ", text).lower()  # an "A" begins a sentence: it is the article
    found = []
    for wrong, pattern in PATTERNS.items():
        for match in pattern.finditer(text):
            around = text[max(0, match.start() - 40) : match.end() + 40]
            if not any(phrase in around for phrase in RIGHT):
                found.append((wrong, around))
    return found


PAGES = [*doc_blocks.PAGES, "CHANGELOG.md"]
PACKAGES = sorted(p.name for p in (ROOT / "nvret_jax").iterdir() if p.name[0] != "_")


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_plain_english(page):
    assert faults((ROOT / page).read_text()) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_comments_and_messages_are_plain_english(package):
    path = ROOT / "nvret_jax" / package
    wrong = []
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        if file.suffix != ".py":
            continue
        source = file.read_text()
        if not faults(re.sub(r"\n\s*(?:# )?", " ", source)):  # the quick answer for most files
            continue
        for line, text in sentences_of(source):
            wrong += [f"{file.relative_to(ROOT)}:{line}: {a}: … {b} …" for a, b in faults(text)]
    assert wrong == []


def test_a_section_of_a_docstring_begins_a_line():
    section = re.compile(r"\S +(?:Args|Attributes|Returns|Yields|Raises):(?:\s|$)", re.MULTILINE)
    assert section.search("    path: a file. Returns: its rows")
    for file in sorted((ROOT / "nvret_jax").rglob("*.py")):
        assert section.search(file.read_text()) is None, file


PLANTED = (
    "4 negatives a query, one vector a token",
    "as nobody says",
    "in a folder of its own.",
    "the model, as it is, is scored",
    "so many steps",
    "what a run tells",
    "candidates looked at",
    "the run goes on",
    "it is made again",
    "others are passed over",
    "a file that lies in the folder",
    "'a/b' is no name for a set",
    "thrown away with a word",
    "which who works on arrays need not have",
    "models that are at hand",
    "what comes out of it",
)


@pytest.mark.parametrize(("wrong", "planted"), [*zip(PATTERNS, PLANTED, strict=True)])
def test_each_pattern_finds_its_phrase_wherever_it_is_planted(wrong, planted):
    source = f'''"""Does it.

    {planted.replace(" ", chr(10) + "    ", 1)}
    """
# {planted}
x = f"{{told}} {planted}"
'''
    found = [[what for what, _ in faults(text)] for _, text in sentences_of(source)]
    assert len(found) == 3
    assert all(wrong in of for of in found)
    assert wrong in [what for what, _ in faults(planted)]


@pytest.mark.parametrize(
    "right",
    [
        "Where a score is 0 for a query, as they are scored in one pass over a step.",
        "There is no passage left, and the batch is no larger; 'x' stands for the default.",
    ],
)
def test_plain_sentences_pass(right):
    source = f"# {right}\nx = f'{{told}} at {{its_own}}: none'\n"
    assert [faults(text) for _, text in sentences_of(source)] == [[], []]
