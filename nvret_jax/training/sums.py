"""Hashes of the checkpoints of a stage, and the metrics that belong to each.

Step 40 of a stage has `40.sums.json`, with the sha256 of every file of that step, and
`40.metrics.jsonl`, the metrics of the run up to there. The files of a checkpoint are hashed before
it is read, so that a flipped bit is detected; and the metrics that belong to a checkpoint survive
any damage to the run's metrics.jsonl.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import files_below, remove, sha256_of, write_atomic

_SUMS, _METRICS = "{}.sums.json", "{}.metrics.jsonl"
_OWN = re.compile(r"(\d+)\.(sums\.json|metrics\.jsonl)")
_BYTES = 32  # of a sha256
GONE, CHANGED = "is missing", "does not match its checksum"


class DamagedCheckpoint(InputError):
    """A damaged checkpoint.

    Attributes:
        folder: of the stage.
        lost: file, by path below `folder` -> what is wrong with it.
    """

    def __init__(self, folder: epath.Path, lost: Mapping[str, str]):
        first, why = next(iter(lost.items()))
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        super().__init__(
            f"checkpoint {folder}/{first.split('/')[0].split('.')[0]} is damaged: {first} "
            f"{why}{more}; run the training of that run again to repair it"
        )
        self.folder, self.lost = epath.Path(folder), dict(lost)


def steps_in(folder: epath.PathLike) -> list[int]:
    """The steps that have a folder, ascending."""
    folder = epath.Path(folder)
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(n) for n in names if n.isdigit() and (folder / n).is_dir())


def write(folder: epath.Path, step: int, metrics: bytes) -> None:
    """Stores the hashes of a checkpoint that was just written, and the metrics up to it.

    All processes call this and share the reading.
    """
    names = json.loads(
        mesh_lib.from_main(json.dumps(_files(folder, step) if mesh_lib.is_main() else []))
    )
    hashes = _shared(folder, names)
    if mesh_lib.is_main():
        write_atomic(folder / _METRICS.format(step), metrics)
        names.append(_METRICS.format(step))
        hashes += sha256_of([folder / names[-1]])
        text = json.dumps(dict(zip(names, hashes, strict=True)), indent=1)
        write_atomic(folder / _SUMS.format(step), text)
    mesh_lib.barrier(f"summed {folder.name} {step}")


def prune(folder: epath.Path, kept: Sequence[int]) -> None:
    """Removes the files of checkpoints that no longer exist; on the main process."""
    for name in os.listdir(folder) if mesh_lib.is_main() else ():
        found = _OWN.fullmatch(name)
        if found and int(found[1]) not in kept:
            remove(folder / name)


def metrics(folder: epath.Path, step: int) -> str:
    """The run's metrics.jsonl at the time when a checkpoint was written."""
    try:
        return (epath.Path(folder) / _METRICS.format(step)).read_text()
    except FileNotFoundError:
        return ""


def lost(
    folder: epath.Path, step: int, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, str]:
    """Damaged files of a checkpoint; {} if no hashes were stored for it.

    All processes call this and share the reading.

    Args:
        wanted: which files to check, by path below the folder of the step.
    """
    sums = read(folder, step)
    if sums is None:
        return {}
    of_step = f"{step}/"
    names = [n for n in sums if not n.startswith(of_step) or wanted(n.removeprefix(of_step))]
    found = dict(zip(names, _shared(folder, names), strict=True))
    return {n: CHANGED if found[n] else GONE for n in names if found[n] != sums[n]}


def read(folder: epath.Path, step: int) -> dict[str, str] | None:
    """Path below `folder` -> sha256 of the files of a step; None if none can be read."""
    try:
        sums = json.loads((epath.Path(folder) / _SUMS.format(step)).read_text())
        return {str(name): str(value) for name, value in sums.items()}
    except (OSError, ValueError, AttributeError):
        return None


def _files(folder: epath.Path, step: int) -> list[str]:
    return [f"{step}/{name}" for name in files_below(folder / str(step))]


def _shared(folder: epath.Path, names: Sequence[str]) -> list[str]:
    """sha256 of files, '' for a missing one, each read by one process."""
    process, processes = mesh_lib.process_index(), mesh_lib.process_count()
    mine = [i for i in range(len(names)) if i % processes == process]
    there = [i for i in mine if (folder / names[i]).is_file()]
    out = np.zeros((len(names), _BYTES), np.int32)
    for i, text in zip(there, sha256_of(folder / names[i] for i in there), strict=True):
        out[i] = np.frombuffer(bytes.fromhex(text), np.uint8)
    out = mesh_lib.sum_over_processes(out).astype(np.uint8)
    return [row.tobytes().hex() if row.any() else "" for row in out]
