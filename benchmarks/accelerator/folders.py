"""Models and texts that need no network: random weights of a real size, docstrings as texts.

A folder is what sentence-transformers saves, so that both sides of a comparison read the same one.
Speed does not depend on the weights, so these are one random block repeated. The tokenizer is
WordPiece, trained on the docstrings of the installed packages (`pydocs`), which are the texts, too.
"""

from __future__ import annotations

import json
import os
import pathlib

import ml_dtypes
import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 30_522
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MODULE = "sentence_transformers.models"


def texts(count: int) -> list[str]:
    """`count` docstrings of installed packages, spread over all of them; repeated if too few."""
    from nvret_jax.data.load import load_dataset

    found = load_dataset("pydocs:", splits=()).corpus.texts
    step = max(1, len(found) // count)
    some = [found[i] for i in range(0, len(found), step)][:count]
    return [some[i % len(some)] for i in range(count)]


def make(place: pathlib.Path, kind: str, sizes: dict[str, int], max_length: int) -> pathlib.Path:
    """A model's folder, made if it is not there.

    Args:
        place: the folder around it.
        kind: 'decoder-…' makes a Llama whose last token is pooled, anything else a BERT with mean
            pooling.
        sizes: fields of its config.
        max_length: tokens that a text is cut to, and the number of a BERT's positions.
    """
    folder = place / f"{kind}-{sizes['hidden_size']}x{sizes['num_hidden_layers']}-{max_length}"
    if (folder / "modules.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    decoder = kind.startswith("decoder")
    config = _config(decoder, sizes, max_length)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _tokenizer(place).save(os.fspath(folder / "tokenizer.json"))
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    named |= {"sep_token": "[SEP]", "mask_token": "[MASK]", "model_max_length": max_length}
    named["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=1))
    shapes = _llama(config) if decoder else _bert(config)
    tensors = {name: _random(shape) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir(exist_ok=True)
    pooled = "lasttoken" if decoder else "mean_tokens"
    pooling = {f"pooling_mode_{mode}": mode == pooled for mode in ("mean_tokens", "lasttoken")}
    pooling |= {"pooling_mode_cls_token": False, "word_embedding_dimension": config["hidden_size"]}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_length}))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{_MODULE}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{_MODULE}.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{_MODULE}.Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def parameters(folder: pathlib.Path) -> int:
    """Weights that every token is multiplied with: all but the tables of embeddings."""
    config = json.loads((folder / "config.json").read_text())
    shapes = (_llama if config["model_type"] == "llama" else _bert)(config)
    return sum(
        int(np.prod(shape)) for name, shape in shapes.items() if "embed" not in name.split(".")[0]
    )


def forward_flops(folder: pathlib.Path, lengths: list[int]) -> float:
    """Floating-point operations of encoding texts of these lengths, in tokens, padding left out."""
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    width = heads * config.get("head_dim", config["hidden_size"] // heads)
    tokens = np.asarray(lengths, np.float64)
    attention = 4 * config["num_hidden_layers"] * width * (tokens**2).sum()
    if config["model_type"] == "llama":
        attention /= 2  # a token sees those before it
    return 2 * parameters(folder) * tokens.sum() + attention


def _config(decoder: bool, sizes: dict[str, int], max_length: int) -> dict:
    common = {"vocab_size": VOCABULARY, "pad_token_id": 0, "torch_dtype": "bfloat16"}
    if decoder:
        return {
            "model_type": "llama",
            "architectures": ["LlamaModel"],
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "bos_token_id": 2,
            "eos_token_id": 3,
            **common,
            **sizes,
        }
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": max_length,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **common,
        **sizes,
    }


def _random(shape: tuple[int, ...]) -> np.ndarray:
    """Standard deviation 0.02; ones where there is one dimension: the scale of a norm, a bias."""
    if len(shape) == 1:
        return np.ones(shape, ml_dtypes.bfloat16)
    block = np.random.default_rng(shape[0]).normal(0, 0.02, 2**20 - 3)  # odd: rows differ
    return np.resize(block.astype(ml_dtypes.bfloat16), shape)


def _bert(config: dict) -> dict[str, tuple[int, ...]]:
    d, f = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], d),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (2, d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        for name, rows, columns in (
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", f, d),
            ("output.dense", d, f),
        ):
            shapes |= {f"{at}{name}.weight": (rows, columns), f"{at}{name}.bias": (rows,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}{name}.weight": (d,), f"{at}{name}.bias": (d,)}
    return shapes


def _llama(config: dict) -> dict[str, tuple[int, ...]]:
    d, f, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config["vocab_size"], d),
        "norm.weight": (d,),
    }
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": (q, d),
            f"{at}self_attn.k_proj.weight": (kv, d),
            f"{at}self_attn.v_proj.weight": (kv, d),
            f"{at}self_attn.o_proj.weight": (d, q),
            f"{at}mlp.gate_proj.weight": (f, d),
            f"{at}mlp.up_proj.weight": (f, d),
            f"{at}mlp.down_proj.weight": (d, f),
            f"{at}input_layernorm.weight": (d,),
            f"{at}post_attention_layernorm.weight": (d,),
        }
    return shapes


def _tokenizer(place: pathlib.Path) -> tokenizers.Tokenizer:
    """WordPiece over docstrings, trained once per folder."""
    file = place / "tokenizer.json"
    if file.exists():
        return tokenizers.Tokenizer.from_file(os.fspath(file))
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=list(_SPECIAL), show_progress=False
    )
    made.train_from_iterator(texts(2000), trainer)
    ids = {name: made.token_to_id(name) for name in ("[CLS]", "[SEP]")}
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=list(ids.items())
    )
    made.save(os.fspath(file))
    return made
