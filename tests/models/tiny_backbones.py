"""Model folders of every backbone beyond BERT, small enough to make in a test, without torch.

As in tiny_models.py, HF's names and shapes are spelled out here on their own. `CASES` holds one
folder for each model the package reads by a key table, under the name of the model it stands for;
tests/golden/make_backbones.py had transformers compute what they give.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import safetensors.numpy
import tiny_models

VOCAB = 28
DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODERNBERT = {
    "model_type": "modernbert",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "hidden_activation": "gelu",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
LATENT = {
    "hidden_dim": 32,
    "latent_dim": 32,
    "num_latents_value": 12,
    "num_cross_heads": 2,
    "cross_dim_head": 16,
    "output_normalize": True,
    "model_type": "latent_attention",
}
AUTO_MAP = {"AutoModel": "modeling.Model"}
QUERY = "the wing of a "  # a prompt in words of the vocabulary
LATE = {
    "model_type": "ColBERT",
    "similarity_fn_name": "MaxSim",
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 12,
    "document_length": 30,
    "attend_to_expansion_tokens": False,
    "skiplist_words": ["of", "a"],
}

# name -> how its folder is written. `inner`: where the backbone's config stands in config.json;
# `prefix`: of its keys; `causal`: what is expected of it.
CASES: dict[str, dict] = {
    "e5-mistral": {
        "config": DECODER | {"model_type": "mistral", "sliding_window": 40},
        "pooling": "lasttoken",
        "tokenizer": {"add_eos_token": True},
        "causal": True,
        "seed": 1,
    },
    "nv-retriever": {
        "config": DECODER
        | {"model_type": "nvretriever", "sliding_window": None, "auto_map": AUTO_MAP},
        "shared": {"prompts": {"query": QUERY}},
        "causal": False,
        "seed": 2,
    },
    "nv-embed": {
        "config": DECODER | {"model_type": "mistral", "sliding_window": 8},
        "outer": {
            "model_type": "nvembed",
            "auto_map": AUTO_MAP,
            "latent_attention_config": LATENT,
            "add_eos": True,
        },
        "inner": "text_config",
        "prefix": "embedding_model.",
        "shared": {"prompts": {"query": QUERY}},
        "causal": False,
        "seed": 3,
    },
    "llama-nemotron-embed": {
        "config": DECODER
        | {
            "model_type": "llama_bidirec",
            "rope_scaling": LLAMA3,
            "rope_theta": 500000.0,
            "auto_map": AUTO_MAP,
            "pooling": "avg",
        },
        "shared": {"prompts": {}},
        "causal": False,
        "seed": 4,
    },
    "llama": {
        "config": DECODER | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        "pooling": "mean",
        "prefix": "model.",
        "causal": True,
        "seed": 5,
    },
    "qwen2": {
        "config": DECODER
        | {"model_type": "qwen2", "use_sliding_window": False, "is_causal": False},
        "pooling": "mean",
        "causal": False,
        "seed": 6,
    },
    "qwen3-embedding": {
        "config": DECODER | {"model_type": "qwen3", "head_dim": 12, "rope_theta": 1e6},
        "pooling": "lasttoken",
        "causal": True,
        "seed": 7,
    },
    "omni-embed-nemotron": {
        "config": DECODER
        | {
            "model_type": "qwen2_5_omni_text",
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        },
        "outer": {"model_type": "nvomniembed", "auto_map": AUTO_MAP},
        "inner": "text_config",
        "prefix": "model.",
        "causal": False,
        "seed": 8,
    },
    "modernbert": {"config": MODERNBERT, "pooling": "cls", "causal": False, "seed": 9},
    "modernbert-biases": {
        "config": MODERNBERT | {"attention_bias": True, "mlp_bias": True, "norm_bias": True},
        "pooling": "mean",
        "prefix": "model.",
        "causal": False,
        "seed": 10,
    },
    "lateon-code": {
        "config": MODERNBERT,
        "shared": LATE,
        "dense": [(32, 48, True), (48, 32, True), (32, 8, False)],
        "causal": False,
        "seed": 11,
    },
}
DECODERS = [name for name, case in CASES.items() if case["config"]["model_type"] != "modernbert"]


def _decoder_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    width, wide = config["hidden_size"], config["intermediate_size"]
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", width // heads)
    kind = config["model_type"]
    qkv = kind.startswith("qwen2") or config.get("attention_bias")
    shapes = {"embed_tokens.weight": (config["vocab_size"], width), "norm.weight": (width,)}
    for layer in range(config["num_hidden_layers"]):
        at = f"layers.{layer}."
        for name, out in (("q", heads * head), ("k", shared * head), ("v", shared * head)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (out, width)
            if qkv:
                shapes[f"{at}self_attn.{name}_proj.bias"] = (out,)
        shapes[f"{at}self_attn.o_proj.weight"] = (width, heads * head)
        if config.get("attention_bias"):
            shapes[f"{at}self_attn.o_proj.bias"] = (width,)
        if kind == "qwen3":
            shapes[f"{at}self_attn.q_norm.weight"] = (head,)
            shapes[f"{at}self_attn.k_norm.weight"] = (head,)
        for name, shape in (
            ("gate", (wide, width)),
            ("up", (wide, width)),
            ("down", (width, wide)),
        ):
            shapes[f"{at}mlp.{name}_proj.weight"] = shape
            if config.get("mlp_bias"):
                shapes[f"{at}mlp.{name}_proj.bias"] = shape[:1]
        shapes[f"{at}input_layernorm.weight"] = (width,)
        shapes[f"{at}post_attention_layernorm.weight"] = (width,)
    return shapes


def _modernbert_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    width, wide = config["hidden_size"], config["intermediate_size"]
    shapes = {"embeddings.tok_embeddings.weight": (config["vocab_size"], width)}
    norms = ["embeddings.norm", "final_norm"]
    for layer in range(config["num_hidden_layers"]):
        at = f"layers.{layer}."
        norms += [f"{at}attn_norm"] * bool(layer) + [f"{at}mlp_norm"]
        for name, shape, bias in (
            ("attn.Wqkv", (3 * width, width), "attention_bias"),
            ("attn.Wo", (width, width), "attention_bias"),
            ("mlp.Wi", (2 * wide, width), "mlp_bias"),
            ("mlp.Wo", (width, wide), "mlp_bias"),
        ):
            shapes[f"{at}{name}.weight"] = shape
            if config.get(bias):
                shapes[f"{at}{name}.bias"] = shape[:1]
    for name in norms:
        shapes[f"{name}.weight"] = (width,)
        if config.get("norm_bias"):
            shapes[f"{name}.bias"] = (width,)
    return shapes


def _latent_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    width, latents = config["hidden_dim"], config["num_latents_value"]
    heads = config["num_cross_heads"] * config["cross_dim_head"]
    at = "latent_attention_model.cross_attend_blocks."
    shapes = {"latent_attention_model.latents": (latents, width)}
    for norm in ("0.norm", "0.norm_context", "1.norm"):
        shapes |= {f"{at}{norm}.weight": (width,), f"{at}{norm}.bias": (width,)}
    shapes |= {
        f"{at}0.fn.to_q.weight": (heads, width),
        f"{at}0.fn.to_kv.weight": (2 * heads, width),
        f"{at}0.fn.to_out.weight": (width, heads),
        f"{at}1.fn.net.0.weight": (8 * width, width),
        f"{at}1.fn.net.0.bias": (8 * width,),
        f"{at}1.fn.net.2.weight": (width, 4 * width),
        f"{at}1.fn.net.2.bias": (width,),
    }
    return shapes


def random(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Random weights, large enough that a mistake shows."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape).astype(np.float32) * 0.25
        out[name] = value + 1 if "norm" in name and name.endswith("weight") else value
    return out


def backbone_tensors(name: str) -> dict[str, np.ndarray]:
    """The backbone's weights under HF's names, without a prefix."""
    case = CASES[name]
    kind = _modernbert_shapes if case["config"]["model_type"] == "modernbert" else _decoder_shapes
    return random(kind(case["config"]), case["seed"])


def tensors(name: str) -> dict[str, np.ndarray]:
    """All that stands in model.safetensors."""
    case = CASES[name]
    out = {case.get("prefix", "") + k: v for k, v in backbone_tensors(name).items()}
    latent = case.get("outer", {}).get("latent_attention_config")
    if latent:
        out |= random(_latent_shapes(latent), case["seed"])
    if name == "omni-embed-nemotron":  # the other senses, which are not read
        out |= {"visual.x": np.zeros(2, np.float32), "audio_tower.y": np.zeros(2, np.float32)}
        out["lm_head.weight"] = out["model.embed_tokens.weight"]
    return out


def config(name: str) -> dict:
    """config.json."""
    case = CASES[name]
    if "inner" not in case:
        return dict(case["config"])
    return case["outer"] | {case["inner"]: case["config"]}


def tokenizer_json(name: str) -> dict:
    """The tokenizer of tiny_models: [CLS] words [SEP] for ModernBERT, [CLS] words for decoders."""
    out = tiny_models.tokenizer_json()
    vocabulary = out["model"]["vocab"]
    added = ["[MASK]", "[Q] ", "[D] "]
    for token in added:
        vocabulary[token] = len(vocabulary)
        out["added_tokens"].append(
            out["added_tokens"][0] | {"id": vocabulary[token], "content": token}
        )
    if name in DECODERS:
        out["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [vocabulary["[CLS]"]], "tokens": ["[CLS]"]}
            },
        }
    return out


def write(folder: pathlib.Path, name: str, **changes) -> pathlib.Path:
    """The folder of a case; `changes` go into its config.json."""
    case = CASES[name]
    folder.mkdir(parents=True, exist_ok=True)

    def put(file: str, value) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(value))

    put("config.json", config(name) | changes)
    put("tokenizer.json", tokenizer_json(name))
    put(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "[PAD]",
            "bos_token": "[CLS]",
            "cls_token": "[CLS]",
            "eos_token": "[SEP]",
            "sep_token": "[SEP]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        }
        | case.get("tokenizer", {}),
    )
    put("sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    if "shared" in case:
        put("config_sentence_transformers.json", case["shared"])
    modules = [("", "sentence_transformers.models.Transformer")]
    if "pooling" in case:
        put(
            "1_Pooling/config.json",
            {"word_embedding_dimension": 32, f"pooling_mode_{_FLAG[case['pooling']]}": True},
        )
        modules.append(("1_Pooling", "sentence_transformers.models.Pooling"))
        modules.append(("2_Normalize", "sentence_transformers.models.Normalize"))
    for number, (width, out, residual) in enumerate(case.get("dense", ()), 1):
        put(
            f"{number}_Dense/config.json",
            {
                "in_features": width,
                "out_features": out,
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
                "use_residual": residual,
            },
        )
        shapes = {"linear.weight": (out, width)}
        if residual:
            shapes["residual.weight"] = (out, width)
        safetensors.numpy.save_file(
            random(shapes, 20 + number), str(folder / f"{number}_Dense" / "model.safetensors")
        )
        modules.append((f"{number}_Dense", "pylate.models.Dense.Dense"))
    if len(modules) > 1:
        listed = [
            {"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(modules)
        ]
        put("modules.json", listed)
    safetensors.numpy.save_file(tensors(name), str(folder / "model.safetensors"), {"format": "pt"})
    return folder


_FLAG = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
TEXTS = [
    "wing flow",
    "a shock in the boundary of a plate is heat flow at speed the gene cell body layer a wing of",
    "heat",
    "the cell is in the body the layer of heat is at a plate in the flow",
]
