"""Tiny models as their makers publish them, tokenizers included, and an export of each kind.

tiny_models.py and tiny_backbones.py stand in for a tokenizer with a list of words, which
transformers replaces by the one it knows for a model_type. Here each backbone has a tokenizer of
the sort it has in the world, trained on a few lines.
"""

import json
import pathlib

import numpy as np
import safetensors.numpy
import tiny_backbones
import tiny_models
import tokenizers
from flax import nnx
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from nvret_jax.export.sentence_transformers import export
from nvret_jax.models.encoder import Encoder, LoraConfig

TEXTS = [
    "How do I sort an array of numbers?",
    "sorted(values) returns a sorted copy of its argument; the original is left as it was.",
    "Über die Grenzschicht an einer Platte: Wärmefluss, Stoß, 3.14 und 42.",
    "heat",
    "a wing in a flow at high speed, and what the shock does to the boundary layer of the body "
    "behind it when heat flows through the plate at more than twice the speed of sound in air",
]
PROMPTS = {"query": "Instruct: find the passage\nQuery: ", "document": "passage: "}
# Of a model that does not pool them: their last token takes nothing of the text.
UNPOOLED = {"query": "Instruct: find the passage\nQuery:", "document": "passage:"}
LINES = {kind: f"{prompt}\n" for kind, prompt in UNPOOLED.items()}
_SIZE = 320
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _template(begin, end, tokenizer):
    single = " ".join([begin] * bool(begin) + ["$A"] + [end] * bool(end))
    special = [(token, tokenizer.token_to_id(token)) for token in (begin, end) if token]
    return processors.TemplateProcessing(single=single, special_tokens=special)


def _word_piece():
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
    )
    made.post_processor = _template("[CLS]", "[SEP]", made)
    made.decoder = decoders.WordPiece()
    return (
        made,
        "BertTokenizer",
        dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True)),
    )


def _byte_bpe(special, begin="", end="", *, qwen=False, prefix_space=False):
    made = tokenizers.Tokenizer(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=not qwen)
    made.pre_tokenizer = bytes_
    if qwen:
        made.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(tokenizers.Regex(_QWEN), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(TEXTS, trainer)
    if begin or end:
        made.post_processor = _template(begin, end, made)
    return made


def _unigram():
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    made.train_from_iterator(
        TEXTS * 4,
        trainers.UnigramTrainer(vocab_size=160, special_tokens=special, unk_token="<unk>"),
    )
    made.add_special_tokens(["<mask>"])
    made.post_processor = _template("<s>", "</s>", made)
    return made


_ROBERTA = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
_ROBERTA |= {"cls": "<s>", "sep": "</s>"}
_MODERN = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "unk": "[UNK]"}


def _tokenizer(model_type):
    """(tokenizer, its class in tokenizer_config.json, special tokens by role)"""
    if model_type == "bert":
        return _word_piece()
    if model_type == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        return _byte_bpe(special, "<s>", "</s>"), "RobertaTokenizer", _ROBERTA
    if model_type == "xlm-roberta":
        return _unigram(), "XLMRobertaTokenizer", _ROBERTA
    if model_type == "modernbert":
        special = [*_MODERN.values(), "[Q] ", "[D] "]
        return _byte_bpe(special, "[CLS]", "[SEP]"), "TokenizersBackend", _MODERN
    if model_type.startswith("qwen"):
        special = ["<|endoftext|>", "<|im_end|>"]
        roles = {"pad": special[0], "eos": special[0], "unk": special[0]}
        # Qwen3-Embedding's tokenizer.json adds the end token; gte-Qwen2's asks for it elsewhere.
        end = special[0] if model_type == "qwen3" else ""
        return _byte_bpe(special, end=end, qwen=True), "Qwen2Tokenizer", roles
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    roles = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    kind = "PreTrainedTokenizerFast" if model_type.startswith("llama") else "LlamaTokenizerFast"
    return _byte_bpe(special, "<s>"), kind, roles


def write(
    folder,
    config,
    *,
    pooling="mean",
    normalize=True,
    prompts=PROMPTS,
    pool_prompt=True,
    dense=(),
    tokenizer=None,
    shared=None,
    max_length=60,
    seed=0,
):
    """A folder of a sentence-transformers model; `config` is its config.json."""
    folder.mkdir(parents=True)
    model_type = config["model_type"]
    made, kind, roles = _tokenizer(model_type)
    config = config | {"vocab_size": _SIZE, "transformers_version": "4.51.0"}
    for role, token in roles.items():
        if role in ("pad", "bos", "eos", "cls", "sep") and model_type != "bert":
            config.setdefault(f"{role}_token_id", None)
            config[f"{role}_token_id"] = made.token_to_id(token)

    def put(name, content):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))

    made.save(str(folder / "tokenizer.json"))
    put("config.json", config)
    named = {f"{role}_token": token for role, token in roles.items()}
    put("tokenizer_config.json", {"tokenizer_class": kind} | named | (tokenizer or {}))
    put("sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    put("config_sentence_transformers.json", {"prompts": prompts} | (shared or {}))
    modules = ["Transformer"]
    if pooling is not None:
        modules.append("Pooling")
        put(
            "1_Pooling/config.json",
            {
                "word_embedding_dimension": 32,
                f"pooling_mode_{tiny_backbones._FLAG[pooling]}": True,
                "include_prompt": pool_prompt,
            },
        )
    for width, out, activation, residual in dense:
        place = f"{len(modules)}_Dense"
        modules.append("Dense")
        at = "linear" if activation == "Identity" else "activation"
        put(
            f"{place}/config.json",
            {
                "in_features": width,
                "out_features": out,
                "bias": False,
                "activation_function": f"torch.nn.modules.{at}.{activation}",
                "use_residual": residual,
            },
        )
        shapes = {"linear.weight": (out, width)}
        if residual and out != width:
            shapes["residual.weight"] = (out, width)
        safetensors.numpy.save_file(
            tiny_backbones.random(shapes, len(modules)), str(folder / place / "model.safetensors")
        )
    if normalize:
        modules.append("Normalize")
    put(
        "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{name}" if i else "",
                "type": f"sentence_transformers.models.{name}",
            }
            for i, name in enumerate(modules)
        ],
    )
    if model_type in ("bert", "roberta", "xlm-roberta"):
        weights = tiny_models.tensors(config, seed)
    elif model_type == "modernbert":
        weights = tiny_backbones.random(tiny_backbones._modernbert_shapes(config), seed)
    else:
        weights = tiny_backbones.random(tiny_backbones._decoder_shapes(config), seed)
    safetensors.numpy.save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    return folder


def _decoder(model_type, **changes):
    return tiny_backbones.DECODER | {"model_type": model_type} | changes


_LLAMA3 = {k: v for k, v in tiny_backbones.LLAMA3.items()}
# ModernBERT as transformers 5 writes it, with other angles than those it has by default.
_MODERNBERT = {k: v for k, v in tiny_backbones.MODERNBERT.items() if "rope" not in k} | {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 40000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    },
}
_BERT = tiny_models.config("bert", max_position_embeddings=64)
_QWEN3 = _decoder("qwen3", head_dim=12)
_QWEN3 |= {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
del _QWEN3["rope_theta"]
_LLAMA = _decoder("llama", rope_parameters=_LLAMA3 | {"rope_theta": 500000.0})
del _LLAMA["rope_theta"]
LATE = tiny_backbones.LATE | {"skiplist_words": [".", ","]}
_LATE = {
    "pooling": None,
    "normalize": False,
    "prompts": {},
    "dense": [(32, 48, "Identity", True), (48, 8, "Identity", False)],
    "shared": LATE,
}

# Kind -> (what `write` is given, what the encoder is read with, what `export` is given).
KINDS = {
    "BERT, mean, prompts": ({"config": _BERT}, {}, {}),
    "BERT, prompts not pooled": (
        {"config": _BERT, "pool_prompt": False, "prompts": UNPOOLED},
        {},
        {},
    ),
    "BERT, CLS, Dense": (
        {"config": _BERT, "pooling": "cls", "normalize": False, "dense": [(32, 8, "Tanh", False)]},
        {},
        {},
    ),
    "BERT, residual Dense": ({"config": _BERT, "dense": [(32, 32, "Identity", True)]}, {}, {}),
    "BERT, residual Dense, Tanh": ({"config": _BERT, "dense": [(32, 32, "Tanh", True)]}, {}, {}),
    "RoBERTa": ({"config": tiny_models.config("roberta", max_position_embeddings=66)}, {}, {}),
    "XLM-R": ({"config": tiny_models.config("xlm-roberta", max_position_embeddings=66)}, {}, {}),
    "ModernBERT, CLS": ({"config": _MODERNBERT, "pooling": "cls"}, {}, {}),
    "ModernBERT, other layers": (
        {
            "config": _MODERNBERT
            | {
                "layer_types": [
                    "full_attention",
                    "full_attention",
                    "sliding_attention",
                    "full_attention",
                ]
            }
        },
        {},
        {},
    ),
    "Mistral, bidirectional": (
        {
            "config": _decoder("nvretriever", sliding_window=None),
            "pool_prompt": False,
            "prompts": UNPOOLED,
        },
        {},
        {},
    ),
    "Mistral, prompts not pooled": (
        {
            "config": _decoder("mistral", sliding_window=None),
            "pool_prompt": False,
            "prompts": UNPOOLED,
        },
        {},
        {},
    ),
    "Mistral, prompts not pooled, of lines": (
        {
            "config": _decoder("mistral", sliding_window=None),
            "pool_prompt": False,
            "prompts": LINES,
        },
        {},
        {},
    ),
    "Llama, bidirectional": (
        {"config": _decoder("llama_bidirec", rope_scaling=_LLAMA3, rope_theta=5e5)},
        {},
        {},
    ),
    "Mistral, last token": (
        {
            "config": _decoder("mistral", sliding_window=None),
            "pooling": "lasttoken",
            "tokenizer": {"add_eos_token": True},
        },
        {},
        {},
    ),
    "Llama 3, mean": ({"config": _LLAMA}, {}, {}),
    "Qwen2, last token": (
        {"config": _decoder("qwen2"), "pooling": "lasttoken", "tokenizer": {"add_eos_token": True}},
        {},
        {},
    ),
    "Qwen3, last token": (
        {"config": _QWEN3, "pooling": "lasttoken", "tokenizer": {"padding_side": "left"}},
        {},
        {},
    ),
    "Matryoshka": ({"config": _BERT}, {}, {"matryoshka": (8, 16)}),
    "LoRA, merged": (
        {"config": _decoder("mistral", sliding_window=None)},
        {"lora": LoraConfig(rank=2, alpha=4.0)},
        {},
    ),
    "late interaction": ({"config": _MODERNBERT | {"local_attention": 32}} | _LATE, {}, {}),
    # Mask tokens behind a short query have nothing of it in their window.
    "late interaction, past the window": ({"config": _MODERNBERT} | _LATE, {}, {}),
    "late interaction, from BERT": (
        {"config": _BERT, "prompts": {}},
        {"pooling": "tokens"},
        {},
    ),
    "BERT, float16": ({"config": _BERT}, {}, {"dtype": "float16"}),
}


def _moved(encoder):
    """An encoder whose new adapters do something."""
    rng = np.random.default_rng(0)
    flat = [
        (path, v.replace(v[...] + rng.standard_normal(v.shape).astype(np.float32) * 0.2))
        if isinstance(v, nnx.LoRAParam)
        else (path, v)
        for path, v in nnx.to_flat_state(nnx.split(encoder.model)[1])
    ]
    return encoder.replace(nnx.from_flat_state(flat))


def vectors(encoder, kind, dim=None):
    """What `encoder` gives for TEXTS; of several vectors per text, one below the other."""
    if encoder.spec.late is not None:
        return np.concatenate(encoder.encode_tokens(TEXTS, kind=kind))
    return encoder.encode(TEXTS, kind=kind)[:, :dim]


def exports(root: pathlib.Path):
    """Yields (job for readers/read.py, encoder, our vectors by kind of text) of every kind."""
    for number, (name, (model, reading, writing)) in enumerate(KINDS.items()):
        source = write(root / f"{number}-source", seed=number, **model)
        encoder = Encoder.from_pretrained(str(source), **reading)
        if encoder.lora is not None:
            encoder = _moved(encoder)
        folder = export(encoder, root / f"{number}-export", **writing)
        job = {"name": name, "folder": str(folder)}
        job |= {"late": encoder.spec.late is not None, "dense": bool(encoder.spec.dense)}
        if "matryoshka" in writing:
            job["truncate_dim"] = 16
        dim = job.get("truncate_dim")
        ours = {k: vectors(encoder, k, dim) for k in ("query", "passage")}
        ours["document"] = ours.pop("passage")
        yield job, encoder, ours
        if encoder.lora is not None:
            adapter = root / f"{number}-adapter"
            encoder.save_adapter(adapter)
            base = export(Encoder.from_pretrained(str(source)), root / f"{number}-base")
            yield (
                job | {"name": "LoRA, adapter", "folder": str(base), "adapter": str(adapter)},
                (encoder),
                ours,
            )
