"""A student's new projection: its initial value, its training and its export."""

import json

import jax
import numpy as np
import pytest
import tiny_models
from flax import nnx

from nvret_jax.errors import InputError
from nvret_jax.export.sentence_transformers import export
from nvret_jax.models import embedding_model, projection
from nvret_jax.models.encoder import Encoder, LoraConfig

TEXTS = ["the wing of a plate", "heat flow", "a shock layer in the body", "speed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT, 32 wide."""
    folder = tmp_path_factory.mktemp("model")
    tiny_models.write(folder, normalize=True)
    return folder


def read(folder, *args, **how):
    return Encoder.from_pretrained(str(folder), *args, **how)


def test_a_wider_space_keeps_every_score(folder):
    plain, wide = read(folder).encode(TEXTS), read(folder, projection=48).encode(TEXTS)
    assert wide.shape == (4, 48)
    np.testing.assert_allclose(wide @ wide.T, plain @ plain.T, atol=1e-6)
    assert np.abs(wide[:, :32] - plain).max() > 0.1


def test_the_same_width_keeps_every_vector(folder):
    plain, same = read(folder), read(folder, projection=32, normalize=False)
    np.testing.assert_array_equal(same.encode(TEXTS), read(folder, normalize=False).encode(TEXTS))
    assert read(folder, projection=32).fingerprint != plain.fingerprint


def test_a_narrower_space_has_orthonormal_directions_that_a_seed_decides():
    kernel = projection.initial(32, 8, 1)
    assert kernel.shape == (32, 8)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(8), atol=1e-6)
    np.testing.assert_array_equal(kernel, projection.initial(32, 8, 1))
    assert np.abs(kernel - projection.initial(32, 8, 2)).max() > 0.1


@pytest.mark.parametrize("width", [8, 32, 48])
def test_the_nearest_kernel_is_the_best_of_those_that_keep_inner_products(width):
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(200, 32)).astype(np.float32)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    hidden = np.linalg.qr(rng.normal(size=(max(width, 32), 32)))[0].T.astype(np.float32)[:, :width]
    theirs = ours @ hidden + 0.02 * rng.normal(size=(200, width))
    kernel = projection.nearest(ours, theirs)
    small = kernel @ kernel.T if width >= 32 else kernel.T @ kernel
    np.testing.assert_allclose(small, np.eye(min(32, width)), atol=1e-5)
    value = np.sum(ours @ kernel * theirs)
    for seed in range(20):  # any small turn away from it is worse
        turn, _ = np.linalg.qr(np.eye(32) + 0.1 * np.random.default_rng(seed).normal(size=(32, 32)))
        turn = turn * np.sign(np.diag(turn))
        assert np.sum(ours @ turn @ kernel * theirs) < value
    if width >= 32:
        np.testing.assert_allclose(kernel, hidden, atol=0.1)
        np.testing.assert_allclose(projection.nearest(ours, ours @ hidden), hidden, atol=1e-5)


def test_a_kernel_is_put_in_and_taken_away(folder):
    encoder = read(folder, projection=48)
    np.testing.assert_array_equal(
        encoder.without_projection().encode(TEXTS), read(folder).encode(TEXTS)
    )
    kernel = projection.initial(32, 48, 9)
    other = encoder.with_projection(kernel)
    np.testing.assert_array_equal(other.save_dense_hf()[0]["linear.weight"], kernel.T)
    assert np.abs(other.encode(TEXTS) - encoder.encode(TEXTS)).max() > 0.1


def test_a_seed_decides_the_kernel_of_a_model(folder):
    one, other = (read(folder, projection=8, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(
        one.save_dense_hf()[0]["linear.weight"], projection.initial(32, 8, 1).T
    )
    assert one.fingerprint != other.fingerprint


def test_adapters_train_it_and_it_is_float32(folder):
    encoder = read(folder, projection=8, lora=LoraConfig(rank=2), param_dtype="bfloat16")
    _, trained, _ = nnx.split(encoder.model, encoder.trainable, ...)
    found = {path: leaf for path, leaf in nnx.to_flat_state(trained) if path[0] == "dense"}
    assert [(path, leaf.shape, leaf.dtype) for path, leaf in found.items()] == [
        (("dense", 0, "kernel"), (32, 8), np.float32)
    ]
    assert all("_lora_" in path[-1] for path, _ in nnx.to_flat_state(trained) if path not in found)
    _, planned = embedding_model.abstract(encoder.spec, encoder.mesh)
    shapes = dict(nnx.to_flat_state(nnx.state(planned)))
    assert shapes["dense", 0, "kernel"].dtype == np.float32


def test_an_export_has_it_as_a_dense_module(folder, tmp_path):
    encoder = read(folder, projection=8)
    out = export(encoder, tmp_path / "out")
    again = read(out)
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert (again.width, again.spec.projects) == (8, False)
    paths = [module["path"] for module in json.loads((out / "modules.json").read_text())]
    assert paths == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    twice = read(out, projection=16)  # one more, behind the one that is there
    assert [dense.out_features for dense in twice.spec.dense] == [8, 16]
    np.testing.assert_allclose(
        twice.encode(TEXTS) @ twice.encode(TEXTS).T,
        again.encode(TEXTS) @ again.encode(TEXTS).T,
        atol=1e-6,
    )


@pytest.mark.parity
def test_sentence_transformers_gives_the_same_vectors(folder, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    encoder = read(folder, projection=48)
    state = jax.tree.map(lambda x: x * 1.25, nnx.split(encoder.model)[1])  # as if trained
    encoder = encoder.replace(state)
    model = st.SentenceTransformer(str(export(encoder, tmp_path / "out")), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)


def test_what_cannot_be_projected_is_an_error(folder, tmp_path):
    with pytest.raises(InputError, match="projection=8, but this model keeps a vector for each"):
        read(folder, projection=8, pooling="tokens")
    with pytest.raises(InputError, match="projection=-1: expected"):
        read(folder, projection=-1)
    cut = export(read(folder), tmp_path / "cut")
    path = cut / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncate_dim": 4}))
    with pytest.raises(InputError, match="projection=8, but the model keeps only the first 4"):
        read(cut, projection=8)
