"""Folders of decoders, ModernBERT, late interaction and adapters, read back and by others."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny_backbones
from flax import nnx
from tiny_backbones import TEXTS

from nvret_jax.errors import InputError
from nvret_jax.export import end_token
from nvret_jax.export.sentence_transformers import export
from nvret_jax.models.encoder import Encoder, LoraConfig

PLAIN = {
    "nv-retriever": "mistral",
    "llama-nemotron-embed": "llama",
    "omni-embed-nemotron": "qwen2",
    "qwen2": "qwen2",
    "nv-embed": "nvembed",
}


def read(folder, name="config.json"):
    return json.loads((folder / name).read_text())


def load(tmp_path, name, **kwargs):
    folder = tiny_backbones.write(tmp_path / "source", name)
    return Encoder.from_pretrained(str(folder), **kwargs)


def vectors(encoder, kind):
    if encoder.spec.late is None:
        return encoder.encode(TEXTS, kind=kind)
    return np.concatenate(encoder.encode_tokens(TEXTS, kind=kind))


@pytest.mark.parametrize("name", list(tiny_backbones.CASES))
def test_each_backbone_is_read_back_exactly(name, tmp_path):
    encoder = load(tmp_path, name)
    out = export(encoder, tmp_path / "out")
    again = Encoder.from_pretrained(str(out))
    for kind in ("query", "passage"):
        np.testing.assert_array_equal(vectors(again, kind), vectors(encoder, kind))
        for limit in (12, 32):  # longer than a prompt
            ours = encoder.tokenize(TEXTS, kind=kind, max_length=limit)
            for ids, expected in zip(
                again.tokenize(TEXTS, kind=kind, max_length=limit), ours, strict=True
            ):
                assert ids.tolist() == expected.tolist()
    config = read(out)
    case = tiny_backbones.CASES[name]["config"]["model_type"]
    assert config["model_type"] == PLAIN.get(name, case)
    assert "auto_map" not in config
    assert "layer_norm_eps" not in config
    assert config["architectures"][0].lower() == f"{config['model_type']}model"
    if config["model_type"] in ("mistral", "llama", "qwen2", "qwen3"):
        causal = tiny_backbones.CASES[name]["causal"]
        assert config["is_causal"] is causal
        assert config["use_bidirectional_attention"] is not causal
        assert config["sliding_window"] is None
    fields = ("pooling", "normalize", "max_length", "query_prompt", "dense")
    for field in (*fields, "prompt_in_pooling", "late"):
        if field == "late" and again.spec.late:
            assert again.spec.late.marker("query") == encoder.spec.late.marker("query")
            continue
        assert getattr(again.spec, field) == getattr(encoder.spec, field), field


@pytest.mark.parametrize(
    ("name", "mode", "include"),
    [("e5-mistral", "lasttoken", True), ("nv-retriever", "mean", False)],
)
def test_pooling_is_told_to_old_and_new_readers(name, mode, include, tmp_path):
    pooling = read(export(load(tmp_path, name), tmp_path / "out"), "1_Pooling/config.json")
    assert pooling["pooling_mode"] == mode
    assert pooling["pooling_mode_lasttoken"] is (mode == "lasttoken")
    assert pooling["include_prompt"] is include


def test_a_direction_that_was_asked_for_is_written(tmp_path):
    encoder = load(tmp_path, "e5-mistral", bidirectional=True, pooling="mean")
    out = export(encoder, tmp_path / "out")
    assert read(out)["is_causal"] is False
    np.testing.assert_array_equal(
        Encoder.from_pretrained(str(out)).encode(TEXTS), encoder.encode(TEXTS)
    )


def add_dense(folder):
    """Gives a pooled folder a Dense module between Pooling and Normalize."""
    modules = read(folder, "modules.json")
    path = folder / "2_Dense"
    path.mkdir()
    config = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": "Tanh"}
    config["activation_function"] = "torch.nn.modules.activation.Tanh"
    (path / "config.json").write_text(json.dumps(config))
    shapes = {"linear.weight": (8, 32), "linear.bias": (8,)}
    safetensors.numpy.save_file(tiny_backbones.random(shapes, 3), str(path / "model.safetensors"))
    kind = "sentence_transformers.models.Dense"
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_dense_modules_stand_between_pooling_and_normalize(tmp_path):
    folder = add_dense(tiny_backbones.write(tmp_path / "source", "modernbert"))
    encoder = Encoder.from_pretrained(str(folder))
    out = export(encoder, tmp_path / "out")
    assert [m["path"] for m in read(out, "modules.json")] == [
        "",
        "1_Pooling",
        "2_Dense",
        "3_Normalize",
    ]
    assert read(out, "1_Pooling/config.json")["word_embedding_dimension"] == 32
    again = Encoder.from_pretrained(str(out))
    assert again.width == 8
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_late_interaction_is_written_under_pylates_keys(tmp_path):
    out = export(load(tmp_path, "lateon-code"), tmp_path / "out")
    shared = read(out, "config_sentence_transformers.json")
    for key, value in tiny_backbones.LATE.items():
        assert shared[key] == value, key
    assert shared["do_query_expansion"] is True
    kinds = [m["type"].rsplit(".", 1)[-1] for m in read(out, "modules.json")]
    assert kinds == ["Transformer", "Dense", "Dense", "Dense"]
    assert not (out / "1_Pooling").exists()
    assert "MultiVectorEncoder" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    "expansion",
    [
        None,
        {"strategy": "min", "length": 9, "attend": True},
        {"strategy": "fixed", "length": 9, "attend": False, "token": "[UNK]"},
    ],
)
def test_other_ways_to_lengthen_queries_survive(expansion, tmp_path):
    folder = tiny_backbones.write(tmp_path / "source", "lateon-code")
    settings = read(folder, "sentence_bert_config.json") | {"query_expansion": expansion}
    if expansion is None:
        path = folder / "config_sentence_transformers.json"
        path.write_text(json.dumps(read(folder, path.name) | {"do_query_expansion": False}))
        settings.pop("query_expansion")
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    encoder = Encoder.from_pretrained(str(folder))
    again = Encoder.from_pretrained(str(export(encoder, tmp_path / "out")))
    np.testing.assert_array_equal(vectors(again, "query"), vectors(encoder, "query"))
    np.testing.assert_array_equal(vectors(again, "passage"), vectors(encoder, "passage"))


def test_adapters_are_merged(tmp_path):
    encoder = load(tmp_path, "nv-retriever", lora=LoraConfig(rank=2, alpha=4.0))
    rng = np.random.default_rng(0)
    flat = [
        (path, v.replace(v[...] + rng.standard_normal(v.shape).astype(np.float32) * 0.2))
        if isinstance(v, nnx.LoRAParam)
        else (path, v)
        for path, v in nnx.to_flat_state(nnx.split(encoder.model)[1])
    ]
    moved = encoder.replace(nnx.from_flat_state(flat))
    out = export(moved, tmp_path / "out")
    again = Encoder.from_pretrained(str(out))
    assert again.lora is None
    np.testing.assert_allclose(again.encode(TEXTS), moved.encode(TEXTS), atol=2e-5)
    assert np.abs(again.encode(TEXTS) - encoder.encode(TEXTS)).max() > 0.05


def test_what_a_folder_cannot_tell_is_refused(tmp_path):
    encoder = load(tmp_path, "nv-retriever", prompt_in_pooling="last")
    with pytest.raises(InputError, match="prompt_in_pooling='last'"):
        export(encoder, tmp_path / "out")
    late = load(tmp_path, "lateon-code", normalize=False)
    with pytest.raises(InputError, match="normalize=False"):
        export(late, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("nv-retriever", {}),
        ("e5-mistral", {"bidirectional": True, "pooling": "mean"}),
        ("e5-mistral", {}),
        ("llama-nemotron-embed", {}),
        ("qwen3-embedding", {}),
        ("modernbert", {}),
        ("modernbert, Dense", {}),
    ],
)
def test_sentence_transformers_gives_the_same_embeddings(name, changes, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    folder = tiny_backbones.write(tmp_path / "source", name.partition(",")[0])
    if "Dense" in name:
        add_dense(folder)
    encoder = Encoder.from_pretrained(str(folder), **changes)
    out = export(encoder, tmp_path / "out")
    model = st.SentenceTransformer(str(out), device="cpu")
    difference = 0.0
    for texts in (TEXTS, TEXTS[:1]):  # padded, and alone
        for ours, theirs in (
            (encoder.encode(texts, kind="query"), model.encode_query(texts)),
            (encoder.encode(texts, kind="passage"), model.encode_document(texts)),
        ):
            difference = max(difference, float(np.abs(ours - theirs).max()))
    print(f"{name} {changes}: max |difference| to sentence-transformers: {difference:.2e}")
    assert difference <= 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("name", ["omni-embed-nemotron", "qwen2"])
def test_transformers_reads_what_is_written_as_qwen2(name, tmp_path):
    """Token by token: it puts a tokenizer of its own in the place of a tiny one for Qwen2."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder = load(tmp_path, name, pooling="mean", normalize=True)
    out = export(encoder, tmp_path / "out")
    model, info = transformers.AutoModel.from_pretrained(str(out), output_loading_info=True)
    assert type(model).__name__ == "Qwen2Model"
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info.get(problem), (problem, info[problem])
    for text, ours in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids = torch.tensor(encoder.tokenize([text])[0][None].astype(np.int64))
        with torch.no_grad():
            pooled = model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(ours, pooled / np.linalg.norm(pooled), atol=1e-5)


BEGIN = {"SpecialToken": {"id": "<s>", "type_id": 0}}


@pytest.mark.parametrize("before", [None, "bytes", "template", "both"])
def test_an_end_token_is_put_behind_whatever_was_there(before):
    from tokenizers import Tokenizer, models

    bytes_ = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    bytes_ |= {"use_regex": True}
    template = {
        "type": "TemplateProcessing",
        "single": [BEGIN, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [6], "tokens": ["<s>"]}},
    }
    both = {"type": "Sequence", "processors": [bytes_, template]}
    post = {None: None, "bytes": bytes_, "template": template, "both": both}[before]
    vocabulary = {"a": 0, "b": 1, "<s>": 6, "</s>": 7}
    plain = json.loads(Tokenizer(models.WordLevel(vocabulary, unk_token="a")).to_str())
    got = end_token.with_end(plain | {"post_processor": post}, "</s>", 7)
    ids = Tokenizer.from_str(json.dumps(got)).encode("b").ids
    assert ids == ([6] if before in ("template", "both") else []) + [1, 7]


@pytest.mark.parity
def test_sentence_transformers_reads_late_interaction(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    if not hasattr(st, "MultiVectorEncoder"):
        pytest.skip("needs sentence-transformers 6")
    encoder = load(tmp_path, "lateon-code")
    model = st.MultiVectorEncoder(str(export(encoder, tmp_path / "out")), device="cpu")
    for kind, theirs in (
        ("query", model.encode_query(TEXTS)),
        ("passage", model.encode_document(TEXTS)),
    ):
        for ours, expected in zip(encoder.encode_tokens(TEXTS, kind=kind), theirs, strict=True):
            np.testing.assert_allclose(ours, np.asarray(expected), atol=1e-5)
