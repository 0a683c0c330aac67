"""Decoders against transformers (golden vectors), and what holds without it."""

import json

import backbone_checks as checks
import jax
import numpy as np
import pytest
import tiny_backbones
from tiny_backbones import CASES, DECODERS, TEXTS

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models.backbones.decoder_config import DecoderConfig, check_mesh
from nvret_jax.models.backbones.families import FAMILIES
from nvret_jax.models.backbones.rope import Rope, inverse_frequencies
from nvret_jax.models.encoder import Encoder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            folder = tiny_backbones.write(tmp_path_factory.mktemp("models") / name, name)
            made[name] = Encoder.from_pretrained(str(folder))
        return made[name]

    return get


@pytest.mark.parametrize("name", DECODERS)
def test_each_layer_equals_what_torch_gave(encoders, name):
    checks.check_layer_by_layer(encoders(name), name)


@pytest.mark.parametrize("name", DECODERS)
def test_texts_embed_to_what_torch_gave(encoders, name):
    encoder = encoders(name)
    for kind in ("query", "passage"):
        got, expected = encoder.encode(TEXTS, kind=kind), checks.golden(name, kind)
        assert np.abs(got - expected).max() <= checks.TOLERANCE
        np.testing.assert_allclose(encoder.encode(TEXTS[::-1], kind=kind)[::-1], got, atol=2e-6)
    assert len({tuple(row) for row in np.round(got, 3).tolist()}) == len(TEXTS)


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_read_is_written_again(encoders, name):
    checks.check_there_and_back(encoders(name), name)
    checks.check_axes(encoders(name))


@pytest.mark.parametrize("name", ["e5-mistral", "llama-nemotron-embed"])
def test_padding_and_other_texts_do_not_leak(encoders, name):
    checks.check_no_leak(encoders(name))


@pytest.mark.slow
def test_remat_and_dropout(encoders):
    checks.check_training(encoders("qwen3-embedding"))


def test_the_attention_can_be_turned(encoders, tmp_path):
    """A causal base read as the bidirectional model that NV-Retriever makes of it."""
    folder = tiny_backbones.write(tmp_path / "m", "e5-mistral")
    turned = Encoder.from_pretrained(str(folder), bidirectional=True)
    assert not turned.spec.backbone.causal
    assert turned.fingerprint != encoders("e5-mistral").fingerprint
    checks.check_no_leak(turned)
    # What an export says of it, read again, is the same.
    (folder / "config.json").write_text(json.dumps(turned.spec.architecture))
    again = Encoder.from_pretrained(str(folder))
    np.testing.assert_array_equal(again.encode(TEXTS), turned.encode(TEXTS))
    back = Encoder.from_pretrained(str(folder), bidirectional=False)
    np.testing.assert_array_equal(back.encode(TEXTS), encoders("e5-mistral").encode(TEXTS))


def test_the_two_flags_must_agree():
    config = tiny_backbones.config("qwen2") | {"use_bidirectional_attention": False}
    with pytest.raises(InputError, match="is_causal=False and use_bidirectional_attention=False"):
        DecoderConfig.from_hf(config)
    config = tiny_backbones.config("qwen3-embedding") | {"use_bidirectional_attention": True}
    assert not DecoderConfig.from_hf(config).causal


def test_a_sliding_window_is_the_longest_text(encoders):
    assert encoders("e5-mistral").spec.backbone.max_tokens == 40
    assert encoders("nv-embed").spec.backbone.max_tokens == 64  # its code has no window
    config = tiny_backbones.config("qwen3-embedding") | {"sliding_window": 16}
    assert DecoderConfig.from_hf(config).max_tokens == 16
    assert DecoderConfig.from_hf(config | {"use_sliding_window": False}).max_tokens == 64
    full = ["full_attention"] * 2
    assert DecoderConfig.from_hf(config | {"layer_types": full}).max_tokens == 64
    assert DecoderConfig.from_hf(config | {"sliding_window": None}).max_tokens == 64


def test_new_and_old_spellings_of_rope_are_one():
    old = tiny_backbones.config("llama-nemotron-embed")
    new = {k: v for k, v in old.items() if not k.startswith("rope")}
    new["rope_parameters"] = tiny_backbones.LLAMA3 | {"rope_theta": 500000.0}
    assert DecoderConfig.from_hf(old) == DecoderConfig.from_hf(new)


def test_linear_scaling_divides_every_frequency():
    plain = inverse_frequencies(Rope(theta=1e4), 8)
    np.testing.assert_allclose(plain, 1e4 ** (-np.arange(4) / 4), rtol=1e-6)
    scaled = inverse_frequencies(Rope(theta=1e4, kind="linear", factor=4.0), 8)
    np.testing.assert_allclose(scaled * 4, plain, rtol=1e-6)


def test_a_config_tells_all_that_is_wrong_at_once():
    bad = tiny_backbones.config("llama") | {
        "num_key_value_heads": 3,
        "hidden_act": "xielu",
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "intermediate_size": "48",
        "rms_norm_eps": 0,
    }
    del bad["vocab_size"]
    with pytest.raises(InputError) as caught:
        DecoderConfig.from_hf(bad, "x/config.json")
    for part in (
        "x/config.json: ",
        "vocab_size is missing",
        "num_attention_heads=4 is not a multiple of 3 kv heads",
        "hidden_act='xielu'",
        "rope_type='yarn', supported: default, linear, llama3",
        "intermediate_size='48'",
        "rms_norm_eps=0",
    ):
        assert part in str(caught.value)
    nested = tiny_backbones.config("nv-embed")
    nested["text_config"] = {}
    with pytest.raises(InputError, match="x: text_config: vocab_size is missing; hidden_size"):
        DecoderConfig.from_hf(nested, "x")


def test_code_of_a_known_embedder_is_not_needed_and_of_others_refused(tmp_path):
    folder = tiny_backbones.write(tmp_path / "m", "qwen2", auto_map=tiny_backbones.AUTO_MAP)
    with pytest.raises(InputError, match="'auto_map' asks to run code"):
        Encoder.from_pretrained(str(folder))
    assert [FAMILIES[CASES[n]["config"]["model_type"]].own_code for n in ("qwen2", "llama")] == [
        False,
        False,
    ]


def test_an_end_token_that_is_asked_for_is_there(encoders):
    for name in ("e5-mistral", "nv-embed"):
        encoder = encoders(name)
        end = encoder.tokenizer.token_id("[SEP]")
        for ids in encoder.tokenize([*TEXTS, ""], max_length=6):
            assert ids[-1] == end
            assert (ids == end).sum() == 1
            assert len(ids) <= 6
    assert encoders("llama").tokenize(["wing"])[0].tolist()[0] == 1
    assert 2 not in encoders("llama").tokenize(["wing"])[0]


def test_a_mesh_that_does_not_cut_evenly_is_named_with_numbers():
    mesh = jax.sharding.AbstractMesh((1, 5, 4), mesh_lib.AXES)
    with pytest.raises(InputError) as caught:
        check_mesh(DecoderConfig.from_hf(tiny_backbones.config("llama")), mesh)
    assert "num_key_value_heads=2 is not a multiple of mesh.tensor=4" in str(caught.value)
    assert "hidden_size=32 is not a multiple of mesh.fsdp=5" in str(caught.value)


def test_all_bad_keys_come_in_one_line(tmp_path):
    import safetensors.numpy

    folder = tiny_backbones.write(tmp_path / "m", "qwen2")
    tensors = tiny_backbones.tensors("qwen2")
    del tensors["layers.1.self_attn.q_proj.bias"]
    tensors["layers.0.self_attn.q_norm.weight"] = np.zeros(8, np.float32)
    tensors["layers.0.self_attn.k_proj.weight"] = np.zeros((32, 32), np.float32)
    safetensors.numpy.save_file(tensors, str(folder / "model.safetensors"))
    with pytest.raises(InputError) as caught:
        Encoder.from_pretrained(str(folder))
    for part in (
        "missing keys: layers.1.self_attn.q_proj.bias",
        "unknown keys: layers.0.self_attn.q_norm.weight",
        "layers.0.self_attn.k_proj.weight [32, 32], expected [16, 32]",
    ):
        assert part in str(caught.value)


def test_grouped_attention_is_refused_where_there_is_none(tmp_path):
    folder = tiny_backbones.write(tmp_path / "m", "qwen2")
    with pytest.raises(
        InputError, match="attention='magic': expected one of auto, xla, cudnn, splash"
    ):
        Encoder.from_pretrained(str(folder), attention="magic")


@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (False, 5)])
def test_long_texts_go_through_in_blocks_and_give_the_same(causal, window, monkeypatch):
    import jax.numpy as jnp

    from nvret_jax.models.attention import grouped as module

    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.standard_normal((2, 21, 2, 3, 4)), jnp.float32)
    k, v = (jnp.asarray(rng.standard_normal((2, 21, 2, 4)), jnp.float32) for _ in "kv")
    lengths = jnp.asarray([21, 13])

    def both(q, k, v):
        def loss(*qkv):
            out = module.grouped_attention(*qkv, lengths, causal=causal, window=window)
            return jnp.sin(jnp.where(jnp.arange(21)[:, None, None, None] < 13, out, 0)).sum(), out

        (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return [out, *grads]

    # By hand, for one token of the shorter text.
    plain = jax.jit(both)(q, k, v)
    at = np.arange(21)
    seen = (at < 13) & ((at <= 9) if causal else True) & (abs(at - 9) <= (window or 99))
    scores = np.asarray(k[1, seen, 1]) @ np.asarray(q[1, 9, 1, 2]) / 2
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(plain[0][1, 9, 1, 2], weights @ np.asarray(v[1, seen, 1]), atol=1e-5)
    monkeypatch.setattr(module, "QUERY_BLOCK", 8)
    for a, b in zip(jax.jit(lambda *x: both(*x))(q, k, v), plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3-embedding", "nv-embed"])
@pytest.mark.parametrize("wide", [True, False])
def test_bfloat16_is_near_float32_and_float32_outside(encoders, name, wide):
    import dataclasses

    with jax.set_mesh(encoders(name).mesh):
        model = encoders(name).model
        ids_bt, lengths_b = checks.padded(encoders(name).tokenize(TEXTS), 32)
        exact = checks.run(model, ids_bt, lengths_b)
        options = dataclasses.replace(model.backbone.options, dtype="bfloat16", wide=wide)
        model.backbone.options = options
        if name == "nv-embed":
            model.latent.options = options
        rough = checks.run(model, ids_bt, lengths_b)
    assert rough.dtype == exact.dtype == np.float32
    assert 1e-4 < np.abs(exact - rough).max() < 0.05
