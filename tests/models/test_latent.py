"""NV-Embed's latent attention against the paper, read in NumPy, and as a whole model."""

import json
import math

import backbone_checks as checks
import jax
import numpy as np
import pytest
import tiny_backbones
from tiny_backbones import LATENT, TEXTS

from nvret_jax.errors import InputError
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.latent import LatentConfig


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tiny_backbones.write(tmp_path_factory.mktemp("models") / "m", "nv-embed")
    return Encoder.from_pretrained(str(folder))


def paper(hidden_td: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """arXiv 2405.17428 eq. 1-2, head by head, with the norms and residuals of the released code."""
    w = {k.split("latent_attention_model.")[-1]: v.astype(np.float64) for k, v in weights.items()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"cross_attend_blocks.{name}.weight"] + w[f"cross_attend_blocks.{name}.bias"]

    def linear(x, name):
        return x @ w[f"cross_attend_blocks.{name}.weight"].T

    heads, width = LATENT["num_cross_heads"], LATENT["cross_dim_head"]
    query = linear(norm(hidden_td, "0.norm"), "0.fn.to_q")
    both = linear(norm(w["latents"], "0.norm_context"), "0.fn.to_kv")
    mixed = []
    for head in range(heads):
        at = slice(head * width, (head + 1) * width)
        key, value = both[:, : heads * width][:, at], both[:, heads * width :][:, at]
        scores = np.exp(query[:, at] @ key.T / math.sqrt(width))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ value)
    hidden = hidden_td + linear(np.concatenate(mixed, -1), "0.fn.to_out")
    wide = linear(norm(hidden, "1.norm"), "1.fn.net.0") + w["cross_attend_blocks.1.fn.net.0.bias"]
    value, gate = np.split(wide, 2, axis=-1)
    gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))
    out = linear(value * gelu(gate), "1.fn.net.2") + w["cross_attend_blocks.1.fn.net.2.bias"]
    return hidden + out


def test_latent_attention_is_the_papers(encoder):
    hidden = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    with jax.set_mesh(encoder.mesh):
        got = np.asarray(encoder.model.latent(hidden))
    for row in range(2):
        expected = paper(hidden[row], tiny_backbones.tensors("nv-embed"))
        assert np.abs(got[row] - expected).max() <= 2e-5


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_the_whole_model_equals_its_own_code(encoder, kind):
    got = encoder.encode(TEXTS, kind=kind)
    assert np.abs(got - checks.golden("nv-embed", kind)).max() <= checks.TOLERANCE


def test_all_but_the_last_token_of_an_instruction_are_left_out(encoder):
    prompt = tiny_backbones.QUERY  # four words behind the first token
    assert encoder.spec.query_prompt == prompt
    for kind, left_out in (("query", 4), ("passage", 0)):
        assert encoder.unpooled(encoder.tokenize(TEXTS, kind=kind), kind).tolist() == [left_out] * 4
    whole = encoder.from_pretrained(str(encoder.folder), prompt_in_pooling="all")
    assert whole.unpooled(whole.tokenize(TEXTS, kind="query"), "query") is None
    assert (
        np.abs(whole.encode(TEXTS, kind="query") - encoder.encode(TEXTS, kind="query")).max() > 0.01
    )
    np.testing.assert_array_equal(whole.encode(TEXTS), encoder.encode(TEXTS))


def test_it_belongs_to_nv_embed(encoder, tmp_path):
    with pytest.raises(InputError, match="pooling='mean', but latent attention belongs to NV-Emb"):
        Encoder.from_pretrained(str(encoder.folder), pooling="mean")
    folder = tiny_backbones.write(tmp_path / "m", "qwen2")
    with pytest.raises(InputError, match="pooling='latent', but latent attention belongs"):
        Encoder.from_pretrained(str(folder), pooling="latent")


def test_a_config_that_does_not_fit_is_named():
    with pytest.raises(InputError, match="hidden_dim=32, expected the backbone's width 64"):
        LatentConfig.from_hf({"latent_attention_config": LATENT}, 64)
    with pytest.raises(InputError, match="hidden_dim=4096, expected the backbone's width 64"):
        LatentConfig.from_hf({}, 64, "x")
    bad = {"latent_attention_config": {"num_cross_heads": "8", "output_normalize": False}}
    with pytest.raises(
        InputError, match=r"x: latent_attention_config: num_cross_heads='8', expec.*output_normal"
    ):
        LatentConfig.from_hf(bad, 4096, "x")


def test_sizes_left_out_are_those_of_its_class():
    found = LatentConfig.from_hf({"latent_attention_config": {"model_type": "x"}}, 4096)
    assert found == LatentConfig(4096, 4096, 512, 8, 4096)


def test_a_missing_latent_is_told(encoder, tmp_path):
    import safetensors.numpy

    folder = tiny_backbones.write(tmp_path / "m", "nv-embed")
    tensors = tiny_backbones.tensors("nv-embed")
    del tensors["latent_attention_model.latents"]
    safetensors.numpy.save_file(tensors, str(folder / "model.safetensors"))
    with pytest.raises(InputError, match=r"missing keys: latent_attention_model\.latents"):
        Encoder.from_pretrained(str(folder))


def test_the_spec_survives_json(encoder):
    import dataclasses

    assert json.loads(json.dumps(dataclasses.asdict(encoder.spec)))["prompt_in_pooling"] == "last"
