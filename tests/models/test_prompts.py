"""Prompts: which tokens are theirs, where they end in a space, where they leave no room."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
import tiny_backbones
import tokenizers
from tokenizers import pre_tokenizers, processors

from nvret_jax.errors import InputError
from nvret_jax.export.sentence_transformers import export
from nvret_jax.mining.negatives import Negatives
from nvret_jax.models import tokenize
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.tokenize import common_prefix
from nvret_jax.training.batches.examples import Examples

SPACE, TIGHT = "ask a question: ", "ask a question:"


def joining(kind: str) -> tokenizers.Tokenizer:
    """A tokenizer as Mistral's ('metaspace') or Llama's and Qwen's: a space begins a token."""
    space = {"metaspace": "▁", "bytes": "Ġ"}[kind]
    words = ["ask", f"{space}a", f"{space}question", ":", f"{space}wing", "wing", f"{space}flow"]
    if kind == "metaspace":
        words = [f"{space}ask", *words]
    letters = sorted({letter for word in words for letter in word})
    vocabulary = ["<pad>", "<s>", "</s>", *letters]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if (word[: end - 1], word[end - 1]) not in merges:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary.append(word[:end])
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    if kind == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens(["<pad>", "<s>", "</s>"])
    return made


@pytest.fixture(scope="module", params=["metaspace", "bytes"])
def folder(request, tmp_path_factory):
    place = tiny_backbones.write(tmp_path_factory.mktemp("joining") / "m", "nv-retriever")
    made = joining(request.param)
    (place / "tokenizer.json").write_text(made.to_str())
    weights = tiny_backbones.tensors("nv-retriever")
    import safetensors.numpy

    rng = np.random.default_rng(0)
    weights["embed_tokens.weight"] = rng.standard_normal((made.get_vocab_size(), 32), np.float32)
    safetensors.numpy.save_file(weights, str(place / "model.safetensors"), {"format": "pt"})
    import json

    config = tiny_backbones.config("nv-retriever") | {"vocab_size": made.get_vocab_size()}
    (place / "config.json").write_text(json.dumps(config))
    return place


def load(folder, prompt=SPACE, **options) -> Encoder:
    return Encoder.from_pretrained(str(folder), query_prompt=prompt, passage_prompt="", **options)


def pooled(encoder, texts, kind="query"):
    tokens = encoder.tokenize(texts, kind=kind)
    skips = encoder.unpooled(tokens, kind)
    backend = encoder.tokenizer._backend
    return [
        [backend.id_to_token(int(i)) for i in ids[skip:]]
        for ids, skip in zip(tokens, skips, strict=True)
    ]


def test_a_prompt_that_ends_in_a_space_leaves_the_texts_first_word_in_the_pooling(folder):
    encoder = load(folder)
    space = "▁" if encoder.tokenizer._backend.token_to_id("▁") is not None else "Ġ"
    found = pooled(encoder, ["wing flow", "wing", "a question"])
    # The prompt's last space and the text's first word are one token, which the text owns.
    assert found[0] == [f"{space}wing", f"{space}flow"]
    assert found[1] == [f"{space}wing"]
    assert found[2][0] == f"{space}a"
    assert encoder.joined_prompt("query") == SPACE
    tight = load(folder, TIGHT)
    assert pooled(tight, ["wing flow"]) == [["wing", f"{space}flow"]]
    assert tight.joined_prompt("query") is None
    assert encoder.joined_prompt("passage") is None


def test_every_text_has_a_vector_the_empty_one_too(folder):
    for prompt in (SPACE, TIGHT):
        encoder = load(folder, prompt)
        norms = np.linalg.norm(encoder.encode(["wing", "a", ""], kind="query"), axis=1)
        np.testing.assert_allclose(norms, 1.0, atol=1e-5)
        assert all(len(tokens) >= 1 for tokens in pooled(encoder, ["wing", "a", ""]))


def test_serving_and_training_leave_out_the_same_tokens(folder):
    encoder = load(folder)
    texts = ["wing flow", "wing", "", "a question: wing"]
    rows = np.arange(4, dtype=np.int32)
    from nvret_jax.data.ragged import Ragged

    one = Ragged.from_rows([[i] for i in range(4)], np.int32)
    table = Negatives(
        query_rows=rows,
        positive_rows=one,
        positive_scores=None,
        judged_rows=one,
        negative_rows=Ragged.from_rows([[]] * 4, np.int32),
        negative_scores=None,
        negative_ranks=None,
        teachers=("t",),
        negative_teachers=None,
        negative_ceilings=None,
        ceilings=None,
    )
    examples = Examples.build(
        table,
        texts,
        texts,
        lambda some: encoder.tokenize(some, kind="query"),
        lambda some: encoder.tokenize(some, kind="passage"),
        batch_size=4,
        num_negatives=0,
        pad_id=0,
        seed=0,
        unpooled={
            kind: (lambda tokens, kind=kind: encoder.unpooled(tokens, kind))
            for kind in ("query", "passage")
        },
    )
    batch = examples.batch(0)
    numbers = examples.rows(0)[0]
    with jax.set_mesh(encoder.mesh):
        trained = encoder.model(
            batch["query_tokens"], batch["query_lengths"], unpooled=batch["query_unpooled"]
        )
    served = encoder.encode([texts[i] for i in numbers], kind="query")
    np.testing.assert_allclose(np.asarray(trained), served, atol=1e-6)


def test_nv_embeds_last_token_of_the_prompt_stays(folder):
    """As its own code counts: on the prompt by itself, from the place of the first token on."""
    encoder = load(folder, prompt_in_pooling="last")
    alone = encoder.tokenizer.prompt_ids(SPACE)
    tokens = encoder.tokenize(["wing flow", "wing"], kind="query")
    assert encoder.unpooled(tokens, "query").tolist() == [len(alone) - 1] * 2
    assert pooled(encoder, ["wing"])[0][-1].endswith("wing")


def test_an_export_with_such_a_prompt_says_so(folder, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging.getLogger("absl"), "handle", lambda record: said.append(record))
    export(load(folder), tmp_path / "space")
    export(load(folder, TIGHT), tmp_path / "tight")
    lines = [record.getMessage() for record in said]
    lines = [line for line in lines if "sentence-transformers" in line]
    assert len(lines) == 1
    assert repr(SPACE) in lines[0]
    assert repr(TIGHT) in lines[0]


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_a_length_without_room_behind_the_prompt_is_refused(folder, kind):
    encoder = load(folder)
    encoder = encoder.with_texts(query_prompt=SPACE, passage_prompt=SPACE, max_length=32)
    taken = len(encoder.tokenize([""], kind=kind)[0])
    with pytest.raises(InputError, match=rf"max_length={taken}, but the prompt .* takes {taken} "):
        encoder.encode(["wing flow"], kind=kind, max_length=taken)
    assert np.isfinite(encoder.encode(["wing flow"], kind=kind, max_length=taken + 1)).all()


def test_a_lower_cased_prompt_is_counted_as_it_is_read(folder):
    upper = load(folder, SPACE.upper())
    spec = dataclasses.replace(upper.spec, lowercase=True)
    texts = tokenize.TextTokens(spec, upper.tokenizer, upper.folder)
    tokens = texts.tokenize(["Wing"], "query")
    expected = load(folder).tokenize(["wing"], kind="query")
    np.testing.assert_array_equal(tokens[0], expected[0])
    assert texts.unpooled(tokens, "query").tolist() == [len(expected[0]) - 1]


def test_common_prefix():
    rows = [
        np.array(row, np.int32) for row in ([1, 2, 3], [1, 2], [1, 9, 3], [], [9], [1, 2, 3, 4])
    ]
    prefix = np.array([1, 2, 3], np.int32)
    assert common_prefix(rows, prefix).tolist() == [3, 2, 1, 0, 0, 3]
    assert common_prefix(rows, prefix[:0]).tolist() == [0] * 6
