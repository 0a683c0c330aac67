"""Models small enough for a test: `tiny:mistral`, `tiny:bert`, …, made on demand, never downloaded.

A tiny model has the architecture of the real one, two layers, 64 dimensions, random weights and a
tokenizer whose tokens are bytes, so that it can read any text in any language. It is untrained; its
purpose is to run a recipe for a large model from end to end on a laptop (`:smoke`).

It is made once, in the user's cache folder, in the usual format of a model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile

import jax
import safetensors.numpy
import tokenizers
from etils import epath
from tokenizers import decoders, pre_tokenizers, processors

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.files import paths

PREFIX = "tiny:"
_PAD, _BEGIN, _END = "<pad>", "<s>", "</s>"
_VOCAB = 3 + 256
_DECODER = {
    "vocab_size": _VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "mistral": _DECODER | {"model_type": "mistral", "sliding_window": None},
    "llama": _DECODER | {"model_type": "llama"},
    "qwen3": _DECODER | {"model_type": "qwen3", "head_dim": 16},
    "bert": {
        "model_type": "bert",
        "vocab_size": _VOCAB,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    },
}


def folder(name: str) -> epath.Path:
    """The folder of a tiny model, made if it does not exist.

    Args:
        name: such as 'tiny:mistral'.

    Raises:
        InputError: an architecture that is not in `ARCHITECTURES`.
    """
    kind = name.removeprefix(PREFIX)
    if kind not in ARCHITECTURES:
        known = ", ".join(PREFIX + key for key in ARCHITECTURES)
        raise InputError(f"{name}: no such tiny model; known: {known}")
    content = json.dumps([ARCHITECTURES[kind], json.loads(_tokenizer().to_str())], sort_keys=True)
    short = hashlib.sha256(content.encode()).hexdigest()[:8]
    root = paths.cache("models")
    if root is None:
        raise InputError(f"{name}: neither the home nor TMPDIR can be written; set TMPDIR")
    place = root / f"tiny-{kind}-{short}"
    if not place.exists():
        aside = epath.Path(tempfile.mkdtemp(dir=root, prefix=f"tiny-{kind}-"))
        try:
            _write(aside, kind)
            aside.rename(place)
        except OSError:  # another process was faster
            shutil.rmtree(aside, ignore_errors=True)
            if not place.exists():
                raise
    return place


def _write(place: epath.Path, kind: str) -> None:
    # Imported here: a plain folder's name is resolved without them.
    from nvret_jax.models import embedding_model
    from nvret_jax.models.backbones.bert import Options
    from nvret_jax.models.pretrained.spec import read_spec

    (place / "config.json").write_text(json.dumps(ARCHITECTURES[kind], indent=1))
    (place / "tokenizer.json").write_text(_tokenizer().to_str())
    named = {"pad_token": _PAD, "bos_token": _BEGIN, "eos_token": _END, "model_max_length": 512}
    (place / "tokenizer_config.json").write_text(json.dumps(named, indent=1))
    spec, _ = read_spec(place, pooling="mean", normalize=True)
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.local_devices(backend="cpu")[:1])):
        tensors = embedding_model.to_hf(embedding_model.build(spec, Options()), spec)
    safetensors.numpy.save_file(tensors, place / "model.safetensors", {"format": "pt"})


def _tokenizer() -> tokenizers.Tokenizer:
    """A token for every byte; a begin token before each text."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([_PAD, _BEGIN, _END, *characters])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", pair=f"{_BEGIN} $A $B", special_tokens=[(_BEGIN, 1)]
    )
    made.add_special_tokens([_PAD, _BEGIN, _END])
    return made
