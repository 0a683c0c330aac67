"""The loss of a batch: contrast with negatives, distillation from scores or vectors, or several.

A row of a batch is a query with G passages, the first P of them its positives, the others its hard
negatives; an empty slot has id -1. A row's own scores [B, G] are always available; everything
between rows is a *term* (terms.py), summed up in one of two equivalent ways (ring.py).

The loss receives ids. A passage of the global batch with the id of any judged positive of a query
is not its negative, wherever on the mesh it was encoded. Every possible negative is checked by id.

The mean is over all rows of the global batch that have a positive; rows without a positive are
ignored.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.models.pooling import l2_normalize
from nvret_jax.training.loss import ring as ring_lib
from nvret_jax.training.loss.maxsim import max_sim_own
from nvret_jax.training.loss.options import Loss
from nvret_jax.training.loss.terms import NO_NEGATIVES, Contrast, Features, Term

_LEAST_WEIGHT = 1e-9  # of a negative; its logarithm is finite
Metrics = dict[str, jax.Array]
Batch = dict[str, jax.Array]


def batch_loss(
    loss: Loss,
    queries: jax.Array,
    passages: jax.Array,
    batch: Batch,
    *,
    mesh: Mesh,
    scale: jax.Array | float | None = None,
    normalize: bool = False,
) -> tuple[jax.Array, Metrics]:
    """The loss of a global batch. Call it under `jax.set_mesh(mesh)`.

    Row b's own passages are b·G … b·G + G - 1 of `passages`, G = N / B: its positives in the first
    `loss.num_positives` places, then its hard negatives.

    Args:
        loss: its options.
        queries: float [B, D], or [B, T, D] for MaxSim; split over the mesh's batch axis.
        passages: float [N, D] or [N, S, D].
        batch: int32 arrays passage_ids [N] (corpus rows; -1: an empty slot) and positive_ids [B, J]
            (all judged positives of each query; -1 past the end). With distillation also
            teacher_scores, float [B, G], not finite where missing. With weights passage_weights,
            float [B, G], those of positives above 0. passage_distilled, bool [N]: those that
            only distillation reads; missing: none. With a guide query_guide [B, Dg] and
            passage_guide [N, Dg]; to fit them Dg is D. For MaxSim query_real [B, T] and
            passage_real [N, S], bool, the tokens that count.
        mesh: its batch axis splits all of them.
        scale: 1 / temperature, if it is not `loss.temperature`.
        normalize: embeddings have unit length, so a Matryoshka prefix is scaled to unit length,
            too.

    Returns:
        The loss and scalar metrics, both means over the rows with a positive: accuracy (share of
        rows with a positive above all negatives), positive (score of the positives), negatives
        (passages a query is contrasted with), masked (passages masked as judged positives), and, if
        they apply, masked_by_score, contrastive, distillation, vectors, and loss_<dim>, which does
        not include vectors.

    Raises:
        InputError: the shapes do not fit the options (at trace time).
    """
    _check(loss, queries, passages, batch)
    queries, passages, batch = jax.tree.map(_split, (queries, passages, dict(batch)))
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    scale = jnp.asarray(loss.scale if scale is None else scale, wide)
    width = queries.shape[-1]
    dims = loss.dims or (width,)
    weights = loss.dim_weights or (1.0,) * len(dims)
    total, metrics, by_dim = 0.0, None, {}
    for dim, weight in zip(dims, weights, strict=True):
        q, p = queries[..., :dim], passages[..., :dim]
        if normalize and dim < width:
            q, p = l2_normalize(q), l2_normalize(p)
        value, found = _at_full_width(loss, q, p, batch, mesh, scale)
        total += weight / sum(weights) * value
        by_dim[f"loss_{dim}"] = value
        if metrics is None or dim == max(dims):
            metrics = found
    if loss.dims:
        metrics |= by_dim
    if loss.vectors:
        metrics["vectors"] = _vectors(loss, queries, passages, batch)
        total += loss.vectors_weight * metrics["vectors"]
    return total, metrics


def _check(loss: Loss, queries: jax.Array, passages: jax.Array, batch: Batch) -> None:
    rows, count = queries.shape[0], passages.shape[0]
    wanted = 3 if loss.scores == "maxsim" else 2
    if queries.ndim != wanted or passages.ndim != wanted or count % rows:
        raise InputError(
            f"train.loss.scores={loss.scores!r} expects {wanted} axes and whole rows of passages; "
            f"got queries {queries.shape}, passages {passages.shape}"
        )
    group = count // rows
    if group < loss.num_positives:
        raise InputError(
            f"train.loss.num_positives={loss.num_positives}, but a row has {group} passages"
        )
    if not loss.in_batch and loss.contrasts and group == loss.num_positives:
        raise InputError("train.loss.in_batch=False and no hard negatives: no negatives are left")
    if loss.distillation and group < 2:
        raise InputError("train.loss.distillation compares the passages of a row; it has only one")
    if loss.dims and max(loss.dims) > queries.shape[-1]:
        raise InputError(
            f"train.loss.dims={loss.dims}: the embeddings have {queries.shape[-1]} dimensions"
        )
    if loss.vectors and loss.scores == "maxsim":
        raise InputError(f"train.loss.{loss.guided} needs one vector per text")
    names = ["passage_ids", "positive_ids"]
    names += ["teacher_scores"] * loss.needs_teacher_scores
    names += ["passage_weights"] * loss.weights
    names += ["query_guide", "passage_guide"] * loss.needs_guide
    names += ["query_real", "passage_real"] * (loss.scores == "maxsim")
    missing = [name for name in names if name not in batch]
    if missing:
        raise InputError(f"train.loss: the batch has no {', '.join(missing)}")
    if loss.vectors and batch["query_guide"].shape[-1] != queries.shape[-1]:
        raise InputError(
            f"train.loss.{loss.guided}: the student's vectors are {queries.shape[-1]} wide, "
            f"the guide's {batch['query_guide'].shape[-1]}"
        )


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The data of each row, on the device that holds it.

    Attributes:
        ids_bg, real_bg: passage ids; which slots are filled.
        contrasted_bg: which of these are not for distillation alone.
        known_bg: hard negatives that are judged positive.
        scores_bg: the query's scores for its own passages.
        valid_b: rows with a positive.
        weight_b: how much each counts.
        count: the sum of the weights of the valid ones over the whole batch.
        weights_bg: of a row's own passages; None: all are 1.
    """

    ids_bg: jax.Array
    real_bg: jax.Array
    contrasted_bg: jax.Array
    known_bg: jax.Array
    scores_bg: jax.Array
    valid_b: jax.Array
    weight_b: jax.Array
    count: jax.Array
    weights_bg: jax.Array | None = None

    def mean(self, value_b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(self.valid_b, self.weight_b * value_b, 0.0)) / self.count


def _at_full_width(loss, queries, passages, batch, mesh, scale):
    rows = _own_rows(loss, queries, passages, batch)
    positives = loss.num_positives
    hard = slice(positives, None)
    above_bh = rows.contrasted_bg[:, hard] & False
    ceiling_b, guide = None, None
    if loss.score_mask:
        judge_bg = jax.lax.stop_gradient(rows.scores_bg)
        if loss.masks_by_guide:
            guide = batch["query_guide"], batch["passage_guide"]
            judge_bg = jnp.einsum(
                "bd,bgd->bg",
                guide[0],
                _by_row(guide[1], rows.ids_bg.shape),
                precision=jax.lax.Precision.HIGHEST,
            )
        ceiling_b = _ceiling(loss, judge_bg, rows)
        if loss.mask_hard:
            above_bh = judge_bg[:, hard] >= ceiling_b[:, None]
            above_bh &= rows.contrasted_bg[:, hard] & ~rows.known_bg[:, hard]
    hard_bh = rows.contrasted_bg[:, hard] & ~rows.known_bg[:, hard] & ~above_bh

    terms, weights, total = {}, {}, jnp.zeros((), rows.scores_bg.dtype)
    if loss.contrasts:
        if loss.in_batch:
            sides = _sides(loss, batch, rows, ceiling_b, guide)
            at = functools.partial(
                _term, loss, queries=queries, passages=passages, sides=sides, mesh=mesh
            )
            for name in loss.terms:
                terms[name] = at(name, scale=scale * (1 + loss.hardness))
                if loss.hardness:
                    weights[name] = at(name, scale=scale * loss.hardness)
        value = rows.mean(_info_nce(loss, rows, hard_bh, terms, weights, scale))
        total += loss.contrastive_weight * value
    metrics = _metrics(loss, rows, hard_bh, above_bh, terms)
    if loss.distillation:
        metrics["distillation"] = _distillation(loss, rows, batch["teacher_scores"], scale)
        total += loss.distillation_weight * metrics["distillation"]
    if loss.contrasts and (loss.distillation or loss.vectors):
        metrics["contrastive"] = value
    return total, metrics


def _vectors(loss: Loss, queries: jax.Array, passages: jax.Array, batch: Batch) -> jax.Array:
    """How far the student's vectors are from the guide's; see `Loss.vectors`."""
    real_bg = _by_row(batch["passage_ids"], (len(queries), len(passages) // len(queries))) >= 0
    valid_b = jnp.any(real_bg[:, : loss.num_positives], axis=1)
    sides = (
        (queries, batch["query_guide"], valid_b),
        (passages, batch["passage_guide"], _flat(real_bg & valid_b[:, None])),
    )
    means = []
    for student_nd, guide_nd, counts_n in sides:
        guide_nd = jax.lax.stop_gradient(guide_nd).astype(student_nd.dtype)
        if loss.vectors == "cosine":
            far_n = 1.0 - jnp.sum(l2_normalize(student_nd) * l2_normalize(guide_nd), axis=-1)
        else:
            far_n = jnp.sum((student_nd - guide_nd) ** 2, axis=-1)
        total = jnp.sum(jnp.where(counts_n, far_n, 0.0))
        means.append(total / jnp.maximum(jnp.sum(counts_n), 1))
    return (means[0] + means[1]) / 2


def _by_row(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """[N, ...] -> [B, G, ...], split over the batch axis as before."""
    spec = P(*mesh_lib.spec("batch"), *([None] * x.ndim))
    return jax.lax.reshape(x, (*shape, *x.shape[1:]), out_sharding=spec)


def _flat(x: jax.Array) -> jax.Array:
    """[B, P, ...] -> [B·P, ...], split over the batch axis as before."""
    spec = P(*mesh_lib.spec("batch"), *([None] * (x.ndim - 2)))
    return jax.lax.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=spec)


def _split(x: jax.Array) -> jax.Array:
    """Splits over the batch axis; arrays already split so are passed through."""
    return jax.reshard(x, P(*mesh_lib.spec("batch"), *([None] * (x.ndim - 1))))


def _own_rows(loss: Loss, queries: jax.Array, passages: jax.Array, batch: Batch) -> _Rows:
    size = queries.shape[0]
    shape = size, passages.shape[0] // size
    ids_bg = _by_row(batch["passage_ids"], shape)
    real_bg = ids_bg >= 0

    def judged(found_bg, wanted_b):
        return found_bg | (ids_bg == wanted_b[:, None]), None

    known_bg, _ = jax.lax.scan(judged, real_bg & False, jnp.swapaxes(batch["positive_ids"], 0, 1))
    is_positive_g = jnp.arange(shape[1]) < loss.num_positives
    contrasted_bg = real_bg
    if "passage_distilled" in batch:
        contrasted_bg &= ~_by_row(batch["passage_distilled"], shape)
    known_bg &= contrasted_bg & ~is_positive_g[None, :]
    own = _by_row(passages, shape)
    if loss.scores == "inner":
        scores_bg = jnp.einsum("bd,bgd->bg", queries, own, precision=jax.lax.Precision.HIGHEST)
    else:
        real_bgs = _by_row(batch["passage_real"], shape)
        scores_bg = max_sim_own(queries, own, batch["query_real"], real_bgs)
    valid_b = jnp.any(real_bg[:, : loss.num_positives], axis=1)
    weights_bg, weight_b = None, jnp.ones_like(scores_bg[:, 0])
    if loss.weights:
        weights_bg = batch["passage_weights"].astype(scores_bg.dtype)
        is_bp = real_bg[:, : loss.num_positives]
        sums_b = jnp.sum(jnp.where(is_bp, weights_bg[:, : loss.num_positives], 0.0), axis=1)
        weight_b = sums_b / jnp.maximum(jnp.sum(is_bp, axis=1), 1)
    count = jnp.sum(jnp.where(valid_b, weight_b, 0.0))
    count = jnp.where(count > 0, count, 1.0)
    return _Rows(
        ids_bg,
        real_bg,
        contrasted_bg,
        known_bg,
        scores_bg,
        valid_b,
        weight_b,
        count,
        weights_bg,
    )


def _ceiling(loss: Loss, judge_bg: jax.Array, rows: _Rows) -> jax.Array:
    """Scores at or above this are not negatives of the row."""
    positives = slice(0, loss.num_positives)
    anchor_b = jnp.min(
        jnp.where(rows.real_bg[:, positives], judge_bg[:, positives], jnp.inf), axis=1
    )
    if loss.score_mask == "margin":
        return anchor_b - loss.margin
    return anchor_b - jnp.abs(anchor_b) * (1.0 - loss.percent)


def _sides(
    loss: Loss,
    batch: Batch,
    rows: _Rows,
    ceiling_b: jax.Array | None,
    guide: tuple[jax.Array, jax.Array] | None,
) -> dict[str, tuple[Features, Any]]:
    """What the masks need of queries, passages and positive passages; see terms.py."""
    size, group = rows.ids_bg.shape
    positives = slice(0, loss.num_positives)
    row_b = jax.reshard(jnp.arange(size, dtype=jnp.int32), mesh_lib.spec("batch"))

    def for_each(x_b: jax.Array, count: int) -> jax.Array:
        shape = (size, count, *x_b.shape[1:])
        return _flat(jnp.broadcast_to(x_b[:, None], shape))

    judged_bj = batch["positive_ids"]
    queries = {
        "row": row_b,
        "judged": judged_bj,
        "slots": rows.ids_bg[:, positives],
        "real": rows.valid_b,
    }
    passages = {
        "row": for_each(row_b, group),
        "id": batch["passage_ids"],
        "real": _flat(rows.contrasted_bg),
    }
    targets = {
        "row": for_each(row_b, loss.num_positives),
        "id": _flat(rows.ids_bg[:, positives]),
        "judged": for_each(judged_bj, loss.num_positives),
    }
    if loss.mask_own_duplicates:
        queries["own"] = rows.ids_bg
    elif "passage_distilled" in batch:  # another row may have it as its negative
        queries["own"] = jnp.where(rows.contrasted_bg, -1, rows.ids_bg)
    if ceiling_b is not None:
        queries["ceiling"] = ceiling_b
        targets["ceiling"] = for_each(ceiling_b, loss.num_positives)
    if guide is not None:
        queries["guide"], passages["guide"] = guide
        targets["guide"] = _flat(_by_row(guide[1], (size, group))[:, positives])
    if loss.scores == "maxsim":
        queries["tokens"], passages["tokens"] = batch["query_real"], batch["passage_real"]
        targets["tokens"] = _flat(_by_row(batch["passage_real"], (size, group))[:, positives])
    return {"query": queries, "passage": passages, "target": targets}


# What the masks of a term read of its anchors and of its columns, in addition to what an option
# needs; the rest need not be sent.
_READ = {
    "query_to_passage": (("row", "judged", "own"), ("row", "id", "real")),
    "passage_to_query": (("row", "id"), ("row", "judged", "real")),
    "query_to_query": (("row", "judged", "slots"), ("row", "judged", "slots", "real")),
    "passage_to_passage": (("row", "id", "judged"), ("row", "id", "real")),
}
_OPTIONAL = ("guide", "tokens")


def _term(loss, name, *, queries, passages, sides, mesh, scale) -> Contrast:
    """One term's sums over the other rows of the batch, for each of its anchors."""
    positives = loss.num_positives
    left_name, right_name = name.split("_to_")
    size = queries.shape[0]
    if left_name == "query":
        anchors, left = queries, sides["query"]
    else:
        own = _by_row(passages, (size, passages.shape[0] // size))
        anchors, left = _flat(own[:, :positives]), sides["target"]
    columns = queries if right_name == "query" else passages
    read_left, read_right = _READ[name]
    read_left, read_right = (*read_left, "ceiling", *_OPTIONAL), (*read_right, *_OPTIONAL)
    left = {k: v for k, v in left.items() if k in read_left}
    right = {k: v for k, v in sides[right_name].items() if k in read_right}
    tile = ring_lib.tile_side(loss.tile_pairs, anchors, columns, platforms.of(mesh))
    how = ring_lib.gathered
    if loss.method == "ring":
        how = functools.partial(ring_lib.ring, mesh=mesh)
    return how(Term(name, loss.scores), anchors, columns, left, right, scale, tile=tile)


def _info_nce(
    loss: Loss,
    rows: _Rows,
    hard_bh: jax.Array,
    terms: dict[str, Contrast],
    weights: dict[str, Contrast],
    scale: jax.Array,
) -> jax.Array:
    """The contrastive loss of each row (Oord et al. 2018; NV-Retriever section 2).

    With hardness h, the N negatives weigh N softmax(h · logit), so that the log of their weighted
    sum is log Σ exp((1 + h) · logit) - log Σ exp(h · logit) + log N (Robinson et al. 2021,
    arXiv 2010.04592, section 3).

    Args:
        terms: at (1 + h) times the scale.
        weights: at h times the scale; empty without hardness.
    """
    size, positives = rows.ids_bg.shape[0], loss.num_positives
    logits_bg = rows.scores_bg * scale
    positive_bp = logits_bg[:, :positives]
    is_bp = rows.real_bg[:, :positives]
    # (sign, factor of the logits, log sums of the terms at this factor)
    sums = [(1, 1 + loss.hardness, {name: one.lse_a for name, one in terms.items()})]
    if loss.hardness:
        sums.append((-1, loss.hardness, {name: one.lse_a for name, one in weights.items()}))
        sums.append((1, 0.0, {name: _log(one.allowed_a, scale) for name, one in terms.items()}))

    def by_row(name: str, lse_a: jax.Array) -> jax.Array:
        return lse_a[:, None] if name.startswith("query") else _by_row(lse_a, (size, positives))

    def total(parts: list[jax.Array]) -> jax.Array:
        """log Σ exp of parts [B, P] or [B, 1]; 'pooled' combines those of all positives."""
        if loss.positives == "pooled":
            parts = [jnp.where(is_bp, x, NO_NEGATIVES) if x.shape[1] > 1 else x for x in parts]
            return jax.nn.logsumexp(jnp.concatenate(parts, axis=1), axis=1, keepdims=True)
        parts = [jnp.broadcast_to(x, positive_bp.shape) for x in parts]
        return jax.nn.logsumexp(jnp.stack(parts), axis=0)

    def parts_of(sides: tuple[str, ...], factor: float, lse: dict[str, jax.Array]):
        """The parts of the log sum over a row's negatives, on these sides of the terms."""
        parts = [by_row(name, lse[name]) for name in lse if name.startswith(sides)]
        if "query" in sides and hard_bh.shape[1]:
            hard = factor * logits_bg[:, positives:]
            if rows.weights_bg is not None:
                hard += jnp.log(jnp.maximum(rows.weights_bg[:, positives:], _LEAST_WEIGHT))
            hard = jnp.where(hard_bh, hard, NO_NEGATIVES)
            parts.append(jax.nn.logsumexp(hard, axis=1, keepdims=True))
        return parts

    def loss_of(sides: tuple[str, ...], pooled: bool) -> jax.Array:
        """-log of the positives' share, for each row."""
        negative = sum(sign * total(parts_of(sides, *at)) for sign, *at in sums)
        if pooled:
            positive_b1 = jax.nn.logsumexp(
                jnp.where(is_bp, positive_bp, NO_NEGATIVES), axis=1, keepdims=True
            )
            return jax.nn.softplus(negative - positive_b1)[:, 0]
        loss_bp = jax.nn.softplus(negative - positive_bp)
        counts_b = jnp.maximum(jnp.sum(is_bp, axis=1), 1)
        return jnp.sum(jnp.where(is_bp, loss_bp, 0.0), axis=1) / counts_b

    pooled = loss.positives == "pooled"
    reverse = any(name.startswith("passage") for name in terms)
    if not reverse or loss.partition == "joint":
        return loss_of(("query", "passage"), pooled)
    return (loss_of(("query",), pooled) + loss_of(("passage",), pooled)) / 2


def _log(counts_a: jax.Array, like: jax.Array) -> jax.Array:
    """log of counts, as a log sum."""
    counts_a = counts_a.astype(like.dtype)
    return jnp.where(counts_a > 0, jnp.log(jnp.maximum(counts_a, 1)), NO_NEGATIVES)


def _distillation(loss: Loss, rows: _Rows, teacher_bg: jax.Array, scale: jax.Array) -> jax.Array:
    """The student's scores of a row compared with the teacher's, over the slots that have both."""
    usable_bg = rows.real_bg & jnp.isfinite(teacher_bg)
    follows = loss.student_temperature or (loss.temperature if loss.distillation == "kl" else 1.0)
    teacher_bg = jnp.where(usable_bg, teacher_bg, 0.0) / (loss.teacher_temperature or follows)
    student_bg = rows.scores_bg
    if loss.student_temperature:
        student_bg = student_bg / loss.student_temperature
    elif loss.distillation == "kl":
        student_bg = student_bg * scale
    if loss.distillation == "kl":
        useful_b = jnp.sum(usable_bg, axis=1) >= 2  # a single passage has nothing to compare
        log_teacher_bg = jax.nn.log_softmax(jnp.where(usable_bg, teacher_bg, NO_NEGATIVES), axis=1)
        log_student_bg = jax.nn.log_softmax(jnp.where(usable_bg, student_bg, NO_NEGATIVES), axis=1)
        share_bg = jnp.exp(log_teacher_bg)
        kl_bg = jnp.where(usable_bg, share_bg * (log_teacher_bg - log_student_bg), 0.0)
        kl_b = jnp.sum(kl_bg, axis=1)
        return jnp.sum(jnp.where(useful_b, kl_b, 0.0)) / jnp.maximum(jnp.sum(useful_b), 1)
    positives = loss.num_positives
    pairs_bph = usable_bg[:, :positives, None] & usable_bg[:, None, positives:]

    def margins(x_bg: jax.Array) -> jax.Array:
        return x_bg[:, :positives, None] - x_bg[:, None, positives:]

    error_bph = jnp.where(pairs_bph, margins(student_bg) - margins(teacher_bg), 0.0)
    return jnp.sum(error_bph**2) / jnp.maximum(jnp.sum(pairs_bph), 1)


def _metrics(
    loss: Loss,
    rows: _Rows,
    hard_bh: jax.Array,
    above_bh: jax.Array,
    terms: dict[str, Contrast],
) -> Metrics:
    positives = loss.num_positives
    scores_bg = jax.lax.stop_gradient(rows.scores_bg)
    positive_bp, is_bp = scores_bg[:, :positives], rows.real_bg[:, :positives]
    best_b = jnp.max(
        jnp.where(hard_bh, scores_bg[:, positives:], -jnp.inf), axis=1, initial=-jnp.inf
    )
    negatives_b = jnp.sum(hard_bh, axis=1)
    known_b = jnp.sum(rows.known_bg, axis=1)
    above_b = jnp.sum(above_bh, axis=1)
    if "query_to_passage" in terms:
        others = terms["query_to_passage"]
        best_b = jnp.maximum(best_b, others.best_a)
        negatives_b += others.allowed_a
        known_b += others.known_a
        above_b += others.above_a
    first_b = jnp.max(jnp.where(is_bp, positive_bp, -jnp.inf), axis=1) > best_b
    mean_b = jnp.sum(jnp.where(is_bp, positive_bp, 0.0), axis=1) / jnp.maximum(
        jnp.sum(is_bp, axis=1), 1
    )
    metrics = {
        "accuracy": rows.mean(first_b),
        "positive": rows.mean(mean_b),
        "negatives": rows.mean(negatives_b),
        "masked": rows.mean(known_b),
    }
    if loss.score_mask:
        metrics["masked_by_score"] = rows.mean(above_b)
    return metrics
