"""What stands in the files of an export, for readers that are not installed here.

tests/export/test_readers.py has the readers themselves.
"""

import json
import os
import pathlib

import numpy as np
import pytest
import safetensors.numpy
import tiny_backbones
import tiny_models
from tiny_backbones import TEXTS

from nvret_jax.errors import InputError
from nvret_jax.export.sentence_transformers import export
from nvret_jax.models.encoder import Encoder


def read(folder, name="config.json"):
    return json.loads((folder / name).read_text())


def put(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def exported(tmp_path, source, **kwargs):
    encoder = Encoder.from_pretrained(str(source), **kwargs)
    return encoder, export(encoder, tmp_path / "out")


# The keys that Pooling.__init__ takes in sentence-transformers 2.7, 3.4, 4.1, 5.0 and 5.3; another
# one stops it.
POOLING_KEYS = {
    "word_embedding_dimension",
    "pooling_mode",
    "pooling_mode_cls_token",
    "pooling_mode_max_tokens",
    "pooling_mode_mean_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
    "include_prompt",
}
# Dense.__init__ likewise, up to 5.7.
DENSE_KEYS = {"in_features", "out_features", "bias", "activation_function"}


def dense_folder(tmp_path, *, residual, out=32, activation="linear.Identity"):
    """A pooled BERT with a Dense module."""
    source = tiny_models.write(tmp_path / "source", normalize=False)
    config = {
        "in_features": 32,
        "out_features": out,
        "bias": True,
        "activation_function": f"torch.nn.modules.{activation}",
        "use_residual": residual,
    }
    put(source, "2_Dense/config.json", config)
    shapes = {"linear.weight": (out, 32), "linear.bias": (out,)}
    if residual and out != 32:
        shapes["residual.weight"] = (out, 32)
    weights = tiny_backbones.random(shapes, 3)
    safetensors.numpy.save_file(weights, str(source / "2_Dense" / "model.safetensors"))
    dense = {"idx": 2, "name": "2", "path": "2_Dense"}
    dense["type"] = "sentence_transformers.models.Dense"
    put(source, "modules.json", [*read(source, "modules.json"), dense])
    return source


def test_no_key_stops_an_older_sentence_transformers(tmp_path):
    _, out = exported(tmp_path, dense_folder(tmp_path, residual=False))
    assert set(read(out, "1_Pooling/config.json")) == POOLING_KEYS
    assert set(read(out, "2_Dense/config.json")) == DENSE_KEYS


@pytest.mark.parametrize("out_features", [32, 8])
def test_a_residual_without_an_activation_goes_into_the_kernel(out_features, tmp_path):
    encoder, out = exported(tmp_path, dense_folder(tmp_path, residual=True, out=out_features))
    assert encoder.spec.dense[0].use_residual
    assert set(read(out, "2_Dense/config.json")) == DENSE_KEYS
    again = Encoder.from_pretrained(str(out))
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), atol=2e-6)


def test_a_residual_behind_an_activation_stays(tmp_path):
    source = dense_folder(tmp_path, residual=True, activation="activation.Tanh")
    encoder, out = exported(tmp_path, source)
    assert read(out, "2_Dense/config.json")["use_residual"] is True
    again = Encoder.from_pretrained(str(out))
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_late_interaction_without_a_projection_gets_one_that_changes_nothing(tmp_path):
    encoder, out = exported(tmp_path, tiny_models.write(tmp_path / "source"), pooling="tokens")
    assert read(out, "modules.json")[1]["type"] == "pylate.models.Dense.Dense"
    assert set(read(out, "1_Dense/config.json")) == DENSE_KEYS
    kernel = safetensors.numpy.load_file(str(out / "1_Dense" / "model.safetensors"))
    np.testing.assert_array_equal(kernel.pop("linear.weight"), np.eye(32))
    assert not kernel
    again = Encoder.from_pretrained(str(out))
    for ours, theirs in zip(encoder.encode_tokens(TEXTS), again.encode_tokens(TEXTS), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# As transformers 5 writes what tiny_backbones writes as transformers 4 does.
def as_version_5(folder):
    config = read(folder)
    scaling = config.pop("rope_scaling", {"rope_type": "default"})
    if config["model_type"] == "modernbert":
        config["rope_parameters"] = {
            "full_attention": {"rope_type": "default", "rope_theta": 80000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        }
        del config["global_rope_theta"], config["local_rope_theta"]
        del config["global_attn_every_n_layers"]
        kinds = ("full_attention", *["sliding_attention"] * 2)
        config["layer_types"] = [kinds[i % 3] for i in range(4)]
    else:
        config["rope_parameters"] = scaling | {"rope_theta": config.pop("rope_theta")}
    put(folder, "config.json", config)
    tokenizer = read(folder, "tokenizer_config.json") | {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "is_local": True,
        "local_files_only": True,
        "extra_special_tokens": ["[Q] "],
        "add_bos_token": False,
        "chat_template": "{{ messages }}",
        "auto_map": {"AutoTokenizer": ["x.Slow", "x.Fast"]},
    }
    put(folder, "tokenizer_config.json", tokenizer)
    return folder


@pytest.mark.parametrize("name", ["llama-nemotron-embed", "qwen3-embedding", "modernbert"])
def test_both_spellings_whichever_the_source_has(name, tmp_path):
    old = tiny_backbones.write(tmp_path / "old", name)
    new = as_version_5(tiny_backbones.write(tmp_path / "new", name))
    encoder, out = exported(tmp_path, new)
    config = read(out)
    if name == "modernbert":
        assert (config["global_rope_theta"], config["local_rope_theta"]) == (80000.0, 5000.0)
        assert config["global_attn_every_n_layers"] == 3
    else:
        expected = read(old)
        assert config["rope_theta"] == expected["rope_theta"]
        assert config.get("rope_scaling") == expected.get("rope_scaling")
        assert config["rope_parameters"]["rope_theta"] == expected["rope_theta"]
        written = export(Encoder.from_pretrained(str(old)), tmp_path / "again")
        assert read(written) == config
    np.testing.assert_array_equal(
        Encoder.from_pretrained(str(out)).encode(TEXTS), encoder.encode(TEXTS)
    )


def test_layers_without_a_period_are_told_to_new_readers_alone(tmp_path):
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    source = tiny_backbones.write(tmp_path / "source", "modernbert", layer_types=kinds)
    encoder, out = exported(tmp_path, source)
    assert read(out)["layer_types"] == kinds
    assert "global_attn_every_n_layers" not in read(out)
    again = Encoder.from_pretrained(str(out))
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_a_tokenizer_that_transformers_5_saved_is_written_for_version_4(tmp_path):
    source = as_version_5(tiny_backbones.write(tmp_path / "source", "modernbert"))
    _, out = exported(tmp_path, source)
    config = read(out, "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["[Q] "]
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["model_max_length"] == 32
    assert (config["pad_token"], config["mask_token"]) == ("[PAD]", "[MASK]")
    for key in (
        "backend",
        "is_local",
        "local_files_only",
        "extra_special_tokens",
        "add_bos_token",
        "chat_template",
        "auto_map",
    ):
        assert key not in config
    special = read(out, "special_tokens_map.json")
    assert special["eos_token"] == "[SEP]"
    assert set(special) < set(config)


def test_special_tokens_that_only_the_map_names_are_kept(tmp_path):
    source = tiny_models.write(tmp_path / "source")
    put(source, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    put(source, "special_tokens_map.json", {"cls_token": "[CLS]", "secret": "x"})
    _, out = exported(tmp_path, source)
    config = read(out, "tokenizer_config.json")
    assert (config["cls_token"], config["pad_token"]) == ("[CLS]", "[PAD]")
    assert config["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]
    assert "secret" not in read(out, "special_tokens_map.json")


def test_the_tokens_around_each_text_are_named(tmp_path):
    """By what is named sentence-transformers knows where a prompt that is not pooled ends."""
    source = tiny_models.write(tmp_path / "m")
    export(Encoder.from_pretrained(str(source)), tmp_path / "plain")
    found = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    assert found["additional_special_tokens"] == ["[CLS]", "[SEP]"]
    named = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}}
    (source / "tokenizer_config.json").write_text(json.dumps(named))
    export(Encoder.from_pretrained(str(source)), tmp_path / "named")
    found = json.loads((tmp_path / "named" / "tokenizer_config.json").read_text())
    assert "additional_special_tokens" not in found
    again = Encoder.from_pretrained(str(tmp_path / "plain"))
    assert again.tokenizer.fingerprint == Encoder.from_pretrained(str(source)).tokenizer.fingerprint


def test_links_out_of_the_models_folder_are_not_followed(tmp_path):
    (tmp_path / "private").write_text('{"cls_token": "of this machine"}')
    source = tiny_models.write(tmp_path / "source")
    for name in ("special_tokens_map.json", "vocab.txt"):
        (source / name).symlink_to(tmp_path / "private")
        with pytest.raises(InputError, match="outside the model's folder"):
            Encoder.from_pretrained(str(source))
        (source / name).unlink()
    # The hub's cache is made of links: from a snapshot to the blobs beside it.
    hub = tmp_path / "hub" / "models--owner--name"
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots").mkdir()
    source.rename(hub / "snapshots" / "0123")
    source = hub / "snapshots" / "0123"
    (hub / "blobs" / "aa").write_text("[PAD]\n")
    (source / "vocab.txt").symlink_to("../../blobs/aa")
    assert (
        export(Encoder.from_pretrained(str(source)), tmp_path / "hub-out") / "vocab.txt"
    ).exists()


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_every_file_has_the_mode_of_the_umask(umask, tmp_path):
    encoder = Encoder.from_pretrained(str(dense_folder(tmp_path, residual=False)))
    before = os.umask(umask)
    try:
        out = export(encoder, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {oct(p.stat().st_mode & 0o777) for p in pathlib.Path(out).rglob("*") if p.is_file()}
    assert modes == {oct(0o666 & ~umask)}


def test_the_padding_id_of_a_roberta_that_states_none_is_not_moved(tmp_path):
    source = tiny_models.write(tmp_path / "source", "xlm-roberta")
    config = read(source)
    del config["pad_token_id"]
    put(source, "config.json", config)
    encoder, out = exported(tmp_path, source)
    assert read(out)["pad_token_id"] == 1
    again = Encoder.from_pretrained(str(out))
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_links_in_the_place_of_the_export(tmp_path):
    encoder = Encoder.from_pretrained(str(tiny_models.write(tmp_path / "source")))
    (tmp_path / "private").mkdir()
    (tmp_path / "out.partial").symlink_to(tmp_path / "private")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export(encoder, tmp_path / "out")
    assert not list((tmp_path / "private").iterdir())
    assert not (tmp_path / "out").is_symlink()
    for _ in range(2):
        export(encoder, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()
