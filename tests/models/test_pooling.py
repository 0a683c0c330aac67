"""Pooling, projections, late interaction: against their formulas and sentence-transformers."""

import json

import backbone_checks as checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_backbones
import tiny_models
from tiny_backbones import LATE, TEXTS

from nvret_jax.errors import InputError
from nvret_jax.models.encoder import Encoder
from nvret_jax.models.pooling import DenseConfig, pool
from nvret_jax.models.pretrained.late_interaction import LateInteraction, read

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("skip", [None, 0, 2, 5])
def test_only_real_tokens_behind_the_instruction_are_pooled(mode, skip):
    hidden = RNG.standard_normal((3, 6, 4)).astype(np.float32)
    lengths = [6, 3, 1]
    for row, length in enumerate(lengths):
        hidden[row, length:] = np.inf  # what padding holds is of no consequence
    got = pool(jnp.asarray(hidden), jnp.asarray(lengths), mode, unpooled=skip)
    for row, length in enumerate(lengths):
        first = skip or 0
        kept = hidden[row, first:length]
        if mode == "mean":
            expected = kept.mean(0) if len(kept) else np.zeros(4)
        elif mode == "cls":
            expected = hidden[row, first if first < length else 0]
        else:
            expected = hidden[row, length - 1]
        np.testing.assert_allclose(got[row], expected, atol=1e-6)


def test_an_instruction_may_differ_from_text_to_text():
    hidden = jnp.asarray(RNG.standard_normal((2, 4, 3)), jnp.float32)
    got = pool(hidden, jnp.asarray([4, 4]), "mean", unpooled=jnp.asarray([1, 3]))
    np.testing.assert_allclose(got[0], hidden[0, 1:].mean(0), atol=1e-6)
    np.testing.assert_allclose(got[1], hidden[1, 3], atol=1e-6)


def test_an_instruction_left_out_is_still_seen(tmp_path):
    """NV-Retriever: masked out of the mean, not of the attention."""
    folder = tiny_backbones.write(tmp_path / "m", "nv-retriever")
    encoder = Encoder.from_pretrained(str(folder))
    for kind, left_out in (("query", 5), ("passage", 0)):
        assert encoder.unpooled(encoder.tokenize(TEXTS, kind=kind), kind).tolist() == [left_out] * 4
    got = encoder.encode(TEXTS, kind="query")
    assert np.abs(got - checks.golden("nv-retriever", "query")).max() <= checks.TOLERANCE
    other = Encoder.from_pretrained(str(folder), query_prompt="flow gene body in ")
    assert np.abs(other.encode(TEXTS, kind="query") - got).max() > 0.01
    one = tiny_models.write(tmp_path / "bert", pooling="mean")
    (one / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode": "mean", "include_prompt": False})
    )
    bert = Encoder.from_pretrained(str(one), query_prompt="wing of ")
    # The first token, too, and not the last, which a text of no words keeps.
    tokens = bert.tokenize(["flow", ""], kind="query")
    assert bert.unpooled(tokens, "query").tolist() == [3, 3]
    assert [len(ids) for ids in tokens] == [5, 4]


# --- Dense


def numpy_dense(x, config, weights):
    out = x @ weights["linear.weight"].T + weights.get("linear.bias", 0.0)
    out = np.tanh(out) if config["activation_function"].endswith("Tanh") else out
    if not config["use_residual"]:
        return out
    return out + (x @ weights["residual.weight"].T if "residual.weight" in weights else x)


@pytest.mark.parametrize(
    ("out", "bias", "activation", "residual"),
    [(8, True, "Tanh", False), (32, False, "Identity", True), (16, True, "Identity", True)],
)
def test_a_dense_module_follows_the_pooling(tmp_path, out, bias, activation, residual):
    import safetensors.numpy

    folder = tiny_models.write(tmp_path / "m", normalize=False)
    plain = Encoder.from_pretrained(str(folder))
    config = {
        "in_features": 32,
        "out_features": out,
        "bias": bias,
        "activation_function": f"torch.nn.modules.x.{activation}",
        "use_residual": residual,
    }
    shapes = {"linear.weight": (out, 32)}
    if bias:
        shapes["linear.bias"] = (out,)
    if residual and out != 32:
        shapes["residual.weight"] = (out, 32)
    weights = tiny_backbones.random(shapes, 3)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, str(folder / "2_Dense" / "model.safetensors"))
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    encoder = Encoder.from_pretrained(str(folder))
    assert encoder.width == out
    got = encoder.encode(TEXTS)
    np.testing.assert_allclose(got, numpy_dense(plain.encode(TEXTS), config, weights), atol=1e-5)
    (back,) = encoder.save_dense_hf()
    assert set(back) == set(weights)
    for key, value in back.items():
        np.testing.assert_array_equal(value, weights[key])
    assert encoder.fingerprint != plain.fingerprint
    checks.check_axes(encoder)


def test_a_dense_module_that_does_not_fit_is_named():
    with pytest.raises(InputError, match="x: in_features=8, but it follows 32; activation_func"):
        DenseConfig.from_folder(
            {"in_features": 8, "out_features": 4, "activation_function": "a.Odd"}, 32, "x"
        )


# --- late interaction


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    folder = tiny_backbones.write(tmp_path_factory.mktemp("models") / "m", "lateon-code")
    return Encoder.from_pretrained(str(folder))


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_each_token_embeds_to_what_sentence_transformers_gave(late, kind):
    got = late.encode_tokens(TEXTS, kind=kind)
    expected = checks.golden("lateon-code", kind)
    assert sum(map(len, got)) == len(expected)
    assert np.abs(np.concatenate(got) - expected).max() <= checks.TOLERANCE
    np.testing.assert_allclose(np.linalg.norm(got[0], axis=-1), 1.0, atol=1e-6)
    again = late.encode_tokens(TEXTS[::-1], kind=kind)[::-1]
    for a, b in zip(again, got, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_queries_are_lengthened_and_passages_lose_skipped_tokens(late):
    assert [len(x) for x in late.encode_tokens(TEXTS, kind="query")] == [12] * len(TEXTS)
    words = [text.split() for text in TEXTS]
    counted = [3 + sum(w not in ("of", "a") for w in ws) for ws in words]
    got = [len(x) for x in late.encode_tokens(TEXTS)]
    assert got == counted  # [CLS] [D] … [SEP]
    ids = late.tokenize(["wing"], kind="query")[0].tolist()
    assert ids == [1, late.tokenizer.token_id("[Q] "), ids[2], 2]


def test_mask_tokens_may_be_seen(late, tmp_path):
    folder = tiny_backbones.write(tmp_path / "m", "lateon-code")
    shared = LATE | {"attend_to_expansion_tokens": True}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(shared))
    seen = Encoder.from_pretrained(str(folder))
    assert [len(ids) for ids in seen.tokenize(TEXTS, kind="query")] == [12] * len(TEXTS)
    got = seen.encode_tokens(TEXTS[:1], kind="query")[0]
    assert np.abs(got - late.encode_tokens(TEXTS[:1], kind="query")[0]).max() > 0.01
    shared["do_query_expansion"] = False
    (folder / "config_sentence_transformers.json").write_text(json.dumps(shared))
    plain = Encoder.from_pretrained(str(folder))
    assert len(plain.encode_tokens(TEXTS[:1], kind="query")[0]) == 5


def test_the_model_gives_training_the_tokens_of_a_batch(late):
    ids_bt, lengths_b = checks.padded(late.tokenize(TEXTS), 32)
    with jax.set_mesh(late.mesh):
        emb = np.asarray(jax.jit(lambda m, t, n: m(t, n))(late.model, ids_bt, lengths_b))
    assert emb.shape == (4, 32, 8)
    ids = late.tokenize(TEXTS)[0]
    kept = emb[0, : len(ids)][~np.isin(ids, late.skiplist("passage"))]
    np.testing.assert_allclose(kept, late.encode_tokens(TEXTS)[0], atol=2e-6)


def test_any_backbone_can_keep_its_tokens(tmp_path):
    folder = tiny_backbones.write(tmp_path / "m", "qwen3-embedding")
    encoder = Encoder.from_pretrained(str(folder), pooling="tokens")
    got = encoder.encode_tokens(TEXTS)
    assert [len(x) for x in got] == [len(ids) for ids in encoder.tokenize(TEXTS)]
    assert encoder.spec.similarity == "maxsim"


def test_the_wrong_kind_of_encode_says_so(late, tmp_path):
    with pytest.raises(InputError, match="no single vector for a text; use encode_tokens"):
        late.encode(TEXTS)
    with pytest.raises(InputError, match="'mean', but this is a late-interaction model"):
        Encoder.from_pretrained(str(late.folder), pooling="mean")
    plain = Encoder.from_pretrained(str(tiny_models.write(tmp_path / "m")))
    with pytest.raises(InputError, match=r"this model pools its tokens \(mean\); use encode"):
        plain.encode_tokens(TEXTS)


def test_settings_of_sentence_transformers_6_and_of_pylate():
    pylate = read(LATE, {}, {}, "x")
    assert pylate == LateInteraction(
        query_marker="[Q] ",
        passage_marker="[D] ",
        query_length=12,
        passage_length=30,
        expand_to=12,
        skip_words=("of", "a"),
    )
    settings = {
        "query_length": 9,
        "document_length": 30,
        "query_expansion": {"strategy": "min", "length": 9, "attend": True, "token": "[X]"},
    }
    mask = {"skiplist_words": [","], "skiplist_tasks": ["query", "document"]}
    native = read({"similarity_fn_name": "maxsim"}, settings, mask, "x")
    assert (native.expand_to, native.expand_fixed, native.expand_attend) == (9, False, True)
    assert native.skip_kinds == ("query", "passage")
    assert native.max_length("passage", 20) == 20
    assert native.max_length("query", 20) == 9
    bad = {"query_length": 1, "query_expansion": {"strategy": "odd"}}
    with pytest.raises(
        InputError,
        match=r"x: query_length=1, expected.*; query_expansion=.*a length; strategy='odd'",
    ):
        read({}, bad, {}, "x")
