"""Checkpoints of one stage: parameters and optimizer of a step, by Orbax.

The two are stored separately, so that evaluation and export read only the parameters. Checkpoints
are always restored into an abstract tree with shardings: the same checkpoint opens on any mesh and
any number of processes. No state of the data is stored, since batch i is a function of the seed and
i.

Three kinds are kept: the latest, the last `keep` of those on the schedule, and the one with the
best dev score. A checkpoint made because a signal ended the run is off the schedule: it is removed
with the next one, so that in the end the same checkpoints remain as after an undisturbed run.

A finished stage is marked by a file next to its checkpoints, written after the last of them. The
weights that a stage starts from are its step 0. They are never stored: the file records where they
come from, and if no later step has a higher dev score, step 0 is the best one. Files are hashed
before they are read (`sums`); see `make_sound` for the handling of damage.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts.fingerprints import digest
from nvret_jax.errors import InputError
from nvret_jax.files.atomic import remove, write_atomic
from nvret_jax.mesh import say
from nvret_jax.training import sums
from nvret_jax.training.sums import DamagedCheckpoint

FINISHED = "finished.json"
SCORE = "dev_ndcg_cut_10"  # the dev metric that 'best' means
_SCHEDULED = "scheduled"


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays.

    A scalar made on one device is requested on every device of the current mesh, where the other
    operands of a step are.
    """
    mesh = jax.sharding.get_mesh()

    def of(x: jax.Array) -> jax.ShapeDtypeStruct:
        sharding = x.sharding
        if not isinstance(sharding, NamedSharding) and not mesh.empty:
            sharding = NamedSharding(mesh, P())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(of, tree)


@dataclasses.dataclass(frozen=True)
class Finished:
    """The record of a finished stage.

    Attributes:
        first: steps of the run before the stage.
        steps: its own.
        best: the step with the best dev score, 0 for the start; None without scores.
        scheduled: the kept steps of the schedule. One of these may be missing if it was damaged and
            not needed.
        score: the dev score of the best step.
        start: where the stage started; see `Stage.start`.
        before: the folder of the previous stage, next to this one; '' for none.
    """

    first: int
    steps: int
    best: int | None = None
    scheduled: tuple[int, ...] = ()
    score: float | None = None
    start: str = "last"
    before: str = ""


def finished(folder: epath.Path) -> Finished | None:
    """None if the stage in `folder` is not finished, or its record is damaged."""
    path = epath.Path(folder) / FINISHED
    try:
        values = json.loads(path.read_text())
        if values.pop("sum") != digest(values):
            return None
        values["scheduled"] = tuple(values["scheduled"])
        return Finished(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def make_sound(folder: epath.Path, *, best: bool = False, last: int = 1) -> None:
    """Discards damaged checkpoints of a stage, so that training can continue.

    A step with damaged files is removed. If the stage was finished and a needed step is removed,
    the stage no longer counts as finished, and the later steps are removed, too: they are trained
    again, with the same result. All processes call this.

    Args:
        folder: of the stage.
        best: whether its best checkpoint is needed in addition to the last.
        last: how many of its schedule are needed.
    """
    folder = epath.Path(folder)
    steps = json.loads(mesh_lib.from_main(json.dumps(sums.steps_in(folder))))
    bad = {step: found for step in steps if (found := _wrong_with(folder, step))}
    done = finished(folder)
    mesh_lib.barrier(f"checked {folder.name}")
    for step, found in bad.items():
        first, why = next(iter(found.items()))
        say(f"          discarding checkpoint {folder}/{step}: {first} {why}")
    gone = set(bad)
    unfinished = False
    if done is not None:
        needed = {done.steps, *done.scheduled[len(done.scheduled) - last :]}
        needed |= {done.best} if best and done.best else set()
        missing = sorted(step for step in needed if step in bad or step not in steps)
        unfinished = bool(missing)
        gone |= {step for step in steps if missing and step >= missing[0]}
    if mesh_lib.is_main() and folder.is_dir():
        if unfinished:
            remove(folder / FINISHED)
        for step in sorted(gone):
            remove(folder / str(step))
        sums.prune(folder, [step for step in steps if step not in gone])
    mesh_lib.barrier(f"made {folder.name} sound")


def _wrong_with(folder: epath.Path, step: int) -> dict[str, str]:
    """Damaged files of a checkpoint; one without sums was unfinished when its process ended."""
    if mesh_lib.from_main("" if sums.read(folder, step) is None else "there"):
        return sums.lost(folder, step)
    return {f"{step}.sums.json": sums.GONE}


def has_steps(folder: epath.Path) -> bool:
    """Whether `folder` appears to hold checkpoints of a stage."""
    folder = epath.Path(folder)
    return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())


def _scheduled(info: Any) -> bool:
    return bool((info.metrics or {}).get(_SCHEDULED))


def _best(infos: Sequence[Any]) -> Any | None:
    """The one with the highest dev score, the first among equals; None if none has a score."""
    scored = [info for info in infos if SCORE in (info.metrics or {})]
    return max(scored, key=lambda info: (info.metrics[SCORE], -info.step), default=None)


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The policy for Orbax of which checkpoints to keep, as described at the top of this file."""

    keep: int
    best: bool

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]
        kept = set(steps[-1:])
        kept |= set([info.step for info in checkpoints if _scheduled(info)][-self.keep :])
        best = _best(checkpoints) if self.best else None
        kept |= {best.step} if best is not None else set()
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of one stage. Use as a context manager."""

    def __init__(self, folder: epath.Path, *, keep: int = 0, best: bool = True):
        """Opens a folder.

        Args:
            folder: made if missing.
            keep: checkpoints of the schedule to keep; 0: opened to read, nothing is changed.
            best: whether the best one is kept, too.

        Raises:
            InputError: a checkpoint's dev score cannot be read.
        """
        folder = epath.Path(folder).resolve()  # Orbax wants an absolute path
        policy = _Kept(keep, best) if keep else None
        self._folder = folder
        try:
            self._orbax = ocp.training.Checkpointer(
                folder,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policy,
                cleanup_tmp_directories=bool(keep),
            )
        except ValueError as error:  # of JSON or UTF-8, without a name
            self._folder = folder
            self.check_metrics()
            raise InputError(
                f"{folder}: a checkpoint there has a damaged metrics file ({error}); delete the "
                "folder of that step"
            ) from error
        if policy is not None:
            self._prune(policy)
            sums.prune(folder, [info.step for info in self._orbax.checkpoints])

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *unused) -> None:
        self._orbax.close()

    def _prune(self, policy: _Kept) -> None:
        """Removes checkpoints that a killed process was deleting, perhaps halfway."""
        found = self._orbax.checkpoints
        for info, stays in zip(found, policy.should_preserve(found), strict=True):
            if not stays:
                self._orbax.delete(info.step, missing_ok=True)

    def check_metrics(self) -> None:
        """Raises DamagedCheckpoint unless the metadata of steps is undamaged."""
        for step in sums.steps_in(self._folder):
            found = sums.lost(self._folder, step, lambda name: name.startswith("metrics/"))
            if found:
                raise DamagedCheckpoint(self._folder, found)

    @property
    def latest(self) -> int | None:
        """The last finished step, or None."""
        found = self._orbax.latest
        return None if found is None else found.step

    @property
    def scheduled(self) -> list[int]:
        """The steps of the schedule that still exist, oldest first."""
        return [info.step for info in self._orbax.checkpoints if _scheduled(info)]

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, dev score) of the best one; None if none has a score."""
        info = _best(self._orbax.checkpoints)
        return None if info is None else (info.step, info.metrics[SCORE])

    def save(
        self,
        step: int,
        params: nnx.State,
        optimizer: Any,
        *,
        scheduled: bool = True,
        score: float | None = None,
        log: bytes = b"",
    ) -> None:
        """Writes one checkpoint and waits until it is complete.

        Args:
            step: of the stage.
            params, optimizer: what is stored.
            scheduled: whether it counts among the last `keep`.
            score: dev score of these parameters, if any.
            log: the run's metrics.jsonl up to here.
        """
        metrics: dict[str, Any] = {_SCHEDULED: scheduled}
        if score is not None:
            metrics[SCORE] = score
        stored = {"params": nnx.to_pure_dict(params), "optimizer": jax.tree.leaves(optimizer)}
        self._orbax.save_checkpointables(
            step,
            # Orbax refuses an item without a leaf: a plain SGD has no state.
            {name: item for name, item in stored.items() if item},
            force=True,
            metrics=metrics,
        )
        sums.write(self._folder, step, log)
        sums.prune(self._folder, [info.step for info in self._orbax.checkpoints])

    def has_more(self, step: int, *, scheduled: bool, scored: bool) -> bool:
        """Whether a checkpoint has more than the schedules of a stage would give it.

        The last step of a stage is always saved and scored. If the stage became longer, it may be
        neither on the schedule of checkpoints nor on that of scores.
        """
        (info,) = [info for info in self._orbax.checkpoints if info.step == step]
        has_score = SCORE in (info.metrics or {})
        return (_scheduled(info) and not scheduled) or (has_score and not scored)

    def delete(self, step: int) -> None:
        """Removes one checkpoint."""
        self._orbax.delete(step)

    def finish(self, done: Finished) -> None:
        """Records that the stage is finished."""
        mesh_lib.barrier(f"trained {self._folder.name}")
        if mesh_lib.is_main():
            values = json.loads(json.dumps(dataclasses.asdict(done)))
            text = json.dumps({**values, "sum": digest(values)})
            write_atomic(self._folder / FINISHED, text)
        mesh_lib.barrier(f"finished {self._folder.name}")

    def load(self, step: int, params: nnx.State, optimizer: Any) -> tuple[nnx.State, Any]:
        """Reads a checkpoint into trees like the given ones.

        Raises:
            DamagedCheckpoint: it is damaged.
            InputError: it does not fit.
        """
        self._check(step, lambda name: True)
        leaves, structure = jax.tree.flatten(optimizer)
        wanted = {"params": abstract(nnx.to_pure_dict(params)), "optimizer": abstract(leaves)}
        loaded = self._load(step, {name: item for name, item in wanted.items() if item})
        optimizer = jax.tree.unflatten(structure, loaded.get("optimizer", []))
        return _filled(params, loaded["params"]), optimizer

    def load_params(self, step: int, params: nnx.State) -> nnx.State:
        """Reads only the parameters.

        Raises:
            DamagedCheckpoint: they are damaged.
        """
        self._check(step, lambda name: not name.startswith("optimizer/"))
        loaded = self._load(step, {"params": abstract(nnx.to_pure_dict(params))})
        return _filled(params, loaded["params"])

    def _check(self, step: int, wanted: Callable[[str], bool]) -> None:
        found = sums.lost(self._folder, step, wanted)
        if found:
            raise DamagedCheckpoint(self._folder, found)

    def _load(self, step: int, target: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._orbax.load_checkpointables(step, dict(target))
        except (ValueError, KeyError, FileNotFoundError, TypeError, OSError) as error:
            what = str(error).strip() or type(error).__name__
            raise InputError(
                f"checkpoint {self._folder}/{step} is damaged or belongs to another model "
                f"({what[:400]})"
            ) from error


def _filled(state: nnx.State, values: dict[str, Any]) -> nnx.State:
    """A state like `state` that holds `values`."""
    filled = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(filled, values)
    return filled
