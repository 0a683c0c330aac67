"""The workdir: its layout, its experiment, and its writer.

`config.json` is the config of the newest artefact. The values that identify the experiment, and a
hash of that file, are also kept in `config.json.sum`, so that a damaged config.json is detected and
rewritten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts import claim as claim_lib
from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.artifacts.fingerprints import About, Parts, digest
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import sha256_of, write_atomic
from nvret_jax.mesh import say

CONFIG = "config.json"
_RECORDS = "fingerprints"
_COPY = "config.json.sum"  # config.json's hash, and the experiment of the workdir
# The values that identify the experiment. All others can change between two runs in one workdir.
_IDENTITY = ("name", "data.train", "data.test", "teacher.model", "student.model")
_NOT_MADE = (CONFIG, claim_lib.RECORD)  # files left by a run that made nothing
# Files with separate checksums that their readers check.
_CHUNKS = re.compile(r"c/\d+/\d+$")
_STEPS = re.compile(r"[^/]+/\d+/")

_NO_ABOUT = About()


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The folder of one experiment. All paths below it are defined only here."""

    path: epath.Path
    config_text: str = ""  # the content of config.json once something is made
    claim: claim_lib.Claim | None = None  # of the whole run, on its main process
    # Hashes of files that this run has read, by path, size, time and inode.
    _seen: dict[tuple, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, path: str, config: Mapping[str, Any], *, write: bool = True) -> Workdir:
        """Takes `path` for this config.

        A new workdir gets its config.json at once. In a used one the file is replaced when
        something is made: it is the config of the newest artefact, not of the last command.

        Args:
            path: local; made if missing.
            config: the whole config as a nested dict.
            write: False only reads (a dry run).

        Raises:
            InputError: the folder belongs to another experiment, or cannot be written.
        """
        text = json.dumps(config, indent=1, sort_keys=True, default=str)
        workdir, wrong = cls(epath.Path(path), text), ""
        if mesh_lib.is_main():
            try:
                workdir._take(config, write)
            except InputError as error:
                wrong = str(error)
            except OSError as error:
                wrong = f"--workdir {path} cannot be {'written' if write else 'read'}: {error}"
        wrong = mesh_lib.from_main(wrong)
        if wrong:
            raise InputError(wrong)
        return workdir

    def _take(self, config: Mapping[str, Any], write: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; --workdir must be a folder")
        if not write:  # also before a run
            self._check_makeable()
        found = sorted(p.name for p in self.path.iterdir()) if self.path.exists() else []
        # A folder in which nothing has been made (a mistyped path, for example) is still free.
        made = [n for n in found if not n.startswith(_NOT_MADE) and not n.endswith(".partial")]
        theirs, damaged = self._identity(made)
        mine = flatten(config)
        for key in _IDENTITY if made else ():
            if theirs is not None and mine.get(key) != theirs.get(key):
                raise InputError(
                    f"{self.path} belongs to another experiment: {key} is {theirs.get(key)!r} "
                    f"there but {mine.get(key)!r} here; use another --workdir, or delete that one"
                )
        if damaged and not write:  # a run checks before it claims the workdir
            say(f"{self.path / CONFIG} {damaged}; it is rewritten with the next artefact")
        if write and (not made or damaged):
            self.store_config()

    def _check_makeable(self) -> None:
        """Raises InputError if the folder does not exist and cannot be made."""
        place = epath.Path(os.path.abspath(self.path))
        number = 0
        if not place.exists():
            while not place.exists() and place != place.parent:
                place = place.parent
            if not place.is_dir():
                number = errno.ENOTDIR
            elif not os.access(place, os.W_OK | os.X_OK):
                number = errno.EACCES
        if number:
            error = OSError(number, os.strerror(number), str(place))
            raise InputError(f"--workdir {self.path} cannot be written: {error}")

    def _identity(self, made: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
        """(the experiment of the workdir, or None if unknown; what is wrong with config.json)."""
        path, copy = self.path / CONFIG, self._copy()
        try:
            data = path.read_bytes()
            stored = json.loads(data)
            if not isinstance(stored, dict):
                raise ValueError("not the config of a run")
            damaged = ""
            if copy and hashlib.sha256(data).hexdigest() not in copy["sums"]:
                damaged = "does not match its checksum"
            return (copy["identity"] if copy else flatten(stored)), damaged
        except FileNotFoundError:
            damaged = "is missing"
        except (OSError, ValueError) as error:
            damaged = f"is damaged ({error})"
        if not made:
            return None, ""
        if copy or _RECORDS in made:
            return (copy["identity"] if copy else None), damaged
        raise InputError(
            f"{self.path} is not empty (it holds {made[0]}) and its {CONFIG} {damaged}; use an "
            f"empty or a new folder as --workdir"
            if damaged != "is missing"
            else f"{self.path} is not empty (it holds {made[0]}) and has no {CONFIG}; use an "
            f"empty or a new folder as --workdir"
        )

    def _copy(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.path / _COPY).read_text())
            return found if found.pop("sum") == digest(found) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Workdir]:
        """This workdir, made if missing, claimed for this run.

        Raises:
            InputError: another run uses it, or it cannot be written.
        """
        new = self._missing()
        try:
            if mesh_lib.is_main():
                self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--workdir {self.path} cannot be written: {error}") from None
        try:
            with claim_lib.claimed(self.path) as claim:
                yield dataclasses.replace(self, claim=claim)
        except InputError:
            with contextlib.suppress(OSError):  # those in which something was made stay
                for folder in new if mesh_lib.is_main() else ():
                    folder.rmdir()
            raise

    def _missing(self) -> list[pathlib.Path]:
        """The folder and those above it that do not exist, the innermost first."""
        place = pathlib.Path(os.path.abspath(self.path))
        return [folder for folder in (place, *place.parents) if not folder.exists()]

    def check_claim(self) -> None:
        """Raises InputError if another run took over the workdir."""
        if self.claim is not None:
            self.claim.check()

    def below(self, name: str, config: Any) -> Workdir:
        """The workdir of a part of the run, in a folder of this one; made when it is written to.

        Args:
            name: of the folder.
            config: a ConfigDict, the config of the part.
        """
        text = json.dumps(config.to_dict(), indent=1, sort_keys=True, default=str)
        return dataclasses.replace(self, path=self.path / name, config_text=text)

    def store_config(self) -> None:
        """Writes config.json, unless it already has this content."""
        path = self.path / CONFIG
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            before = path.read_bytes()
        except OSError:
            before = b""
        text = self.config_text.encode()
        new = hashlib.sha256(text).hexdigest()
        copy = self._copy()
        if before == text and copy and copy["sums"] == [new]:
            return
        values = flatten(json.loads(self.config_text)) if self.config_text else {}
        identity = {key: values.get(key) for key in _IDENTITY}

        def store(*sums: str) -> None:
            copy: dict[str, Any] = {"identity": identity, "sums": list(sums)}
            copy["sum"] = digest(copy)
            write_atomic(self.path / _COPY, json.dumps(copy, indent=1, sort_keys=True))

        if before != text:
            # Both texts are valid until the new one is in place.
            store(new, hashlib.sha256(before).hexdigest())
            write_atomic(path, text)
        store(new)

    def sums(self, paths: Sequence[epath.Path]) -> list[str]:
        """sha256 of files; each is read once per run, unless it changes."""

        def key(path: epath.Path) -> tuple:
            stat = os.stat(path)
            return os.fspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino

        keys = [key(path) for path in paths]
        new = {k: path for k, path in zip(keys, paths, strict=True) if k not in self._seen}
        self._seen.update(zip(new, sha256_of(new.values()), strict=True))
        return [self._seen[k] for k in keys]

    def artifact(self, name: str, parts: Parts, about: About = _NO_ABOUT, **more: Any) -> Artifact:
        """An artefact by its path below the workdir; `more`: further fields of `Artifact`."""
        return Artifact(self, name, parts, about=about, **more)

    def embeddings(
        self, role: str, dataset: str, table: str, parts: Parts, about: About = _NO_ABOUT
    ) -> Artifact:
        """Vectors of one table ('passages', 'queries-train', …) of a data set by one encoder.

        Chunks have checksums, which `EmbeddingStore` reads.
        """
        name = f"embeddings/{role}/{dataset}/{table}"
        return self.artifact(name, parts, about, kind="embeddings", checked_by_use=_CHUNKS)

    def candidates(self, teacher: str, parts: Parts, about: About = _NO_ABOUT) -> Artifact:
        """The passages a teacher ranks high for each training query, before any rule."""
        return self.artifact(f"candidates/{teacher}.parquet", parts, about, kind="candidates")

    def audit(self, parts: Parts, about: About = _NO_ABOUT) -> Artifact:
        """How many false negatives each rule admits; the reliability of risks is beside it."""
        beside = ("audit.risk.csv",)
        return self.artifact("audit.csv", parts, about, kind="audit", beside=beside)

    def negatives(self, split: str, parts: Parts, about: About = _NO_ABOUT) -> Artifact:
        """The negatives that a rule kept, with `<split>.counts.json`."""
        return self.artifact(
            f"negatives/{split}.parquet",
            parts,
            about,
            kind="negatives",
            beside=(f"negatives/{split}.counts.json",),
        )

    def checkpoints(self, parts: Parts, about: About = _NO_ABOUT) -> Artifact:
        """The student during and after training, with its metrics.

        The files of each step have stored hashes, which `Checkpoints` reads.
        """
        return self.artifact(
            "checkpoints",
            parts,
            about,
            kind="checkpoints",
            beside=("metrics.jsonl", "tensorboard"),
            checked_by_use=_STEPS,
        )

    def evaluation(self, dataset: str, parts: Parts, about: About = _NO_ABOUT) -> Artifact:
        """Metrics of one data set, with the rankings."""
        runs = tuple(f"evaluation/{dataset}{suffix}.trec" for suffix in ("", ".before"))
        name = f"evaluation/{dataset}.json"
        return self.artifact(name, parts, about, kind="evaluation", beside=runs)

    def overlap(self, dataset: str, parts: Parts, about: About = _NO_ABOUT) -> Artifact:
        """What the texts of one data set have in common with those of training."""
        return self.artifact(f"evaluation/{dataset}.overlap.json", parts, about, kind="overlap")

    def baseline(self, dataset: str, parts: Parts, about: About = _NO_ABOUT) -> Artifact:
        """Metrics of BM25 on one data set; the ranking is beside it."""
        name = f"evaluation/{dataset}.bm25"
        beside = (f"{name}.trec",)
        return self.artifact(f"{name}.json", parts, about, kind="baseline", beside=beside)

    def export(self, parts: Parts, about: About = _NO_ABOUT) -> Artifact:
        """The folder that other tools load."""
        return self.artifact("export", parts, about, kind="export")

    def report(self, parts: Parts, about: About = _NO_ABOUT) -> Artifact:
        """report.html."""
        return self.artifact("report.html", parts, about, kind="report")

    @property
    def metrics(self) -> epath.Path:
        """Training metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> epath.Path:
        return self.path / "tensorboard"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def check_table(path: epath.PathLike, workdir: epath.PathLike) -> None:
    """Raises InputError if a finished artefact is damaged; for readers outside a run."""
    workdir = epath.Path(workdir)
    name = os.path.relpath(path, workdir)
    wrong = Artifact(Workdir(workdir), name, {}).damage()
    if wrong:
        raise InputError(f"{path}: {wrong}; run the stages of that workdir again to repair it")
