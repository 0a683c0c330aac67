"""The workdir: where every artefact lies, how it appears whole, and how one knows it still holds.

A stage declares what goes into its artefact as named *parts* (strings, numbers, digests of files,
fingerprints of other artefacts). The fingerprint is a hash of the parts; it is stored, with the
parts themselves, under `fingerprints/` once the artefact stands. Fingerprints depend on inputs
alone, never on outputs, so the state of every stage is known before any of them runs.

Order of a write: the stored fingerprint goes first, then the artefact is made aside
(`<name>.partial`) and renamed, then the new fingerprint is stored. Whatever instant a process is
killed at, an artefact with a fingerprint is whole. A `.partial` folder that carries the same
fingerprint is continued; any other is thrown away.

With the fingerprint go the sizes of the artefact's files, so that one cut short or deleted later
is noticed; the artefact is then made again, or, where its maker knows how, what is lost of it.

Only the main process writes; the others wait for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from nvret_jax import claim as claim_lib
from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError

Parts = Mapping[str, Any]
_MARKER = "fingerprint.txt"  # in an unfinished folder: what it is going to be


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomic(path: epath.Path, data: str | bytes) -> None:
    """Writes a file so that it is either the old one or the whole new one."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f"{path.name}.partial"
    if isinstance(data, bytes):
        aside.write_bytes(data)
    else:
        aside.write_text(data)
    aside.replace(path)


def remove(path: epath.Path) -> None:
    """Removes a file or a folder; nothing there is fine."""
    path = epath.Path(path)
    if path.is_dir():
        path.rmtree()
    elif path.exists():
        path.unlink()


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One file or folder of a workdir together with the inputs it is made from.

    Attributes:
        workdir: where it lives.
        name: path below the workdir, such as 'candidates/teacher.parquet'.
        parts: what it is a function of.
    """

    workdir: Workdir
    name: str
    parts: Parts

    @property
    def path(self) -> epath.Path:
        return self.workdir.path / self.name

    @property
    def partial(self) -> epath.Path:
        """Where a folder is built before it gets its name."""
        return self.path.parent / f"{self.path.name}.partial"

    @property
    def record(self) -> epath.Path:
        return self.workdir.path / "fingerprints" / f"{self.name}.json"

    @property
    def fingerprint(self) -> str:
        return digest(dict(self.parts))

    def stale(self) -> str | None:
        """None if the artefact stands and its inputs are the same; otherwise the reason."""
        if not self.path.exists():
            return "not there yet"
        try:
            record = json.loads(self.record.read_text())
            stored, sizes = record["parts"], dict(record.get("sizes", {}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "not finished"
        if digest(stored) == self.fingerprint:
            return _damage(self.path, sizes)
        return "; ".join(_differences(stored, json.loads(json.dumps(dict(self.parts)))))

    def _lost(self) -> list[str]:
        """Files of a finished folder, made from these very inputs, that are not as written."""
        try:
            record = json.loads(self.record.read_text())
            if record["fingerprint"] != self.fingerprint or not self.path.is_dir():
                return []
            return _damaged(self.path, record["sizes"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def begin(self, *, repair: bool = False) -> bool:
        """Drops what is out of date and opens `partial` for a folder.

        Args:
            repair: a finished folder that lost files is taken up again, not made from nothing.

        Returns:
            True when an unfinished folder of the same fingerprint is there to be continued.
        """
        resumed = False
        marker = self.partial / _MARKER
        if marker.exists() and marker.read_text() == self.fingerprint:
            resumed = True
        lost = self._lost() if repair and not resumed else []
        mesh_lib.barrier(f"begin {self.name}")  # every process has looked before one changes it
        if mesh_lib.is_main():
            self.workdir.check_claim()
            self.workdir.store_config()
            remove(self.record)
            if lost:
                remove(self.partial)
                self.path.rename(self.partial)
                for name in lost:
                    remove(self.partial / name)
                write_atomic(marker, self.fingerprint)
            elif not resumed:
                remove(self.partial)
                self.partial.mkdir(parents=True, exist_ok=True)
                write_atomic(marker, self.fingerprint)
        mesh_lib.barrier(f"begun {self.name}")
        return resumed or bool(lost)

    def finish_folder(self, inner: str = "") -> None:
        """Gives the folder at `partial`, or one inside it, its name; stores the fingerprint."""
        mesh_lib.barrier(f"finish {self.name}")
        if mesh_lib.is_main():
            self.workdir.check_claim()
            whole = self.partial / inner
            remove(self.path)
            if not inner:
                remove(self.partial / _MARKER)
            whole.rename(self.path)
            remove(self.partial)
            self._store()
        mesh_lib.barrier(f"finished {self.name}")

    def finish_file(self, write: Callable[[epath.Path], None]) -> None:
        """Lets `write` make the file inside `partial`, names it, stores the fingerprint."""
        mesh_lib.barrier(f"finish {self.name}")
        if mesh_lib.is_main():
            self.workdir.check_claim()
            whole = self.partial / "whole"
            write(whole)
            whole.replace(self.path)
            remove(self.partial)
            self._store()
        mesh_lib.barrier(f"finished {self.name}")

    def write_file(self, write: Callable[[epath.Path], None]) -> None:
        """Lets `write` make the file aside, on one process; names it, stores the fingerprint."""
        if mesh_lib.is_main():
            self.workdir.check_claim()
            self.workdir.store_config()
            remove(self.record)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(self.partial)
            self.partial.replace(self.path)
            self._store()
        mesh_lib.barrier(f"written {self.name}")

    def _store(self) -> None:
        sizes = _sizes(self.path)
        record = {"fingerprint": self.fingerprint, "parts": dict(self.parts), "sizes": sizes}
        write_atomic(self.record, json.dumps(record, indent=1, sort_keys=True))


def _sizes(path: epath.Path) -> dict[str, int]:
    """Bytes of a file, under '', or of all files of a folder, by path below it.

    Object stores put whole objects and are slow to list, so only local disks are looked at.
    """
    if "://" in str(path):
        return {}
    if not path.is_dir():
        return {"": path.stat().length}
    files = [os.path.join(at, name) for at, _, names in os.walk(path) for name in names]
    return {os.path.relpath(file, path): os.path.getsize(file) for file in sorted(files)}


def _length(file: epath.Path) -> int | None:
    return file.stat().length if file.is_file() else None


def _damaged(path: epath.Path, sizes: Mapping[str, int]) -> list[str]:
    """Names of the files that are gone or not as long as they were written."""
    return [n for n, size in sizes.items() if _length(path / n if n else path) != size]


def _damage(path: epath.Path, sizes: Mapping[str, int]) -> str | None:
    """What has become of an artefact's files since they were written, or None."""
    damaged = _damaged(path, sizes)
    if not damaged:
        return None
    file = path / damaged[0] if damaged[0] else path
    length, more = _length(file), f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    what = "is gone" if length is None else f"has {length} bytes, not {sizes[damaged[0]]}"
    return f"damaged: {damaged[0] or path.name} {what}{more}"


def _differences(old: Parts, new: Parts) -> list[str]:
    """What changed between two sets of parts, short enough for one line."""

    def show(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= 40 else f"{text[:12]}…"

    out = []
    for key in sorted(set(old) | set(new)):
        if key not in old:
            out.append(f"{key} is new")
        elif key not in new:
            out.append(f"{key} is gone")
        elif old[key] != new[key]:
            is_digest = isinstance(new[key], str) and len(new[key]) == 64
            before_after = "" if is_digest else f": {show(old[key])} → {show(new[key])}"
            out.append(f"{key} changed{before_after}")
    return out


_NOT_MADE = ("config.json", claim_lib.RECORD)  # what a run leaves that made nothing
# What makes a workdir this run's own. Any other value can change between two runs in one workdir.
_IDENTITY = ("name", "data.train", "data.test", "teacher.model", "student.model")


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The folder of one experiment. All paths below it are made here and nowhere else."""

    path: epath.Path
    config_text: str = ""  # what config.json is to hold once something is made
    claim: claim_lib.Claim | None = None  # of the whole run, on its main process

    @classmethod
    def open(cls, path: str, config: Mapping[str, Any], *, write: bool = True) -> Workdir:
        """Claims `path` for this config.

        A new workdir gets its config.json at once. In a used one the file is replaced when
        something is made: it tells how the newest artefact came about, not what was asked last.

        Args:
            path: local, or anything epath can open; made if missing.
            config: the whole config as a nested dict.
            write: False only looks (a dry run).

        Raises:
            InputError: the folder belongs to another experiment, or cannot be written.
        """
        text = json.dumps(config, indent=1, sort_keys=True, default=str)
        workdir, made = cls(epath.Path(path), text), []
        stored_at = workdir.path / "config.json"
        if stored_at.exists():
            try:
                stored = json.loads(stored_at.read_text())
            except ValueError as error:
                raise InputError(f"{stored_at}: not JSON ({error}); delete the file") from None
            if not isinstance(stored, dict):
                raise InputError(f"{stored_at}: not the config of a run; delete the file")
            mine, theirs = _flatten(config), _flatten(stored)
            # A folder in which nothing was made yet (a mistyped path, say) is still free.
            made = [p for p in workdir.path.iterdir() if not p.name.startswith(_NOT_MADE)]
            for key in _IDENTITY if made else ():
                if mine.get(key) != theirs.get(key):
                    raise InputError(
                        f"{workdir.path} belongs to another experiment: {key} is "
                        f"{theirs.get(key)!r} there and {mine.get(key)!r} here; use another "
                        "--workdir, or delete that one"
                    )
        elif workdir.path.exists() and not workdir.path.is_dir():
            raise InputError(f"{workdir.path} is a file; --workdir names a folder")
        elif workdir.path.exists() and any(workdir.path.iterdir()):
            names = sorted(
                p.name
                for p in workdir.path.iterdir()
                if not p.name.endswith(".partial") and not p.name.startswith(_NOT_MADE)
            )
            if names:
                raise InputError(
                    f"{workdir.path} is not empty (it holds {names[0]}) and has no config.json; "
                    "name an empty or a new folder with --workdir"
                )
        mesh_lib.barrier("workdir looked at")
        if write and mesh_lib.is_main() and not made:
            try:
                workdir.store_config()
            except OSError as error:
                raise InputError(f"--workdir {path} cannot be written: {error}") from None
        mesh_lib.barrier("workdir opened")
        return workdir

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Workdir]:
        """This workdir, made if missing, as the one run that may write to it.

        Raises:
            InputError: another run is at work in it, or it cannot be written.
        """
        try:
            if mesh_lib.is_main():
                self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--workdir {self.path} cannot be written: {error}") from None
        with claim_lib.claimed(self.path) as claim:
            yield dataclasses.replace(self, claim=claim)

    def check_claim(self) -> None:
        """Raises InputError where another run took the workdir over."""
        if self.claim is not None:
            self.claim.check()

    def below(self, name: str, config: Any) -> Workdir:
        """The workdir of a part of the run, in a folder of this one; made when it is written to.

        Args:
            name: of the folder.
            config: a ConfigDict, what the part is made with.
        """
        text = json.dumps(config.to_dict(), indent=1, sort_keys=True, default=str)
        return Workdir(self.path / name, text, self.claim)

    def store_config(self) -> None:
        """Writes config.json, unless it holds just that."""
        path = self.path / "config.json"
        self.path.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != self.config_text:
            write_atomic(path, self.config_text)

    def artifact(self, name: str, parts: Parts) -> Artifact:
        """An artefact by its path below the workdir."""
        return Artifact(self, name, parts)

    def embeddings(self, role: str, dataset: str, table: str, parts: Parts) -> Artifact:
        """Vectors of one table ('passages', 'queries-train', …) of a data set by one encoder."""
        return self.artifact(f"embeddings/{role}/{dataset}/{table}", parts)

    def candidates(self, teacher: str, parts: Parts) -> Artifact:
        """What the teacher ranks high for each training query, before any rule."""
        return self.artifact(f"candidates/{teacher}.parquet", parts)

    def audit(self, parts: Parts) -> Artifact:
        """How many false negatives each rule lets in."""
        return self.artifact("audit.csv", parts)

    def negatives(self, split: str, parts: Parts) -> Artifact:
        """What a rule kept."""
        return self.artifact(f"negatives/{split}.parquet", parts)

    def checkpoints(self, parts: Parts) -> Artifact:
        """The student while and after it trains."""
        return self.artifact("checkpoints", parts)

    def evaluation(self, dataset: str, parts: Parts) -> Artifact:
        """Metrics of one data set; the runs lie beside it."""
        return self.artifact(f"evaluation/{dataset}.json", parts)

    def export(self, parts: Parts) -> Artifact:
        """The folder other tools load."""
        return self.artifact("export", parts)

    def report(self, parts: Parts) -> Artifact:
        """report.html."""
        return self.artifact("report.html", parts)

    @property
    def metrics(self) -> epath.Path:
        """Training metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> epath.Path:
        return self.path / "tensorboard"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out.update(_flatten(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out
