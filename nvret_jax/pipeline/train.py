"""train: the student, from its start to its last checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts.artifact import Artifact
from nvret_jax.config import sets
from nvret_jax.data.dataset import Dataset
from nvret_jax.errors import InputError
from nvret_jax.evaluation.dev import Dev
from nvret_jax.mesh import say
from nvret_jax.mining.negatives import Negatives
from nvret_jax.models import precision
from nvret_jax.models.encoder import Encoder
from nvret_jax.options import SEED
from nvret_jax.pipeline import (
    embed,
    longer,
    mine,
    ranked,
    start,
    tracking,
    trained,
    truncation,
)
from nvret_jax.pipeline.inputs import need
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run
from nvret_jax.search.rankers import teachers
from nvret_jax.search.store import EmbeddingStore
from nvret_jax.training import loop
from nvret_jax.training.batches import tokenised
from nvret_jax.training.batches.clusters import Clusters
from nvret_jax.training.batches.examples import Examples
from nvret_jax.training.batches.mixture import Mixture, Source
from nvret_jax.training.loss.options import Loss
from nvret_jax.training.options import Training


@dataclasses.dataclass(frozen=True)
class MinedSet:
    """One mined training set.

    Attributes:
        data: its queries and corpus.
        digest: of its passages.
        negatives: reads its table of negatives.
        num_negatives: the most that mining kept for a query.
        has_cosines: whether the scores in the table are cosines.
        lengths: tokens that the student keeps, by kind of text.
        encoder: returns the student, with its prompts for this set.
        cuts: counts the texts that it cuts; lines for the terminal.
        guide: reads vectors of all queries by a teacher, and opens those of all passages; None if
            no teacher is an encoder.
    """

    data: Dataset
    digest: str
    negatives: Callable[[], Negatives]
    num_negatives: int
    has_cosines: bool
    lengths: Mapping[str, int]
    encoder: Callable[[], Encoder]
    cuts: Callable[[], Sequence[str]] = tuple
    guide: Callable[[], tuple[np.ndarray, EmbeddingStore]] | None = None


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of training: model, data and folders.

    Attributes:
        encoder: the initial student.
        sets: all training sets by name, in the order for stages that name none.
        seed: of draws.
        places: where checkpoints and metrics go.
        dev: the dev evaluation, or None.
        anew: whether the file of metrics is rewritten from the checkpoints.
        needs_best, needs_last: which checkpoints of the last stage the result needs.
        first: puts into a new folder of checkpoints those that training continues from.
    """

    encoder: Encoder
    sets: Mapping[str, MinedSet]
    seed: int
    places: loop.Places | None
    dev: Dev | None = None
    anew: bool = False
    needs_best: bool = False
    needs_last: int = 1
    first: Callable[[epath.Path], None] | None = None

    def of(self, block: Training) -> tuple[str, ...]:
        """The names of the sets that a stage draws from."""
        return tuple(block.sets) or tuple(self.sets)


def _artifacts(run: Run) -> list[Artifact]:
    return [trained.artifact(run)]


def _inputs(run: Run, artifact: Artifact) -> tuple[Inputs, dict[str, Training]]:
    for set_run in run.sets.values():
        need(mine.artifact(set_run))
    inputs = inputs_at(
        run,
        loop.Places(
            artifact.partial,
            run.workdir.metrics,
            run.workdir.tensorboard,
            run.workdir.path / "profile",
            tracking.of(run),
        ),
    )
    stages = {
        name: _with_teacher_temperature(inputs, one) for name, one in run.training_stages.items()
    }
    for name, block in stages.items():
        _check_negatives(inputs, name, block)
    precision.say_cost("train", run.student.config.dtype, run.platform, "student.dtype")
    anew = mesh_lib.is_main() and any(name.startswith("../") for name in artifact.lost())
    first = functools.partial(_go_on, run, artifact)
    encoder = start.student(run)
    return dataclasses.replace(inputs, encoder=encoder, anew=anew, first=first), stages


def inputs_at(run: Run, places: loop.Places | None = None) -> Inputs:
    """The inputs of a run's training; data that a finished stage does not need are read on demand.

    Args:
        places: the folders of the training, or None.
    """
    result = trained.result(run)
    return Inputs(
        run.student.encoder,
        {name: _training_set(set_run) for name, set_run in run.sets.items()},
        run.config.seed,
        places,
        _dev(run),
        needs_best=result.pick == "best",
        needs_last=result.merge_last,
    )


def _begin(artifact: Artifact, inputs: Inputs) -> None:
    artifact.begin(repair=True, first=inputs.first)


def make(inputs: Inputs, options: Mapping[str, Training]) -> epath.Path:
    """Trains the student, stage by stage.

    Args:
        inputs: the folder has checkpoints if an earlier training was stopped.
        options: of each stage, by name, in order.

    Returns:
        the folder of the checkpoints.

    Raises:
        InputError: no training data, or as `loop.train`.
    """
    stages = [
        loop.Stage(name, block, functools.partial(batches, inputs, options, name), block.start)
        for name, block in options.items()
    ]
    loop.train(
        inputs.encoder,
        stages,
        inputs.places,
        None if inputs.dev is None else inputs.dev.score(),
        needs_best=inputs.needs_best,
        needs_last=inputs.needs_last,
    )
    loop.restore_metrics(inputs.places, stages, anew=inputs.anew)
    return inputs.places.checkpoints


def _write(artifact: Artifact, inputs: Inputs, folder: epath.Path) -> None:
    artifact.finish_folder()


def _longer(run: Run, artifact: Artifact) -> longer.Longer | None:
    """How existing training is continued; None if there is none to use."""
    old = artifact.made_before()
    if old is None:
        return None
    needs_best = trained.result(run).pick == "best"
    return longer.plan(old, artifact.described(), artifact.path, needs_best=needs_best)


def _go_on(run: Run, artifact: Artifact, folder: epath.Path) -> None:
    """Begins a new folder of checkpoints with those that training can continue from."""
    found = _longer(run, artifact)
    if found is not None and not found.obstacle:
        longer.copy(artifact.path, folder, found)


def _note(run: Run, artifact: Artifact) -> str:
    old = artifact.made_before()
    if old is None or old["fingerprint"] == artifact.fingerprint:
        return ""
    found = _longer(run, artifact)
    if found is not None:
        return str(found)
    return "the finished training is kept until the new one is finished"


def _with_teacher_temperature(inputs: Inputs, block: Training) -> Training:
    """A stage's values with a temperature that suits the kind of the teacher's scores."""
    cosines = all(inputs.sets[of].has_cosines for of in inputs.of(block))
    loss = block.loss.for_scores(cosines=cosines)
    if loss == block.loss:
        return block
    what = "cosines, divided as the student's" if cosines else "not cosines"
    value = f"loss.teacher_temperature {loss.teacher_temperature:g}"
    say(f"train     the teacher's scores are {what}: {value}")
    return dataclasses.replace(block, loss=loss)


def _check_negatives(inputs: Inputs, name: str, block: Training) -> None:
    """Raises InputError if a stage has no negatives at all; prints how many rows lack them.

    A stage that fits vectors alone needs none.
    """
    if not block.loss.compares:
        return
    in_batch = block.loss.in_batch and block.batch_size > 1
    rows = without = 0
    for of in inputs.of(block):
        one = inputs.sets[of]
        counts = one.negatives().negative_rows.counts
        kept = min(block.num_negatives, one.num_negatives)
        rows, without = rows + len(counts), without + int((np.minimum(counts, kept) == 0).sum())
    if without == rows and not in_batch:
        why = (
            "train.in_batch_negatives is false"
            if not block.loss.in_batch
            else "train.batch_size is 1"
        )
        raise InputError(
            f"training, stage {name}: none of the {rows:,} rows has a hard negative "
            f"(train.num_negatives={block.num_negatives}), and {why}, so there is nothing to "
            "learn from; mine with another rule or teacher, or set train.in_batch_negatives=true"
        )
    if without and block.num_negatives:
        what = "learn only from in-batch negatives" if in_batch else "add nothing to the loss"
        say(f"train     {without:,} of {rows:,} rows have no hard negative and {what}")


def batches(inputs: Inputs, stages: Mapping[str, Training], name: str) -> Mixture:
    """The source of a training stage's batches, tokenised.

    Args:
        inputs: of the training.
        stages: all of its stages.
        name: of the one.
    """
    block = stages[name]
    # Stages of a run have different draws.
    seed = (inputs.seed + list(stages).index(name)) % SEED.high
    names = inputs.of(block)
    sources = [
        Source(of, _examples(inputs.sets[of], block, seed), share, inputs.sets[of].digest)
        for of, share in zip(names, sets.shares_of(block, names), strict=True)
    ]
    mixture = Mixture.build(
        sources,
        batch_size=block.batch_size,
        num_negatives=block.num_negatives,
        seed=seed,
        unit=block.share_unit,
        batches=block.batches,
        epochs=block.epochs,
        steps=block.steps,
        min_steps=block.min_steps,
        max_steps=block.max_steps,
    )
    if block.loss.compares:
        in_batch = block.loss.in_batch and block.batch_size > 1
        alone, rows = mixture.without_negatives(in_batch)
        if alone == rows:
            raise InputError(
                f"training, stage {name}: no passage is a negative of any of the {rows:,} rows, "
                f"because all are positives of the same queries; there is nothing to learn from"
            )
    if len(stages) > 1 or len(sources) > 1:
        counts = ", ".join(f"{of} {count:,}" for of, count in mixture.counts().items())
        say(f"train     stage {name}: {mixture.steps:,} steps; queries: {counts}")
    return mixture


def _examples(one: MinedSet, block: Training, seed: int) -> Examples:
    """Tokenised training data of one set, for one stage.

    Args:
        one: the set.
        block: of the stage.
        seed: of the stage.
    """
    encoder, negatives = one.encoder(), one.negatives()
    for line in one.cuts():
        say(line)

    loss = block.loss_for(encoder.width, tokens=encoder.spec.late is not None)
    guide = _guide(one, loss) if loss.needs_guide else None
    clusters = _clusters(one, negatives, block, seed) if block.cluster_size else None
    return tokenised.examples(
        encoder,
        negatives,
        one.data.queries.texts,
        one.data.corpus.texts,
        block,
        loss=loss,
        lengths=one.lengths,
        num_negatives=min(block.num_negatives, one.num_negatives),
        seed=seed,
        guide=guide,
        clusters=clusters,
    )


def _guide(one: MinedSet, loss: Loss) -> tuple[np.ndarray, np.ndarray]:
    if one.guide is None:
        raise InputError(f"train.loss.{loss.guided}: needs a teacher that is an encoder")
    queries_qd, passages = one.guide()
    return queries_qd, np.asarray(passages)


def _clusters(one: MinedSet, negatives: Negatives, block: Training, seed: int) -> Clusters:
    """The clusters of a set's rows; prints how much more similar they are."""
    if one.guide is None:
        raise InputError(
            "train.cluster_size needs a teacher that is an encoder; set 0 for batches at random"
        )
    made, size = Clusters.of(negatives, *one.guide(), block.cluster_size), block.batch_size
    rows = np.random.default_rng(0).permutation(len(negatives))
    own, others = (made.likeness(o, size) for o in (made.order(seed, 0, size), rows))
    line = f"the mean cosine of two rows of a batch is {own:.3f}, and at random {others:.3f}"
    if not block.loss.score_mask:
        line += (
            "; more in-batch negatives are false: mask them with train.loss.score_mask='percent' "
            "and mask_by='guide'"
        )
    say(f"train     {line}")
    return made


# --- reading from a run --------------------------------------------------------------------------


def _training_set(run: Run) -> MinedSet:
    """The set of a run."""
    data = run.train_data

    def cuts() -> list[str]:
        tables = ("passages", f"queries-{run.config.data.train_split}")
        found = [truncation.of_encoder(run, run.student, "student", data, t) for t in tables]
        return [one.line() for one in found]

    return MinedSet(
        data,
        run.text_digest(data, "passages"),
        functools.partial(mine.read, run),
        run.config.mining.num_negatives,
        _gives_cosines(run),
        _lengths(run),
        lambda: run.student.encoder,
        cuts,
        functools.partial(_guide_of, run) if run.guide else None,
    )


def _lengths(run: Run) -> dict[str, int]:
    return {kind: run.student.length(kind) for kind in ("query", "passage")}


def _gives_cosines(run: Run) -> bool:
    """Whether the scores in a set's table of negatives are cosines."""
    if run.mining.targets or ranked.rescored(run, run.teacher_names[0]) is not None:
        return False
    blocks = [run.block(name) for name in run.teacher_names]
    return all(teachers.has_vectors(block.model) and block.normalize for block in blocks)


def _guide_of(run: Run) -> tuple[np.ndarray, EmbeddingStore]:
    """Vectors of the training queries and of all passages by the first encoder teacher.

    A row of a query of another split is 0.
    """
    data, split = run.train_data, run.config.data.train_split
    of_split = np.asarray(embed.opened(run, run.guide, data, f"queries-{split}")[:])
    queries_qd = np.zeros((len(data.queries), of_split.shape[1]), np.float32)
    queries_qd[[data.queries.row[i] for i in data.split_queries(split).ids]] = of_split
    return queries_qd, embed.opened(run, run.guide, data, "passages")


def _dev(run: Run) -> Dev | None:
    if not run.dev_split or run.student.spec.late is not None:
        return None
    return Dev(
        run.train_data,
        run.dev_split,
        run.config.data.min_relevance,
        run.config.train.dev_passages,
        run.config.train.dev_queries,
        _lengths(run),
        run.config.search.backend,
        functools.partial(_hard_first, run),
    )


def _hard_first(run: Run, ids: Sequence[str], depth: int) -> list[int]:
    """Passage rows for a dev corpus: what the teacher ranks high for these queries, rank by rank.

    If no teacher is an encoder: the passages in corpus order.
    """
    data, name = run.train_data, run.guide
    if not name:
        return list(range(len(data.corpus)))
    table = data.split_queries(run.dev_split)
    queries_qd = np.asarray(embed.opened(run, name, data, f"queries-{run.dev_split}")[:])
    index = run.searching.index(embed.opened(run, name, data, "passages"))
    depth = min(len(data.corpus), depth)
    _, found_qk = index.search(queries_qd[[table.row[i] for i in ids]], depth)
    return found_qk.T.ravel().tolist()


STAGE = Stage(_artifacts, _inputs, make, _write, begin=_begin, note=_note)
