"""What cells of one data set share: artefacts in one workdir, hard-linked into those of the cells.

An artefact is never changed in place: a new one is written aside and takes the name. So a link to
a file of another workdir is safe and costs nothing. The pipeline itself judges by fingerprint
whether the artefact is the one that a cell needs; any other is rebuilt, in the cell's workdir
alone.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import uuid

_RECORDS = "fingerprints"
KINDS = ("embeddings", "candidates")


def link(source: pathlib.Path, target: pathlib.Path, but: tuple[str, ...] = ()) -> None:
    """Links the finished artefacts of `KINDS` that `target` does not have.

    Args:
        source, target: workdirs.
        but: roles below embeddings that stay where they are.
    """
    for kind in KINDS:
        records = source / _RECORDS / kind
        for record in sorted(records.rglob("*.json")) if records.is_dir() else ():
            name = record.relative_to(source / _RECORDS).with_suffix("")
            if name.parts[1] not in but and not (target / _RECORDS / f"{name}.json").exists():
                _link(source / name, target / name)
                _link(record, target / _RECORDS / f"{name}.json")  # last: now it counts


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A file or folder under a second name, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    if source.is_dir():
        shutil.copytree(source, aside, copy_function=_file)
        try:
            aside.rename(target)
        except OSError:  # another cell was first, with the same thing
            shutil.rmtree(aside)
    else:
        _file(source, aside)
        aside.replace(target)


def _file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
