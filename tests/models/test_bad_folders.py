"""Model folders with wrong files: one line each that names file and key, and no trace or hang.

A case changes one file of a good folder. Values of wrong types go to every setting that is read.
"""

import copy
import json
import os
import signal

import numpy as np
import pytest
import safetensors.numpy
import tiny_backbones
import tiny_models

from nvret_jax.errors import InputError
from nvret_jax.models import lora
from nvret_jax.models.cross_encoder import CrossEncoder
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.pretrained.settings import SETTINGS_FILES
from nvret_jax.models.pretrained.spec import read_spec

DEEP = "[" * 100_000 + "]" * 100_000
LONG = "1" + "0" * 10_000  # more digits than Python makes a number of
WRONG = {  # kind -> values that are not of it, as JSON
    "size": ["[1]", '"4"', "true", "0", "-3", "4.5", "NaN", "Infinity", "1000000000000", "1" * 400],
    "number": ["[1]", '"4"', "true", "0", "-3", "NaN", "Infinity", "-Infinity", "1e30"],
    "flag": ["[1]", '"false"', "0", "1", "NaN", "{}"],
    "text": ["[1]", "4", "true", "NaN", '{"a": 1}', '"\\ud800"'],
    "object": ["[1]", '"a"', "4", "true"],
    "tokens": ["[1]", '"a"', "4", "true", '{"a": 1}', "[[]]", '{"a": {"b": "c"}}', '["\\ud800"]'],
}
SETTINGS = [
    ("config.json", "model_type", "text"),
    ("config.json", "architectures", "object"),
    *(
        ("config.json", name, "size")
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        )
    ),
    ("config.json", "layer_norm_eps", "number"),
    ("config.json", "initializer_range", "number"),
    ("config.json", "hidden_act", "text"),
    ("config.json", "position_embedding_type", "text"),
    ("config.json", "is_decoder", "flag"),
    ("sentence_bert_config.json", "max_seq_length", "size"),
    ("sentence_bert_config.json", "do_lower_case", "flag"),
    ("sentence_bert_config.json", "modality_config", "object"),
    ("sentence_bert_config.json", "transformer_task", "text"),
    ("1_Pooling/config.json", "pooling_mode_cls_token", "flag"),
    ("1_Pooling/config.json", "include_prompt", "flag"),
    ("1_Pooling/config.json", "pooling_mode", "text"),
    ("config_sentence_transformers.json", "prompts", "object"),
    ("config_sentence_transformers.json", "default_prompt_name", "text"),
    ("config_sentence_transformers.json", "similarity_fn_name", "text"),
    ("config_sentence_transformers.json", "truncate_dim", "size"),
    ("tokenizer_config.json", "add_eos_token", "flag"),
    ("tokenizer_config.json", "truncation_side", "text"),
    ("tokenizer_config.json", "pad_token", "text"),
    ("tokenizer_config.json", "padding_side", "text"),
    ("tokenizer_config.json", "added_tokens_decoder", "object"),
    ("tokenizer_config.json", "clean_up_tokenization_spaces", "flag"),
    ("tokenizer_config.json", "additional_special_tokens", "tokens"),
    ("tokenizer_config.json", "extra_special_tokens", "tokens"),
]
# What is no wrong type where it stands.
FINE = {("max_seq_length", "1000000000000"), ("max_seq_length", "1" * 400)}
FINE |= {("truncate_dim", "1000000000000"), ("pooling_mode", '"\\ud800"')}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny_models.write(tmp_path_factory.mktemp("good") / "m")


@pytest.fixture
def folder(good, tmp_path):
    """A copy of the good folder whose weights are a hard link: cheap, and no link out of it."""
    target = tmp_path / "m"
    for path in good.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(good)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
    return target


def put(folder, name, text):
    path = folder / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def with_key(folder, name, key, value):
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    content[key] = "@"
    put(folder, name, json.dumps(content).replace('"@"', value))


def refused(load):
    """Loads, and returns the one line of the refusal; at most ten seconds."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still loading after 10 s"))
    signal.alarm(10)
    try:
        with pytest.raises(InputError) as caught:
            load()
    finally:
        signal.alarm(0)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 900
    return line


def load(folder):
    return Encoder.from_pretrained(str(folder))


@pytest.mark.parametrize(("name", "key", "kind"), SETTINGS, ids=lambda v: str(v))
def test_a_value_of_a_wrong_type_or_size_is_one_line_with_file_and_key(folder, name, key, kind):
    for value in WRONG[kind]:
        if (key, value) in FINE or (key == "architectures" and value == "[1]"):
            continue
        with_key(folder, name, key, value)
        line = refused(lambda: load(folder))
        assert name.rsplit("/", 1)[-1] in line
        assert key in line


def test_settings_that_are_none_count_as_left_out(folder):
    for name, key, _ in SETTINGS:
        if key in ("type_vocab_size", "layer_norm_eps", "hidden_act") or name != "config.json":
            with_key(folder, name, key, "null")
    assert load(folder).width == 32


@pytest.mark.parametrize("value", ["null", "-1", "2147483648", '"0"', "[0]", "1.0", "true", "40"])
def test_a_padding_token_that_shifts_positions_is_a_position(tmp_path, value):
    folder = tiny_models.write(tmp_path / "m", "xlm-roberta")
    with_key(folder, "config.json", "pad_token_id", value)
    if value == "null":
        assert load(folder).spec.backbone.position_offset == 2
    else:
        line = refused(lambda: load(folder))
        assert "config.json: " in line
        assert "pad_token_id" in line


NAMES = (
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '"a"', "7", "null", DEEP, '{"a": ' * 50_000, f'{{"a": {LONG}}}', "\ufeff{}"],
    ids=["empty", "cut", "list", "text", "number", "null", "deep", "open", "digits", "bom"],
)
def test_a_file_that_is_not_what_it_should_be_is_one_line(folder, name, text):
    put(folder, name, text)
    assert name.rsplit("/", 1)[-1] in refused(lambda: load(folder))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_utf8_or_a_folder_is_one_line(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(b'{"a": "\xff\xfe"}')
    assert name.rsplit("/", 1)[-1] in refused(lambda: load(folder))
    (folder / name).unlink()
    (folder / name).mkdir()
    assert name.rsplit("/", 1)[-1] in refused(lambda: load(folder))


def module(path, kind="Pooling"):
    listed = [("", "Transformer"), (path, kind)]
    return json.dumps([{"path": p, "type": f"sentence_transformers.models.{t}"} for p, t in listed])


@pytest.mark.parametrize("name", [*NAMES, "model.safetensors", "vocab.txt"])
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    line = refused(lambda: load(folder))
    assert name in line
    assert "neither a file nor a folder" in line


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "tokenizer_config.json"])
def test_a_length_that_leaves_no_room_names_the_folder(folder, name):
    (folder / "sentence_bert_config.json").unlink()
    key = {"s": "max_seq_length", "t": "model_max_length"}[name[0]]
    with_key(folder, name, key, "2")
    assert f"{folder}: max_length=2: expected 3 to 40" in refused(lambda: load(folder))


OUTSIDE = ["../other", "/etc", "a/../../other", "C:\\x", "..\\other", "\\\\host\\x", "a\0b"]
OUTSIDE += [7, []]


@pytest.mark.parametrize("path", OUTSIDE, ids=str)
def test_no_module_lies_outside_the_folder(folder, path):
    put(folder / ".." / "other", "config.json", '{"pooling_mode": "cls"}')
    put(folder, "modules.json", module(path))
    line = refused(lambda: load(folder))
    assert "modules.json: " in line
    assert "path" in line


def test_a_list_of_modules_without_end_is_refused_at_once(folder):
    one = '{"idx": 0, "name": "0", "path": "x", "type": "sentence_transformers.models.Dense"}'
    put(folder, "modules.json", f"[{', '.join([one] * 50_000)}]")
    assert "lists 50,000 modules; at most 100 are read" in refused(lambda: load(folder))


@pytest.mark.parametrize("name", [*OUTSIDE, "pytorch_model.bin", {"a": 1}], ids=str)
def test_no_weights_lie_outside_the_folder(folder, name):
    (folder / "model.safetensors").rename(folder / ".." / "x.safetensors")
    index = {"weight_map": {"a": "../x.safetensors" if name == "../other" else name}}
    put(folder, "model.safetensors.index.json", json.dumps(index))
    assert "model.safetensors.index.json: " in refused(lambda: load(folder))


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "3"])
def test_an_index_that_names_nothing(folder, content):
    (folder / "model.safetensors").unlink()
    put(folder, "model.safetensors.index.json", content)
    assert "model.safetensors.index.json: " in refused(lambda: load(folder))


@pytest.mark.parametrize("name", [*NAMES, "model.safetensors", "1_Pooling"])
def test_a_link_out_of_the_folder_is_not_followed(folder, name):
    place, outside = folder / name, folder.parent / "outside"
    if place.exists():
        place.rename(outside)
    else:
        outside.write_text("{}")
    place.symlink_to(outside)
    line = refused(lambda: load(folder))
    assert "outside the model's folder" in line
    assert name in line


def test_links_of_the_hubs_cache_and_within_the_folder_are_followed(folder, tmp_path):
    repository = tmp_path / "hub" / "models--owner--m"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        blob, place = repository / "blobs" / str(number), snapshot / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blob)
        place.symlink_to(os.path.relpath(blob, place.parent))
    encoder = load(snapshot)
    (tmp_path / "alias").symlink_to(snapshot)
    np.testing.assert_array_equal(
        load(tmp_path / "alias").encode(["wing flow"]), encoder.encode(["wing flow"])
    )
    # Another repository's blobs are outside.
    (snapshot / "config.json").unlink()
    (tmp_path / "hub" / "models--other" / "blobs").mkdir(parents=True)
    (tmp_path / "hub" / "models--other" / "blobs" / "0").write_text("{}")
    (snapshot / "config.json").symlink_to(tmp_path / "hub" / "models--other" / "blobs" / "0")
    assert "outside the model's folder" in refused(lambda: load(snapshot))


def test_a_pooling_that_modules_json_names_and_that_is_not_there(folder):
    """Half a download. Taking the mean would give a cls model other vectors."""
    (folder / "1_Pooling" / "config.json").unlink()
    line = refused(lambda: load(folder))
    assert "1_Pooling/config.json: no such file" in line
    assert "download it again" in line


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("config.json", "quantization_config", '{"bits": 4}', "quantised"),
        ("config.json", "pooling", '"weighted_avg"', "pooling='weighted_avg'; supported: avg"),
        ("config.json", "pooling", "[1]", "pooling=[1]"),
        ("config.json", "pooling", '"last"', "pools 'last' and the Pooling module 'mean'"),
        (
            "config.json",
            "architectures",
            '["BertForSequenceClassification"]',
            "a classifier or cross-encoder, not an encoder of texts",
        ),
        ("1_Pooling/config.json", "mystery", "1", "'mystery' is not a known setting"),
        ("sentence_bert_config.json", "mystery", "1", "'mystery' is not a known setting"),
        (
            "sentence_bert_config.json",
            "transformer_task",
            '"sequence-classification"',
            "transformer_task='sequence-classification' changes what the model computes",
        ),
        (
            "sentence_bert_config.json",
            "modality_config",
            '{"text": {"method": "get_text_features"}}',
            "method='get_text_features' changes",
        ),
        (
            "sentence_bert_config.json",
            "processor_kwargs",
            '{"model_max_length": 7}',
            "processor_kwargs.model_max_length is not supported",
        ),
        (
            "sentence_bert_config.json",
            "config_args",
            '{"num_hidden_layers": 1}',
            "config_args.num_hidden_layers is not supported",
        ),
        (
            "config_sentence_transformers.json",
            "model_type",
            '"SparseEncoder"',
            "model_type='SparseEncoder' changes",
        ),
        (
            "config_sentence_transformers.json",
            "prompts",
            '{"query": 7, "document": ["a"]}',
            "query=7, expected a string; document=['a'], expected a string",
        ),
        ("2_Normalize/config.json", "module_input_name", '"token_embeddings"', "module_input_name"),
    ],
)
def test_what_changes_vectors_and_is_not_read_is_refused(folder, name, key, value, message):
    with_key(folder, name, key, value)
    line = refused(lambda: load(folder))
    assert name.rsplit("/", 1)[-1] in line
    assert message in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_args", '{"torch_dtype": "float16", "attn_implementation": "sdpa"}'),
        ("transformer_task", '"feature-extraction"'),
        ("module_output_name", '"token_embeddings"'),
        (
            "modality_config",
            '{"text": {"method": "forward", "method_output_name": "last_hidden_state"}}',
        ),
        ("processing_kwargs", '{"text": {"padding": true}}'),
        ("unpad_inputs", "true"),
    ],
)
def test_settings_that_change_no_vector_are_taken(folder, key, value):
    before = load(folder).encode(["wing flow"])
    with_key(folder, "sentence_bert_config.json", key, value)
    np.testing.assert_array_equal(load(folder).encode(["wing flow"]), before)


@pytest.mark.parametrize("name", SETTINGS_FILES)
def test_each_name_of_the_settings_is_one_file(folder, name):
    (folder / "sentence_bert_config.json").unlink()
    put(folder, name, '{"max_seq_length": 11, "do_lower_case": true}')
    spec, _ = read_spec(folder)
    assert (spec.max_length, spec.lowercase) == (11, True)
    if name != SETTINGS_FILES[0]:  # the first that says anything counts, as for its other reader
        put(folder, SETTINGS_FILES[0], "{}")
        assert read_spec(folder)[0].max_length == 11
        put(folder, SETTINGS_FILES[0], '{"max_seq_length": 12}')
        assert read_spec(folder)[0].max_length == 12


def test_special_tokens_may_be_in_either_file(folder):
    put(folder, "tokenizer_config.json", "{}")
    put(folder, "special_tokens_map.json", '{"sep_token": {"content": "[SEP]"}}')
    assert load(folder).tokenizer.special("sep_token") == 2
    put(folder, "tokenizer_config.json", '{"sep_token": "[CLS]"}')
    assert load(folder).tokenizer.special("sep_token") == 1


TOKENIZERS = {
    "regex bomb": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(" * 5000}}},
    "regex": {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a"}, "content": ""}},
    "unknown model": {"model": {"type": "Oracle", "vocab": {}}},
    "no model": {"model": None},
    "negative id": {"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}},
    "huge id": {"model": {"type": "WordLevel", "vocab": {"a": 10**12}, "unk_token": "a"}},
}


@pytest.mark.parametrize("change", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_that_cannot_be_read_is_one_line(folder, change):
    put(folder, "tokenizer.json", json.dumps(tiny_models.tokenizer_json() | change))
    assert "tokenizer.json" in refused(lambda: load(folder).encode(["wing"]))


def test_token_ids_beyond_int32_and_beyond_the_model(folder):
    content = tiny_models.tokenizer_json()
    for beyond in (2**31, 2**32 - 1, 24):
        content["model"]["vocab"]["wing"] = beyond
        put(folder, "tokenizer.json", json.dumps(content))
        word = "token id" if beyond > 24 else "token"
        assert f"{word} {beyond}" in refused(lambda: load(folder).encode(["flow", "wing"]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "key",
    [
        "embeddings.word_embeddings.weight",
        "encoder.layer.2.attention.self.query.weight",
        "encoder.layer.0.output.LayerNorm.bias",
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, key, value):
    tensors = tiny_models.tensors(tiny_models.config())
    tensors[key].reshape(-1)[-1] = value
    folder = tiny_models.write(tmp_path / "m", weights=tensors)
    what = "NaN" if np.isnan(value) else "an infinity"
    assert f"{key} holds {what} (1 of " in refused(lambda: load(folder))


def test_a_pooler_that_is_not_finite_is_not_handed_on(tmp_path):
    from nvret_jax.export.sentence_transformers import export

    tensors = tiny_models.tensors(tiny_models.config())
    tensors["pooler.dense.bias"][0] = np.nan
    encoder = load(tiny_models.write(tmp_path / "m", weights=tensors))
    assert "pooler.dense.bias holds NaN" in refused(lambda: export(encoder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_large_finite_weights_are_weights(tmp_path):
    tensors = tiny_models.tensors(tiny_models.config())
    tensors["embeddings.word_embeddings.weight"][:] = 3e38
    folder = tiny_models.write(tmp_path / "m", weights=tensors)
    load(folder)
    line = refused(lambda: Encoder.from_pretrained(str(folder), param_dtype="float16"))
    assert "embeddings.word_embeddings.weight holds 3e+38, too large for float16" in line


def test_two_spellings_of_one_weight(tmp_path):
    tensors = tiny_models.tensors(tiny_models.config())
    old = "embeddings.LayerNorm.gamma"
    tensors[old] = tensors["embeddings.LayerNorm.weight"] + 1
    folder = tiny_models.write(tmp_path / "m", weights=tensors)
    line = refused(lambda: load(folder))
    assert "holds embeddings.LayerNorm.weight twice" in line
    assert old in line


def test_one_weight_in_two_shards(folder):
    tensors = tiny_models.tensors(tiny_models.config())
    (folder / "model.safetensors").unlink()
    for name in ("a.safetensors", "b.safetensors"):
        safetensors.numpy.save_file(tensors, str(folder / name))
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    put(folder, "model.safetensors.index.json", json.dumps(index))
    assert "twice" in refused(lambda: load(folder))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("hidden_size", "size"),
        ("num_hidden_layers", "size"),
        ("num_key_value_heads", "size"),
        ("head_dim", "size"),
        ("rms_norm_eps", "number"),
        ("rope_theta", "number"),
        ("hidden_act", "text"),
        ("attention_bias", "flag"),
        ("is_causal", "flag"),
        ("use_bidirectional_attention", "flag"),
        ("use_sliding_window", "flag"),
        ("rope_scaling", "object"),
        ("rope_parameters", "object"),
        ("layer_types", "object"),
        ("sliding_window", "size"),
    ],
)
@pytest.mark.parametrize("name", ["qwen3-embedding", "nv-embed", "modernbert"])
def test_values_of_decoders_and_modernbert(tmp_path, name, key, kind):
    mine = {"rms_norm_eps": "norm_eps", "hidden_act": "hidden_activation"}
    mine |= {"rope_theta": "global_rope_theta", "sliding_window": "local_attention"}
    decoders = ("head_dim", "num_key_value_heads", "is_causal", "use_bidirectional_attention")
    if name == "modernbert":
        if key in (*decoders, "use_sliding_window"):
            pytest.skip("not a setting of ModernBERT")
        key = mine.get(key, key)
    folder = tiny_backbones.write(tmp_path / "m", name)
    for value in WRONG[kind]:
        if key == "sliding_window" and value == "1000000000000":
            continue
        content = copy.deepcopy(tiny_backbones.config(name))
        inner = content.get("text_config", content)
        inner[key] = "@"
        put(folder, "config.json", json.dumps(content).replace('"@"', value))
        line = refused(lambda: read_spec(folder))
        assert "config.json" in line
        assert key.removeprefix("global_") in line


@pytest.mark.parametrize(
    "change",
    [
        {"r": "8"},
        {"r": 0},
        {"r": 10**9},
        {"r": [8]},
        {"lora_alpha": "16"},
        {"lora_alpha": float("nan")},
        {"lora_alpha": float("inf")},
        {"lora_dropout": 1.5},
        {"lora_dropout": "0"},
        {"use_rslora": "no"},
        {"target_modules": 7},
        {"target_modules": [7]},
        {"target_modules": None},
        {"target_modules": []},
        {"peft_type": ["LORA"]},
        {"modules_to_save": "x"},
    ],
    ids=str,
)
def test_settings_of_adapters(tmp_path, change):
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"]}
    put(tmp_path, "adapter_config.json", json.dumps(content | change))
    line = refused(lambda: lora.read_config(tmp_path))
    assert next(iter(change)).removeprefix("target_modules") in line


@pytest.mark.parametrize("text", ["[]", "{", DEEP, '{"r": ' + LONG + "}"], ids=range(4))
def test_adapter_configs_that_are_none(tmp_path, text):
    put(tmp_path, "adapter_config.json", text)
    assert "adapter_config.json" in refused(lambda: lora.read_config(tmp_path))


@pytest.mark.parametrize("value", ["[1]", "7", "true", '{"a": 1}', '"mpnet"'])
def test_a_cross_encoders_model_type(tmp_path, value):
    import tiny_cross_encoders

    folder = tiny_cross_encoders.write(tmp_path / "m")
    with_key(folder, "config.json", "model_type", value)
    assert "config.json: model_type" in refused(lambda: CrossEncoder.from_pretrained(str(folder)))


def test_paths_of_another_machine_are_not_opened_when_vocabularies_are_converted(tmp_path):
    pytest.importorskip("transformers")
    folder = tiny_models.write(tmp_path / "m")
    vocabulary = tiny_models.tokenizer_json()["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    words = sorted(vocabulary, key=vocabulary.get)
    put(folder, "vocab.txt", "\n".join([*words, "[MASK]"]) + "\n")
    put(tmp_path, "outside.txt", "\n".join(["[PAD]", "[UNK]", "x"]) + "\n")
    for value in ('"/etc/passwd"', json.dumps(str(tmp_path / "outside.txt")), "null"):
        config = '{"tokenizer_class": "BertTokenizer", "vocab_file": ' + value + "}"
        put(folder, "tokenizer_config.json", config)
        ids = Encoder.from_pretrained(str(folder)).tokenizer.encode(["wing flow"], 16)[0]
        assert ids.tolist() == [vocabulary[w] for w in ("[CLS]", "wing", "flow", "[SEP]")]
