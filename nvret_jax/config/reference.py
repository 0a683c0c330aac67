"""Descriptions of all options: for `options`, `--help_config`, and the page docs/options.md.

`python -m nvret_jax.config.reference > docs/options.md` writes the page.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from nvret_jax.config import NAMED, Config
from nvret_jax.errors import InputError
from nvret_jax.options import Block, Option, blocks, fields_of, shown

_WIDTH = 80
# Beginnings of keys, and the block that has the same options.
_LIKE = (
    (r"teachers(\.[\w-]+)?(?=\.|$)", "teacher"),
    (r"train_stages(\.[\w-]+)?(?=\.|$)", "train"),
    (r"sets(\.[\w-]+)?(?=\.|$)", "sets.NAME"),
)
_TITLES = {
    "": "The whole run",
    "teacher": "`teacher` and `teachers.NAME`",
    "train": "`train` and `train_stages.NAME`",
}
_HEAD = """# Options

All options of a config. A config file sets them (`config.mining.percent = 0.9`), and so does the
command line (`--config.mining.percent=0.9`). `python -m nvret_jax.main --help_config` prints this
list, and `--help_config=mining` a part of it. Conditions between options are checked before
anything is computed.
"""


def sections() -> Iterator[tuple[str, type, dict[str, Option]]]:
    """Block, its dataclass, and its options by key, without those of inner blocks."""
    every = dict(blocks.entries(Config))
    for at, cls in _blocks_of(Config, ""):
        yield at, cls, {key: one for key, one in every.items() if key.rpartition(".")[0] == at}
    yield "sets.NAME", NAMED["sets"], dict(blocks.entries(NAMED["sets"], "sets.NAME."))


def _blocks_of(cls: type, at: str, *, flat: bool = False) -> Iterator[tuple[str, type]]:
    """Key and dataclass of a block and its inner blocks."""
    if not flat:
        yield at.removesuffix("."), cls
    for field in fields_of(cls).values():
        if isinstance(field, Block):
            inside = f"{at}{field.key}." if field.key else at
            yield from _blocks_of(field.cls, inside, flat=not field.key)


def text(about: str = "") -> str:
    """The text that `options` and `--help_config` print.

    Args:
        about: a key, or the beginning of some, such as 'mining' or 'train.loss'; or a word to
            search for in keys, values and sentences; '': all.

    Raises:
        InputError: no option has that name.
    """
    known = {key: one for _, _, section in sections() for key, one in section.items()}
    asked, found = about.removeprefix("config."), {}
    named, like = next(((m[0], to) for of, to in _LIKE if (m := re.match(of, asked))), ("", ""))
    wanted = like + asked[len(named) :]
    for key, one in known.items():
        if not wanted or f"{key}.".startswith(f"{wanted}."):
            found[named + key[len(like) :]] = one
    if not found:
        found = {key: one for key, one in known.items() if _is_about(asked.lower(), key, one)}
    if not found:
        near = difflib.get_close_matches(asked, [*known, *_blocks(known)], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{shown(about)}: no option, block or word of an option{hint}")
    return "\n\n".join(_entry(key, one) for key, one in found.items())


def _is_about(word: str, key: str, one: Option) -> bool:
    """Whether an option has a word, or the beginning of one, in its key, values or sentence."""
    said = f"{key} {one.config_takes.words} {one.sentence}".lower()
    return re.search(rf"(?<![a-z0-9]){re.escape(word)}", said.replace("_", " ")) is not None or (
        word in key
    )


def _blocks(known: dict[str, Option]) -> list[str]:
    return sorted({key.rpartition(".")[0] for key in known if "." in key})


def _entry(key: str, one: Option) -> str:
    indent = {"width": _WIDTH, "initial_indent": "    ", "subsequent_indent": "    "}
    lines = [f"{key} = {_shown(one.config_default)}"]
    lines += textwrap.wrap(one.sentence, **indent)
    lines += textwrap.wrap(f"Takes {one.config_takes.words}.", **indent)
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "unset" if value is None else repr(value)


def page() -> str:
    """docs/options.md."""
    parts = [_HEAD]
    for at, cls, section in sections():
        title = _TITLES.get(at, f"`{at}`")
        rows = ["| option | default | takes | what it is for |", "|---|---|---|---|"]
        for key, one in section.items():
            leaf = key.removeprefix(f"{at}.") if at else key
            cells = (f"`{leaf}`", f"`{_shown(one.config_default)}`", one.config_takes.words)
            rows.append("| " + " | ".join(_cell(c) for c in (*cells, one.sentence)) + " |")
        parts.append(f"## {title}\n\n{_about(cls)}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _about(cls: type) -> str:
    """The first sentence of a dataclass's docstring."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


if __name__ == "__main__":
    print(page(), end="")
