import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_models
from flax import nnx

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models.backbones.bert import Bert, BertConfig
from nvret_jax.models.pretrained import weights

HF = tiny_models.config()
CONFIG = BertConfig.from_hf(HF)


def load(folder, dtype="float32"):
    model = nnx.eval_shape(lambda: Bert(CONFIG, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    arrays = weights.load(
        folder, {p: v.shape for p, v in flat}, model.logical_axes(), mesh, dtype=dtype
    )
    state = nnx.from_flat_state([(p, v.replace(arrays[p])) for p, v in flat])
    return nnx.merge(graphdef, state)


def save(folder, tensors, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(tensors, str(folder / name))
    return folder


def encoder_only(tensors):
    return {k: v for k, v in tensors.items() if not k.startswith("pooler.")}


def test_there_and_back_is_exact(tmp_path):
    source = tiny_models.tensors(HF)
    back = weights.to_hf(load(save(tmp_path, source)))
    assert set(back) == set(encoder_only(source))
    for key, value in back.items():
        np.testing.assert_array_equal(value, source[key], err_msg=key)
        assert value.flags.c_contiguous
    carried = weights.carried(tmp_path)
    assert set(carried) == {"pooler.dense.weight", "pooler.dense.bias"}
    np.testing.assert_array_equal(carried["pooler.dense.weight"], source["pooler.dense.weight"])


def test_shards_prefix_old_names_and_heads(tmp_path):
    source = tiny_models.tensors(HF)
    spelled = {
        "bert."
        + k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in source.items()
    }
    spelled["cls.predictions.bias"] = np.zeros(24, np.float32)
    spelled["bert.embeddings.position_ids"] = np.arange(40)[None]
    names = sorted(spelled)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, keys in halves.items():
        save(tmp_path, {k: spelled[k] for k in keys}, file)
    index = {"weight_map": {k: file for file, keys in halves.items() for k in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    back = weights.to_hf(load(tmp_path))
    for key, value in encoder_only(source).items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    assert set(weights.carried(tmp_path)) == {"pooler.dense.weight", "pooler.dense.bias"}
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"index\.json: names files .*: model-2\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_stored_dtype_is_cast_to_the_kept_one(tmp_path, stored, kept):
    source = {k: v.astype(stored) for k, v in tiny_models.tensors(HF).items()}
    back = weights.to_hf(load(save(tmp_path, source), kept))
    for key, value in back.items():
        assert value.dtype == kept
        np.testing.assert_array_equal(value, source[key].astype(kept), err_msg=key)


def test_all_bad_keys_come_in_one_line(tmp_path):
    source = tiny_models.tensors(HF)
    del source["encoder.layer.1.output.dense.bias"], source["embeddings.LayerNorm.weight"]
    source["encoder.layer.3.output.dense.bias"] = np.zeros(32, np.float32)
    source["encoder.layer.0.attention.self.query.weight"] = np.zeros((32, 31), np.float32)
    source["encoder.layer.0.attention.self.key.weight"] = np.zeros((32, 32), np.int8)
    with pytest.raises(InputError) as caught:
        load(save(tmp_path, source))
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        str(tmp_path / "model.safetensors"),
        "missing keys: embeddings.LayerNorm.weight, encoder.layer.1.output.dense.bias",
        "unknown keys: encoder.layer.3.output.dense.bias",
        "encoder.layer.0.attention.self.query.weight [32, 31], expected [32, 32]",
        "encoder.layer.0.attention.self.key.weight I8",
    ):
        assert part in message


def test_a_broken_file_is_named(tmp_path):
    path = save(tmp_path, tiny_models.tensors(HF)) / "model.safetensors"
    whole = path.read_bytes()
    for broken in (whole[:-100], whole[:4], b"", b"\xff" * 64):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"model\.safetensors: not a whole safetensors file"):
            load(tmp_path)


def test_pickles_are_refused_and_nothing_is_said_to_be_nothing(tmp_path):
    with pytest.raises(InputError, match=r"no model\.safetensors and no model\.safetensors\.index"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"has only pytorch_model\.bin, which is not read"):
        load(tmp_path)


def test_a_slice_of_a_weight_reads_that_slice():
    # What a device of a tensor=2, fsdp=2 mesh asks for, against cutting the whole.
    whole = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    cases = [
        (weights.TO_HEADS, (32, 4, 8), (slice(16, 32), slice(2, 4), slice(0, 8))),
        (weights.FROM_HEADS, (4, 8, 32), (slice(2, 4), slice(0, 8), slice(0, 16))),
        (weights.LINEAR, (32, 32), (slice(16, 32), slice(0, 16))),
        (weights.COPY, (32, 32), (slice(0, 32), slice(16, 32))),
    ]
    for transform, shape, index in cases:
        ours = transform.load(whole, shape)
        sizes = tuple(i.stop - i.start for i in index)
        piece = transform.load(whole[transform.hf_index(index, shape)], sizes)
        np.testing.assert_array_equal(piece, ours[index])
        np.testing.assert_array_equal(transform.save(ours), whole)


def test_a_weight_file_is_hashed_once(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    first = weights.file_sha256(path)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr(weights.hashlib, "sha256", lambda: pytest.fail("hashed again"))
    assert weights.file_sha256(path) == first
