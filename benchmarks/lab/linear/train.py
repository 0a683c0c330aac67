"""A linear map of stored vectors, trained as the pipeline trains a student.

An embedding is x + xW, scaled to unit length; W begins at zero, so the untrained student is the
stored vector itself, or its rotation. Order of batches, positives, draws, ids, loss, optimizer and
schedule are the package's; only the encoder is another, and a step takes milliseconds.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.lab.linear.task import Task
from nvret_jax import mesh as mesh_lib
from nvret_jax.mining.negatives import Negatives
from nvret_jax.models import projection
from nvret_jax.models.pooling import l2_normalize
from nvret_jax.training.batches.clusters import Clusters
from nvret_jax.training.batches.examples import Examples
from nvret_jax.training.loss.losses import batch_loss
from nvret_jax.training.loss.options import Loss
from nvret_jax.training.optimizer import make_optimizer
from nvret_jax.training.options import Training

_DISCOUNT = 1 / np.log2(np.arange(2, 12))


def batches(
    task: Task,
    table: Negatives,
    block: Training,
    seed: int,
    guide: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The batches of all steps, stacked along a first axis: rows of texts, and what the loss reads.

    Args:
        task, table, block: texts, negatives and options.
        seed: of the stage.
        guide: a teacher's vectors of queries and passages, if batches consist of clusters.

    Returns:
        query_rows int32 [S, B], passage_rows int32 [S, B·G], passage_ids [S, B·G], positive_ids
        [S, B, J]; teacher_scores and passage_weights float32 [S, B, G], and passage_distilled bool
        [S, B·G], where the loss needs them.
    """
    nothing = lambda texts: [[0] for _ in texts]  # noqa: E731
    examples = Examples.build(
        table,
        task.queries.texts,
        task.data.corpus.texts,
        nothing,
        nothing,
        batch_size=block.batch_size,
        num_negatives=block.num_negatives,
        pad_id=0,
        seed=seed,
        teacher_scores=block.loss.needs_teacher_scores,
        draw=block.draw,
        weights=block.loss.weights,
        num_distilled=block.num_distilled,
        clusters=Clusters.of(table, *guide, block.cluster_size) if block.cluster_size else None,
    )
    found: dict[str, list[np.ndarray]] = {}
    for step in range(block.steps):
        picked = examples.pick(step)
        rows = picked.passages.ravel()
        one = {
            "query_rows": table.query_rows[picked.numbers],
            "passage_rows": rows,
            "passage_ids": np.where(rows >= 0, examples.names.of_row[rows], -1),
            "positive_ids": examples.names.known.take(picked.numbers).padded(
                -1, examples.max_positives
            ),
        }
        if picked.scores is not None:
            one["teacher_scores"] = picked.scores
        if picked.distilled is not None:
            one["passage_distilled"] = picked.distilled.ravel()
        if picked.weights is not None:
            one["passage_weights"] = picked.weights
        for name, values in one.items():
            found.setdefault(name, []).append(values)
    stacked = {name: np.stack(values) for name, values in found.items()}
    return {k: v.astype(np.int32) if v.dtype.kind == "i" else v for k, v in stacked.items()}


def embed(map_dd: Any, emb_nd: Any) -> Any:
    """The student's vectors, [N, D]."""
    return l2_normalize(emb_nd + jnp.matmul(emb_nd, map_dd, precision=jax.lax.Precision.HIGHEST))


def apply(map_dd: np.ndarray, emb_nd: np.ndarray) -> np.ndarray:
    """The same outside of a compiled function."""
    own_nd = emb_nd + emb_nd @ map_dd
    return own_nd / np.maximum(np.linalg.norm(own_nd, axis=1, keepdims=True), 1e-12)


def train(
    queries_qd: np.ndarray,
    passages_nd: np.ndarray,
    steps: dict[str, np.ndarray],
    block: Training,
    every: int,
    guide: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    turned: bool = False,
    start: np.ndarray | None = None,
) -> list[tuple[int, np.ndarray]]:
    """The map [D, D] after 0, `every`, 2 · `every` … steps, and after the last.

    Args:
        queries_qd, passages_nd: the student's stored vectors.
        steps: of `batches`.
        block: the options of training.
        every: steps between two maps.
        guide: the guide's vectors of queries and passages, if the loss reads them.
        turned: the map begins as the rotation that brings the student's vectors nearest to the
            guide's, as a projection does; it ranks as the untrained student.
        start: the map of an earlier stage; None: the untrained student, whose map is zeros unless
            it is turned.
    """
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(block, block.steps)
    with jax.set_mesh(mesh):
        queries_qd, passages_nd = jnp.asarray(queries_qd), jnp.asarray(passages_nd)
        guide = None if guide is None else tuple(map(jnp.asarray, guide))
        zeros_dd = np.zeros((queries_qd.shape[1],) * 2, np.float32)
        map_dd = jnp.asarray(zeros_dd if start is None else start)
        if turned:
            ours_nd, theirs_nd = (np.concatenate(x) for x in ((queries_qd, passages_nd), guide))
            map_dd = projection.nearest(ours_nd, theirs_nd) - jnp.eye(len(map_dd))
        state = optimizer.init(map_dd)
        out = [(0, np.asarray(map_dd))]
        for first in range(0, block.steps, every):
            part = {name: values[first : first + every] for name, values in steps.items()}
            map_dd, state = _segment(
                map_dd, state, queries_qd, passages_nd, part, guide, block=block, mesh=mesh
            )
            out.append((min(first + every, block.steps), np.asarray(map_dd)))
    return out


@functools.partial(jax.jit, static_argnames=("block", "mesh"))
def _segment(map_dd, state, queries_qd, passages_nd, part, guide, *, block, mesh):
    loss: Loss = block.loss
    optimizer = make_optimizer(block, block.steps)

    def value(map_dd, batch):
        batch = dict(batch)
        there = batch["passage_rows"] >= 0
        own = jnp.where(there[:, None], passages_nd[batch["passage_rows"]], 1.0)
        q, p = embed(map_dd, queries_qd[batch["query_rows"]]), embed(map_dd, own)
        if guide is not None:
            batch["query_guide"] = guide[0][batch["query_rows"]]
            batch["passage_guide"] = jnp.where(there[:, None], guide[1][batch["passage_rows"]], 0)
        batch = {k: v for k, v in batch.items() if not k.endswith("_rows")}
        return batch_loss(loss, q, p, batch, mesh=mesh)[0]

    def step(carry, batch):
        map_dd, state = carry
        updates, state = optimizer.update(jax.grad(value)(map_dd, batch), state, map_dd)
        return (optax.apply_updates(map_dd, updates), state), None

    (map_dd, state), _ = jax.lax.scan(step, (map_dd, state), part)
    return map_dd, state


@dataclasses.dataclass(frozen=True)
class Judged:
    """The judgments of some queries.

    Attributes:
        gains_qn: float32; -1: the passage is left out of the ranking.
        best_q: the largest DCG@10 there can be.
        relevant_q: how many passages have a gain.
    """

    gains_qn: np.ndarray
    best_q: np.ndarray
    relevant_q: np.ndarray

    @classmethod
    def of(cls, gains_qn: np.ndarray) -> Judged:
        """From the gains alone."""
        top = -np.sort(-np.maximum(gains_qn, 0), axis=1)[:, :10]
        best_q = np.maximum(top @ _DISCOUNT[: top.shape[1]], 1e-12)
        return cls(gains_qn, best_q, np.maximum((gains_qn > 0).sum(axis=1), 1))


def scores(
    map_dd: np.ndarray, queries_qd: np.ndarray, passages_nd: np.ndarray, judged: Judged
) -> tuple[np.ndarray, np.ndarray]:
    """nDCG@10 and recall@100 of each query, float64 [Q].

    Args:
        map_dd: of the student.
        queries_qd, passages_nd: stored vectors.
        judged: their judgments.
    """
    gains_qn = judged.gains_qn
    scores_qn = apply(map_dd, queries_qd) @ apply(map_dd, passages_nd).T
    scores_qn[gains_qn < 0] = -np.inf
    width = min(100, scores_qn.shape[1])
    top = np.argpartition(-scores_qn, width - 1, axis=1)[:, :width]
    order = np.argsort(-np.take_along_axis(scores_qn, top, 1), axis=1, kind="stable")
    found = np.maximum(np.take_along_axis(gains_qn, np.take_along_axis(top, order, 1), 1), 0)
    ndcg = found[:, :10] @ _DISCOUNT[: found.shape[1]] / judged.best_q
    recall = (found > 0).sum(axis=1) / judged.relevant_q
    return ndcg.astype(np.float64), recall.astype(np.float64)
