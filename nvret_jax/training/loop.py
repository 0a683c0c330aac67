"""The training loop, as a visible `for`, over the stages of a run and the steps of each.

A stage starts from this run's own latest checkpoint, if any; otherwise from what it names (a given
checkpoint, a model's weights), or from the encoder's weights. A run that was killed continues with
the same batches, the same optimizer and the same metrics file, and ends where an undisturbed one
would have. A finished stage is skipped, without reading its data.

`Encoder.trainable` defines the trained weights: all of them, or the adapters of a frozen model.
Steps, the optimizer's state and checkpoints hold only those; the rest is read from the model's own
folder each time.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.errors import InputError, Preempted, stopped
from nvret_jax.mesh import say
from nvret_jax.models.encoder import Encoder
from nvret_jax.processes.progress import bar
from nvret_jax.training import sums
from nvret_jax.training.batches.examples import local_rows, to_devices
from nvret_jax.training.batches.length_groups import Grouped, within
from nvret_jax.training.checkpoint import SCORE, Checkpoints, Finished, finished, make_sound
from nvret_jax.training.gradcache import chunk_budget
from nvret_jax.training.initial import begun, check_start, load_trained, randomised
from nvret_jax.training.loss.losses import Loss
from nvret_jax.training.metric_writer import MetricWriter, NoWriter, read_metrics, restore
from nvret_jax.training.optimizer import Own, Schedule, make_optimizer, schedule
from nvret_jax.training.options import BEST, LAST, STUDENT, Training
from nvret_jax.training.preemption import FLAGS, Preemption, broadcast_from_main
from nvret_jax.training.profile import Profile
from nvret_jax.training.rates import Rates
from nvret_jax.training.stage import Batches, Places, Stage
from nvret_jax.training.step import init_optimizer, make_step

__all__ = [
    "Batches",
    "Places",
    "Stage",
    "check_batch",
    "load_trained",
    "randomised",
    "restore_metrics",
    "train",
]

DevScore = Callable[[Encoder], float]


def is_time(step: int, every: int, last: int) -> bool:
    """Whether an action for every `every` steps, and for the end, is due after `step`."""
    return step == last or (every > 0 and step % every == 0)


def check_weights(trainable: Any, step: int) -> None:
    """Raises InputError if the weights are no longer finite; the same on every process."""
    if not np.isfinite(np.asarray(_norm(trainable))):
        raise InputError(
            f"training: the weights are no longer finite after step {step}; lower "
            "train.learning_rate or raise train.temperature"
        )


_norm = jax.jit(optax.tree.norm)


def check_batch(config: Training, shards: int, at: str = "train") -> None:
    """Raises InputError unless the batch can be split over the mesh; `at`: the block's key."""
    if config.batch_size % shards:
        raise InputError(
            f"{at}.batch_size={config.batch_size} is not a multiple of the {shards} devices that "
            f"the batch is split over; use {-(-config.batch_size // shards) * shards}"
        )


def check_stages(stages: Sequence[Stage], encoder: Encoder, *, scores: bool) -> None:
    """Raises InputError for mistakes in any stage, before the first one runs.

    Args:
        stages: of a run.
        encoder: what they train.
        scores: whether there are dev scores.
    """
    names = [stage.name for stage in stages]
    for number, stage in enumerate(stages):
        if not re.fullmatch(r"[A-Za-z][\w.-]*", stage.name) or names.count(stage.name) > 1:
            raise InputError(
                f"stage {number} is named {stage.name!r}; a name must be unique, begin with a "
                f"letter, and consist of letters, digits, '-', '_' and '.'"
            )
        check_batch(stage.config, mesh_lib.shards(encoder.mesh, "batch"))
        if stage.start == BEST and (number == 0 or not scores):
            why = "no stage comes before it" if number == 0 else "there are no dev scores"
            raise InputError(f"stage {stage.name!r} starts from 'best', but {why}")
        if stage.start not in (LAST, BEST, STUDENT):
            check_start(encoder, stage.name, stage.start)


def train(
    encoder: Encoder,
    stages: Sequence[Stage],
    places: Places,
    dev_score: DevScore | None = None,
    *,
    needs_best: bool = False,
    needs_last: int = 1,
) -> Encoder:
    """Trains the student, stage by stage.

    Args:
        encoder: the start of the first stage, unless that names another.
        stages: in order.
        places: where to write; an earlier, unfinished run there is continued.
        dev_score: nDCG@10 of an encoder on dev queries; called on every process.
        needs_best, needs_last: whether the best checkpoint of the last stage is needed, and how
            many of its schedule; other damaged checkpoints do not cause training to be repeated.

    Returns:
        The encoder at the end of the last stage.

    Raises:
        InputError: an invalid stage, or a loss that becomes non-finite.
        Preempted: a signal arrived; the work done is saved.
    """
    check_stages(stages, encoder, scores=dev_score is not None)
    first, current = 0, encoder  # steps before a stage; None: not in memory, but on disk
    for number, stage in enumerate(stages):
        folder = places.checkpoints / stage.name
        following = stages[number + 1].start if number + 1 < len(stages) else ""
        make_sound(
            folder,
            best=needs_best if not following else following == BEST,
            last=needs_last if not following else 1,
        )
        done = finished(folder)
        mesh_lib.barrier(f"checked stage {stage.name}")
        if done is not None:
            if len(stages) > 1:
                say(f"train     stage {stage.name!r} is finished ({done.steps} steps)")
            first, current = first + done.steps, None
            continue
        before = places.checkpoints / stages[number - 1].name if number else None
        run = _StageRun(stage, encoder, places, first, before)
        run.label = f"stage {stage.name!r}: " if len(stages) > 1 else ""

        def begin(stage=stage, before=before, current=current) -> Encoder:
            if stage.start == LAST and current is not None:
                return current
            return begun(encoder, stage.start, before)

        current = run.train(begin, dev_score)
        first += run.steps
    return load_trained(encoder, folder) if current is None else current


def restore_metrics(places: Places, stages: Sequence[Stage], *, anew: bool = False) -> None:
    """Restores the metrics of the end of the last stage.

    Args:
        anew: even if metrics.jsonl is correct, to rewrite the event files.
    """
    if not mesh_lib.is_main():
        return
    folder = places.checkpoints / stages[-1].name
    text = sums.metrics(folder, sums.steps_in(folder)[-1])
    path = epath.Path(places.metrics)
    if anew or not path.is_file() or path.read_bytes() != text.encode():
        restore(path, places.tensorboard, text)


class _StageRun:
    """One stage in progress."""

    label = ""  # before what it prints

    def __init__(
        self,
        stage: Stage,
        encoder: Encoder,
        places: Places,
        first: int,
        before: epath.Path | None,
    ):
        self.stage, self.config, self.encoder = stage, stage.config, encoder
        self.places, self.first, self._before = places, first, before
        self.folder: epath.Path = places.checkpoints / stage.name
        self.batches = self._grouped(stage.make_batches())
        self.steps = self.batches.steps

    @property
    def _is_start_scored(self) -> bool:
        """Whether the initial weights were scored at the end of the previous stage."""
        return self._before is not None and self.stage.start in (LAST, BEST)

    def train(self, begin: Callable[[], Encoder], dev_score: DevScore | None) -> Encoder:
        """Runs from its latest checkpoint, or `begin`, to its end; see `train`."""
        config, steps, mesh = self.config, self.steps, self.encoder.mesh
        optimizer = self.stage.optimizer or make_optimizer(config, steps, self.stage.rate)
        loss = self.stage.loss
        if loss is None:
            loss = config.loss_for(self.encoder.width, tokens=self.encoder.spec.late is not None)
        start, stop = local_rows(mesh, config.batch_size)
        positions = self.encoder.spec.backbone.max_tokens
        keep_best, every = config.keep_best, config.checkpoint_every
        kept = Checkpoints(self.folder, keep=config.keep, best=keep_best)
        with jax.set_mesh(mesh), kept as checkpoints:
            done = checkpoints.latest or 0
            encoder = self.encoder if done else begin()
            graph, trainable, frozen = nnx.split(encoder.model, encoder.trainable, ...)
            trainable = jax.tree.map(jnp.copy, trainable)  # steps donate it
            optimizer_state = init_optimizer(optimizer, loss, trainable)
            step_fn = self._step_fn(graph, optimizer, loss)
            if done:
                trainable, optimizer_state = checkpoints.load(done, trainable, optimizer_state)
                say(f"train     {self.label}resumed at step {done} of {steps}")

            def score(at: int) -> float:
                progress.flush()
                check_weights(trainable, self.first + at)
                value = dev_score(encoder.replace(nnx.merge_state(trainable, frozen)))
                progress.score(at, value)
                return value

            traced = Profile(config.profile, self.places.profile, self.stage.name)
            rates = Rates(
                encoder.model,
                encoder.trainable,
                mesh,
                config.batch_size,
                getattr(self.batches, "lengths", None),
            )
            with self._progress(done, rates) as progress, Preemption(mesh) as preemption, traced:
                if done and done < steps:
                    self._settle(checkpoints, done, trainable, optimizer_state, progress)
                if dev_score is not None and not done and not self._is_start_scored:
                    score(0)
                batches = iter(self.batches.dataset(done, start, stop))
                say(f"train     {self.label}compiling the first step, which can take minutes")
                preemption.saved(self._stopped(done))
                best = max(self._scores().values(), default=-math.inf)
                at, stopping = done, preemption.settled()
                while at < steps and not stopping:
                    at += 1
                    batch = within(next(batches), positions)
                    batch = to_devices(batch, mesh, start, config.batch_size)
                    batch |= preemption.flags()
                    number = np.uint32(self.first + at)
                    traced.before(at)
                    with jax.profiler.StepTraceAnnotation("train", step_num=self.first + at):
                        with progress.compiling(batch):
                            trainable, optimizer_state, metrics = step_fn(
                                trainable, optimizer_state, frozen, batch, number
                            )
                    traced.after(at, metrics)
                    preemption.saved(None)
                    progress.flush()
                    stopping = preemption.reached(progress.flags)
                    progress.pending = (at, metrics)
                    value = None
                    if dev_score is not None and is_time(at, config.eval_every, steps):
                        value = score(at)
                    better = value is not None and broadcast_from_main(value > best)
                    best = value if better else best
                    due = is_time(at, config.checkpoint_every, steps)
                    if due or stopping or (better and keep_best):
                        progress.flush()  # the metrics file holds every step a checkpoint covers
                        check_weights(trainable, self.first + at)
                        checkpoints.save(
                            at,
                            trainable,
                            optimizer_state,
                            scheduled=due,
                            score=value,
                            log=progress.log(),
                        )
                        progress.restart_clock()
                        preemption.saved(self._stopped(at))
                progress.flush()
                progress.compiled()
                if at == steps:
                    due = [i for i in range(1, steps + 1) if is_time(i, every, steps)]
                    checkpoints.finish(self._finished(checkpoints, due[-config.keep :]))
                stopping = preemption.settled()
            if stopping:
                raise Preempted(self.stage.name, at, steps, preemption.number)
        return encoder.replace(nnx.merge_state(trainable, frozen))

    def schedule(self) -> Schedule | Own:
        """The learning rate by step."""
        rate = self.stage.rate
        return schedule(self.config, self.steps) if rate is None else Own(rate)

    def _scores(self) -> dict[int, float]:
        """Dev scores by step of the stage, the start's as step 0; on the main process.

        By the metrics, which know a checkpoint that was lost as well.
        """
        lines = read_metrics(epath.Path(self.places.metrics)) if mesh_lib.is_main() else []
        lines = [line for line in lines if SCORE in line]
        found: dict[int, float] = {}
        if self._is_start_scored and lines:
            before = finished(self._before)
            ended = [line[SCORE] for line in lines if line["step"] == self.first]
            best = before is not None and self.stage.start == BEST
            found |= dict.fromkeys([0], before.score if best else ended[0]) if ended else {}
        own = [line for line in lines if line["stage"] == self.stage.name]
        return found | {line["step"] - self.first: line[SCORE] for line in own}

    def _finished(self, checkpoints: Checkpoints, scheduled: Sequence[int]) -> Finished:
        """The record of a stage that is finished."""
        scores = self._scores()
        if not self.config.keep_best:  # one of those that are there
            kept = {0, *sums.steps_in(self.folder)}
            scores = {step: score for step, score in scores.items() if step in kept}
        best = max(scores, key=lambda step: (scores[step], -step), default=None)
        return Finished(
            self.first,
            self.steps,
            best,
            tuple(scheduled),
            scores.get(best),
            self.stage.start,
            "" if self._before is None else self._before.name,
        )

    def _stopped(self, at: int) -> str:
        """The line printed when a run ends with `at` steps saved."""
        return stopped(self.stage.name, at, self.steps)

    def _settle(
        self,
        checkpoints: Checkpoints,
        done: int,
        trainable: Any,
        optimizer: Any,
        progress: _Progress,
    ) -> None:
        """Turns the last checkpoint into what it would be in the middle of the stage."""
        config, steps = self.config, self.steps
        due = is_time(done, config.checkpoint_every, steps)
        scored = is_time(done, config.eval_every, steps)
        if checkpoints.has_more(done, scheduled=due, scored=scored):
            best = checkpoints.best
            score = best[1] if scored and best is not None and best[0] == done else None
            checkpoints.delete(done)
            checkpoints.save(
                done, trainable, optimizer, scheduled=due, score=score, log=progress.log()
            )

    def _grouped(self, batches: Batches) -> Batches:
        """The batches in few shapes, with short and long texts separated if there are chunks."""
        if not hasattr(batches, "lengths"):
            return batches
        # Token vectors of different widths cannot be reassembled.
        late, mesh = self.encoder.spec.late is not None, self.encoder.mesh
        platform = platforms.of(mesh)
        budget = -1 if late else chunk_budget(self.config.chunk_tokens, platform)
        return Grouped(batches, mesh_lib.shards(mesh, "batch"), budget, platform)

    def _step_fn(self, graph: Any, optimizer: optax.GradientTransformation, loss: Loss):
        config, lora = self.config, self.encoder.lora
        return make_step(
            graph,
            optimizer,
            mesh=self.encoder.mesh,
            loss=loss,
            chunk_tokens=config.chunk_tokens,
            recompute=config.recompute,
            gather=config.gather,
            memory_bytes=mesh_lib.memory_bytes(self.encoder.mesh),
            dropout=config.dropout > 0 or (lora is not None and lora.dropout > 0),
            seed=self.batches.seed,
        )

    def _progress(self, done: int, rates: Rates) -> _Progress:
        writer = NoWriter()
        if mesh_lib.is_main():
            writer = MetricWriter(
                self.places.metrics,
                self.places.tensorboard,
                stage=self.stage.name,
                before=self._lines_before(done),
                trackers=self.places.trackers,
            )
        return _Progress(writer, self, done, rates)

    def _on_schedule(self, text: str, done: int) -> str:
        """Metrics without the lines that exist because a shorter stage ended there."""
        config, steps = self.config, self.steps

        def stays(line: dict[str, Any]) -> bool:
            if line["step"] != self.first + done or line["stage"] != self.stage.name:
                return True
            every = config.log_every if "loss" in line else config.eval_every
            return is_time(done, every, steps)

        lines = text.splitlines(keepends=True)
        return "".join(line for line in lines if stays(json.loads(line)))

    def _lines_before(self, done: int) -> str:
        """metrics.jsonl at the checkpoint from which training continues or begins."""
        if done:
            return self._on_schedule(sums.metrics(self.folder, done), done)
        steps = [] if self._before is None else sums.steps_in(self._before)
        return sums.metrics(self._before, steps[-1]) if steps else ""


class _Progress:
    """The progress output of a stage. Use as a context manager.

    Metrics are fetched one step late, so that the device never waits for the host.
    """

    def __init__(self, writer: MetricWriter | NoWriter, run: _StageRun, done: int, rates: Rates):
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.flags = 0.0  # signal numbers of processes, as far as steps have returned them
        self._writer, self._first, self._steps = writer, run.first, run.steps
        self._rates = rates
        self._config, self._schedule = run.config, run.schedule()
        # shape of a batch: seconds until its step was dispatched
        self._shapes: dict[tuple, float] = {}
        self._label, self._batches = run.label, run.batches
        self._main, self._path = mesh_lib.is_main(), epath.Path(run.places.metrics)
        self._bar = bar(
            total=run.steps, initial=done, unit="step", desc=run.stage.name, show=self._main
        )
        self.restart_clock()

    def __enter__(self) -> _Progress:
        self._writer.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()
        self._writer.__exit__(*error)

    def restart_clock(self) -> None:
        """Excludes the time since the last step from the speed of the next."""
        self._clock = time.perf_counter()

    @contextlib.contextmanager
    def compiling(self, batch: dict[str, Any]) -> Iterator[None]:
        """Wraps the dispatch of a step: records its time if the batch has a new shape."""
        shape = tuple((name, getattr(x, "shape", x)) for name, x in sorted(batch.items()))
        begun = time.perf_counter()
        yield
        if shape not in self._shapes:
            self._shapes[shape] = time.perf_counter() - begun

    def compiled(self) -> None:
        """Prints how many shapes were compiled, and the share of useful tokens."""
        count, seconds = len(self._shapes), sum(self._shapes.values())
        if not count:
            return
        line = f"train     {self._label}compiled {count} step shape{'s'[: count > 1]}"
        line += f" in {seconds:.1f} s"
        if isinstance(self._batches, Grouped):
            line += f"; {self._batches.useful:.0%} of the tokens computed are text"
        say(line)

    def flush(self) -> None:
        """Fetches and writes pending metrics."""
        if self.pending is None:
            return
        (at, device_metrics), self.pending = self.pending, None
        scalars = {name: float(np.asarray(value)) for name, value in device_metrics.items()}
        self.flags = max(self.flags, scalars.pop(FLAGS, 0.0))
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        speed = self._config.batch_size / seconds
        self.restart_clock()
        scalars["learning_rate"] = self._schedule.at(at - 1)
        if is_time(at, self._config.log_every, self._steps):
            scalars |= self._rates.of(at - 1, seconds)
            self._writer.write(self._first + at, scalars)
        self._bar.update(at - self._bar.n)
        self._bar.set_postfix_str(f"loss {scalars['loss']:.4f}, {speed:.1f} examples/s")

    def log(self) -> bytes:
        """The content of metrics.jsonl; on the main process."""
        return self._path.read_bytes() if self._main else b""

    def score(self, at: int, value: float) -> None:
        """Writes a dev score."""
        self._writer.write(self._first + at, {SCORE: value})
        if self._main:
            self._bar.write(f"step {self._first + at}: dev nDCG@10 {value:.4f}")
        self.restart_clock()
