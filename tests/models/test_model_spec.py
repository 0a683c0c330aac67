import json

import numpy as np
import pytest
import tiny_backbones
import tiny_models

from nvret_jax.errors import InputError
from nvret_jax.export.sentence_transformers import export
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.pretrained import settings
from nvret_jax.models.pretrained.spec import read_spec


@pytest.fixture
def folder(tmp_path):
    return tiny_models.write(tmp_path / "m")


def put(folder, name, value):
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def test_the_folder_decides(folder):
    spec, backbone = read_spec(folder)
    assert backbone == folder
    assert (spec.pooling, spec.normalize, spec.max_length) == ("mean", True, 24)
    assert (spec.query_prompt, spec.passage_prompt, spec.similarity) == ("", "", "cosine")
    assert spec.lowercase is False


def test_arguments_override_the_folder(folder):
    put(folder, "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    spec, _ = read_spec(
        folder, max_length=9, pooling="cls", normalize=False, query_prompt="", passage_prompt="p: "
    )
    assert (spec.pooling, spec.normalize, spec.max_length) == ("cls", False, 9)
    assert (spec.query_prompt, spec.passage_prompt) == ("", "p: ")


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode": "cls", "embedding_dimension": 32, "include_prompt": True}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        # Today's key wins where a file has both spellings.
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, "mean"),
    ],
)
def test_both_spellings_of_pooling(folder, config, mode):
    put(folder, "1_Pooling/config.json", config)
    assert read_spec(folder)[0].pooling == mode


def test_silence_about_pooling_is_mean_and_said(folder, monkeypatch):
    said = []
    monkeypatch.setattr(settings.logging, "warning", lambda *args: said.append(args[0] % args[1:]))
    (folder / "modules.json").unlink()
    for _ in range(2):
        spec, _ = read_spec(folder)
    assert (spec.pooling, spec.normalize) == ("mean", False)
    assert sum("taking the mean" in line for line in said) == 1
    assert sum("normalize=True" in line for line in said) == 1


@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        ({"prompts": {"query": "query: ", "passage": "passage: "}}, ("query: ", "passage: ")),
        ({"prompts": {"query": "q ", "document": "d ", "passage": "p "}}, ("q ", "d ")),
        ({"prompts": {"query": "q ", "document": None}}, ("q ", "")),
        ({"prompts": {"s": "S: "}, "default_prompt_name": "s"}, ("S: ", "S: ")),
        ({"prompts": {"s": "S: ", "query": ""}, "default_prompt_name": "s"}, ("", "S: ")),
        ({"prompts": {}, "default_prompt_name": None}, ("", "")),
    ],
)
def test_prompts(folder, shared, expected):
    put(folder, "config_sentence_transformers.json", shared)
    spec, _ = read_spec(folder)
    assert (spec.prompt("query"), spec.prompt("passage")) == expected
    with pytest.raises(InputError, match="kind='doc'"):
        spec.prompt("doc")


def test_max_length_without_a_file(folder):
    (folder / "sentence_bert_config.json").unlink()
    assert read_spec(folder)[0].max_length == 40  # the model's positions
    put(folder, "tokenizer_config.json", {"model_max_length": 16})
    assert read_spec(folder)[0].max_length == 16
    put(folder, "tokenizer_config.json", {"model_max_length": 1e30})
    assert read_spec(folder)[0].max_length == 40


def test_an_old_folder_keeps_its_backbone_one_level_down(folder):
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "sentence_bert_config.json"):
        (folder / name).rename(inner / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    put(folder, "modules.json", modules)
    spec, backbone = read_spec(folder)
    assert backbone == inner
    assert spec.max_length == 24


def module(*names):
    return [
        {"path": n, "type": n if "." in n else f"sentence_transformers.models.{n}"} for n in names
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{\n  'x'", r"config\.json:2: not JSON"),
        ("config.json", [1], r"config\.json: expected a JSON object, got list"),
        ("config.json", {"model_type": "mpnet"}, r"model_type='mpnet'.*supported: bert, roberta"),
        (
            "config.json",
            tiny_models.config() | {"auto_map": {"AutoModel": "m.M"}},
            r"config\.json: 'auto_map'.*never done",
        ),
        ("modules.json", {"a": 1}, r"modules\.json: expected a list of modules"),
        (
            "modules.json",
            module("Transformer", "1_Pooling", "Dense"),
            r"modules\.json: module 1 is '1_Pooling'",
        ),
        (
            "modules.json",
            module("Transformer", "Pooling", "LSTM"),
            r"modules\.json: module 2 is 'LSTM'; supported",
        ),
        ("modules.json", module("WordEmbeddings"), "module 0 is 'WordEmbeddings'"),
        ("modules.json", module("custom_st.Transformer"), "code of a model is never run"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "'weightedmean' is not sup"),
        ("1_Pooling/config.json", {"pooling_mode": "latent"}, "'latent' is not supported"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "'max' is not supported"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True},
            r"pools mean \+ max",
        ),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "manhattan"},
            "'manhattan'; supported: 'cosine', 'dot'",
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": {"a": "b"}, "default_prompt_name": "c"},
            "default_prompt_name='c' is not among prompts a",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(folder, name, content, message):
    put(folder, name, content)
    with pytest.raises(InputError, match=message):
        read_spec(folder)


def test_prompts_can_be_left_out_of_the_pooling(folder):
    assert read_spec(folder)[0].prompt_in_pooling == "all"
    put(folder, "1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False})
    assert read_spec(folder)[0].prompt_in_pooling == "none"
    assert read_spec(folder, prompt_in_pooling="all")[0].prompt_in_pooling == "all"
    with pytest.raises(InputError, match="prompt_in_pooling='some': expected one of all, none"):
        read_spec(folder, prompt_in_pooling="some")


@pytest.mark.parametrize("length", [0, 2, 41])
def test_max_length_must_fit_the_positions(folder, length):
    with pytest.raises(InputError, match=rf"max_length={length}: expected 3 to 40"):
        read_spec(folder, max_length=length)


@pytest.fixture
def said(monkeypatch):
    """What is said in warnings, each only once a process."""
    lines = []
    monkeypatch.setattr(settings.logging, "warning", lambda *args: lines.append(args[0] % args[1:]))
    settings.say_once.cache_clear()
    return lines


def test_a_sliding_window_that_shortens_texts_is_said_once_with_its_numbers(tmp_path, said):
    folder = tiny_backbones.write(tmp_path / "m", "e5-mistral", sliding_window=20)
    for _ in range(2):
        assert read_spec(folder)[0].max_length == 20
    assert [line for line in said if "cut to 20 tokens, the model's sliding window" in line] == said
    assert len(said) == 1
    assert "the folder allows 32" in said[0]
    wide = tiny_backbones.write(tmp_path / "wide", "e5-mistral", sliding_window=40)
    assert read_spec(wide)[0].max_length == 32
    assert len(said) == 1


def test_nvidias_prompts_and_length_where_no_file_says_any(tmp_path, said):
    folder = tiny_backbones.write(tmp_path / "m", "llama-nemotron-embed")
    assert read_spec(folder)[0].query_prompt == ""
    (folder / "config_sentence_transformers.json").unlink()
    spec, _ = read_spec(folder)
    assert (spec.query_prompt, spec.passage_prompt) == ("query: ", "passage: ")
    assert len(said) == 1
    assert "taking 'query: ' and 'passage: '" in said[0]
    spec, _ = read_spec(folder, query_prompt="", passage_prompt="p")
    assert (spec.query_prompt, spec.passage_prompt) == ("", "p")


@pytest.mark.parametrize(
    ("said_by_config", "mode"), [("avg", "mean"), ("last", "lasttoken"), ("cls", "cls")]
)
def test_the_pooling_of_nvidias_config_is_honoured(tmp_path, said_by_config, mode):
    folder = tiny_backbones.write(tmp_path / "m", "llama-nemotron-embed", pooling=said_by_config)
    assert read_spec(folder)[0].pooling == mode
    assert read_spec(folder, pooling="cls")[0].pooling == "cls"


@pytest.mark.parametrize("other", ["weighted_avg", "colbert", "", 3, None])
def test_another_pooling_of_nvidias_config_is_refused_or_absent(tmp_path, other):
    folder = tiny_backbones.write(tmp_path / "m", "llama-nemotron-embed", pooling=other)
    if other is None:
        assert read_spec(folder)[0].pooling == "mean"
    else:
        with pytest.raises(InputError, match=r"pooling=.*; supported: avg, cls, last"):
            read_spec(folder)


@pytest.mark.parametrize("kind", ["pylate.models.Dense", "pylate.models.Dense.Dense"])
def test_both_names_of_pylates_dense(tmp_path, kind):
    folder = tiny_backbones.write(tmp_path / "m", "lateon-code")
    modules = json.loads((folder / "modules.json").read_text())
    for listed in modules[1:]:
        listed["type"] = kind
    put(folder, "modules.json", modules)
    assert read_spec(folder)[0].width == 8


def test_a_cross_encoders_architecture_can_be_pooled_if_asked_for(folder):
    config = tiny_models.config() | {"architectures": ["BertForSequenceClassification"]}
    put(folder, "config.json", config)
    with pytest.raises(InputError, match="rescorer"):
        read_spec(folder)
    assert read_spec(folder, pooling="mean")[0].pooling == "mean"


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_truncate_dim_is_obeyed(folder, similarity):
    """As sentence-transformers: the first components; for cosine at unit length again."""
    shared = {"truncate_dim": 6, "similarity_fn_name": similarity}
    whole = Encoder.from_pretrained(str(folder))
    texts = ["wing flow", "heat"]
    emb_nd = whole.encode(texts)
    put(folder, "config_sentence_transformers.json", shared)
    short = Encoder.from_pretrained(str(folder))
    assert short.width == short.spec.width == 6
    expected = emb_nd[:, :6]
    if similarity == "cosine":
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(short.encode(texts), expected, atol=1e-6)
    export(short, folder / "out")
    again = Encoder.from_pretrained(str(folder / "out"))
    np.testing.assert_allclose(again.encode(texts), expected, atol=1e-6)
    put(folder, "config_sentence_transformers.json", shared | {"truncate_dim": 32})
    assert read_spec(folder)[0].truncate_dim is None  # not shorter than the embedding


@pytest.mark.parity
def test_truncate_dim_is_what_sentence_transformers_does(folder):
    st = pytest.importorskip("sentence_transformers")
    put(folder, "config_sentence_transformers.json", {"truncate_dim": 6})
    texts = ["wing flow", "heat", "a shock"]
    theirs = st.SentenceTransformer(str(folder))
    vectors = theirs.encode(texts)
    assert vectors.shape == (3, 6)
    ours = Encoder.from_pretrained(str(folder)).encode(texts)
    similarity = theirs.similarity(vectors, vectors).numpy()
    np.testing.assert_allclose(ours @ ours.T, similarity, atol=1e-6)


def test_late_interaction_has_no_truncate_dim(tmp_path):
    folder = tiny_backbones.write(tmp_path / "m", "lateon-code")
    shared = json.loads((folder / "config_sentence_transformers.json").read_text())
    put(folder, "config_sentence_transformers.json", shared | {"truncate_dim": 4})
    with pytest.raises(InputError, match="truncate_dim=4, which late interaction does not have"):
        read_spec(folder)
