"""Every option of the loss against loops over pairs in float64, by both ways to compute it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_reference import make_batch, reference

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.training.loss.losses import Loss, batch_loss

ALL = ("query_to_passage", "passage_to_query", "query_to_query", "passage_to_passage")
BOTH = ("query_to_passage", "passage_to_query")

# name: options, what the batch is like, whether prefixes are brought to unit length
CASES = {
    "default": ({}, {}, False),
    "hard negatives alone": ({"in_batch": False}, {}, False),
    "no hard negatives": ({}, {"hard": 0}, False),
    "both directions, separate": ({"terms": BOTH, "partition": "separate"}, {}, False),
    "all terms": ({"terms": ALL}, {"hard": 1}, False),
    "queries against queries": ({"terms": ("query_to_passage", "query_to_query")}, {}, False),
    "several positives": ({"num_positives": 3}, {"positives": 3}, False),
    "several positives, pooled": (
        {"num_positives": 2, "positives": "pooled", "terms": BOTH},
        {"positives": 2},
        False,
    ),
    "several positives, all terms, separate": (
        {"num_positives": 2, "positives": "pooled", "terms": ALL, "partition": "separate"},
        {"positives": 2},
        False,
    ),
    "own duplicates": ({"mask_own_duplicates": True}, {"rows": 6, "hard": 4}, False),
    "margin by own scores": ({"score_mask": "margin", "margin": -0.2}, {}, False),
    "percent by own scores, hard ones too": (
        {"score_mask": "percent", "percent": 0.9, "mask_hard": True},
        {},
        False,
    ),
    "a guide, all terms": (
        {
            "score_mask": "percent",
            "percent": 0.8,
            "mask_by": "guide",
            "mask_hard": True,
            "terms": ALL,
            "num_positives": 2,
        },
        {"positives": 2, "guide": 5},
        False,
    ),
    "prefixes": (
        {"dims": (8, 4, 2), "dim_weights": (1.0, 0.5, 0.25), "score_mask": "margin"},
        {},
        True,
    ),
    "weights": ({"weights": True}, {}, False),
    "weights, several positives, both directions": (
        {"weights": True, "num_positives": 2, "terms": BOTH, "partition": "separate"},
        {"positives": 2},
        False,
    ),
    "weights of pooled positives, hard negatives alone": (
        {"weights": True, "num_positives": 2, "positives": "pooled", "in_batch": False},
        {"positives": 2, "hard": 3},
        False,
    ),
    "hardness": ({"hardness": 0.5}, {}, False),
    "hardness, every term, several positives": (
        {"hardness": 1.5, "num_positives": 2, "terms": ALL, "score_mask": "percent"},
        {"positives": 2},
        False,
    ),
    "hardness, both directions apart, weights": (
        {"hardness": 0.7, "weights": True, "terms": BOTH, "partition": "separate"},
        {"hard": 3},
        True,
    ),
    "hardness of pooled positives": (
        {"hardness": 0.3, "num_positives": 2, "positives": "pooled", "terms": BOTH},
        {"positives": 2},
        False,
    ),
    "hardness of hard negatives alone": ({"hardness": 2.0, "in_batch": False}, {"hard": 3}, False),
    "KL alone": (
        {"distillation": "kl", "contrastive_weight": 0.0, "teacher_temperature": 2.0},
        {},
        False,
    ),
    "MarginMSE mixed in": (
        {"distillation": "margin_mse", "distillation_weight": 0.3, "num_positives": 2},
        {"positives": 2},
        False,
    ),
    "KL over more than is contrasted": (
        {"distillation": "kl", "teacher_temperature": 2.0, "terms": ALL},
        {"hard": 4, "distilled": 2},
        False,
    ),
    "KL over more than is contrasted, masked and weighted": (
        {
            "distillation": "kl",
            "score_mask": "percent",
            "mask_hard": True,
            "mask_own_duplicates": True,
            "weights": True,
        },
        {"hard": 5, "distilled": 3},
        False,
    ),
    "MarginMSE to more than is contrasted": (
        {"distillation": "margin_mse", "in_batch": False},
        {"hard": 3, "distilled": 2},
        False,
    ),
    "vectors alone": (
        {"vectors": "cosine", "vectors_weight": 2.0, "contrastive_weight": 0.0, "in_batch": False},
        {"hard": 0, "guide": 8},
        False,
    ),
    "vectors squared, several positives": (
        {"vectors": "squared", "num_positives": 2, "vectors_weight": 0.5, "terms": ALL},
        {"positives": 2, "guide": 8},
        False,
    ),
    "vectors whole beside prefixes": (
        {"vectors": "cosine", "dims": (4, 2), "dim_weights": (1.0, 0.5)},
        {"guide": 8},
        True,
    ),
    "vectors and KL over more than is contrasted, masked by the same guide": (
        {
            "vectors": "cosine",
            "distillation": "kl",
            "score_mask": "percent",
            "mask_by": "guide",
            "weights": True,
        },
        {"hard": 4, "distilled": 2, "guide": 8},
        False,
    ),
    "KL mixed in, a temperature of its own": (
        {"distillation": "kl", "student_temperature": 0.5, "in_batch": False, "dims": (8, 3)},
        {},
        True,
    ),
}


@pytest.fixture(scope="module")
def mesh():
    return mesh_lib.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def _doubles():
    with jax.enable_x64(True):
        yield


def run(mesh, loss, q, p, batch, scale=None, normalize=False):
    """Loss, metrics and gradients by queries, passages and 1 / temperature."""

    def of(q, p, scale, batch):
        return batch_loss(loss, q, p, batch, mesh=mesh, scale=scale, normalize=normalize)

    with jax.set_mesh(mesh):
        arrays = jax.tree.map(jnp.asarray, (q, p, scale or loss.scale, batch))
        (value, metrics), grads = jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True))(
            *arrays
        )
    return float(value), {k: float(v) for k, v in metrics.items()}, jax.tree.map(np.asarray, grads)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_the_loops(mesh, name):
    options, kind, normalize = CASES[name]
    q, p, batch = make_batch(list(CASES).index(name), **kind)
    rng = np.random.default_rng(5)
    towards = [rng.normal(size=q.shape), rng.normal(size=p.shape), 1.0]

    def at(step, which):
        moved = [q, p, 1 / 0.1]
        moved[which] = moved[which] + step * towards[which]
        loss = Loss(temperature=0.1, **options)
        x, y, scale = moved
        return reference(loss, x, y, batch, temperature=1 / scale, normalize=normalize)[0]

    slopes = [(at(1e-5, i) - at(-1e-5, i)) / 2e-5 for i in range(3)]
    methods = ("gather", "ring") if options.get("in_batch", True) else ("gather",)
    for method in methods:
        loss = Loss(temperature=0.1, method=method, tile_pairs=30, **options)
        value, metrics, grads = run(mesh, loss, q, p, batch, normalize=normalize)
        expected, counts = reference(loss, q, p, batch, normalize=normalize)
        assert value == pytest.approx(expected, rel=1e-10)
        for grad, to, slope in zip(grads, towards, slopes, strict=True):
            assert np.sum(grad * to) == pytest.approx(slope, rel=1e-6, abs=1e-8)
        if counts:
            assert metrics["negatives"] == pytest.approx(counts["negatives"])
            assert metrics["accuracy"] == pytest.approx(counts["accuracy"])
            assert metrics["masked"] == pytest.approx(counts["masked"])
            assert metrics.get("masked_by_score", 0.0) == pytest.approx(counts["above"])


def test_the_cases_reach_what_they_are_named_for():
    """A mask that never masks would be tested by nothing."""
    for name, (options, kind, normalize) in CASES.items():
        q, p, batch = make_batch(list(CASES).index(name), **kind)
        value, counts = reference(Loss(**options), q, p, batch, normalize=normalize)
        if options.get("score_mask"):
            assert counts["above"] > 0, name
        if kind.get("distilled"):
            every = batch | {"passage_distilled": np.zeros(len(p), bool)}
            assert reference(Loss(**options), q, p, every)[0] != value, name
        if options.get("vectors"):
            assert reference(Loss(**options | {"vectors_weight": 9.0}), q, p, batch)[0] != value
        if "hardness" in options:
            equal = options | {"hardness": 0.0}
            assert reference(Loss(**equal), q, p, batch)[0] != value, name
        if "weights" in options:
            options = options | {"weights": False}
            assert reference(Loss(**options), q, p, batch)[0] != value, name
        if "mask_own_duplicates" in options:
            options = options | {"mask_own_duplicates": False}
            assert reference(Loss(**options), q, p, batch)[0] != value, name


def test_accuracy_is_the_share_of_rows_whose_positive_is_first(mesh):
    q = np.eye(4)
    p = np.eye(4)[[0, 1, 3, 2]]  # rows 2 and 3 have each other's passage
    batch = {
        "passage_ids": np.arange(4, dtype=np.int32),
        "positive_ids": np.arange(4, dtype=np.int32)[:, None],
    }
    for method in ("gather", "ring"):
        metrics = run(mesh, Loss(method=method), q, p, batch)[1]
        assert metrics["accuracy"] == 0.5
        assert metrics["positive"] == 0.5


@pytest.mark.parametrize("method", ["gather", "ring"])
def test_empty_slots_and_rows_get_no_gradient(mesh, method):
    q, p, batch = make_batch(3)
    loss = Loss(method=method, tile_pairs=30, terms=ALL)
    _, _, (to_q, to_p, _) = run(mesh, loss, q, p, batch)
    empty = batch["passage_ids"] < 0
    assert empty.any()
    assert np.all(to_p[empty] == 0)
    assert np.all(to_q[len(q) - 2] == 0)  # the row without a positive
    assert np.any(to_p[~empty] != 0)


@pytest.mark.parametrize("hardness", [0.0, 0.5])
@pytest.mark.parametrize("method", ["gather", "ring"])
def test_a_query_without_negatives_costs_nothing(mesh, method, hardness):
    q, p, batch = make_batch(0, rows=3, hard=0)
    batch["passage_ids"][:] = 7
    batch["positive_ids"][:] = -1
    batch["positive_ids"][:, 0] = 7
    value, metrics, grads = run(mesh, Loss(method=method, hardness=hardness), q, p, batch)
    assert value == 0
    assert metrics["negatives"] == 0
    assert all(np.all(grad == 0) for grad in grads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": ("passage_to_query",)}, "must include 'query_to_passage'"),
        ({"terms": ("query_to_passage", "dd")}, "each one of query_to_passage"),
        ({"terms": BOTH, "in_batch": False}, "terms between rows need in-batch negatives"),
        ({"in_batch": False, "score_mask": "margin"}, "has no effect"),
        ({"method": "mesh"}, "loss.method='mesh': expected one of gather, ring"),
        ({"temperature": 0.0}, "loss.temperature=0.0: expected a number"),
        ({"temperature": 0.001, "temperature_learning_rate": 0.1}, "temperature_min"),
        ({"dims": (8, 4), "dim_weights": (1.0,)}, "expected one for each of 2 dims"),
        ({"contrastive_weight": 0.0}, "the loss would be empty"),
        (
            {"contrastive_weight": 0.0, "vectors": "cosine", "vectors_weight": 0.0},
            "the loss would be empty",
        ),
        ({"contrastive_weight": 0.0, "vectors": "cosine", "dims": (4,)}, "dims.* has no effect"),
        ({"vectors": "mse"}, "loss.vectors='mse': expected one of '', cosine, squared"),
        ({"temperature": -1.0, "partition": "both"}, "temperature=-1.0.*; .*partition='both'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Loss(**options)


@pytest.mark.parametrize(
    ("options", "drop", "message"),
    [
        ({"distillation": "kl"}, "teacher_scores", "the batch has no teacher_scores"),
        ({"score_mask": "margin", "mask_by": "guide"}, "", "no query_guide, passage_guide"),
        ({"num_positives": 4}, "", "num_positives=4, but a row has 3 passages"),
        ({"num_positives": 3, "in_batch": False}, "", "no negatives are left"),
        ({"dims": (16, 8)}, "", "the embeddings have 8 dimensions"),
        ({"scores": "maxsim"}, "", "expects 3 axes"),
        ({"vectors": "cosine"}, "", "no query_guide, passage_guide"),
        ({"weights": True}, "passage_weights", "the batch has no passage_weights"),
    ],
)
def test_a_batch_that_does_not_fit_the_options_is_an_error(mesh, options, drop, message):
    q, p, batch = make_batch(0)
    batch.pop(drop, None)
    with pytest.raises(InputError, match=message):
        run(mesh, Loss(**options), q, p, batch)


def test_a_negative_without_weight_is_none(mesh):
    """Weight 0 is as an empty slot, and equal weights of rows are no weights."""
    q, p, batch = make_batch(2)
    ids = batch["passage_ids"].reshape(len(q), -1)
    batch["passage_weights"][:, 0] = 0.3
    batch["passage_weights"][:, 1] = 0.0
    batch["passage_weights"][:, 2:] = 1.0
    weighed = run(mesh, Loss(weights=True, in_batch=False), q, p, batch)[0]
    without = batch | {"passage_ids": ids.copy()}
    without["passage_ids"][:, 1] = -1
    without["passage_ids"] = without["passage_ids"].reshape(-1)
    assert weighed == pytest.approx(run(mesh, Loss(in_batch=False), q, p, without)[0], rel=1e-6)


def test_a_guide_of_another_width_cannot_be_fitted(mesh):
    q, p, batch = make_batch(0, guide=5)
    with pytest.raises(InputError, match="vectors='cosine': the student's vectors are 8 wide, the"):
        run(mesh, Loss(vectors="cosine"), q, p, batch)


@pytest.mark.parametrize("vectors", ["cosine", "squared"])
def test_a_student_with_the_vectors_of_its_guide_has_nothing_to_learn(mesh, vectors):
    """The order of passages within a row counts, too: each vector has one to be fitted to."""
    q, p, batch = make_batch(0, guide=8)
    batch |= {"query_guide": q, "passage_guide": p}
    loss = Loss(vectors=vectors, contrastive_weight=0.0)
    value, metrics, grads = run(mesh, loss, q, p, batch)
    assert abs(value) < 1e-12
    assert metrics["vectors"] == value
    assert all(np.abs(grad).max() < 1e-9 for grad in grads)
    batch["passage_guide"] = np.roll(p, 1, axis=0)
    assert run(mesh, loss, q, p, batch)[0] > 0.1


def test_metrics_of_a_loss_with_vectors(mesh):
    q, p, batch = make_batch(0, guide=8)
    alone = run(mesh, Loss(), q, p, batch)
    _, metrics, _ = run(mesh, Loss(vectors="cosine", vectors_weight=3.0), q, p, batch)
    assert metrics["contrastive"] == pytest.approx(alone[0])
    assert metrics.items() >= alone[1].items()
    assert metrics.keys() - alone[1].keys() == {"contrastive", "vectors"}
    value, metrics, _ = run(mesh, Loss(vectors="cosine", contrastive_weight=0.0), q, p, batch)
    assert metrics["vectors"] == value
    assert "contrastive" not in metrics


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(mesh):
    """With cosines on both sides the default divides both alike."""
    q, p, batch = make_batch(0)
    own = np.einsum("bd,bgd->bg", q, p.reshape(len(q), -1, q.shape[1]))
    batch["teacher_scores"] = np.where(np.isfinite(batch["teacher_scores"]), own, -np.inf)
    loss = Loss(distillation="kl", contrastive_weight=0.0)
    value, _, grads = run(mesh, loss, q, p, batch)
    assert abs(value) < 1e-12
    assert all(np.abs(grad).max() < 1e-9 for grad in grads)
    flat = dataclasses.replace(loss, teacher_temperature=1.0)
    assert run(mesh, flat, q, p, batch)[0] > 0.5
