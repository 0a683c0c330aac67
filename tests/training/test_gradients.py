"""Gradients: the same in every way to compute them, and reduced over the mesh once per step."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tiny_backbones
import tiny_models
import virtual_devices

pytestmark = pytest.mark.slow
WORKER = pathlib.Path(__file__).parent / "gradient_worker.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(gradients by '<model>/<mesh>/<way>', {path: value}; what else the worker found)."""
    root = tmp_path_factory.mktemp("gradients")
    tiny_models.write(root / "bert")
    for name, case in (("decoder", "nv-retriever"), ("modernbert", "modernbert")):
        tiny_backbones.write(root / f"of {name}", case).rename(root / name)
    environment = virtual_devices.environment(8)
    paths = [str(WORKER.parents[2]), str(WORKER.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, str(WORKER), str(root), str(root / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    grads: dict[str, dict[str, np.ndarray]] = {}
    for name, value in np.load(root / "out.npz").items():
        at, path = name.rsplit("/", 1)
        grads.setdefault(at, {})[path] = value
    more = json.loads((root / "out.json").read_text())
    return grads, more


def test_every_way_on_every_mesh_gives_the_gradient_of_the_whole_batch(found):
    grads, _ = found
    ways = [at for at in grads if not at.endswith("/plain")]
    assert len(ways) in (2, 21)
    for at in ways:
        name = at.split("/")[0]
        expected = grads[f"{name}/plain"]
        assert set(grads[at]) == set(expected)
        # bfloat16 sums over a shorter batch are rounded at other places. The gradient of a bias
        # of keys is 0, so that only the largest of all says what is small.
        tolerance = 1e-2 if "bfloat16" in name else 1e-5
        largest = max(np.abs(value).max() for value in expected.values())
        for path, value in expected.items():
            error = np.abs(grads[at][path].astype(np.float32) - value.astype(np.float32)).max()
            assert error <= tolerance * max(np.abs(value).max(), 0.1 * largest), (at, path)


def reductions(traffic):
    return [op for op in traffic if op[0] != "all-gather"]


def test_no_reduction_is_inside_a_loop(found):
    traffic = found[1]["traffic"]
    for at, ops in traffic.items():
        _, mesh, way = at.split("/")
        if way == "layer" or mesh.endswith("x2"):  # which reduce by the layer, and over tensor
            continue
        assert not [op for op in reductions(ops) if op[2]], at


def test_what_crosses_the_network_is_one_reduction_in_float32(found):
    traffic, sizes = found[1]["traffic"], found[1]["sizes"]
    data = {at: ops for at, ops in traffic.items() if "/8x1x1/" in at}
    assert data
    for at, ops in data.items():
        moved = sum(op[1] for op in ops if "reduce_gradients" in op[3])
        once = 2 * 4 * sizes[at.split("/")[0]] * 7 / 8
        assert 0.99 * once <= moved <= 1.1 * once, at


def test_fsdp_scatters_what_it_reduces_and_gathers_what_it_trains_once_per_pass(found):
    traffic, sizes = found[1]["traffic"], found[1]["sizes"]
    ops = traffic["bert/2x4x1/chunks"]
    scattered = [op for op in ops if "reduce_gradients" in op[3] and op[0] == "reduce-scatter"]
    assert scattered
    moved = sum(op[1] for op in ops if "reduce_gradients" in op[3])
    # Parts of all weights over fsdp, then these parts over data.
    once = 4 * sizes["bert"] * (3 / 4 + 2 * (1 / 4) * (1 / 2))
    assert moved <= 1.1 * once
    gathered = sum(op[1] for op in ops if op[0] == "all-gather" and not op[2])
    assert gathered <= 2.2 * 4 * sizes["bert"] * 3 / 4


def test_no_weight_is_kept_for_the_backward_pass(found):
    """Neither gathered ones, which are the model, nor copies of what lies there already."""
    for at, shapes in found[1]["residuals"].items():
        kernels = found[1]["kernels"][at.split("/")[0]]
        assert shapes, at
        assert not [shape for shape in shapes if shape in kernels], at
