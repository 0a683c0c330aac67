"""The exported folder, read by everyone who is meant to read it."""

import dataclasses
import inspect
import json
import pathlib
import types

import numpy as np
import pytest
import safetensors.numpy
import tiny_models
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from nvret_jax.errors import InputError
from nvret_jax.evaluation.comparison import Scores
from nvret_jax.export.model_card import ModelCard, license_of
from nvret_jax.export.sentence_transformers import export
from nvret_jax.models.encoder import Encoder

WORDS = "how do i sort an array with numpy return a copy of the values in order query passage : ."
TEXTS = ["how do i sort an array", "return a copy of the values", "numpy", "an unseen word"]


def make_tiny(folder, *, pooling="mean", normalize=True):
    """A tiny BERT whose folder has what published ones have: prompts, padding, a card, old keys."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(WORDS.split()))]
    config = {
        "architectures": ["BertForMaskedLM"],
        "vocab_size": len(words),
        "num_hidden_layers": 2,
        "transformers_version": "4.8.2",
        "_name_or_path": "/somewhere/else",
    }
    tiny_models.write(folder, pooling=pooling, normalize=normalize, **config)
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(words[:4])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "model_max_length": 512,
            "name_or_path": "/somewhere/else",
        },
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "passage": "passage: "}
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(encoder, exported float32 folder, source folder)"""
    root = tmp_path_factory.mktemp("tiny")
    encoder = Encoder.from_pretrained(str(make_tiny(root / "source")))
    return encoder, export(encoder, root / "new" / "out"), root / "source"


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_our_own_encoder_reads_it_back_exactly(tiny):
    encoder, out, _ = tiny
    again = Encoder.from_pretrained(str(out))
    for kind in ("query", "passage"):
        np.testing.assert_array_equal(
            again.encode(TEXTS, kind=kind), encoder.encode(TEXTS, kind=kind)
        )
    assert again.spec.max_length == encoder.spec.max_length == 24
    assert (again.spec.query_prompt, again.spec.passage_prompt) == ("query: ", "passage: ")
    assert not np.array_equal(again.encode(TEXTS, kind="query"), again.encode(TEXTS))


def test_what_was_overridden_is_what_is_written(tiny, tmp_path):
    _, _, source = tiny
    encoder = Encoder.from_pretrained(
        str(source),
        pooling="cls",
        normalize=False,
        max_length=16,
        query_prompt="q ",
        passage_prompt="",
    )
    out = export(encoder, tmp_path / "out")
    again = Encoder.from_pretrained(str(out))
    np.testing.assert_array_equal(
        again.encode(TEXTS, kind="query"), encoder.encode(TEXTS, kind="query")
    )
    fields = ("pooling", "normalize", "max_length", "query_prompt", "passage_prompt", "similarity")
    for field in fields:
        assert getattr(again.spec, field) == getattr(encoder.spec, field), field
    assert [m["path"] for m in read(out, "modules.json")] == ["", "1_Pooling"]
    assert not (out / "2_Normalize").exists()


def test_trained_weights_are_written_and_the_pooler_is_kept(tiny, tmp_path):
    import jax
    from flax import nnx

    encoder, out, source = tiny
    state = jax.tree.map(lambda x: x * 1.5, nnx.split(encoder.model)[1])
    moved = load_file(export(encoder.replace(state), tmp_path / "moved") / "model.safetensors")
    before, original = load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
    assert before.keys() == moved.keys() == original.keys()
    for key, value in original.items():
        np.testing.assert_array_equal(before[key], value)
        factor = 1.0 if key.startswith("pooler.") else 1.5
        np.testing.assert_allclose(moved[key], factor * value, rtol=1e-6)


def test_float16_halves_the_file_and_stays_close(tiny, tmp_path):
    encoder, out, _ = tiny
    half = export(encoder, tmp_path / "half", dtype="float16")
    assert {v.dtype for v in load_file(half / "model.safetensors").values()} == {np.dtype("f2")}
    assert read(half, "config.json")["dtype"] == "float16"
    ratio = (half / "model.safetensors").stat().length / (out / "model.safetensors").stat().length
    assert ratio < 0.6
    again = Encoder.from_pretrained(str(half)).encode(TEXTS)
    assert 0 < np.abs(again - encoder.encode(TEXTS)).max() < 5e-3


def test_float16_refuses_what_it_cannot_hold(tiny, tmp_path):
    encoder, _, _ = tiny
    huge = {k: v * np.float32(1e6) for k, v in encoder.save_weights_hf().items()}
    fake = types.SimpleNamespace(save_weights_hf=lambda: huge, joined_prompt=encoder.joined_prompt)
    with pytest.raises(InputError, match="more than float16 can"):
        export(fake, tmp_path / "out", dtype="float16")
    with pytest.raises(InputError, match="dtype='int8': expected one of"):
        export(encoder, tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_a_full_folder_is_refused_and_replaced_only_when_told(tiny, tmp_path):
    encoder, _, _ = tiny
    target = tmp_path / "out"
    target.mkdir()
    export(encoder, target)  # an empty one is fine
    (target / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"out is not empty; .*overwrite=True"):
        export(encoder, target)
    assert (target / "mine.txt").exists()
    export(encoder, target, overwrite=True)
    assert not (target / "mine.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        export(encoder, tmp_path / "file", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]


@pytest.mark.parametrize("place", [".", "", "/", "..", "~", "here/..", "./"])
def test_a_folder_around_the_working_directory_is_never_replaced(
    tiny, tmp_path, monkeypatch, place
):
    encoder, _, _ = tiny
    work = tmp_path / "work"
    (work / "here").mkdir(parents=True)
    (work / "config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(work))
    with pytest.raises(InputError, match="export folder: "):
        export(encoder, place, overwrite=True)
    assert sorted(p.name for p in work.iterdir()) == ["config.json", "here"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "work"]


def test_what_is_no_model_is_never_replaced(tiny, tmp_path):
    encoder, _, _ = tiny
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("keep me")
    with pytest.raises(InputError, match="letters holds no model"):
        export(encoder, tmp_path / "letters", overwrite=True)
    assert (tmp_path / "letters" / "one.txt").read_text() == "keep me"
    (tmp_path / "letters" / "modules.json").write_text("[]")  # its weights may be a folder below
    assert export(encoder, tmp_path / "letters", overwrite=True).exists()


def test_a_place_that_cannot_be_written_is_one_line(tiny, tmp_path, monkeypatch):
    encoder, _, _ = tiny
    (tmp_path / "file").write_text("")
    for place in ("file/x", "a" * 300, "/proc/x/y"):
        with pytest.raises(InputError, match=r"cannot be written|File name too long"):
            export(encoder, tmp_path / place)

    def full(*args, **kwargs):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        export(encoder, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_export_leaves_the_old_one(tiny, tmp_path):
    encoder, _, _ = tiny
    target = export(encoder, tmp_path / "out")

    def fail(folder, **kwargs):
        raise OSError("disk full")

    broken = types.SimpleNamespace(
        save_weights_hf=encoder.save_weights_hf,
        save_dense_hf=encoder.save_dense_hf,
        joined_prompt=encoder.joined_prompt,
        spec=encoder.spec,
        width=encoder.width,
        tokenizer=types.SimpleNamespace(save=fail, pad_id=0, special=encoder.tokenizer.special),
    )
    with pytest.raises(InputError, match=r"out: cannot be written \(disk full\)"):
        export(broken, target, overwrite=True)
    Encoder.from_pretrained(str(target))


def test_export_is_deterministic(tiny, tmp_path):
    encoder, out, _ = tiny
    again = export(encoder, tmp_path / "again")
    out, again = pathlib.Path(out), pathlib.Path(again)
    names = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for name in names:
        assert (out / name).read_bytes() == (again / name).read_bytes(), name


# What text-embeddings-inference deserialises (router/src/lib.rs: ModelConfig, PoolConfig, STConfig,
# NewSTConfig; backends/candle/src/models/bert.rs: BertConfig). A Rust `usize` takes no null, no
# float and no bool; fields with a default there are not listed.
def _usize(value):
    return type(value) is int and value >= 0


def _f64(value):
    return type(value) in (int, float)


def _bool(value):
    return type(value) is bool


TEI_CONFIG = {
    "architectures": lambda v: isinstance(v, list) and all(isinstance(a, str) for a in v),
    "model_type": lambda v: v in ("bert", "xlm-roberta", "roberta", "camembert"),
    "max_position_embeddings": _usize,
    "pad_token_id": _usize,
    "vocab_size": _usize,
    "hidden_size": _usize,
    "num_hidden_layers": _usize,
    "num_attention_heads": _usize,
    "intermediate_size": _usize,
    "hidden_act": lambda v: v in ("gelu", "relu", "silu"),
    "hidden_dropout_prob": _f64,
    "type_vocab_size": _usize,
    "initializer_range": _f64,
    "layer_norm_eps": _f64,
    "position_embedding_type": lambda v: v == "absolute",
}
TEI_POOLING = {
    "pooling_mode_cls_token": _bool,
    "pooling_mode_mean_tokens": _bool,
    "pooling_mode_lasttoken": _bool,
}


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_text_embeddings_inference_can_parse_it(tmp_path, mode):
    from tokenizers import Tokenizer

    source = make_tiny(tmp_path / "source", pooling=mode)
    out = export(Encoder.from_pretrained(str(source)), tmp_path / "out")
    config = read(out, "config.json")
    pooling = read(out, "1_Pooling/config.json")
    for fields, content in ((TEI_CONFIG, config), (TEI_POOLING, pooling)):
        for name, accepts in fields.items():
            assert name in content, name
            assert accepts(content[name]), (name, content[name])
    # An architecture that ends in Classification would be served as a classifier.
    assert config["architectures"] == ["BertModel"]
    chosen = [name for name in TEI_POOLING if pooling[name]]
    assert chosen == [{"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[mode]]
    assert _usize(read(out, "sentence_bert_config.json")["max_seq_length"])
    assert read(out, "sentence_bert_config.json")["max_seq_length"] == 24
    prompts = read(out, "config_sentence_transformers.json")["prompts"]
    assert prompts == {"query": "query: ", "document": "passage: "}
    # It takes the tokenizer as it is, without the truncation and padding a checkpoint bakes in.
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert tokenizer.truncation is None
    assert tokenizer.padding is None
    assert len(tokenizer.encode(WORDS).ids) > 5
    # Its loader names each tensor and its shape.
    width, ffn = config["hidden_size"], config["intermediate_size"]
    wanted = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for i in range(config["num_hidden_layers"]):
        for name, shape in {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (ffn, width),
            "output.dense": (width, ffn),
        }.items():
            wanted[f"encoder.layer.{i}.{name}.weight"] = shape
            wanted[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            wanted |= {f"encoder.layer.{i}.{name}.{part}": (width,) for part in ("weight", "bias")}
    tensors = load_file(out / "model.safetensors")
    for name, shape in wanted.items():
        assert tensors[name].shape == shape, name


def test_the_folder_names_no_file_of_this_machine(tiny):
    _, out, source = tiny
    for path in pathlib.Path(out).rglob("*"):
        if path.suffix in (".json", ".md", ".txt"):
            text = path.read_text()
            assert str(source) not in text, path
            assert "/somewhere/else" not in text, path
    header = (out / "model.safetensors").read_bytes()
    size = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + size])["__metadata__"] == {"format": "pt"}


def test_model_card_tells_data_recipe_and_scores(tiny, tmp_path):
    from huggingface_hub import metadata_load

    encoder, _, source = tiny
    card = ModelCard(
        name="tiny | tuned",
        base_model="owner/tiny-base",
        license=license_of(source),
        language=["en"],
        data=["medquad, 11,510 queries <b>"],
        recipe={"mining.rule": "perc_pos", "train.temperature": 0.05},
        scores=[
            Scores(
                "medquad test",
                1406,
                {"ndcg_cut_10": 0.5, "map": 0.4},
                {"ndcg_cut_10": 0.5321, "map": 0.39},
                (0.0123, 0.0456),
            )
        ],
    )
    out = export(encoder, tmp_path / "out", card=card)
    front = metadata_load(out / "README.md")
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "owner/tiny-base"
    assert front["pipeline_tag"] == "sentence-similarity"
    assert {"sentence-transformers", "feature-extraction"} <= set(front["tags"])
    text = (out / "README.md").read_text()
    row = "| medquad test | 1,406 | nDCG@10 | 0.5000 | 0.5321 | +0.0321 | +0.0123 to +0.0456 |"
    assert row in text
    assert "| medquad test | 1,406 | MAP | 0.4000 | 0.3900 | -0.0100 |  |" in text
    assert "| `train.temperature` | 0.05 |" in text
    assert 'prompt_name="query"' in text
    assert "&lt;b>" in text
    # A folder of this machine is no hub id, and what nobody knows is not said.
    plain = export(encoder, tmp_path / "plain", card=dataclasses.replace(card, base_model=str(out)))
    assert "base_model" not in metadata_load(plain / "README.md")
    bare = metadata_load(export(encoder, tmp_path / "bare") / "README.md")
    assert "license" not in bare
    assert license_of(tmp_path) is None


def real_texts(count=24):
    """Docstrings of the standard library: real prose and code of very different lengths."""
    import argparse
    import collections
    import logging
    import statistics
    import textwrap

    texts = []
    for module in (argparse, collections, logging, pathlib, statistics, textwrap):
        for _, member in sorted(inspect.getmembers(module)):
            text = inspect.getdoc(member) if callable(member) else None
            if text and text not in texts:
                texts.append(text)
    return texts[:: len(texts) // count][:count]


@pytest.mark.parity
def test_sentence_transformers_gives_the_same_embeddings(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    try:
        encoder = Encoder.from_pretrained(query_prompt="query: ", passage_prompt="passage: ")
    except InputError as error:
        pytest.skip(f"no MiniLM weights here: {error}")
    out = export(encoder, tmp_path / "out")
    model = st.SentenceTransformer(str(out), device="cpu")
    texts = real_texts()
    assert len(texts) == 24
    assert model.max_seq_length == encoder.spec.max_length == 256
    for ours, theirs in (
        (encoder.encode(texts, kind="query"), model.encode_query(texts)),
        (encoder.encode(texts, kind="passage"), model.encode_document(texts)),
    ):
        difference = float(np.abs(ours - theirs).max())
        print(f"max |difference| to sentence-transformers: {difference:.2e}")
        assert difference <= 1e-5
    assert model.similarity_fn_name == "cosine"


@pytest.mark.parity
@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
def test_sentence_transformers_reads_every_variant(tmp_path, pooling, normalize):
    st = pytest.importorskip("sentence_transformers")
    source = make_tiny(tmp_path / "source", pooling=pooling, normalize=normalize)
    encoder = Encoder.from_pretrained(str(source))
    model = st.SentenceTransformer(str(export(encoder, tmp_path / "out")), device="cpu")
    np.testing.assert_allclose(
        model.encode_query(TEXTS), encoder.encode(TEXTS, kind="query"), atol=1e-5
    )
    assert len(model) == (3 if normalize else 2)


@pytest.mark.parity
def test_transformers_finds_every_weight(tmp_path, tiny):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder, out, _ = tiny
    model, info = transformers.AutoModel.from_pretrained(str(out), output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info.get(problem), (problem, info[problem])
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(out))
    assert tokenizer.model_max_length == 24
    batch = tokenizer(
        [f"query: {t}" for t in TEXTS], padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    np.testing.assert_allclose(pooled.numpy(), encoder.encode(TEXTS, kind="query"), atol=1e-5)
    half = export(encoder, tmp_path / "half", dtype="float16")
    assert transformers.AutoModel.from_pretrained(str(half)).dtype == torch.float16
