import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from flax import nnx

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models.backbones.bert import Bert, BertConfig, check_mesh
from nvret_jax.models.backbones.layer import Options
from nvret_jax.models.options import REMAT

CONFIG = BertConfig.from_hf(tiny_models.config())
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def mesh():
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.devices()[:1])) as mesh:
        yield mesh


def build(**options):
    return Bert(CONFIG, options=Options(**options), rngs=nnx.Rngs(0))


def batch(size=4, tokens=10):
    tokens_bt = jnp.asarray(RNG.integers(0, CONFIG.vocab_size, (size, tokens)), jnp.int32)
    return tokens_bt, jnp.asarray(RNG.integers(1, tokens + 1, size), jnp.int32)


def real(hidden_btd, lengths_b):
    return [h[:n] for h, n in zip(np.asarray(hidden_btd), np.asarray(lengths_b), strict=True)]


@jax.jit
def run(model, tokens_bt, lengths_b, dropout_keys_b=None):
    return model(tokens_bt, lengths_b, dropout_keys_b=dropout_keys_b)


def test_what_stands_in_the_padding_and_its_width_do_not_matter(mesh):
    model = build()
    tokens, lengths = batch()
    at = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    base = real(run(model, tokens, lengths), lengths)
    other = real(run(model, jnp.where(at, tokens, 7), lengths), lengths)
    wider = real(run(model, jnp.pad(tokens, ((0, 0), (0, 6))), lengths), lengths)
    for a, b, c in zip(base, other, wider, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, atol=2e-6)


def test_dropout_belongs_to_the_example(mesh):
    model = build(dropout=0.3)
    tokens, lengths = batch(6)
    keys = jax.random.split(jax.random.key(1), 6)
    whole = run(model, tokens, lengths, dropout_keys_b=keys)
    parts = [
        run(model, tokens[i : i + 2], lengths[i : i + 2], dropout_keys_b=keys[i : i + 2])
        for i in (0, 2, 4)
    ]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=2e-6)
    # … and to nothing else: twice the same example with two keys gives two results.
    twice = run(model, tokens[:1].repeat(2, 0), lengths[:1].repeat(2), dropout_keys_b=keys[:2])
    assert np.abs(twice[0, 0] - twice[1, 0]).max() > 0.1
    none = run(model, tokens, lengths)
    assert np.abs(none - whole).max() > 0.1
    np.testing.assert_array_equal(none, run(build(), tokens, lengths, dropout_keys_b=keys))


def test_dropout_keeps_the_mean(mesh):
    from nvret_jax.models.backbones.layer import dropout

    x = jnp.ones((4, 5000))
    keys = jax.random.split(jax.random.key(0), 4)
    kept = np.asarray(dropout(x, keys, 0, 0.25))
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.02)
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
    assert (kept != np.asarray(dropout(x, keys, 1, 0.25))).mean() > 0.3  # another place


@pytest.mark.slow
def test_remat_changes_no_number(mesh):
    tokens, lengths = batch()
    keys = jax.random.split(jax.random.key(1), 4)

    def gradient(remat):
        model = build(remat=remat, dropout=0.1)
        loss = jax.jit(jax.grad(lambda m: jnp.sin(m(tokens, lengths, dropout_keys_b=keys)).sum()))
        return jax.tree.leaves(loss(model))

    plain = gradient("none")
    for remat in REMAT[1:]:
        for a, b in zip(plain, gradient(remat), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
            assert np.isfinite(a).all()


@pytest.mark.slow
def test_the_more_is_computed_again_the_less_memory_a_step_takes(mesh):
    config = dataclasses.replace(CONFIG, max_position_embeddings=128, num_hidden_layers=6)
    tokens, lengths = jnp.zeros((4, 128), jnp.int32), jnp.full((4,), 100, jnp.int32)
    keys = jax.random.split(jax.random.key(1), 4)

    def temporary(remat):
        options = Options(remat=remat, dropout=0.1)
        model = Bert(config, options=options, rngs=nnx.Rngs(0))
        loss = jax.grad(lambda m: jnp.sin(m(tokens, lengths, dropout_keys_b=keys)).sum())
        return jax.jit(loss).lower(model).compile().memory_analysis().temp_size_in_bytes

    none, attention, dots, full = (temporary(remat) for remat in REMAT)
    assert full < dots < attention < none
    scores = 6 * 4 * 4 * 128 * 128 * 4  # layers, texts, heads, float32
    assert none - attention > 0.8 * scores
    assert full < none / 3


def test_bfloat16_is_near_float32_and_float32_outside(mesh):
    tokens, lengths = batch()
    exact, rough = run(build(), tokens, lengths), run(build(dtype="bfloat16"), tokens, lengths)
    assert rough.dtype == jnp.float32
    assert 1e-4 < np.abs(exact - rough).max() < 0.1


def test_wide_rounds_only_the_operands_of_products_with_weights(mesh):
    tokens, lengths = batch()
    exact = run(build(), tokens, lengths)
    narrow = run(build(dtype="bfloat16"), tokens, lengths)
    wide = run(build(dtype="bfloat16", wide=True), tokens, lengths)
    assert wide.dtype == jnp.float32
    assert 1e-5 < np.abs(exact - wide).mean() < 0.8 * np.abs(exact - narrow).mean()
    np.testing.assert_array_equal(exact, run(build(wide=True), tokens, lengths))


def test_every_weight_has_logical_axes_of_its_rank(mesh):
    state = dict(nnx.to_flat_state(nnx.state(nnx.eval_shape(build))))
    axes = nnx.eval_shape(build).logical_axes()
    assert set(state) == set(axes)
    for path, variable in state.items():
        assert len(axes[path]) == len(variable.shape), path


def test_too_many_tokens_for_the_positions(mesh):
    tokens = jnp.zeros((1, 41), jnp.int32)
    with pytest.raises(InputError, match="41 tokens, but this model has positions for 40"):
        build()(tokens, jnp.asarray([41]))


def test_roberta_counts_positions_from_after_the_padding_id():
    config = BertConfig.from_hf(tiny_models.config("xlm-roberta"))
    assert (config.position_offset, config.max_tokens) == (2, 38)
    assert (CONFIG.position_offset, CONFIG.max_tokens) == (0, 40)


def test_a_config_tells_all_that_is_wrong_at_once():
    bad = tiny_models.config(
        hidden_act="swiglu", position_embedding_type="relative_key", num_attention_heads=5
    )
    del bad["vocab_size"]
    bad["intermediate_size"] = "64"
    with pytest.raises(InputError) as caught:
        BertConfig.from_hf(bad, "x/config.json")
    for part in (
        "x/config.json: ",
        "vocab_size is missing",
        "hidden_act='swiglu'",
        "relative_key",
        "intermediate_size='64'",
        "hidden_size=32 is not a multiple of num_attention_heads=5",
    ):
        assert part in str(caught.value)


def test_a_mesh_that_does_not_cut_evenly_is_named_with_numbers():
    mesh = jax.sharding.AbstractMesh((1, 5, 3), mesh_lib.AXES)
    with pytest.raises(InputError) as caught:
        check_mesh(CONFIG, mesh)
    assert "num_attention_heads=4 is not a multiple of mesh.tensor=3" in str(caught.value)
    assert "hidden_size=32 is not a multiple of mesh.fsdp=5" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"dropout": 1.0}, "dropout=1.0"),
        (
            {"attention": "magic"},
            "unknown attention implementation 'magic'; known: auto, xla, cudnn, splash",
        ),
        ({"remat": "some"}, "unknown remat='some'; known: none, attention, dots, full"),
        ({"remat": True}, "unknown remat=True"),
        ({"remat": False}, "unknown remat=False"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        Options(**options)
