"""An artefact: how it is written whole, and how it is checked to be up to date and undamaged.

A stage declares the inputs of its artefact as named parts (`fingerprints`). The record of a
finished artefact, under `fingerprints/`, keeps their hash and the size and sha256 of each file.
Fingerprints depend only on inputs, never on outputs, so the state of every stage is known before
any of them runs.

A write has this order: the artefact is made as `<name>.partial` and hashed; the old one and its
record are removed; the new one is renamed and recorded. Whenever a process is killed, an artefact
with a record is whole. A `.partial` folder with the same fingerprint is continued; any other is
discarded, which is printed.

Files are hashed again whenever their artefact is checked, except those with separate checksums that
are read on use (chunks of embeddings, checkpoints): `Workdir` defines which. A reader that finds
one damaged notes it in the record (`note_damage`), and it is rebuilt.

Only the main process writes and checks; the others wait for it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts import fingerprints
from nvret_jax.artifacts.fingerprints import FORMATS, About, Digest, Parts, digest
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import (
    files_below,
    give_usual_modes,
    move_contents,
    remove,
    sha256_of,
    write_atomic,
)
from nvret_jax.mesh import say

__all__ = ["About", "Artifact", "Damaged", "Digest", "Parts", "digest", "remove", "write_atomic"]

_MARKER = "fingerprint.txt"  # in an unfinished folder: the artefact it will become
_INSIDE = "unfinished.partial"  # where a folder is built whose name is a link, on the same disk
_FINISHING = "finishing.txt"  # in such a folder: its files are being moved into place


class Place(Protocol):
    """What an artefact needs from its workdir."""

    path: epath.Path

    def check_claim(self) -> None: ...
    def store_config(self) -> None: ...
    def sums(self, paths: Sequence[epath.Path]) -> list[str]: ...


class Damaged(InputError):
    """A needed artefact is damaged; the stage that made it repairs it.

    Attributes:
        kind: of artefact.
        what: the damage, without advice.
    """

    def __init__(self, message: str, kind: str, what: str):
        super().__init__(message)
        self.kind, self.what = kind, what


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One file or folder of a workdir together with the inputs it is made from.

    Attributes:
        workdir: that holds it.
        name: path below the workdir, such as 'candidates/teacher.parquet'.
        parts: everything it depends on.
        kind: of `fingerprints.FORMATS`.
        about: what reasons need to name a change.
        beside: further files and folders that belong to it, by path below the workdir.
        checked_by_use: matches the files below it whose contents their reader checks.
    """

    workdir: Place
    name: str
    parts: Parts
    kind: str = ""
    about: About = dataclasses.field(default_factory=About)
    beside: tuple[str, ...] = ()
    checked_by_use: re.Pattern | None = None

    @property
    def path(self) -> epath.Path:
        return self.workdir.path / self.name

    @property
    def partial(self) -> epath.Path:
        """Where a folder is built before it is renamed."""
        if self._linked:
            return self.path / _INSIDE
        return self.path.parent / f"{self.path.name}.partial"

    @property
    def _linked(self) -> bool:
        """Whether the artefact's folder is a link, which is kept: its contents change."""
        return os.path.islink(self.path) and not os.path.isfile(self.path)

    @property
    def record(self) -> epath.Path:
        return self.workdir.path / "fingerprints" / f"{self.name}.json"

    @functools.cached_property
    def fingerprint(self) -> str:
        what = {"kind": self.kind, "format": self.format, "parts": fingerprints.hashed(self.parts)}
        return digest(what)

    @property
    def format(self) -> int:
        return FORMATS.get(self.kind, 1)

    # --- checking ---

    def stale(self) -> str | None:
        """None if the artefact exists, undamaged and from the same inputs; otherwise the reason.

        Every process of a run calls this, and all get the main one's result.
        """
        reason = ""
        if mesh_lib.is_main():
            try:
                reason = self._stale() or ""
            except OSError as error:
                reason = f"damaged: {error.filename or self.name}: {error.strerror or error}"
        return mesh_lib.from_main(reason) or None

    def _stale(self) -> str | None:
        if not self.path.exists():
            return "not there yet"
        record = self._read()
        if isinstance(record, str):
            return record
        if record["fingerprint"] == self.fingerprint:
            return self._damage(record)
        return fingerprints.changes(record, {**self.described(), "inputs": self.inputs}) or (
            "its inputs changed"
        )

    def _read(self) -> dict[str, Any] | str:
        """The record, or why there is no usable one."""
        try:
            text = self.record.read_text()
        except FileNotFoundError:
            return "not finished"
        except (OSError, ValueError) as error:
            return f"damaged: its record cannot be read ({error})"
        try:
            record = json.loads(text)
            if "sum" not in record and "parts" in record and "fingerprint" in record:
                return "made by an older version of nvret_jax"
            if record.pop("sum") != digest(record):
                return "damaged: its record does not match its checksum"
            configs = record.pop("configs")
            for entry in (record, *record["inputs"].values()):
                entry["config"] = configs[entry["config"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            return "damaged: its record does not match its checksum"
        return record

    def is_recorded(self) -> bool:
        """Whether an artefact from exactly these inputs was finished, even if damaged since."""
        record = self._read()
        return not isinstance(record, str) and record["fingerprint"] == self.fingerprint

    def damage(self) -> str | None:
        """What is wrong with the files, whatever the inputs; None if nothing is recorded."""
        record = self._read()
        return None if isinstance(record, str) else self._damage(record)

    def _damage(self, record: Mapping[str, Any]) -> str | None:
        """What happened to the files since they were written, or None."""
        lost = self._lost(record)
        if not lost:
            return None
        first, why = next(iter(lost.items()))
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        return f"damaged: {first.removeprefix('../') or self.path.name} {why}{more}"

    def _lost(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Damaged files, with what is wrong with each."""
        lost = dict(record.get("damaged", {}))
        to_hash: list[str] = []
        for name, (size, sha) in record["files"].items():
            length = _length(self._file(name))
            if length is None:
                lost[name] = "is missing"
            elif length != size:
                lost[name] = f"has {length} bytes, not {size}"
            elif sha:
                to_hash.append(name)
        sums = self.workdir.sums([self._file(name) for name in to_hash])
        for name, found in zip(to_hash, sums, strict=True):
            if found != record["files"][name][1]:
                lost[name] = "does not match its checksum"
        return lost

    def lost(self) -> dict[str, str]:
        """Damaged files of a finished artefact from exactly these inputs, and why.

        On the main process.
        """
        record = self._read() if self.path.exists() else ""
        if isinstance(record, str) or record["fingerprint"] != self.fingerprint:
            return {}
        return self._lost(record)

    def made_before(self) -> dict[str, Any] | None:
        """Description, with 'inputs', of an existing whole artefact, whatever its inputs, or None.

        On the main process.
        """
        record = self._read() if self.path.exists() else ""
        if isinstance(record, str) or self._lost(record):
            return None
        return record

    def note_damage(self, lost: Mapping[str, str]) -> None:
        """Notes in the record that files, by name with what is wrong, are damaged."""
        if mesh_lib.is_main():
            record = self._read()
            if not isinstance(record, str):
                record["damaged"] = {**record.get("damaged", {}), **lost}
                self._prepared(record).replace(self.record)
        mesh_lib.barrier(f"noted damage of {self.name}")

    def _file(self, name: str) -> epath.Path:
        """A file of the record: '' is the artefact, '../x' a path in the workdir."""
        if name.startswith("../"):
            return self.workdir.path / name[3:]
        return self.path / name if name else self.path

    # --- records ---

    def described(self) -> dict[str, Any]:
        """Name, kind, format, parts, and what reasons need."""
        return {
            "name": self.name,
            "kind": self.kind,
            "format": self.format,
            "parts": fingerprints.recorded(self.parts),
            "names": dict(self.about.names),
            "config": json.loads(json.dumps(dict(self.about.values), default=str)),
        }

    @functools.cached_property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """Descriptions of all artefacts it is made from, directly or not, by fingerprint."""
        out: dict[str, dict[str, Any]] = {}
        for value in self.parts.values():
            if isinstance(value, Artifact) and value.fingerprint not in out:
                out |= {value.fingerprint: value.described(), **value.inputs}
        return out

    # --- writing ---

    def begin(
        self, *, repair: bool = False, first: Callable[[epath.Path], None] | None = None
    ) -> bool:
        """Opens `partial` for a folder, or for the pieces of a file; the old artefact is kept.

        Args:
            repair: a finished folder from these inputs that lost files is continued without them,
                not made from scratch.
            first: puts initial content into a new `partial`; called on the main process.

        Returns:
            True if there is something to continue: an unfinished folder of the same
            fingerprint, or a finished one that lost files.
        """
        mesh_lib.barrier(f"begin {self.name}")  # every process has checked before one changes it
        resumed = ""
        if mesh_lib.is_main():
            self.workdir.check_claim()
            self.workdir.store_config()
            if self._linked and not self.path.exists():
                raise InputError(
                    f"{self.path} links to {os.path.realpath(self.path)}, which does not exist; "
                    f"make that folder, or remove the link"
                )
            self._complete_moves()
            resumed = "resumed" if self._resumable(repair) else ""
            if not resumed:
                if self.partial.is_dir() and not os.path.islink(self.partial):
                    say(f"          discarding {self.partial}: from other inputs, or damaged")
                remove(self.partial)
                self.partial.mkdir(parents=True, exist_ok=True)
                if first is not None:
                    first(self.partial)
                write_atomic(self.partial / _MARKER, self.fingerprint)
        return bool(mesh_lib.from_main(resumed))

    def _resumable(self, repair: bool) -> bool:
        if _text(self.partial / _MARKER) == self.fingerprint and not os.path.islink(self.partial):
            return True
        if _text(self.path / _MARKER) == self.fingerprint and not self._linked:
            # Killed after it was renamed and before it was recorded.
            remove(self.partial)
            self.path.rename(self.partial)
            return True
        lost = self.lost() if repair and self.path.is_dir() else {}
        if not lost:
            return False
        remove(self.record)
        remove(self.partial)
        if self._linked:
            self.partial.mkdir()
            move_contents(self.path, self.partial)
        else:
            self.path.rename(self.partial)
        for name in lost:
            if not name.startswith("../"):
                remove(self.partial / name)
        write_atomic(self.partial / _MARKER, self.fingerprint)
        return True

    def _complete_moves(self) -> None:
        """Reverts the moves of a process that was killed during them."""
        if self._linked and (self.partial / _FINISHING).exists():
            move_contents(self.path, self.partial)
            remove(self.partial / _FINISHING)

    def finish_folder(self, inner: str = "") -> None:
        """Renames the folder at `partial`, or one inside it, and records it."""
        mesh_lib.barrier(f"finish {self.name}")
        if mesh_lib.is_main():
            self.workdir.check_claim()
            whole = self.partial / inner
            give_usual_modes(whole)
            record = self._prepared(self._made(whole))
            if inner:
                write_atomic(whole / _MARKER, self.fingerprint)
            if self._linked:
                self._finish_behind_link(whole)
            else:
                remove(self.record)
                remove(self.path)
                whole.rename(self.path)
            record.replace(self.record)
            remove(self.path / _MARKER)
            remove(self.partial)
        mesh_lib.barrier(f"finished {self.name}")

    def _finish_behind_link(self, whole: epath.Path) -> None:
        remove(self.record)
        for name in os.listdir(self.path):
            if name != _INSIDE:
                remove(self.path / name)
        write_atomic(self.partial / _FINISHING, "")
        for name in os.listdir(whole):
            if name not in (_FINISHING, _MARKER):
                os.rename(whole / name, self.path / name)

    def finish_file(self, write: Callable[[epath.Path], None]) -> None:
        """Lets `write` make the file inside `partial`, renames it and records it."""
        mesh_lib.barrier(f"finish {self.name}")
        if mesh_lib.is_main():
            self.workdir.check_claim()
            self._write(self.partial / "whole", write)
            remove(self.partial)
        mesh_lib.barrier(f"finished {self.name}")

    def write_file(self, write: Callable[[epath.Path], None]) -> None:
        """Lets `write` make a temporary file, on one process; renames and records it."""
        if mesh_lib.is_main():
            self.workdir.check_claim()
            self.workdir.store_config()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(self.partial, write)
        mesh_lib.barrier(f"written {self.name}")

    def _write(self, aside: epath.Path, write: Callable[[epath.Path], None]) -> None:
        remove(aside)
        write(aside)
        record = self._prepared(self._made(aside))
        remove(self.record)
        if self.path.is_dir() and not os.path.islink(self.path):
            remove(self.path)
        aside.replace(self.path)
        record.replace(self.record)

    def _made(self, at: epath.Path) -> dict[str, Any]:
        """The record of what is at `at`, before it is renamed."""
        names = [n for n in files_below(at) if n != _MARKER] if at.is_dir() else [""]
        files = {name: at / name if name else at for name in names}
        for name in self.beside:
            path = self.workdir.path / name
            inner = [f"{name}/{n}" for n in files_below(path)] if path.is_dir() else [name]
            files |= {f"../{n}": self.workdir.path / n for n in inner if _length(path) is not None}
        by_use = self.checked_by_use
        hashed = [name for name in files if not (by_use and by_use.match(name))]
        sums = dict(zip(hashed, sha256_of(files[name] for name in hashed), strict=True))
        return {
            "fingerprint": self.fingerprint,
            **self.described(),
            "inputs": self.inputs,
            "files": {
                name: [os.path.getsize(path), sums.get(name)] for name, path in files.items()
            },
        }

    def _prepared(self, record: Mapping[str, Any]) -> epath.Path:
        """A file with the record that only has to be renamed, which works on a full disk."""
        configs: dict[str, Any] = {}  # most artefacts are a single file

        def shared(entry: Mapping[str, Any]) -> dict[str, Any]:
            key = digest(entry["config"])[:8]
            configs[key] = entry["config"]
            return {**entry, "config": key}

        inputs = {key: shared(entry) for key, entry in record["inputs"].items()}
        out = {**shared(record), "inputs": inputs, "configs": configs}
        out["sum"] = digest(out)
        path = self.record.parent / f"{self.record.name}.new.partial"
        write_atomic(path, json.dumps(out, indent=1, sort_keys=True))
        return path


def _text(path: epath.Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None


def _length(path: epath.PathLike) -> int | None:
    """Bytes of a file, 0 for a folder; None if there is neither."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return 0
    return os.path.getsize(path) if os.path.isfile(path) else None
