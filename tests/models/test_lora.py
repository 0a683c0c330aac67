"""LoRA: what it computes, what trains, how it goes out and comes in."""

import json

import backbone_checks as checks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import tiny_backbones
import tiny_models
from flax import nnx
from tiny_backbones import TEXTS

from nvret_jax.errors import InputError
from nvret_jax.export.sentence_transformers import export
from nvret_jax.models import lora
from nvret_jax.models.backbones.families import FAMILIES
from nvret_jax.models.encoder import Encoder, LoraConfig
from nvret_jax.models.pretrained import weights

CONFIG = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "o_proj", "mlp.down_proj"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    names = ("qwen2", "modernbert", "nv-embed", "bert", "xlm-roberta")
    return {name: write(root / name, name) for name in names}


def write(folder, name):
    module = tiny_models if name in ("bert", "xlm-roberta") else tiny_backbones
    return module.write(folder, name)


def source(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def disturbed(encoder, size=1.0):
    """The encoder with adapters that do something."""
    rng = np.random.default_rng(0)
    state = nnx.split(encoder.model)[1]
    flat = [
        (p, v.replace(v[...] + rng.standard_normal(v.shape).astype(np.float32) * 0.2 * size))
        if isinstance(v, nnx.LoRAParam)
        else (p, v)
        for p, v in nnx.to_flat_state(state)
    ]
    return encoder.replace(nnx.from_flat_state(flat))


def test_new_adapters_change_nothing_and_are_float32_beside_a_bfloat16_base(folders):
    plain = Encoder.from_pretrained(str(folders["qwen2"]), param_dtype="bfloat16")
    encoder = Encoder.from_pretrained(str(folders["qwen2"]), param_dtype="bfloat16", lora=CONFIG)
    np.testing.assert_array_equal(encoder.encode(TEXTS), plain.encode(TEXTS))
    layers = encoder.model.backbone.layers
    assert layers.query_kernel.dtype == jnp.bfloat16
    shapes = {n: v.shape for n, v in vars(layers).items() if "_lora_" in n}
    assert shapes == {
        "query_lora_a": (2, 32, 3),
        "query_lora_b": (2, 3, 2, 2, 8),
        "out_lora_a": (2, 2, 2, 8, 3),
        "out_lora_b": (2, 3, 32),
        "down_lora_a": (2, 48, 3),
        "down_lora_b": (2, 3, 32),
    }
    assert all(getattr(layers, n).dtype == jnp.float32 for n in shapes)
    again = Encoder.from_pretrained(str(folders["qwen2"]), lora=CONFIG, seed=1)
    assert (
        np.abs(again.model.backbone.layers.query_lora_a[...] - layers.query_lora_a[...]).max() > 0
    )
    checks.check_axes(encoder)


def test_adapters_of_bert_have_the_axes_of_their_kernels(folders):
    encoder = Encoder.from_pretrained(str(folders["bert"]), lora=LoraConfig(rank=3))
    layers, axes = encoder.model.backbone.layers, encoder.model.logical_axes()
    expected = {
        "query_lora_a": ((3, 32, 3), (None, "embed", None)),
        "query_lora_b": ((3, 3, 4, 8), (None, None, "heads", None)),
        "out_lora_a": ((3, 4, 8, 3), (None, "heads", None, None)),
        "out_lora_b": ((3, 3, 32), (None, None, "embed")),
        "up_lora_b": ((3, 3, 64), (None, None, "mlp")),
        "down_lora_a": ((3, 64, 3), (None, "mlp", None)),
    }
    for name, (shape, names) in expected.items():
        assert getattr(layers, name).shape == shape
        assert axes["backbone", "layers", name] == names
    checks.check_axes(encoder)
    plain = Encoder.from_pretrained(str(folders["bert"]))
    np.testing.assert_array_equal(encoder.encode(TEXTS), plain.encode(TEXTS))


@pytest.mark.parametrize("name", ["qwen2", "modernbert", "bert", "xlm-roberta"])
def test_merged_for_the_export_is_the_same_model(folders, name, tmp_path):
    every = LoraConfig(rank=2, alpha=3.0)
    encoder = disturbed(Encoder.from_pretrained(str(folders[name]), lora=every))
    emb = encoder.encode(TEXTS)
    base = Encoder.from_pretrained(str(folders[name]))
    assert np.abs(emb - base.encode(TEXTS)).max() > 0.05
    out = write(tmp_path / "m", name)
    tensors = encoder.save_weights_hf()
    assert set(tensors) == set(base.save_weights_hf())
    safetensors.numpy.save_file(tensors, str(out / "model.safetensors"))
    np.testing.assert_allclose(Encoder.from_pretrained(str(out)).encode(TEXTS), emb, atol=2e-5)
    assert encoder.fingerprint != base.fingerprint
    # By hand, for a kernel whose input is several dimensions.
    if name == "qwen2":
        layers = encoder.model.backbone.layers
        a, b = (np.asarray(getattr(layers, f"out_lora_{s}")[...][1]) for s in "ab")
        delta = 1.5 * (a.reshape(32, 2) @ b)
        source = tiny_backbones.tensors(name)["layers.1.self_attn.o_proj.weight"]
        got = tensors["layers.1.self_attn.o_proj.weight"]
        np.testing.assert_allclose(got, source + delta.T, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "bert"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_only_adapters_train(folders, name, param_dtype):
    config = CONFIG
    if name == "bert":
        config = LoraConfig(rank=3, alpha=6.0, targets=("query", "dense"))
    names = {"qwen2": ("q_proj", "o_proj", "down_proj"), "bert": ("query", "dense")}[name]
    encoder = Encoder.from_pretrained(str(folders[name]), lora=config, param_dtype=param_dtype)
    graph, trainable, frozen = nnx.split(encoder.model, encoder.trainable, ...)
    paths = [path for path, _ in nnx.to_flat_state(trainable)]
    assert len(paths) == {"qwen2": 6, "bert": 8}[name]
    assert all("_lora_" in path[-1] for path in paths)
    assert {v.dtype for v in jax.tree.leaves(trainable)} == {jnp.dtype("float32")}
    assert {v.dtype for v in jax.tree.leaves(frozen)} == {jnp.dtype(param_dtype)}
    ids_bt, lengths_b = checks.padded(encoder.tokenize(TEXTS), 32)

    @jax.jit
    def step(trainable, state):
        def loss(trainable):
            emb = nnx.merge(graph, trainable, frozen)(ids_bt, lengths_b)
            return jnp.square(emb - target).mean()

        value, grads = jax.value_and_grad(loss)(trainable)
        updates, state = optimizer.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    optimizer = optax.adam(1e-2)
    with jax.set_mesh(encoder.mesh):
        target = jnp.asarray(np.random.default_rng(0).standard_normal((4, 32)), jnp.float32)
        state, losses = optimizer.init(trainable), []
        for _ in range(8):
            trainable, state, value = step(trainable, state)
            losses.append(float(value))
    assert losses[-1] < losses[0] - 1e-3
    trained = encoder.replace(nnx.merge_state(trainable, frozen))
    before = source(folders[name])
    for key, value in trained.save_weights_hf().items():
        adapted = any(f"{n}.weight" in key for n in names if "pooler" not in key)
        assert value.dtype == jnp.dtype("float32" if adapted else param_dtype)
        same = (value == before[key].astype(param_dtype).astype(value.dtype)).all()
        assert same != adapted, key


@pytest.mark.parametrize("size", [1.0, 0.02])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_adapters_are_added_in_float32_and_rounded_once_to_the_export(
    folders, tmp_path, dtype, size
):
    """The smaller ones change the weights by .3 %, less than the base's own bfloat16 rounds."""
    config = LoraConfig(rank=2, alpha=3.0, targets=("query", "attention.output.dense"))
    encoder = Encoder.from_pretrained(str(folders["bert"]), param_dtype="bfloat16", lora=config)
    encoder = disturbed(encoder, size)
    export(encoder, tmp_path / "m", dtype=dtype)
    before = source(folders["bert"])
    after = safetensors.numpy.load_file(tmp_path / "m" / "model.safetensors")
    change, lost = encoder.merge_rounding(dtype)
    if size < 1:
        assert 0.001 < change < 0.02
    layers = encoder.model.backbone.layers
    for module, stem in (("attention.self.query", "query"), ("attention.output.dense", "out")):
        key = f"encoder.layer.1.{module}.weight"
        a, b = (np.asarray(getattr(layers, f"{stem}_lora_{s}")[...][1]) for s in "ab")
        delta = 1.5 * (a.reshape(32, 2).astype(float) @ b.reshape(2, 32).astype(float)).T
        exact = before[key].astype(jnp.bfloat16).astype(float) + delta
        assert after[key].dtype == np.dtype(dtype)
        error = after[key].astype(float) - exact
        # Half a step of what is written, and the rounding of the float32 sum.
        step = {"float32": 2.0**-24, "float16": 2.0**-11}[dtype]
        bound = np.maximum(np.abs(exact) * step, 2.0**-25) + np.abs(exact) * 2.0**-23
        assert (np.abs(error) <= bound).all()
    assert lost <= {"float32": 1e-3, "float16": 0.2}[dtype]
    assert lost <= step / change * 1.1


def test_pooling_of_its_own_trains_with_the_adapters(folders):
    encoder = Encoder.from_pretrained(str(folders["nv-embed"]), lora=CONFIG)
    _, trainable, _ = nnx.split(encoder.model, encoder.trainable, ...)
    roots = {path[0] for path, _ in nnx.to_flat_state(trainable)}
    assert roots == {"backbone", "latent"}


@pytest.mark.parametrize(
    ("name", "targets"), [("qwen2", ("q_proj", "down_proj")), ("bert", ("query", "output.dense"))]
)
def test_dropout_is_on_the_adapters_input_and_belongs_to_the_example(folders, name, targets):
    config = LoraConfig(rank=3, alpha=6.0, dropout=0.5, targets=targets)
    encoder = disturbed(Encoder.from_pretrained(str(folders[name]), lora=config))
    ids_bt, lengths_b = checks.padded(encoder.tokenize(TEXTS), 32)
    keys = jax.random.split(jax.random.key(0), 4)
    with jax.set_mesh(encoder.mesh):
        model = encoder.model
        one = checks.run(model, ids_bt, lengths_b, dropout_keys_b=keys)
        none = checks.run(model, ids_bt, lengths_b)
        assert np.abs(one - none).max() > 1e-3
        half = checks.run(model, ids_bt[2:], lengths_b[2:], dropout_keys_b=keys[2:])
        np.testing.assert_allclose(half, one[2:], atol=2e-6)
        plain = Encoder.from_pretrained(str(folders[name])).model
        np.testing.assert_array_equal(
            checks.run(plain, ids_bt, lengths_b, dropout_keys_b=keys),
            checks.run(plain, ids_bt, lengths_b),
        )


@pytest.mark.parametrize("name", ["qwen2", "modernbert", "bert"])
def test_adapters_go_out_and_come_in(folders, name, tmp_path):
    targets = {
        "qwen2": ("q_proj", "o_proj"),
        "modernbert": ("Wqkv", "Wo", "mlp.Wi"),
        "bert": ("query", "value", "dense"),
    }[name]
    config = LoraConfig(rank=3, alpha=6.0, dropout=0.1, targets=targets, rslora=True)
    encoder = disturbed(Encoder.from_pretrained(str(folders[name]), lora=config))
    encoder.save_adapter(tmp_path / "a")
    back = Encoder.from_pretrained(str(folders[name]), adapter=tmp_path / "a")
    np.testing.assert_array_equal(back.encode(TEXTS), encoder.encode(TEXTS))
    assert (back.lora.rank, back.lora.alpha, back.lora.dropout) == (3, 6.0, 0.1)
    assert back.lora.scale == encoder.lora.scale == 6.0 / 3**0.5
    tensors = safetensors.numpy.load_file(tmp_path / "a" / "adapter_model.safetensors")
    key = {
        "qwen2": "layers.1.self_attn.q_proj",
        "modernbert": "layers.1.attn.Wqkv",
        "bert": "encoder.layer.1.attention.self.query",
    }[name]
    b = tensors[f"base_model.model.{key}.lora_B.weight"]
    assert b.shape == ({"qwen2": 32, "modernbert": 96, "bert": 32}[name], 3)
    if name == "bert":
        at = "base_model.model.encoder.layer.2.output.dense"
        assert tensors[f"{at}.lora_A.weight"].shape == (3, 64)
        assert tensors[f"{at}.lora_B.weight"].shape == (32, 3)
        assert tensors[f"{at.replace('output', 'attention.output')}.lora_B.weight"].shape == (32, 3)
    assert all(value.dtype == np.float32 for value in tensors.values())
    # Adapters made for the model with a head stand one level deeper.
    head = "bert." if name == "bert" else "model."
    at = "base_model.model."
    deeper = {k.replace(at, f"{at}{head}"): v for k, v in tensors.items()}
    if name == "bert":  # PEFT's 'dense' takes the pooler's too, which has no part in an embedding
        deeper[f"{at}bert.pooler.dense.lora_A.weight"] = np.zeros((3, 32), "f")
    safetensors.numpy.save_file(deeper, str(tmp_path / "a" / "adapter_model.safetensors"))
    again = Encoder.from_pretrained(str(folders[name]), adapter=tmp_path / "a")
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    plain = Encoder.from_pretrained(str(folders[name]))
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 7.0}))
    louder = Encoder.from_pretrained(str(folders[name]), adapter=tmp_path / "a")
    assert len({plain.fingerprint, back.fingerprint, louder.fingerprint}) == 3


@pytest.mark.parametrize(
    ("name", "targets", "missing", "there"),
    [
        (
            "qwen2",
            ("q_proj", "query", "Wqkv"),
            "'query', 'Wqkv'",
            "mlp.gate_proj, mlp.up_proj, ",
        ),
        ("bert", ("q_proj", "query"), "'q_proj'", "attention.self.query, attention.self.value, in"),
        ("bert", ("pooler.dense",), "'pooler.dense'", "intermediate.dense, output.dense (their"),
        (
            "xlm-roberta",
            ("self.q", "uery"),
            "'self.q', 'uery'",
            "attention.output.dense, ",
        ),
        ("modernbert", ("query",), "'query'", "attn.Wo, attn.Wqkv, mlp.Wi, mlp.Wo"),
        ("nv-embed", ("Wo",), "'Wo'", "self_attn.q_proj, self_attn.v_proj"),
    ],
)
def test_targets_that_match_nothing_are_told(folders, name, targets, missing, there):
    with pytest.raises(InputError) as caught:
        Encoder.from_pretrained(str(folders[name]), lora=LoraConfig(targets=targets))
    assert f"lora targets {missing} match nothing in this model; its modules: " in str(caught.value)
    assert there in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_family_tells_targets_it_does_not_have():
    for name, family in FAMILIES.items():
        with pytest.raises(InputError, match="lora targets 'x' match nothing in this model"):
            lora.matches(family.table, ("x",), 2)
        assert len(lora.matches(family.table, ("all-linear",), 2)) >= 4, name


def test_targets_match_as_in_peft():
    table = FAMILIES["mistral"].table
    got = lora.matches(table, ("self_attn.q_proj", "down_proj"), 2)
    assert set(got.values()) == {"query", "down"}
    assert len(lora.matches(table, ("all-linear",), 2)) == 7
    both = lora.matches(FAMILIES["modernbert"].table, ("Wo",), 2)
    assert set(both.values()) == {"out", "down"}
    bert = FAMILIES["bert"].table
    assert set(lora.matches(bert, ("dense", "key"), 2).values()) == {"out", "up", "down", "key"}
    # As in PEFT, this means attention.output.dense too.
    assert set(lora.matches(bert, ("output.dense",), 2).values()) == {"out", "down"}


def test_whole_names_must_be_those_of_all_layers(folders, tmp_path):
    bert = FAMILIES["bert"].table
    names = tuple(f"encoder.layer.{i}.output.dense" for i in range(3))
    assert set(lora.matches(bert, names, 3).values()) == {"down"}
    assert set(lora.matches(bert, tuple(f"roberta.{n}" for n in names), 3).values()) == {"down"}
    with pytest.raises(InputError, match=r"in 2 of 3 layers; .*add layer 1, or .*'output\.dense'"):
        lora.matches(bert, (names[0], names[2]), 3)
    # Short names would mean attention.output.dense as well: PEFT is told the whole ones.
    encoder = Encoder.from_pretrained(str(folders["bert"]), lora=LoraConfig(targets=names))
    encoder.save_adapter(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(names)
    back = Encoder.from_pretrained(str(folders["bert"]), adapter=tmp_path)
    np.testing.assert_array_equal(back.encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern="),
        ({"bias": "all", "modules_to_save": ["x"]}, "bias='all'; modules_to_save="),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"target_modules": ".*q_proj"}, r"target_modules='\.\*q_proj' \(a pattern"),
        ({"r": 0}, "r=0, expected a positive int"),
    ],
)
def test_other_adapters_than_plain_ones_are_refused(folders, tmp_path, change, message):
    encoder = Encoder.from_pretrained(str(folders["qwen2"]), lora=CONFIG)
    encoder.save_adapter(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        lora.read_config(tmp_path)


def test_an_adapter_of_another_model_is_refused(folders, tmp_path):
    Encoder.from_pretrained(str(folders["qwen2"]), lora=CONFIG).save_adapter(tmp_path)
    with pytest.raises(InputError, match="match nothing in this model"):
        Encoder.from_pretrained(str(folders["modernbert"]), adapter=tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    tensors.pop("base_model.model.layers.0.self_attn.q_proj.lora_A.weight")
    tensors["base_model.model.layers.0.self_attn.k_proj.lora_A.weight"] = np.zeros((3, 32), "f")
    safetensors.numpy.save_file(tensors, str(tmp_path / "adapter_model.safetensors"))
    with pytest.raises(InputError, match=r"missing keys: .*q_proj.*unknown keys: .*k_proj"):
        Encoder.from_pretrained(str(folders["qwen2"]), adapter=tmp_path)
    with pytest.raises(InputError, match="are both given"):
        Encoder.from_pretrained(str(folders["qwen2"]), adapter=tmp_path, lora=CONFIG)
    with pytest.raises(InputError, match=r"adapter_config\.json: no such file"):
        Encoder.from_pretrained(str(folders["qwen2"]), adapter=tmp_path / "x")


@pytest.mark.parametrize(
    "bad", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": ()}, {"rank": True}]
)
def test_options_are_checked(bad):
    with pytest.raises(InputError, match=f"lora: {next(iter(bad))}="):
        LoraConfig(**bad)


def test_a_plain_model_merges_to_itself(folders):
    encoder = Encoder.from_pretrained(str(folders["qwen2"]))
    backbone = encoder.model.backbone
    path = ("layers", "query_kernel")
    assert lora.merged(backbone, path) is backbone.layers.query_kernel[...]
    assert encoder.merge_rounding("float16") == (0.0, 0.0)
    with pytest.raises(InputError, match="no adapters to save"):
        encoder.save_adapter("x")
    assert weights.to_hf(backbone, table=FAMILIES["qwen2"].table).keys() == (
        encoder.save_weights_hf().keys()
    )
