"""Against transformers and sentence-transformers in torch, on real weights and random ones."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tiny_models

from nvret_jax.models.encoder import Encoder
from nvret_jax.models.pretrained.resolve import DEFAULT_MODEL, resolve

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def passages():
    data = os.environ.get("NVRET_DATA")
    if not data:
        pytest.skip("needs NVRET_DATA (a folder with scifact in BEIR layout)")
    lines = (pathlib.Path(data) / "scifact" / "corpus.jsonl").read_text().splitlines()
    return [row["title"] + " " + row["text"] for row in map(json.loads, lines[:256])]


def test_256_real_passages_of_every_length_against_transformers(passages):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder = Encoder.from_pretrained(DEFAULT_MODEL, normalize=False)
    # Passage i is cut to i words' worth of tokens, so that every length from 1 to 256 occurs:
    # token arrays are made here, and both sides get the very same ones.
    whole = encoder.tokenizer.encode(passages, 512)
    tokens = [np.resize(ids, i + 1) for i, ids in enumerate(whole)]
    assert sorted(map(len, tokens)) == list(range(1, 257))
    encoder.tokenizer.encode = lambda texts, max_length: tokens
    ours = encoder.encode(passages, max_length=256)

    model = transformers.AutoModel.from_pretrained(str(resolve(DEFAULT_MODEL))).eval()
    theirs = []
    for start in range(0, 256, 32):
        part = tokens[start : start + 32]
        ids_bt = torch.zeros(32, max(map(len, part)), dtype=torch.int64)
        mask_bt = torch.zeros_like(ids_bt)
        for row, ids in enumerate(part):
            ids_bt[row, : len(ids)] = torch.tensor(ids)
            mask_bt[row, : len(ids)] = 1
        with torch.no_grad():
            hidden = model(input_ids=ids_bt, attention_mask=mask_bt).last_hidden_state
        theirs += [h[: len(ids)].mean(0).numpy() for h, ids in zip(hidden, part, strict=True)]
    theirs = np.stack(theirs)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (ours, theirs)]
    assert np.abs(unit[0] - unit[1]).max() <= TOLERANCE
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_text_in_vector_out_against_sentence_transformers(passages, pooling, tmp_path):
    pytest.importorskip("torch")
    st = pytest.importorskip("sentence_transformers")
    source = resolve(DEFAULT_MODEL)
    folder = tmp_path / "m"
    (folder / "1_Pooling").mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    config = {"embedding_dimension": 384, "pooling_mode": pooling, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (folder / "config_sentence_transformers.json").unlink()
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    texts = [*passages[:16], "", "short", "UPPER case\n\ttabs ", "naïve façade 北京 🙂"]
    encoder = Encoder.from_pretrained(str(folder))
    model = st.SentenceTransformer(str(folder), device="cpu")
    for kind, theirs in (("query", model.encode_query), ("passage", model.encode_document)):
        assert np.abs(encoder.encode(texts, kind=kind) - theirs(texts)).max() <= TOLERANCE


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "camembert"])
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_random_models_token_by_token_against_transformers(model_type, act, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if act != "gelu" and model_type != "bert":
        pytest.skip("activations are compared on BERT")
    folder = tiny_models.write(tmp_path / "m", model_type, hidden_act=act, normalize=False)
    model = transformers.AutoModel.from_pretrained(str(folder)).eval()
    encoder = Encoder.from_pretrained(str(folder), pooling="cls")
    texts = tiny_models.texts(12)
    ours = encoder.encode(texts)
    for row, ids in enumerate(encoder.tokenizer.encode(texts, 24)):
        with torch.no_grad():
            hidden = model(torch.tensor(ids[None].astype(np.int64))).last_hidden_state
        np.testing.assert_allclose(ours[row], hidden[0, 0].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta"])
def test_transformers_reads_the_export_without_a_word(model_type, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder = Encoder.from_pretrained(str(tiny_models.write(tmp_path / "a", model_type)))
    out = tiny_models.write(tmp_path / "b", model_type)
    safetensors.numpy.save_file(
        encoder.save_weights_hf(), str(out / "model.safetensors"), {"format": "pt"}
    )
    model, report = transformers.AutoModel.from_pretrained(str(out), output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], (kind, report[kind])
    source = tiny_models.tensors(tiny_models.config(model_type))
    for key, value in model.state_dict().items():
        if key in source:
            torch.testing.assert_close(value, torch.tensor(source[key]), atol=0, rtol=0)
