"""The initial weights of a stage, an evaluation or an export.

Order of precedence: the run's own latest checkpoint; a given checkpoint; a model's weights;
scratch. The loop handles the first. A folder may be given as a model (config.json and safetensors),
as the checkpoints of a stage (`…/checkpoints/<stage>`) or as those of a run (`…/checkpoints`, which
means its last stage).

Checkpoints hold only the trained weights. With adapters these are the adapters, so a model folder
cannot be used to start from or to merge: it would put other weights under the same adapters.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx

from nvret_jax.errors import InputError
from nvret_jax.files import paths
from nvret_jax.models.encoder import Encoder
from nvret_jax.training import merging
from nvret_jax.training.checkpoint import Checkpoints, finished, has_steps
from nvret_jax.training.optimizer import NOT_DECAYED
from nvret_jax.training.options import BEST, LAST, STUDENT
from nvret_jax.training.sums import GONE, DamagedCheckpoint, steps_in

_STD = 0.02  # of new weights, as in BERT and its successors


def stage_folder(folder: epath.PathLike) -> epath.Path | None:
    """The folder with the checkpoints that `folder` refers to, or None if it holds none.

    Among a run's stages it is the last finished one; if none is finished, the only one.
    """
    folder = paths.local(folder, "checkpoints")
    if has_steps(folder):
        return folder
    if not folder.is_dir():
        return None
    inner = [child for child in folder.iterdir() if has_steps(child)]
    done = [(done.first, child) for child in inner if (done := finished(child)) is not None]
    if done:
        return max(done, key=lambda item: item[0])[1]
    return inner[0] if len(inner) == 1 else None


def load_trained(
    encoder: Encoder,
    folder: epath.PathLike,
    *,
    pick: str = LAST,
    merge_last: int = 1,
    merge: str = "average",
    merge_with: Sequence[str] = (),
    merge_weights: Sequence[float] = (),
    first: Callable[[], Encoder] | None = None,
) -> Encoder:
    """The encoder with trained weights.

    Args:
        encoder: the student before training.
        first: gives the student as training found it, if that has other weights; called if those
            are the best.
        folder: checkpoints of a run (the last stage counts) or of a stage.
        pick: 'last' or 'best' by dev metric, the weights that the last stage started from included.
        merge_last: merges the last n checkpoints of the schedule instead.
        merge: 'average' or 'slerp'; see merging.py.
        merge_with: folders of models or checkpoints to merge with these weights.
        merge_weights: one for these weights and one for each of `merge_with`; without `merge_with`
            one for each of the last n, oldest first. Empty: equal.

    Raises:
        InputError: no such checkpoint, a tree that does not fit, or weights that do not sum to 1.
    """
    own = stage_folder(folder)
    if own is None:
        raise InputError(f"{folder} holds no finished stage; run the train stage first")
    if pick not in (LAST, BEST):
        raise InputError(f"pick={pick!r}: expected {LAST} or {BEST}")
    if merge_last < 1 or (merge_last > 1 and pick == BEST):
        raise InputError(
            f"merge_last={merge_last} with pick={pick!r}: give at least 1, and pick='last' to "
            f"merge several"
        )
    outer = merging.check_weights(merge_weights, 1 + len(merge_with)) if merge_with else ()
    inner = merging.check_weights(() if merge_with else merge_weights, merge_last)
    for other in merge_with:
        _check_mergeable(encoder, own, other)
    with jax.set_mesh(encoder.mesh), Checkpoints(own) as checkpoints:
        _, trainable, frozen = nnx.split(encoder.model, encoder.trainable, ...)
        steps = _steps(checkpoints, own, pick, merge_last)
        if merge_last == 1:
            begins = encoder if steps[0] or first is None else first()
            state = _weights_at(begins, checkpoints, own, steps[0])
        else:
            found = ((f"{own}/{s}", checkpoints.load_params(s, trainable)) for s in steps)
            state = merging.merge(found, inner, merge)
        if merge_with:
            found = ((str(other), weights_of(encoder, other)) for other in merge_with)
            state = merging.merge(_chain((str(own), state), found), outer, merge)
        return encoder.replace(nnx.merge_state(state, frozen))


def _chain(first, rest):
    yield first
    yield from rest


def begun(encoder: Encoder, start: str, before: epath.Path | None) -> Encoder:
    """The encoder as a stage finds it.

    Args:
        encoder: the student before training.
        start: see `Stage.start`.
        before: the checkpoints of the stage before; None for the first.
    """
    if start in (LAST, BEST) and before is not None:
        return started(encoder, before, start)
    return encoder if start in (LAST, STUDENT) else started(encoder, start)


def _weights_at(
    encoder: Encoder, checkpoints: Checkpoints, folder: epath.Path, step: int
) -> nnx.State:
    """What is trained, as it was after a step of a stage; step 0 is where a finished one began."""
    if step:
        _, trainable, _ = nnx.split(encoder.model, encoder.trainable, ...)
        return checkpoints.load_params(step, trainable)
    done = finished(folder)
    before = folder.parent / done.before if done.before else None
    _, trainable, _ = nnx.split(begun(encoder, done.start, before).model, encoder.trainable, ...)
    return trainable


def _steps(checkpoints: Checkpoints, folder: epath.Path, pick: str, count: int) -> list[int]:
    if count > 1 or pick == BEST:
        checkpoints.check_metrics()
        done, there = finished(folder), steps_in(folder)
        if count == 1 and done is not None and done.best == 0:
            return [0]
        wanted = () if done is None else done.scheduled[-count:] if count > 1 else (done.best,)
        lost = {str(step): GONE for step in wanted if step is not None and step not in there}
        if lost:
            raise DamagedCheckpoint(folder, lost)
    if count > 1:
        found = checkpoints.scheduled
        if len(found) < count:
            raise InputError(
                f"merge_last={count}, but {folder} keeps {len(found)} checkpoints of its schedule; "
                f"train with train.keep={count}"
            )
        return found[-count:]
    if pick == BEST:
        best = checkpoints.best
        if best is None:
            raise InputError(
                f"{folder} has no checkpoint with a dev score, so there is no best one; use the "
                f"last, or train with a dev split and train.keep_best"
            )
        return [best[0]]
    if checkpoints.latest is None:
        raise InputError(f"{folder} holds no checkpoint; run the train stage first")
    return [checkpoints.latest]


def _check_mergeable(encoder: Encoder, own: epath.Path, other: str) -> None:
    """Adapters have a common basis only in checkpoints of the same run."""
    if encoder.lora is None:
        return
    found = stage_folder(other)
    if found is None:
        raise InputError(
            f"merge_with: {other} is a model, but this run trains adapters (lora_rank="
            f"{encoder.lora.rank}); merge checkpoints of this run, or export first and merge models"
        )
    if found.resolve().parent != own.resolve().parent:
        raise InputError(
            f"merge_with: {other} holds adapters of another run, which started from other random "
            f"numbers, so an average is meaningless; export both and merge the models"
        )


def check_start(encoder: Encoder, stage: str, folder: str) -> None:
    """Raises InputError unless a stage can start from `folder`; checked before anything runs."""
    path = paths.local(folder, f"start of stage {stage!r}")
    if not path.is_dir():
        raise InputError(
            f"stage {stage!r} starts from {folder!r}, which is neither a folder nor one of 'last', "
            "'best' and 'student'"
        )
    if stage_folder(path) is None and encoder.lora is not None:
        raise InputError(
            f"stage {stage!r} starts from the model {folder}, but only adapters are trained "
            f"(lora_rank={encoder.lora.rank}): name it as student.model instead"
        )


def weights_of(encoder: Encoder, folder: str, pick: str = LAST) -> Any:
    """The trained weights of `encoder`, read from a folder of checkpoints or a model folder.

    Raises:
        InputError: its weights do not match the encoder's; names the first difference.
    """
    _, trainable, _ = nnx.split(encoder.model, encoder.trainable, ...)
    found = stage_folder(folder)
    if found is not None:
        with jax.set_mesh(encoder.mesh), Checkpoints(found) as checkpoints:
            (step,) = _steps(checkpoints, found, pick, 1)
            return _weights_at(encoder, checkpoints, found, step)
    spec = encoder.spec
    model = Encoder.from_pretrained(
        str(folder),
        mesh=encoder.mesh,
        dtype=spec.dtype,
        param_dtype=spec.param_dtype,
        pooling=spec.pooling,
        normalize=spec.normalize,
    )
    _, theirs, _ = nnx.split(model.model, model.trainable, ...)
    merging.check_same(
        (str(encoder.folder), merging.shapes(nnx.to_pure_dict(trainable))),
        (str(folder), merging.shapes(nnx.to_pure_dict(theirs))),
    )
    return theirs


def started(encoder: Encoder, folder: str, pick: str = LAST) -> Encoder:
    """`encoder` with the weights of a folder; see `weights_of`."""
    _, _, frozen = nnx.split(encoder.model, encoder.trainable, ...)
    return encoder.replace(nnx.merge_state(weights_of(encoder, folder, pick), frozen))


def randomised(encoder: Encoder, seed: int) -> Encoder:
    """The encoder with new weights, for training from scratch.

    Biases are 0, the scales of norms are 1, all other weights are normal with deviation 0.02. Each
    weight's draw depends on the seed and its name, not on the mesh. Adapters are unchanged.
    """
    graph, state = nnx.split(encoder.model)
    del graph
    key = jax.random.key(seed)

    def new(path: tuple[Any, ...], old: jax.Array) -> jax.Array:
        name = ".".join(map(str, path))
        if "_lora_" in name:
            return old
        if name.endswith(NOT_DECAYED):
            value = float(name.endswith("scale"))
            make = jax.jit(lambda: jnp.full(old.shape, value, old.dtype, out_sharding=spec))
        else:
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))

            def make() -> jax.Array:
                draw = jax.random.normal(own, old.shape, jnp.float32, out_sharding=spec)
                return (_STD * draw).astype(old.dtype)

            make = jax.jit(make)
        return make()

    out = []
    with jax.set_mesh(encoder.mesh):
        for path, variable in nnx.to_flat_state(state):
            old = variable[...]
            spec = old.sharding
            out.append((path, variable.replace(new(path, old))))
    return encoder.replace(nnx.from_flat_state(out))
