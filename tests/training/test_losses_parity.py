"""The loss beside sentence-transformers' losses, on the same embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.loss.losses import Loss, batch_loss

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

ROWS, HARD, WIDTH = 6, 2, 8
ALL = ("query_to_passage", "passage_to_query", "query_to_query", "passage_to_passage")
THEIR_NAME = {"query": "query", "passage": "doc"}


def batch(seed=0, hard=HARD):
    """Every passage once, so that no id is masked; their columns are positives, first hard, …"""
    rng = np.random.default_rng(seed)
    group = hard + 1

    def unit(x):
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    q = unit(rng.normal(size=(ROWS, WIDTH)))
    p = rng.normal(size=(ROWS, group, WIDTH))
    p[:, 0] += q
    arrays = {
        "passage_ids": np.arange(ROWS * group, dtype=np.int32),
        "positive_ids": np.arange(0, ROWS * group, group, dtype=np.int32)[:, None],
        "teacher_scores": rng.normal(size=(ROWS, group)).astype(np.float32),
        "query_guide": unit(rng.normal(size=(ROWS, 5))),
        "passage_guide": unit(rng.normal(size=(ROWS * group, 5))),
    }
    return q, unit(p), arrays


def ours(loss, q, p, arrays, normalize=False):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        arrays = jax.tree.map(jnp.asarray, arrays)
        flat = jnp.asarray(p.reshape(-1, p.shape[-1]))

        def of(q, flat):
            return batch_loss(loss, q, flat, arrays, mesh=mesh, normalize=normalize)[0]

        value, grads = jax.value_and_grad(of, (0, 1))(jnp.asarray(q), flat)
    return float(value), np.asarray(grads[0]), np.asarray(grads[1]).reshape(p.shape)


def theirs(compute, q, p):
    q, p = torch.tensor(q, requires_grad=True), torch.tensor(p, requires_grad=True)
    value = compute([q, *p.unbind(1)])
    value.backward()
    return value.item(), q.grad.numpy(), p.grad.numpy()


def dot(a, b):
    return a @ b.T


def assert_same(mine, other):
    assert mine[0] == pytest.approx(other[0], rel=1e-5)
    for a, b in zip(mine[1:], other[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max() + 1e-7, rtol=1e-4)


@pytest.mark.parametrize(
    ("terms", "partition"),
    [
        (("query_to_passage",), "joint"),
        (("query_to_passage", "passage_to_query"), "separate"),
        (("query_to_passage", "query_to_query", "passage_to_passage"), "joint"),
    ],
)
def test_multiple_negatives_ranking(terms, partition):
    q, p, arrays = batch()
    directions = tuple("_to_".join(THEIR_NAME[x] for x in name.split("_to_")) for name in terms)
    their = losses.MultipleNegativesRankingLoss(
        None,
        scale=20.0,
        similarity_fct=dot,
        directions=directions,
        partition_mode={"joint": "joint", "separate": "per_direction"}[partition],
    )
    expected = theirs(lambda x: their.compute_loss_from_embeddings(x, None), q, p)
    for method in ("gather", "ring"):
        loss = Loss(terms=terms, partition=partition, method=method)
        assert_same(ours(loss, q, p, arrays), expected)


def test_with_the_reverse_term_in_one_softmax_they_count_the_positive_twice():
    """So does GTE's formula; here a pair stands once in a denominator."""
    q, p, arrays = batch()
    their = losses.MultipleNegativesRankingLoss(
        None,
        similarity_fct=dot,
        directions=("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc"),
    )
    their_value = theirs(lambda x: their.compute_loss_from_embeddings(x, None), q, p)[0]
    alone = []
    for b in range(ROWS):  # their denominator less one of the two positives
        s = 20.0 * q @ p.reshape(-1, WIDTH).T
        dq, qq = 20.0 * q @ p[b, 0], 20.0 * q @ q[b]
        dd = 20.0 * p.reshape(-1, WIDTH) @ p[b, 0]
        own = np.arange(ROWS * (HARD + 1)) // (HARD + 1) == b
        other = np.arange(ROWS) != b
        terms = [s[b], dq[other], qq[other], dd[~own]]
        once = np.exp(np.concatenate(terms)).sum()
        alone.append([np.log(once) - dq[b], np.log(once + np.exp(dq[b])) - dq[b]])
    once, twice = np.mean(alone, axis=0)
    assert their_value == pytest.approx(twice, rel=1e-5)
    assert ours(Loss(terms=ALL), q, p, arrays)[0] == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize(("rule", "theirs_name"), [("margin", "absolute"), ("percent", "relative")])
def test_gist(monkeypatch, rule, theirs_name):
    q, p, arrays = batch(hard=1)
    their = object.__new__(losses.GISTEmbedLoss)
    torch.nn.Module.__init__(their)
    guide = [arrays["query_guide"], *arrays["passage_guide"].reshape(ROWS, 2, -1).swapaxes(0, 1)]
    their.model, their.guide, their.must_retokenize = "student", "guide", False
    their.temperature, their.margin, their.margin_strategy = 0.05, 0.1, theirs_name
    their.contrast_anchors = True
    their.gather_across_devices = False
    their.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
    their.cross_entropy_loss = torch.nn.CrossEntropyLoss()
    given = {}

    def embed(model, features):
        return given["student"] if model == "student" else [torch.tensor(x) for x in guide]

    monkeypatch.setitem(type(their).forward.__globals__, "embed_columns", embed)

    def compute(columns):
        given["student"] = columns
        return their([], None)

    # Their passages' term has other rows' positives alone, ours their hard negatives too.
    their.contrast_positives = False
    expected = theirs(compute, q, p)
    loss = Loss(
        terms=("query_to_passage", "query_to_query"),
        score_mask=rule,
        margin=0.1,
        percent=0.9,
        mask_by="guide",
        mask_hard=True,
    )
    assert_close_up_to_cosine(ours(loss, q, p, arrays), expected, q, p)


def assert_close_up_to_cosine(mine, other, q, p):
    """Their cosine has no gradient along the vector, an inner product has."""

    def across(gradient, x):
        return gradient - np.sum(gradient * x, -1, keepdims=True) * x

    mine = mine[0], across(mine[1], q), across(mine[2], p)
    assert_same(mine, other)


def test_distillation_by_kl():
    q, p, arrays = batch()
    their = losses.DistillKLDivLoss(
        None, similarity_fct=lambda a, b: (a * b).sum(-1), temperature=0.5
    )
    labels = torch.tensor(arrays["teacher_scores"])
    value, to_q, to_p = theirs(lambda x: their.compute_loss_from_embeddings(x, labels), q, p)
    loss = Loss(
        contrastive_weight=0.0,
        distillation="kl",
        distillation_weight=0.5**2,  # they multiply by the temperature's square
        student_temperature=0.5,
        teacher_temperature=0.5,
    )
    assert_same(ours(loss, q, p, arrays), (value, to_q, to_p))


def test_distillation_by_margins():
    q, p, arrays = batch()
    their = losses.MarginMSELoss(None, similarity_fct=lambda a, b: (a * b).sum(-1))
    teacher = arrays["teacher_scores"]
    labels = torch.tensor(teacher[:, :1] - teacher[:, 1:])
    expected = theirs(lambda x: their.compute_loss_from_embeddings(x, labels), q, p)
    loss = Loss(contrastive_weight=0.0, distillation="margin_mse")
    assert_same(ours(loss, q, p, arrays), expected)
