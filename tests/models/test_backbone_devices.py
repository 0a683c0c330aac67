"""The backbones beyond BERT on a mesh of eight devices, in a process of its own."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_backbones
import virtual_devices

MESHES = {"2x2x2": [2, 2, 2], "1x4x2": [1, 4, 2]}
SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from nvret_jax import mesh as mesh_lib
from nvret_jax.models.attention import grouped as grouped_attention
from nvret_jax.models.encoder import Encoder, LoraConfig

root, out, names = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
texts = json.loads(sys.argv[4]) * 2
meshes = [[1, 1, 1], *json.loads(sys.argv[5])]
results = {}
for name in names:
    for sizes in meshes:
        grouped_attention.QUERY_BLOCK = 1024 if sizes == [1, 1, 1] else 8
        at = name + "/" + "x".join(map(str, sizes))
        devices = jax.devices()[: sizes[0] * sizes[1] * sizes[2]]
        mesh = mesh_lib.make_mesh(*sizes, devices=devices)
        lora = LoraConfig(rank=2, alpha=4.0, dropout=0.2)
        encoder = Encoder.from_pretrained(f"{root}/{name}", mesh=mesh, lora=lora)
        axes = encoder.model.logical_axes()
        for path, variable in nnx.to_flat_state(nnx.state(encoder.model)):
            want = mesh_lib.sharding(mesh, *axes[path])
            got = variable[...].sharding
            assert got.is_equivalent_to(want, len(variable.shape)), (path, got, want)
            pieces = {str(s.index) for s in variable[...].addressable_shards}
            assert len(pieces) == np.prod([mesh_lib.shards(mesh, a) for a in axes[path] if a])
        if encoder.spec.late:
            results[at] = np.concatenate(encoder.encode_tokens(texts, kind="query"))
        else:
            results[at] = encoder.encode(texts, kind="query")
        graph, trainable, frozen = nnx.split(encoder.model, encoder.trainable, ...)
        ids = np.zeros((8, 32), np.int32)
        tokens = encoder.tokenize(texts)
        for row, one in enumerate(tokens):
            ids[row, : len(one)] = one
        put = lambda x, *a: jax.device_put(x, mesh_lib.sharding(mesh, *a))
        ids_bt = put(ids, "batch", None)
        lengths_b = put(np.asarray([len(t) for t in tokens], np.int32), "batch")
        keys_b = put(jax.random.split(jax.random.key(0), 8), "batch")

        def loss(trainable):
            emb = nnx.merge(graph, trainable, frozen)(ids_bt, lengths_b, keys_b, unpooled=1)
            emb = emb if emb.ndim == 2 else emb[:, 0]
            return jnp.sin(3 * emb).mean()

        with jax.set_mesh(mesh):
            grads = jax.jit(jax.grad(loss))(trainable)
        for path, value in nnx.to_flat_state(grads):
            results[f"{at}:" + ".".join(map(str, path))] = np.asarray(value[...])
        trained = jax.tree.map(lambda w, g: w - g, trainable, grads)
        merged = encoder.replace(nnx.merge_state(trained, frozen)).save_weights_hf()
        for key, value in merged.items():
            if "layers.1" in key:
                results[f"{at}:{key}"] = value
np.savez(out, **results)
"""


def run(root, names, meshes):
    for name in names:
        tiny_backbones.write(root / name, name)
    environment = virtual_devices.environment(8)
    out = str(root / "out.npz")
    lists = [names, tiny_backbones.TEXTS, [MESHES[mesh] for mesh in meshes]]
    arguments = [str(root), out, *map(json.dumps, lists)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = np.load(out, allow_pickle=False)
    for name in names:
        keys = [k for k in results.files if k.startswith(f"{name}/1x1x1")]
        assert len(keys) > 10
        for key in keys:
            for mesh in meshes:
                other = results[key.replace("1x1x1", mesh)]
                np.testing.assert_allclose(other, results[key], atol=2e-5, err_msg=f"{mesh} {key}")
        grads = [np.abs(results[k]).max() for k in keys if k.endswith("lora_b")]
        assert grads
        assert max(grads) > 1e-4


# One that has everything: a decoder with shared key heads, latent attention, adapters.
@pytest.mark.slow
def test_embeddings_gradients_and_merged_weights_are_the_same_on_a_mesh(tmp_path):
    run(tmp_path, ["nv-embed"], ["2x2x2"])


@pytest.mark.slow
def test_so_are_those_of_other_backbones_on_other_meshes(tmp_path):
    names = ["qwen2", "qwen3-embedding", "modernbert-biases", "lateon-code"]
    run(tmp_path, names, list(MESHES))
