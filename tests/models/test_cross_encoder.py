"""Cross-encoders: against transformers, live and golden, and for what must not change a score."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny_cross_encoders
import tiny_models
import virtual_devices

from nvret_jax.errors import InputError
from nvret_jax.models import batched
from nvret_jax.models.cross_encoder import CrossEncoder

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TOLERANCE = 2e-5
PAIRS = tiny_cross_encoders.pairs(40)


def load(folder, **options):
    return CrossEncoder.from_pretrained(str(folder), **{"max_length": 24, **options})


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return load(tiny_cross_encoders.write(tmp_path_factory.mktemp("m") / "bert"))


@pytest.mark.parametrize("name", ["bert", "bert_two_labels", "xlm_roberta"])
def test_scores_are_transformers_logits(tmp_path, name):
    """Golden logits; tests/golden/make_cross_encoder.py made them."""
    golden = np.load(GOLDEN / "cross_encoder_tiny.npz", allow_pickle=False)
    settings = json.loads(str(golden["settings"]))[name]
    logits = golden[name]
    want = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
    got = load(tiny_cross_encoders.write(tmp_path / "m", **settings)).score(PAIRS)
    np.testing.assert_allclose(got, want, atol=TOLERANCE)
    assert got.dtype == np.float32
    assert np.std(want) > 0.1  # a head that says the same of every pair would prove nothing


@pytest.mark.parity
@pytest.mark.parametrize(
    ("model_type", "labels"),
    [("bert", 1), ("bert", 2), ("roberta", 1), ("xlm-roberta", 2), ("camembert", 1)],
)
def test_random_models_agree_with_transformers_padded_and_not(tmp_path, model_type, labels):
    pytest.importorskip("torch")
    sys.path.insert(0, str(GOLDEN))
    from make_cross_encoder import by_transformers

    folder = tiny_cross_encoders.write(tmp_path / "m", model_type, labels=labels, seed=7)
    got = load(folder).score(PAIRS)
    for batch in (1, 16):
        logits = by_transformers(folder, PAIRS, 24, batch)
        want = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
        np.testing.assert_allclose(got, want, atol=TOLERANCE)


def test_the_order_and_company_of_pairs_do_not_matter(bert):
    want = bert.score(PAIRS)
    order = np.random.default_rng(0).permutation(len(PAIRS))
    np.testing.assert_allclose(bert.score([PAIRS[i] for i in order]), want[order], atol=1e-5)
    np.testing.assert_allclose(bert.score(PAIRS[3:4]), want[3:4], atol=1e-5)
    np.testing.assert_allclose(bert.score(PAIRS, token_budget=64), want, atol=1e-5)
    assert bert.score([]).shape == (0,)


def test_blocks_do_not_show(bert, monkeypatch):
    want = bert.score(PAIRS)
    for name, value in {"SMALL_BLOCK": 7, "BLOCK": 7, "BLOCK_STEPS": 0}.items():
        monkeypatch.setattr(batched, name, value)
    monkeypatch.setattr("nvret_jax.models.cross_encoder._TOKENIZED", 3)
    np.testing.assert_allclose(bert.score(PAIRS), want, atol=1e-5)


def test_query_and_passage_are_not_the_same_thing(bert):
    forth = bert.score([("wing flow", "heat shock layer")])
    back = bert.score([("heat shock layer", "wing flow")])
    assert abs(forth - back) > 1e-3


def test_token_types_tell_the_texts_apart_unless_the_tokenizer_has_none(bert, tmp_path):
    packed = bert.tokenize([("wing flow", "heat")])[0]
    assert (packed >> 24).tolist() == [0, 0, 0, 0, 1, 1]
    no_types = {"model_input_names": ["input_ids", "attention_mask"]}
    other = load(tiny_cross_encoders.write(tmp_path / "m", tokenizer_config=no_types))
    assert (other.tokenize([("wing flow", "heat")])[0] >> 24).tolist() == [0] * 6
    assert np.abs(other.score(PAIRS) - bert.score(PAIRS)).max() > 1e-3
    assert other.fingerprint != bert.fingerprint


def test_too_long_a_pair_loses_tokens_of_the_longer_text(bert):
    short, long = "wing flow", " ".join(["heat"] * 60)
    for pair, types in (((short, long), [4, 20]), ((long, short), [21, 3])):
        packed = bert.tokenize([pair])[0]
        assert np.bincount(packed >> 24).tolist() == types
    np.testing.assert_array_equal(
        bert.score([(short, long)]), bert.score([(short, " ".join(["heat"] * 19))])
    )


def test_lengths_come_from_the_tokenizer_and_the_positions_unless_given(tmp_path):
    folder = tiny_cross_encoders.write(tmp_path / "a", max_position_embeddings=600)
    assert CrossEncoder.from_pretrained(str(folder)).max_length == 512
    folder = tiny_cross_encoders.write(
        tmp_path / "b", tokenizer_config={"model_max_length": 30}, max_position_embeddings=600
    )
    assert CrossEncoder.from_pretrained(str(folder)).max_length == 30
    folder = tiny_cross_encoders.write(tmp_path / "c", "roberta")
    assert CrossEncoder.from_pretrained(str(folder)).max_length == 38
    with pytest.raises(InputError, match=r"max_length=39: expected 3 to 38"):
        load(folder, max_length=39)
    with pytest.raises(InputError, match=r"max_length=3: a pair has 3 special tokens"):
        load(folder, max_length=3).score(PAIRS)


def test_bfloat16_stays_near(bert):
    low = load(bert.folder, dtype="bfloat16").score(PAIRS)
    assert np.corrcoef(low, bert.score(PAIRS))[0, 1] > 0.99


def test_the_fingerprint_follows_weights_and_settings(tmp_path):
    a = load(tiny_cross_encoders.write(tmp_path / "a"))
    assert load(tiny_cross_encoders.write(tmp_path / "b")).fingerprint == a.fingerprint
    others = [
        load(tiny_cross_encoders.write(tmp_path / "c", seed=1)),
        load(tmp_path / "a", max_length=20),
        load(tmp_path / "a", dtype="bfloat16"),
    ]
    assert len({a.fingerprint, *(other.fingerprint for other in others)}) == 4


DEVICES = """
import json, sys
import numpy as np
from nvret_jax import mesh as mesh_lib
from nvret_jax.models.cross_encoder import CrossEncoder

root = sys.argv[1]
pairs = json.load(open(root + "/pairs.json"))
np.savez(root + "/out.npz", **{
    f"{name} {sizes}": CrossEncoder.from_pretrained(
        f"{root}/{name}", mesh=mesh_lib.make_mesh(*sizes), max_length=24
    ).score(pairs)
    for name, sizes in [
        ("bert", (8, 1, 1)), ("bert", (2, 2, 2)), ("roberta", (1, 4, 2))
    ]
})
"""


def test_scores_are_the_same_on_every_mesh(tmp_path):
    for name in ("bert", "roberta"):
        tiny_cross_encoders.write(tmp_path / name, name)
    (tmp_path / "pairs.json").write_text(json.dumps(PAIRS))
    environment = virtual_devices.environment(8)
    subprocess.run([sys.executable, "-c", DEVICES, str(tmp_path)], env=environment, check=True)
    for key, got in np.load(tmp_path / "out.npz").items():
        want = load(tmp_path / key.split()[0]).score(PAIRS)
        np.testing.assert_allclose(got, want, atol=TOLERANCE)


def test_models_that_score_no_pairs_are_refused(tmp_path):
    encoder = tiny_models.write(tmp_path / "encoder")
    with pytest.raises(InputError, match=r"no classifier.weight; expected the head"):
        load(encoder)
    three = tiny_cross_encoders.write(tmp_path / "three", labels=3)
    with pytest.raises(InputError, match="a head of 3 labels; expected 1"):
        load(three)
    (three / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(InputError, match="model_type='t5'; cross-encoders of bert, roberta"):
        load(three)
    (three / "config.json").rename(three / "modules.json")
    with pytest.raises(InputError, match=r"no config\.json"):
        load(three)


def test_a_head_of_another_width_is_refused(tmp_path):
    weights = tiny_cross_encoders.tensors(tiny_models.config(), 1)
    weights["classifier.weight"] = weights["classifier.weight"][:, :-1]
    folder = tiny_cross_encoders.write(tmp_path / "m", weights=weights)
    with pytest.raises(InputError, match=re.escape("out_kernel is (31, 1), expected (32, 1)")):
        load(folder)


@pytest.mark.parametrize("pair", ["two", ("one",), ("a", "b", "c"), ("a", None), 7])
def test_a_pair_that_is_none_is_named(bert, pair):
    with pytest.raises(InputError, match=r"pair 2 is .*; expected \(query, passage\)"):
        bert.score([*PAIRS[:2], pair])


def test_scores_that_are_not_finite_are_refused(tmp_path):
    weights = tiny_cross_encoders.tensors(tiny_models.config(), 1)
    weights["classifier.weight"][:] = 3e38  # finite itself, and a sum of them is not
    folder = tiny_cross_encoders.write(tmp_path / "m", weights=weights)
    with pytest.raises(InputError, match="the score of pair 0 is"):
        load(folder).score(PAIRS)


@pytest.mark.parametrize("key", ["classifier.bias", "bert.embeddings.word_embeddings.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, key):
    weights = tiny_cross_encoders.tensors(tiny_models.config(), 1)
    key = key if key in weights else key.removeprefix("bert.")
    weights[key].reshape(-1)[0] = np.nan
    folder = tiny_cross_encoders.write(tmp_path / "m", weights=weights)
    with pytest.raises(InputError, match=rf"{key} holds NaN \(1 of "):
        load(folder)
