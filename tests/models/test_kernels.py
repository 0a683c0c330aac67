"""Attention kernels against 'xla': splash interpreted, cuDNN on a GPU or by its arguments."""

import subprocess
import sys
import types

import backbone_checks as checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_backbones
import tiny_models
import virtual_devices
from tiny_backbones import TEXTS

from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.models.attention import cudnn, kernels, splash
from nvret_jax.models.attention.attention import attention
from nvret_jax.models.attention.grouped import grouped_attention
from nvret_jax.models.backbones.bert import Bert, BertConfig
from nvret_jax.models.backbones.layer import Options
from nvret_jax.models.cross_encoder import CrossEncoder
from nvret_jax.models.encoder import Encoder

# name -> tokens, lengths, kv heads, group, head width, causal, window
CASES = {
    "padded up to one block": (20, [20, 7, 1], 2, 1, 8, False, None),
    "grouped": (20, [20, 7], 2, 3, 8, False, None),
    "causal and grouped": (150, [150, 70], 1, 2, 16, True, None),
    "whole blocks": (256, [256, 256], 1, 1, 8, False, None),
    "window": (200, [200, 31, 1], 2, 1, 8, False, 16),
    "window over several blocks": (300, [300, 140, 5], 1, 1, 8, False, 20),
    "causal window": (300, [300, 140], 1, 2, 8, True, 20),
    "window wider than the text": (20, [20, 3], 2, 1, 8, False, 19),
}


def inputs(tokens, lengths, shared, group, width, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(shared, group, width), (shared, width), (shared, width)]
    qkv = [jnp.asarray(rng.standard_normal((len(lengths), tokens, *s)), dtype) for s in shapes]
    return qkv, jnp.asarray(lengths, jnp.int32)


def both(run, qkv, lengths, **kwargs):
    """Output and gradients, at all positions: padded queries have a say too."""

    def loss(*qkv):
        out = run(*qkv, lengths, **kwargs)
        return jnp.sin(3 * out.astype(jnp.float32)).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    assert out.dtype == qkv[2].dtype
    return [np.asarray(x, np.float32) for x in (out, *grads)]


def assert_equal(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= tolerance * max(1, np.abs(b).max())


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", True)


def pretend_a_gpu(monkeypatch):
    """What asks for the platform is told 'gpu', and the mesh's own answer does not count."""
    monkeypatch.setattr(platforms, "of", lambda mesh: "gpu")
    monkeypatch.setattr(kernels, "check_platform", lambda name, platform: None)


@pytest.fixture
def cudnn_by_xla(monkeypatch):
    """Has the arguments that go to cuDNN computed by XLA instead."""
    calls, real = [], jax.nn.dot_product_attention

    def call(q, k, v, *, implementation, **kwargs):
        assert implementation == "cudnn"
        calls.append(kwargs)
        return real(q, k, v, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", call)
    pretend_a_gpu(monkeypatch)
    return calls


SMALL = [(name, (128,)) for name, case in CASES.items() if case[0] > 256]  # several blocks


@pytest.mark.parametrize(("case", "blocks"), [*((name, splash.BLOCKS) for name in CASES), *SMALL])
def test_splash_equals_xla_forward_and_backward(interpreted, monkeypatch, case, blocks):
    tokens, lengths, *heads, causal, window = CASES[case]
    monkeypatch.setattr(splash, "BLOCKS", blocks)
    qkv, lengths = inputs(tokens, lengths, *heads)
    rules = {"causal": causal, "window": window}
    expected = both(grouped_attention, qkv, lengths, **rules)
    got = both(grouped_attention, qkv, lengths, **rules, implementation="splash")
    assert_equal(got, expected, 2e-5)
    if case == "window":  # behind the end and out of sight of it
        assert (got[0][1, 47:] == 0).all()
        assert (np.abs(got[0][1, :47]).max(axis=(1, 2, 3)) > 0).all()


def test_splash_in_bfloat16_rounds_but_no_more(interpreted):
    qkv, lengths = inputs(40, [40, 9], 2, 2, 16, jnp.bfloat16)
    expected = both(grouped_attention, qkv, lengths)
    got = both(grouped_attention, qkv, lengths, implementation="splash")
    assert_equal(got, expected, 0.03)


def test_attention_of_plain_heads_takes_the_kernels_too(interpreted, cudnn_by_xla):
    (q, k, v), lengths = inputs(20, [20, 7, 1], 4, 1, 8)
    expected = both(attention, (q[:, :, :, 0], k, v), lengths)
    got = both(attention, (q[:, :, :, 0], k, v), lengths, implementation="splash")
    assert_equal(got, expected, 2e-5)
    half = [x.astype(jnp.bfloat16) for x in (q[:, :, :, 0], k, v)]
    got = both(attention, half, lengths, implementation="cudnn")
    assert_equal(got, expected, 0.03)


@pytest.mark.parametrize("case", [name for name in CASES if CASES[name][-1] is None])
def test_what_cudnn_is_asked_for_is_the_same_attention(cudnn_by_xla, case):
    tokens, lengths, *heads, causal, _ = CASES[case]
    qkv, lengths = inputs(tokens, lengths, *heads)
    expected = both(grouped_attention, qkv, lengths, causal=causal)
    got = both(cudnn.attend, qkv, lengths, causal=causal, window=None)
    assert_equal(got, expected, 2e-5)
    asked = cudnn_by_xla[-1]
    assert set(asked) == {"is_causal", "query_seq_lengths", "key_value_seq_lengths"}  # no mask
    half = [x.astype(jnp.bfloat16) for x in qkv]
    got = both(grouped_attention, half, lengths, causal=causal, implementation="cudnn")
    assert_equal(got, expected, 0.05)


@pytest.mark.parametrize("case", [name for name in CASES if CASES[name][-1] is None])
def test_cudnn_equals_xla_on_a_gpu(case):
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU")
    tokens, lengths, *heads, causal, _ = CASES[case]
    qkv, lengths = inputs(tokens, lengths, *heads, jnp.bfloat16)
    expected = both(grouped_attention, qkv, lengths, causal=causal)
    got = both(grouped_attention, qkv, lengths, causal=causal, implementation="cudnn")
    assert_equal(got, expected, 0.05)


def folder_of(root, name):
    module = tiny_backbones if name in tiny_backbones.CASES else tiny_models
    return str(module.write(root / name, name))


@pytest.mark.parametrize(
    "name",
    [
        "bert",
        pytest.param("qwen3-embedding", marks=pytest.mark.slow),
        pytest.param("modernbert-biases", marks=pytest.mark.slow),
    ],
)
def test_models_embed_and_train_the_same_with_splash(interpreted, name, tmp_path):
    folder = folder_of(tmp_path, name)
    plain = Encoder.from_pretrained(folder)
    other = Encoder.from_pretrained(folder, attention="splash", remat="dots")
    assert other.model.backbone.options.attention == "splash"
    assert np.abs(other.encode(TEXTS) - plain.encode(TEXTS)).max() <= 2e-5
    assert other.fingerprint == plain.fingerprint
    ids_bt, lengths_b = checks.padded(plain.tokenize(TEXTS), 24)

    def gradient(encoder):
        loss = jax.grad(lambda m: jnp.sin(3 * m(ids_bt, lengths_b)).mean())
        with jax.set_mesh(encoder.mesh):
            return jax.tree.leaves(jax.jit(loss)(encoder.model))

    assert_equal(gradient(other), gradient(plain), 2e-5)


@pytest.mark.parametrize("name", ["bert", "nv-retriever"])
def test_models_embed_the_same_with_what_cudnn_is_asked_for(cudnn_by_xla, name, tmp_path):
    folder = folder_of(tmp_path, name)
    plain = Encoder.from_pretrained(folder)
    other = Encoder.from_pretrained(folder, attention="cudnn", dtype="bfloat16")
    assert np.abs(other.encode(TEXTS) - plain.encode(TEXTS)).max() <= 0.05
    assert cudnn_by_xla


@pytest.mark.parametrize("name", ["bert", "nv-retriever", "modernbert"])
def test_the_default_is_cudnn_where_it_can(cudnn_by_xla, monkeypatch, name, tmp_path):
    """In bfloat16 on an H100, but for local layers; elsewhere and in float32 nothing changes."""
    folder = folder_of(tmp_path, name)
    monkeypatch.setattr(kernels, "_compute_capability", lambda: 9.0)
    for dtype, expected in (("bfloat16", name != "modernbert"), ("float32", False)):
        cudnn_by_xla.clear()
        jax.clear_caches()
        emb_nd = Encoder.from_pretrained(folder, dtype=dtype).encode(TEXTS)
        assert bool(cudnn_by_xla) == expected, dtype
        plain = Encoder.from_pretrained(folder, attention="xla").encode(TEXTS)
        assert np.abs(emb_nd - plain).max() <= (0.05 if dtype == "bfloat16" else 0)
    jax.clear_caches()


def test_auto_takes_a_kernel_only_where_it_supports_the_request(monkeypatch):
    def chosen(capability, width=64, dtype=jnp.bfloat16, window=None, drops=False, name="auto"):
        monkeypatch.setattr(kernels, "_compute_capability", lambda: capability)
        q = jnp.zeros((1, 4, 2, width), dtype)
        return kernels.chosen(name, q, window=window, drops=drops)

    assert chosen(9.0) == chosen(8.0) == chosen(9.0, dtype=jnp.float16) == "cudnn"
    assert chosen(9.0, width=256) == chosen(8.9, width=128) == "cudnn"
    for other in (
        {"capability": 7.5},
        {"capability": 0.0},
        {"dtype": jnp.float32},
        {"width": 264},
        {"width": 12},
        {"capability": 8.9, "width": 136},
        {"window": 4},
        {"drops": True},
    ):
        assert chosen(**{"capability": 9.0} | other) == "xla", other
    assert chosen(0.0, name="splash") == "splash"
    said = []
    monkeypatch.setattr(kernels.logging, "log_first_n", lambda *args: said.append(args[-1]))
    for quiet in ({}, {"dtype": jnp.float32}, {"capability": 0.0, "drops": True}):
        chosen(**{"capability": 9.0} | quiet)
    assert said == []
    chosen(9.0, drops=True, window=4, width=12)
    assert said == ["dropout and a window and heads 12 wide"]


def test_no_compute_capability_without_an_nvidia_gpu(monkeypatch):
    assert kernels._compute_capability() == 0.0
    monkeypatch.setattr(platforms, "here", lambda: "gpu")
    assert kernels._compute_capability() == 0.0  # this process has none: it is only planned for
    for said, expected in (("9.0", 9.0), ("gfx942", 0.0)):
        device = types.SimpleNamespace(compute_capability=said)
        monkeypatch.setattr(jax, "local_devices", lambda backend, device=device: [device])
        assert kernels._compute_capability() == expected
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        assert kernels._compute_capability() == 0.0  # the mesh is of CPUs


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"attention": "cudnn"},
            "'cudnn' needs an NVIDIA GPU, but this mesh has 'cpu'",
        ),
        ({"attention": "splash"}, "attention='splash' needs a TPU, but this mesh has 'cpu'"),
        ({"attention": "flash"}, "'flash': expected one of auto, xla, cudnn, splash"),
        ({"remat": "most"}, "remat='most': expected one of none, attention, dots, full"),
        ({"remat": True}, "remat=True: expected one of"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(tmp_path, asked, words):
    folder = tiny_models.write(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=words) as caught:
        Encoder.from_pretrained(str(folder), dtype="bfloat16", **asked)
    assert "\n" not in str(caught.value)


def test_a_cross_encoder_refuses_too(tmp_path):
    import tiny_cross_encoders

    folder = tiny_cross_encoders.write(tmp_path / "m")
    with pytest.raises(InputError, match="attention='splash' needs a TPU"):
        CrossEncoder.from_pretrained(str(folder), attention="splash", dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "cudnn"}, "computes in bfloat16 or float16, not in float32; set dtype="),
        ({"attention": "splash"}, "computes in bfloat16, not in float32"),
        ({"attention": "splash", "dtype": "float16"}, "computes in bfloat16, not in float16"),
        ({"attention": "cudnn", "dtype": "float16", "dropout": 0.1}, "cannot drop attention prob"),
        ({"attention": "splash", "dtype": "bfloat16", "dropout": 0.1}, "set dropout=0, or"),
    ],
)
def test_options_a_kernel_cannot_do_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Options(**options)


def test_heads_and_windows_cudnn_cannot_do_are_refused(monkeypatch, tmp_path):
    pretend_a_gpu(monkeypatch)
    asked = {"attention": "cudnn", "dtype": "bfloat16"}
    for name, words in (
        ("qwen3-embedding", "a multiple of 8 and at most 256, but this model's is 12"),
        ("modernbert", "support windows to both sides, which this model's local layers need"),
    ):
        folder = tiny_backbones.write(tmp_path / name, name)
        with pytest.raises(InputError, match=words):
            Encoder.from_pretrained(str(folder), **asked)
    config = BertConfig.from_hf(tiny_models.config(hidden_size=528, num_attention_heads=2))
    with pytest.raises(InputError, match="but this model's is 264"):
        Bert(config, options=Options(**asked), rngs=None)


def test_what_is_asked_of_a_kernel_when_it_is_traced_is_checked_too():
    qkv, lengths = inputs(20, [20, 7], 2, 1, 8)
    for name in ("cudnn", "splash"):
        with pytest.raises(InputError, match=f"'{name}' computes in bfloat16.*not in float32"):
            grouped_attention(*qkv, lengths, implementation=name)
    half = [x.astype(jnp.bfloat16) for x in qkv]
    with pytest.raises(InputError, match="support windows to both sides"):
        grouped_attention(*half, lengths, window=4, implementation="cudnn")
    with pytest.raises(InputError, match="cannot drop"):
        grouped_attention(*half, lengths, implementation="splash", dropout=lambda x: x)
    with jax.set_mesh(jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"))):
        for name in ("cudnn", "splash"):
            with pytest.raises(InputError, match=f"'{name}' needs .* has 'cpu' devices"):
                grouped_attention(*half, lengths, implementation=name)


SCRIPT = """
import sys
import types
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from nvret_jax import mesh as mesh_lib
from nvret_jax import platforms
from nvret_jax.models import embedding_model, loaded
from nvret_jax.models.attention import kernels, splash
from nvret_jax.models.encoder import Encoder, LoraConfig

out, folders = sys.argv[1], sys.argv[2:]
splash.INTERPRET = True
for module in (kernels, loaded, embedding_model):
    module.check_platform = lambda name, platform: None
platforms.of = lambda mesh: "gpu"
real, shapes = jax.nn.dot_product_attention, set()

def by_xla(q, *args, implementation, **kwargs):
    assert implementation == "cudnn"
    shapes.add(q.shape)
    return real(q, *args, implementation="xla", **kwargs)

jax.nn.dot_product_attention = by_xla
ids = np.random.default_rng(0).integers(3, 20, (8, 24)).astype(np.int32)
lengths = np.asarray([24, 1, 7, 12, 24, 3, 9, 20], np.int32)
results = {}
runs = [([1, 1, 1], "xla"), ([2, 2, 2], "splash"), ([1, 4, 2], "cudnn")]
for folder in folders:
    name = folder.split("/")[-1]
    for sizes, attention in runs:
        if attention == "cudnn" and name != "nv-retriever":
            continue
        mesh = mesh_lib.make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
        dtype = "bfloat16" if attention == "cudnn" else "float32"
        encoder = Encoder.from_pretrained(
            folder, mesh=mesh, attention=attention, dtype=dtype, lora=LoraConfig(rank=2)
        )
        put = lambda x, *axes: jax.device_put(x, mesh_lib.sharding(mesh, *axes))
        batch = put(ids, "batch", None), put(lengths, "batch")

        def loss(model):
            emb = model(*batch)
            return jnp.sin(3 * emb).mean(), emb

        with jax.set_mesh(mesh):
            (_, emb), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(encoder.model)
        at = f"{name}/{attention}/{'x'.join(map(str, sizes))}"
        results[at] = np.asarray(emb)
        for path, value in nnx.to_flat_state(nnx.state(grads)):
            results[f"{at}:" + ".".join(map(str, path))] = np.asarray(value[...], np.float32)
assert {s[0] for s in shapes} == {2}, shapes  # a device saw its share of the batch, and of heads
assert {s[2] for s in shapes} == {2}, shapes
np.savez(out, **results)
"""


@pytest.mark.slow
def test_kernels_on_eight_devices_give_what_xla_gives_on_one(tmp_path):
    names = ["bert", "nv-retriever", "modernbert"]
    folders = [folder_of(tmp_path, name) for name in names]
    environment = virtual_devices.environment(8)
    out = str(tmp_path / "out.npz")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, out, *folders],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = np.load(out, allow_pickle=False)
    compared = 0
    for key in results.files:
        name, attention, rest = key.split("/", 2)
        if attention == "xla":
            continue
        expected = results[f"{name}/xla/1x1x1" + (":" + rest.split(":")[1] if ":" in rest else "")]
        tolerance = 0.05 if attention == "cudnn" else 2e-5
        error = np.abs(results[key] - expected).max()
        assert error <= tolerance * max(1.0, np.abs(expected).max()), (key, error)
        compared += 1
    assert compared > 60
