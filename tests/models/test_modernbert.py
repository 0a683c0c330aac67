"""ModernBERT against transformers (golden vectors), and what holds without it."""

import backbone_checks as checks
import numpy as np
import pytest
import tiny_backbones
from tiny_backbones import TEXTS

from nvret_jax.errors import InputError
from nvret_jax.models.backbones.modernbert import ModernBertConfig
from nvret_jax.models.encoder import Encoder

NAMES = ["modernbert", "modernbert-biases"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            folder = tiny_backbones.write(tmp_path_factory.mktemp("models") / name, name)
            made[name] = Encoder.from_pretrained(str(folder))
        return made[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_each_layer_equals_what_torch_gave(encoders, name):
    checks.check_layer_by_layer(encoders(name), name)


@pytest.mark.parametrize("name", NAMES)
def test_texts_embed_to_what_torch_gave(encoders, name):
    encoder = encoders(name)
    got = encoder.encode(TEXTS)
    assert np.abs(got - checks.golden(name, "passage")).max() <= checks.TOLERANCE
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1])[::-1], got, atol=2e-6)
    checks.check_there_and_back(encoder, name)
    checks.check_axes(encoder)


def test_padding_and_other_texts_do_not_leak(encoders):
    checks.check_no_leak(encoders("modernbert"))


@pytest.mark.slow
def test_remat_and_dropout(encoders):
    checks.check_training(encoders("modernbert-biases"))


def test_a_local_layer_sees_its_surroundings_only(encoders):
    """With local layers alone, what is further away than all windows together has no part."""
    import jax
    from flax import nnx

    from nvret_jax.models.backbones.modernbert import ModernBert

    config = tiny_backbones.config("modernbert") | {
        "layer_types": ["sliding_attention"] * 4,
        "initializer_range": 0.3,
    }
    shape = ModernBertConfig.from_hf(config | {"local_attention": 4})
    mesh = encoders("modernbert").mesh
    with jax.set_mesh(mesh):
        model = ModernBert(shape, rngs=nnx.Rngs(0))
        ids = np.arange(20) % 15 + 4
        base = np.asarray(checks.run(model, *checks.padded([ids], 20)))[0]
        ids[15] = 1
        moved = np.abs(np.asarray(checks.run(model, *checks.padded([ids], 20)))[0] - base).max(1)
    reach = 4 * 2  # layers x tokens to either side
    assert (moved[: 15 - reach] == 0).all()
    assert (moved[15 - reach :] > 0).all()


def test_spellings_of_transformers_4_and_5_are_one():
    old = tiny_backbones.config("modernbert")
    dropped = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    new = {k: v for k, v in old.items() if k not in dropped}
    new["layer_types"] = ["full_attention", *["sliding_attention"] * 2, "full_attention"]
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    assert ModernBertConfig.from_hf(old) == ModernBertConfig.from_hf(new)
    same = ModernBertConfig.from_hf(old | {"local_rope_theta": None})
    assert same.local_rope == same.global_rope


def test_a_config_tells_all_that_is_wrong_at_once():
    bad = tiny_backbones.config("modernbert") | {
        "hidden_activation": "swiglu",
        "layer_types": ["full_attention", "odd"],
        "local_attention": 0,
        "intermediate_size": True,
        "norm_eps": "x",
    }
    del bad["vocab_size"]
    with pytest.raises(InputError) as caught:
        ModernBertConfig.from_hf(bad, "x/config.json")
    for part in (
        "x/config.json: vocab_size is missing",
        "hidden_activation='swiglu'",
        "layer_types has 2 entries with odd, expected 4",
        "local_attention=0",
        "intermediate_size=True",
        "norm_eps='x'",
    ):
        assert part in str(caught.value)
