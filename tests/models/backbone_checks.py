"""What every backbone must hold to, asked of the folders of tiny_backbones.py."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tiny_backbones
from flax import nnx
from tiny_backbones import TEXTS

from nvret_jax.models.encoder import Encoder
from nvret_jax.models.options import REMAT

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "backbones.npz"
TOLERANCE = 1e-4
_SEEN: dict[str, np.ndarray] = {}


def golden(name: str, key: str) -> np.ndarray:
    if not _SEEN:
        _SEEN.update(np.load(GOLDEN, allow_pickle=False))
    return _SEEN[f"{name}/{key}"]


@jax.jit
def run(model, tokens_bt, lengths_b, dropout_keys_b=None):
    return model(tokens_bt, lengths_b, dropout_keys_b=dropout_keys_b)


def padded(tokens: list[np.ndarray], width: int, fill: int = 0):
    ids_bt = np.full((len(tokens), width), fill, np.int32)
    for row, ids in enumerate(tokens):
        ids_bt[row, : len(ids)] = ids
    return jnp.asarray(ids_bt), jnp.asarray([len(ids) for ids in tokens], jnp.int32)


def first_layers(model: nnx.Module, count: int) -> nnx.Module:
    """The model with its first layers only."""
    if not hasattr(model, "attention_norms"):
        changed = dict(num_hidden_layers=count)
    else:
        changed = dict(num_hidden_layers=count, layer_is_local=model.config.layer_is_local[:count])
    out = type(model)(dataclasses.replace(model.config, **changed), rngs=nnx.Rngs(0))
    whole, part = (dict(nnx.to_flat_state(nnx.state(m))) for m in (model, out))
    cut = {p: v.replace(whole[p][...][tuple(map(slice, v.shape))]) for p, v in part.items()}
    nnx.update(out, nnx.from_flat_state(list(cut.items())))
    return out


def real(hidden_btd, lengths_b) -> np.ndarray:
    """Vectors of real tokens, texts joined."""
    pairs = zip(np.asarray(hidden_btd), np.asarray(lengths_b), strict=True)
    return np.concatenate([hidden[:length] for hidden, length in pairs])


def check_layer_by_layer(encoder: Encoder, name: str) -> None:
    """Hidden states after each layer equal transformers', padded and alone, in any order."""
    tokens = encoder.tokenize(TEXTS)
    expected = golden(name, "hidden")
    with jax.set_mesh(encoder.mesh):
        model = encoder.model.backbone
        for layers in range(1, len(expected) + 1):
            part = first_layers(model, layers)
            ids_bt, lengths_b = padded(tokens, 32)
            got = real(run(part, ids_bt, lengths_b), lengths_b)
            assert got.shape == expected[layers - 1].shape
            difference = np.abs(got - expected[layers - 1]).max()
            assert difference <= TOLERANCE, f"layer {layers}: {difference}"
        order = [2, 0, 3, 1]
        ids_bt, lengths_b = padded([tokens[i] for i in order], 32, fill=7)
        ends = np.cumsum([0, *map(len, tokens)])
        rows = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in order])
        got = real(run(model, ids_bt, lengths_b), lengths_b)
        assert np.abs(got - expected[-1][rows]).max() <= TOLERANCE
        alone = padded(tokens[1:2], len(tokens[1]))
        got = real(run(model, *alone), alone[1])
        assert np.abs(got - expected[-1][ends[1] : ends[2]]).max() <= TOLERANCE


def check_no_leak(encoder: Encoder) -> None:
    """Padding changes nothing, and what a token may not see does not reach it."""
    model = encoder.model.backbone
    tokens = [np.asarray([1, 5, 9, 14, 6, 8]), np.asarray([1, 7])]
    causal = getattr(model.config, "causal", False)
    with jax.set_mesh(encoder.mesh):
        base_bt, lengths_b = padded(tokens, 10)
        base = np.asarray(run(model, base_bt, lengths_b))
        other = np.asarray(run(model, padded(tokens, 10, fill=11)[0], lengths_b))
        np.testing.assert_array_equal(real(base, lengths_b), real(other, lengths_b))
        tokens[0][4] = 17
        changed = np.asarray(run(model, padded(tokens, 10)[0], lengths_b))
        np.testing.assert_array_equal(changed[1], base[1])  # another text does not notice
        moved = np.abs(changed[0, :6] - base[0, :6]).max(axis=-1)
        assert (moved[4:] > 1e-3).all()
        assert (moved[:4] == 0).all() if causal else (moved[:4] > 1e-4).all()


def check_training(encoder: Encoder) -> None:
    """remat changes no gradient; dropout belongs to the example."""
    keys = jax.random.split(jax.random.key(1), 2)
    ids_bt, lengths_b = padded([np.asarray([1, 5, 9, 14]), np.asarray([1, 7])], 4)

    def gradient(remat: str):
        model = encoder.model.backbone
        model.options = dataclasses.replace(model.options, remat=remat, dropout=0.1)
        at = (jnp.arange(4)[None] < lengths_b[:, None])[..., None]

        def loss(m):
            return jnp.where(at, jnp.sin(m(ids_bt, lengths_b, dropout_keys_b=keys)), 0.0).sum()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(model)), model

    with jax.set_mesh(encoder.mesh):
        plain, model = gradient("none")
        for remat in REMAT[1:]:
            for a, b in zip(plain, gradient(remat)[0], strict=True):
                np.testing.assert_allclose(a, b, atol=1e-4)
                assert np.isfinite(a).all()
        both = run(model, ids_bt, lengths_b, dropout_keys_b=keys)
        alone = run(model, ids_bt[1:], lengths_b[1:], dropout_keys_b=keys[1:])
        np.testing.assert_allclose(both[1], alone[0], atol=2e-6)
        assert np.abs(both - run(model, ids_bt, lengths_b)).max() > 0.01


def check_axes(encoder: Encoder) -> None:
    """Every weight has logical axes of its rank."""
    axes = encoder.model.logical_axes()
    state = dict(nnx.to_flat_state(nnx.state(encoder.model)))
    assert set(axes) == set(state)
    for path, variable in state.items():
        assert len(axes[path]) == len(variable.shape), path


def check_there_and_back(encoder: Encoder, name: str) -> None:
    """What is read is written again, bit by bit and under the same names (but for a prefix)."""
    source = tiny_backbones.tensors(name)
    prefix = tiny_backbones.CASES[name].get("prefix", "")
    prefix = "" if name == "nv-embed" else prefix
    back = encoder.save_weights_hf()
    read = {k for k in source if not k.startswith(("visual", "audio_tower", "lm_head"))}
    assert {prefix + key for key in back} == read
    for key, value in back.items():
        np.testing.assert_array_equal(value, source[prefix + key], err_msg=key)
