"""Encoding on meshes of several devices and processes; each in processes of its own."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
import virtual_devices

SCRIPT = """
import json, sys
import jax, numpy as np
from flax import nnx
from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models.encoder import Encoder

folder, out, meshes, coordinator, count, process = sys.argv[1:7]
if coordinator:
    jax.distributed.initialize(coordinator, int(count), int(process))
texts = json.load(open(folder + "/texts.json"))
results = {}
for sizes in json.loads(meshes):
    devices = None if coordinator else jax.devices()[: sizes[0] * sizes[1] * sizes[2]]
    mesh = mesh_lib.make_mesh(*sizes, devices=devices)
    encoder = Encoder.from_pretrained(folder, mesh=mesh)
    axes = encoder.model.logical_axes()
    for path, variable in nnx.to_flat_state(nnx.state(encoder.model)):
        want = mesh_lib.sharding(mesh, *axes[path])
        got = variable[...].sharding
        assert got.is_equivalent_to(want, len(variable.shape)), (path, got, want)
        pieces = {str(s.index) for s in variable[...].addressable_shards}
        if not coordinator:
            cut = np.prod([mesh_lib.shards(mesh, a) for a in axes[path] if a])
            assert len(pieces) == cut, (path, pieces, cut)
    kernel = encoder.model.backbone.layers.query_kernel[...]
    assert kernel.sharding.spec == jax.P(None, "fsdp", "tensor", None), kernel.sharding
    results["x".join(map(str, sizes))] = encoder.encode(texts)
    hf = encoder.save_weights_hf()
    results["w" + "x".join(map(str, sizes))] = hf["encoder.layer.1.attention.self.key.weight"]
    results["f" + "x".join(map(str, sizes))] = encoder.fingerprint
if not coordinator:
    try:
        Encoder.from_pretrained(folder, mesh=mesh_lib.make_mesh(1, 1, 8))
    except InputError as error:
        results["error"] = str(error)
np.savez(out + (process or "0"), **results)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_models.write(tmp_path_factory.mktemp("models") / "m")
    (folder / "texts.json").write_text(json.dumps(tiny_models.texts(40)))
    return folder


def start(folder, out, meshes, devices, coordinator="", count=1, process=0):
    environment = virtual_devices.environment(devices)
    environment.pop("XLA_FLAGS", None)
    arguments = [str(folder), str(out), json.dumps(meshes), coordinator, str(count), str(process)]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


@pytest.fixture(scope="module")
def on_eight(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "r"
    finish(start(folder, out, [[1, 1, 1], [2, 2, 2], [8, 1, 1], [1, 4, 2]], 8))
    return np.load(f"{out}0.npz", allow_pickle=False)


def test_the_same_on_every_mesh(on_eight):
    one = on_eight["1x1x1"]
    source = tiny_models.tensors(tiny_models.config())
    for sizes in ("2x2x2", "8x1x1", "1x4x2"):
        np.testing.assert_allclose(on_eight[sizes], one, atol=1e-5)
        key = "encoder.layer.1.attention.self.key.weight"
        np.testing.assert_array_equal(on_eight["w" + sizes], source[key])
        assert on_eight["f" + sizes] == on_eight["f1x1x1"]


def test_a_mesh_that_does_not_fit_is_refused(on_eight):
    assert "num_attention_heads=4 is not a multiple of mesh.tensor=8" in str(on_eight["error"])


def test_two_processes_both_get_everything(folder, on_eight, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    both = [start(folder, tmp_path / "r", [[2, 2, 1]], 2, address, 2, i) for i in range(2)]
    for process in both:
        finish(process)
    for i in range(2):
        got = np.load(tmp_path / f"r{i}.npz", allow_pickle=False)
        np.testing.assert_allclose(got["2x2x1"], on_eight["1x1x1"], atol=1e-5)
        np.testing.assert_array_equal(got["w2x2x1"], on_eight["w1x1x1"])
