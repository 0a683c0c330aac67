"""train: the student, from its start to its last checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import grain
import numpy as np

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts import Artifact, remove
from nvret_jax.data.dataset import Dataset
from nvret_jax.errors import InputError
from nvret_jax.evaluation import retrieval
from nvret_jax.mining.negatives import Negatives
from nvret_jax.models.encoder import Encoder
from nvret_jax.run import Run
from nvret_jax.stages.stage import Stage
from nvret_jax.training import loop
from nvret_jax.training.examples import Examples


def _train_artifacts(run: Run) -> list[Artifact]:
    return [run.checkpoints()]


def _make_checkpoints(run: Run, artifact: Artifact) -> None:
    run.need(run.negatives())
    loop.check_batch(run.config.train, mesh_lib.shards(run.mesh, "batch"))
    stages = [loop.Stage("train", run.config.train, lambda: _batches(run))]
    if not artifact.begin() and mesh_lib.is_main():
        remove(run.workdir.metrics)
        remove(run.workdir.tensorboard)
    places = loop.Places(artifact.partial, run.workdir.metrics, run.workdir.tensorboard)
    loop.train(run.student.encoder, stages, places, _dev_score(run))
    artifact.finish_folder()


@dataclasses.dataclass(frozen=True)
class _Batches:
    """The examples of one table, as many steps as the config asks for."""

    examples: Examples
    steps: int

    @property
    def seed(self) -> int:
        return self.examples.seed

    def batch(self, step: int, start: int, stop: int) -> dict[str, np.ndarray]:
        return self.examples.batch(step, start, stop)

    def dataset(self, first: int, start: int, stop: int) -> grain.IterDataset:
        def make(step: int) -> dict[str, np.ndarray]:
            return self.batch(int(step), start, stop)

        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return grain.MapDataset.range(first, self.steps).map(make).to_iter_dataset(options)


def _batches(run: Run) -> _Batches:
    config, data, encoder = run.config, run.train_data, run.student.encoder
    negatives = Negatives.read(run.need(run.negatives()).path, data.queries, data.corpus)

    def tokenizer(kind: str):
        length = run.length("student", kind)
        return lambda texts: encoder.tokenize(texts, kind=kind, max_length=length)

    loss = loop.loss_of(config.train, encoder.width)
    unpooled = {kind: encoder.prompt_tokens(kind) for kind in ("query", "passage")}
    examples = Examples.build(
        negatives,
        data.queries.texts,
        data.corpus.texts,
        tokenizer("query"),
        tokenizer("passage"),
        batch_size=config.train.batch_size,
        num_negatives=config.train.num_negatives,
        pad_id=encoder.tokenizer.pad_id,
        seed=config.seed,
        num_positives=loss.num_positives,
        teacher_scores=bool(loss.distillation),
        guide=_guide(run) if loss.score_mask and loss.mask_by == "guide" else None,
        skip={kind: count for kind, count in unpooled.items() if count is not None},
    )
    return _Batches(examples, loop.total_steps(config.train, len(negatives)))


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
    if not run.dev_split:
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

    def score(encoder: Encoder) -> float:
        result = retrieval.evaluate(
            encoder,
            small,
            run.dev_split,
            min_relevance=run.config.data.min_relevance,
            passage_length=run.length("student", "passage"),
            query_length=run.length("student", "query"),
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


STAGE = Stage(_train_artifacts, _make_checkpoints)
