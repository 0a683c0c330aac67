"""train: the student, from its start to its last checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax import precision, teachers
from nvret_jax.artifacts import Artifact
from nvret_jax.console import say
from nvret_jax.data.dataset import Dataset
from nvret_jax.errors import InputError
from nvret_jax.evaluation import retrieval
from nvret_jax.mining.negatives import Negatives
from nvret_jax.models.encoder import Encoder
from nvret_jax.options import SEED
from nvret_jax.pipeline import longer, sets, truncation
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run
from nvret_jax.training import loop
from nvret_jax.training.blend import Blend, Source
from nvret_jax.training.examples import Examples
from nvret_jax.training.options import Training


def _train_artifacts(run: Run) -> list[Artifact]:
    return [run.checkpoints()]


def _make_checkpoints(run: Run, artifact: Artifact) -> None:
    for part in run.sets.values():
        run.need(part.negatives())
    blocks = {name: _with_teacher_temperature(run, block) for name, block in run.stages.items()}
    for name, block in blocks.items():
        _check_negatives(run, name, block)
    stages = [
        loop.Stage(name, block, functools.partial(_batches, run, name), block.start)
        for name, block in blocks.items()
    ]
    metrics_damaged = mesh_lib.is_main() and any(n.startswith("../") for n in artifact.lost())
    artifact.begin(repair=True, first=functools.partial(_go_on, run, artifact))
    precision.say_cost("train", run.student.config.dtype, run.platform, "student.dtype")
    places = loop.Places(artifact.partial, run.workdir.metrics, run.workdir.tensorboard)
    result = run.config.result
    loop.train(
        run.student.encoder,
        stages,
        places,
        _dev_score(run),
        needs_best=result.pick == "best",
        needs_last=result.merge_last,
    )
    loop.restore_metrics(places, stages, anew=metrics_damaged)
    artifact.finish_folder()


def _longer(run: Run, artifact: Artifact) -> longer.Longer | None:
    """How the training that is there is gone on from; None where there is none to be used."""
    old = artifact.made_before()
    if old is None:
        return None
    needs_best = run.config.result.pick == "best"
    return longer.plan(old, artifact.described(), artifact.path, needs_best=needs_best)


def _go_on(run: Run, artifact: Artifact, folder: epath.Path) -> None:
    """Begins a new folder of checkpoints with those that can be gone on from."""
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


def _with_teacher_temperature(run: Run, block: Training) -> Training:
    """A stage's values with a temperature for the teacher's scores that suits what they are.

    Cosines lie close together: divided by 1, next to nothing tells the best passage from the worst.
    """
    loss = block.loss
    if loss.distillation != "kl" or loss.teacher_temperature is not None:
        return block
    names = sets.sets_of(run.config, block.sets)
    cosines = all(_gives_cosines(run.sets[of]) for of in names)
    value = float(loss.student_temperature or loss.temperature) if cosines else 1.0
    what = "cosines, divided as the student's" if cosines else "not cosines"
    say(f"train     the teacher's scores are {what}: loss.teacher_temperature {value:g}")
    return dataclasses.replace(block, loss=dataclasses.replace(loss, teacher_temperature=value))


def _gives_cosines(run: Run) -> bool:
    """Whether the scores in a set's table of negatives are cosines."""
    if run.rescored(run.teacher_names[0]) is not None:
        return False
    blocks = [run.block(name) for name in run.teacher_names]
    return all(
        teachers.kind(block.model) in ("encoder", "vectors") and block.normalize for block in blocks
    )


def _check_negatives(run: Run, name: str, block: Training) -> None:
    """Raises InputError where a stage would train on nothing; says how many rows lack negatives."""
    in_batch = block.loss.in_batch and block.batch_size > 1
    rows = without = 0
    for of in sets.sets_of(run.config, block.sets):
        part = run.sets[of]
        counts = _read_negatives(part).negative_rows.counts
        kept = min(block.num_negatives, part.config.mining.num_negatives)
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
        what = "learn from in-batch negatives alone" if in_batch else "add nothing to the loss"
        say(f"train     {without:,} of {rows:,} rows have no hard negative and {what}")


def _read_negatives(run: Run) -> Negatives:
    """The table of negatives of one set."""
    data = run.train_data
    return Negatives.read(run.need(run.negatives()).path, data.queries, data.corpus)


def _batches(run: Run, name: str) -> Blend:
    """What a stage of training draws its batches from; tokenises it."""
    block = run.stages[name]
    # Stages of one run do not repeat each other's draws.
    seed = (run.config.seed + list(run.stages).index(name)) % SEED.high
    names = sets.sets_of(run.config, block.sets)
    sources = [
        Source(
            of,
            _examples(run.sets[of], block, seed),
            share,
            run.sets[of].text_digest(run.sets[of].train_data, "passages"),
        )
        for of, share in zip(names, sets.shares_of(block, names), strict=True)
    ]
    blend = Blend.build(
        sources,
        batch_size=block.batch_size,
        num_negatives=block.num_negatives,
        seed=seed,
        unit=block.share_unit,
        batches=block.batches,
        epochs=block.epochs,
        steps=block.steps,
        max_steps=block.max_steps,
    )
    alone, rows = blend.without_negatives(block.loss.in_batch and block.batch_size > 1)
    if alone == rows:
        raise InputError(
            f"training, stage {name}: no passage is a negative to any of the {rows:,} rows, as "
            "all are positives of the same queries; there is nothing to learn from"
        )
    if len(run.stages) > 1 or len(sources) > 1:
        counts = ", ".join(f"{of} {count:,}" for of, count in blend.counts().items())
        say(f"train     stage {name}: {blend.steps:,} steps; queries: {counts}")
    return blend


def _examples(run: Run, block: Training, seed: int) -> Examples:
    """Tokenised training data of one set, for one stage.

    Args:
        run: of the set.
        block: of the stage.
        seed: of the stage.
    """
    data, encoder = run.train_data, run.student.encoder
    negatives = _read_negatives(run)

    for table in ("passages", f"queries-{run.config.data.train_split}"):
        say(truncation.of_side(run, run.student, "student", data, table).line())

    def tokenizer(kind: str):
        length = run.student.length(kind)
        return lambda texts: encoder.tokenize(texts, kind=kind, max_length=length)

    kinds = ("query", "passage")
    late = encoder.spec.late is not None
    loss = block.loss_for(encoder.width, tokens=late)
    skips = encoder.spec.prompt_in_pooling != "all"
    return Examples.build(
        negatives,
        data.queries.texts,
        data.corpus.texts,
        tokenizer("query"),
        tokenizer("passage"),
        batch_size=block.batch_size,
        num_negatives=min(block.num_negatives, run.config.mining.num_negatives),
        pad_id=encoder.tokenizer.pad_id,
        seed=seed,
        num_positives=loss.num_positives,
        teacher_scores=bool(loss.distillation),
        guide=_guide(run) if loss.score_mask and loss.mask_by == "guide" else None,
        unpooled={kind: functools.partial(encoder.unpooled, kind=kind) for kind in kinds}
        if skips
        else None,
        uncounted={kind: encoder.uncounted_tokens(kind) for kind in kinds} if late else None,
        lengthen_query=(lambda tokens: encoder.lengthen(tokens, "query")) if late else None,
    )


def _guide(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the training queries and of all passages by the first encoder teacher."""
    data, split = run.train_data, run.config.data.train_split
    if not run.guide:
        raise InputError(
            "train.loss.mask_by='guide' needs a teacher that is an encoder; use 'student'"
        )
    of_split = np.asarray(run.open(run.guide, data, f"queries-{split}")[:])
    queries_qd = np.zeros((len(data.queries), of_split.shape[1]), np.float32)
    queries_qd[[data.queries.row[i] for i in data.split_queries(split).ids]] = of_split
    return queries_qd, np.asarray(run.open(run.guide, data, "passages")[:])


def _dev_score(run: Run) -> Callable[[Encoder], float] | None:
    """nDCG@10 on some dev queries against a corpus small enough to embed again and again."""
    if not run.dev_split or run.student.spec.late is not None:
        return None
    data, limit = run.train_data, run.config.train.dev_passages
    qrels = data.qrels[run.dev_split]
    ids = list(data.positives(run.dev_split, run.config.data.min_relevance))
    ids = ids[: run.config.train.dev_queries or None]
    corpus = data.corpus
    if limit and limit < len(corpus):
        wanted = dict.fromkeys(corpus.row[p] for i in ids for p in qrels[i])
        for row in _hard_first(run, ids, max(10, limit // len(ids))):
            if len(wanted) >= limit:
                break
            wanted.setdefault(row)
        corpus = corpus.select(corpus.ids[row] for row in sorted(wanted))
    small = Dataset(
        name=f"{data.name}-dev",
        corpus=corpus,
        queries=data.queries.select(ids),
        qrels={run.dev_split: {i: qrels[i] for i in ids}},
        fingerprint="",
    )

    def embedded(encoder: Encoder, kind: str, texts: Sequence[str]) -> np.ndarray:
        # At the lengths of training; the share that is cut was stated before it.
        length = run.student.length(kind)
        return encoder.encode(texts, kind=kind, max_length=length, warn=False)

    def score(encoder: Encoder) -> float:
        result = retrieval.evaluate(
            encoder,
            small,
            run.dev_split,
            min_relevance=run.config.data.min_relevance,
            passage_embeddings=embedded(encoder, "passage", corpus.texts),
            query_embeddings=embedded(encoder, "query", small.queries.texts),
            backend=run.config.search.backend,
        )
        return result.metrics["ndcg_cut_10"]

    return score


def _hard_first(run: Run, ids: list[str], depth: int) -> list[int]:
    """Passage rows for a dev corpus: what the teacher ranks high for these queries, rank by rank.

    Where no teacher is an encoder: the passages in corpus order.
    """
    data, name = run.train_data, run.guide
    if not name:
        return list(range(len(data.corpus)))
    table = data.split_queries(run.dev_split)
    queries_qd = np.asarray(run.open(name, data, f"queries-{run.dev_split}")[:])
    index = run.make_index(run.open(name, data, "passages"))
    depth = min(len(data.corpus), depth)
    _, found_qk = index.search(queries_qd[[table.row[i] for i in ids]], depth)
    return found_qk.T.ravel().tolist()


STAGE = Stage(_train_artifacts, _make_checkpoints, _note)
