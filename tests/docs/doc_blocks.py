"""Blocks of code in the documentation, and the means to run them as they are written."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
import shutil
import subprocess

import command
import tiny_cross_encoders
import tiny_models
import tiny_project

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """Page and the beginning of the first line, by which the tests know it."""
        return self.page, self.text.split("\n")[0][:60]


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert text.count("\n```") + text.startswith("```") == 2 * len(found), page
    return [Block(page, language, body) for language, body in found]


def shell_commands(text: str) -> list[str]:
    """The commands of a block: continued lines joined, comments left out, output left out."""
    lines = text.replace("\\\n", " ").split("\n")
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def filled(text: str, places: dict[str, str]) -> str:
    """A block with its placeholders replaced; each must be there in some block (see the tests)."""
    for word, value in places.items():
        text = text.replace(word, value)
    return text


def run_shell(line: str, more: list[str]) -> str:
    """Runs `python -m nvret_jax…` in this process and returns what it printed.

    Args:
        line: the command.
        more: flags that make a run tiny, appended.
    """
    if line.startswith("printf "):
        subprocess.run(line, shell=True, check=True)
        return ""
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"], line
    module, arguments = words[2], words[3:]
    assert module in ("nvret_jax.main", "nvret_jax"), line
    takes_config = any(word.startswith("--config=") for word in arguments)
    done = command.inside(*arguments, *([*more, "--config.distributed.mode=off"] * takes_config))
    assert done.status == 0, f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    return done.stdout


def pattern(line: str) -> str:
    """A regular expression for a line of output whose numbers may differ."""
    parts = re.split(r"\d[\d,.]*", line.strip())
    return r"[\d,.]+".join(re.escape(part) for part in parts)


def make_place(folder: pathlib.Path) -> None:
    """A folder like a user's: data in `mine`, a model in `model`, a cross-encoder in `cross`."""
    tiny_project.make(folder)
    (folder / "data").rename(folder / "mine")
    shutil.rmtree(folder / "model")
    # ':smoke' cuts at up to 64 tokens.
    tiny_models.write(folder / "model", max_position_embeddings=80)
    tiny_cross_encoders.write(folder / "cross")
