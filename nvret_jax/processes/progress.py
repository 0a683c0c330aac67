"""Progress of long loops: a bar on a terminal, occasional lines in a file.

`--log_file` gets the lines in either case, also with `--quiet`, which leaves out what is printed.
TQDM_DISABLE=1 switches everything off, and the other variables of tqdm hold for the bar.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

from nvret_jax.processes import log

EVERY = 30.0  # seconds between two lines in a file; a loop that is shorter prints none


def bar(
    over: Iterable | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    show: bool = True,
) -> _Bar | _Lines:
    """Shows progress on stderr; a context manager, and an iterator if `over` is given.

    Args:
        over: the iterable, for a plain loop.
        desc: a description.
        unit: what is counted.
        total: their number; default: `len(over)`.
        initial: how many are already done.
        show: False shows nothing.

    Returns:
        An object with tqdm's `update`, `set_postfix_str`, `write` and `close`.
    """
    off = not show or os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
    total = len(over) if total is None and hasattr(over, "__len__") else total
    options: dict[str, Any] = {"desc": desc, "unit": unit, "total": total, "initial": initial}
    if _redraws() and not log.is_quiet():
        # Not `disable=False`: that would override the environment.
        return _Bar(over, **options, **({"disable": True} if off else {}))
    return _Lines(over, **options, silent=off)


def _redraws() -> bool:
    """Whether a line can be overwritten: on a terminal, and in a notebook."""
    return "ipykernel" in sys.modules or sys.stderr.isatty()


class _Bar(tqdm):
    """tqdm's bar, which makes room for lines of the log, whose file gets lines of its progress."""

    def __init__(self, over: Iterable | None, **options: Any):
        self._noted: _Lines | None = None
        super().__init__(over, **options)
        if not self.disable:
            names = ("desc", "unit", "total", "initial")
            values = {name: options[name] for name in names}
            self._noted = _Lines(None, **values, silent=False, put=log.note)

    def update(self, n: float = 1) -> bool | None:
        drawn = super().update(n)
        if self._noted is not None:
            self._noted.update(n)
        return drawn

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        super().set_postfix_str(s, refresh)
        if self._noted is not None:
            self._noted.set_postfix_str(s)

    def close(self) -> None:
        super().close()
        if self._noted is not None:
            self._noted.n = self.n
            self._noted.close()

    def write(self, text: str) -> None:
        with tqdm.external_write_mode(file=sys.stdout):
            log.say(text)


class _Lines:
    """The parts of tqdm's interface in use, for output where lines stay."""

    def __init__(
        self,
        over: Iterable | None,
        *,
        desc: str,
        unit: str,
        total: int | None,
        initial: int,
        silent: bool,
        put: Callable[[str], None] | None = None,
    ):
        self._put = _print if put is None else put
        self.n, self._total = initial, total
        self._over, self._desc, self._unit, self._silent = over, desc, unit.strip(), silent
        self._begun = self._last = time.monotonic()
        self._initial, self._postfix = initial, ""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __iter__(self) -> Iterator:
        for item in self._over:
            yield item
            self.update()
        self.close()

    def update(self, n: int = 1) -> None:
        self.n += n
        if time.monotonic() - self._last >= EVERY:
            self._say()

    def set_postfix_str(self, text: str) -> None:
        self._postfix = f", {text}" if text else ""

    def write(self, text: str) -> None:
        log.say(text)

    def close(self) -> None:
        if self._last > self._begun and not self._silent:
            self._say()
        self._silent = True

    def _say(self) -> None:
        self._last = time.monotonic()
        if self._silent:
            return
        rate = (self.n - self._initial) / max(self._last - self._begun, 1e-9)
        of = f"/{self._total}" if self._total else ""
        line = f"{self._desc}: {self.n}{of} {self._unit}, {rate:.3g} per second{self._postfix}"
        self._put(line)


def _print(line: str) -> None:
    """Shows a line of progress, and keeps it."""
    if not log.is_quiet():
        print(line, file=sys.stderr, flush=True)
    log.note(line)
