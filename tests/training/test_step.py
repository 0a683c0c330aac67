"""Steps: chunks, groups, the ring and the mesh change nothing; a learned temperature is learned."""

import jax
import jax.numpy as jnp
import loss_worker
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_ring import WAYS, Answers, assert_close

from nvret_jax import mesh as mesh_lib
from nvret_jax.training.gradcache import Texts, chunk_rows, encode_sides, fsdp_way
from nvret_jax.training.loss.losses import Loss
from nvret_jax.training.step import init_optimizer, make_step


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    return Answers(tmp_path_factory, "steps")


SAME = {"whole": ("ring, chunks", "groups"), "tokens": ("tokens, ring, chunks",)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plain", SAME)
def test_three_steps_end_the_same(steps, way, plain):
    for case in (plain, *SAME[plain]):
        for name, expected in steps["devices 1"].items():
            if name.startswith(f"{plain}/"):
                found = steps[way][f"{case}/{name.split('/')[1]}"]
                assert_close(found, expected, 2e-6)  # three steps of 1e-6 at most


@pytest.mark.parametrize(
    ("tokens", "width", "rows", "size"),
    [(1024, 128, 127, 8), (1024, 128, 31, 8), (64, 16, 6, 3), (64, 16, 5, 3), (64, 16, 1, 1)],
)
def test_chunks_that_do_not_divide_the_rows_are_as_equal_as_can_be(tokens, width, rows, size):
    assert chunk_rows(tokens, width, rows) == size
    assert size * width <= tokens


def _encoded(encode, texts, chunk_tokens, mesh, fixed=()):
    options = {"chunk_tokens": chunk_tokens, "mesh": mesh}
    return jax.jit(lambda fixed, texts: encode_sides(encode, {}, fixed, [texts], **options))(
        fixed, texts
    )


def test_a_chunk_is_encoded_as_it_would_be_alone():
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    rng = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        model = loss_worker.Words(rng.normal(size=(9, 4)), pooled=True)
        tokens = jnp.asarray(rng.integers(0, 9, (7, 3)), jnp.int32)
        lengths = jnp.asarray(rng.integers(1, 4, 7), jnp.int32)

        graph, state = nnx.split(model)

        def encode(learned, fixed, texts):
            return nnx.merge(graph, fixed)(texts.tokens, texts.lengths)

        texts = Texts(tokens, lengths)
        (whole,), (chunks,) = (_encoded(encode, texts, n, mesh, fixed=state) for n in (-1, 12))
    np.testing.assert_allclose(np.asarray(whole), np.asarray(chunks), rtol=1e-6)


def test_what_is_not_pooled_reaches_the_model_chunk_by_chunk():
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])

    def encode(learned, fixed, texts):
        columns = [texts.tokens[:, 0], texts.lengths, texts.unpooled]
        return jnp.stack(columns, axis=1).astype(jnp.float32)

    tokens, lengths, skip = jnp.arange(7)[:, None], jnp.arange(7) + 10, jnp.arange(7) + 20
    with jax.set_mesh(mesh):
        for chunk_tokens in (-1, 3):
            texts = Texts(tokens, lengths, None, skip)
            (out,) = _encoded(encode, texts, chunk_tokens, mesh)
            np.testing.assert_array_equal(out, np.stack([tokens[:, 0], lengths, skip], 1))


def test_a_learned_temperature_stops_at_its_floor():
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    loss = Loss(temperature=0.05, temperature_learning_rate=1.0, temperature_min=0.04)
    with jax.set_mesh(mesh):
        graph, weights, rest = nnx.split(loss_worker.Words(np.eye(4), pooled=True), nnx.Param, ...)
        batch = {  # every query is its own passage: the sharper, the better
            "query_tokens": jnp.arange(4, dtype=jnp.int32)[:, None],
            "query_lengths": jnp.ones(4, jnp.int32),
            "passage_tokens": jnp.arange(4, dtype=jnp.int32)[:, None],
            "passage_lengths": jnp.ones(4, jnp.int32),
            "passage_ids": jnp.arange(4, dtype=jnp.int32),
            "positive_ids": jnp.arange(4, dtype=jnp.int32)[:, None],
        }
        optimizer = optax.sgd(0.0)
        state = init_optimizer(optimizer, loss, weights)
        step = make_step(
            graph, optimizer, mesh=mesh, loss=loss, chunk_tokens=-1, dropout=False, seed=0
        )
        weights, state, first = step(weights, state, rest, batch, jnp.uint32(1))
        weights, state, second = step(weights, state, rest, batch, jnp.uint32(2))
    assert float(first["temperature"]) == pytest.approx(0.05)
    assert float(second["temperature"]) == pytest.approx(0.04)
    assert float(second["loss"]) < float(first["loss"])


@pytest.mark.parametrize(
    ("gather", "memory_bytes", "way"),
    [
        ("auto", 18_432, "step"),
        ("auto", 18_431, "layer"),
        ("auto", 0, "step"),  # unknown
        ("step", 1, "step"),
        ("layer", 0, "layer"),
    ],
)
def test_weights_are_gathered_once_where_a_third_of_a_device_holds_them(gather, memory_bytes, way):
    """A kernel in bfloat16 and the sum of its gradients in float32, halved by the tensor axis."""
    axes = ("data", "fsdp", "tensor")
    mesh = AbstractMesh((1, 4, 2), axes, axis_types=(AxisType.Explicit,) * 3)

    def struct(*spec):
        where = NamedSharding(mesh, P(*spec))
        return jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=where)

    learned = {
        "layers": {"up_kernel": struct("fsdp", "tensor"), "norm": struct(None, None)},
        "embeddings": {"word": struct(None, "fsdp")},  # never gathered
    }
    found = []
    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(
            lambda learned: found.append(fsdp_way(gather, learned, "bfloat16", memory_bytes)),
            learned,
        )
    assert found == [way]
