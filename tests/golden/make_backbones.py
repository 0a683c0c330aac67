"""Writes the golden vectors of tests/models/test_{decoder,modernbert,latent,pooling}.py with torch.

    python tests/golden/make_backbones.py        (needs the extra 'parity')

backbones.npz holds for each folder of tests/models/tiny_backbones.py, by transformers:
    <name>/hidden    token vectors after 1, 2, … layers (each through the final norm), texts joined
    <name>/query, <name>/passage     what it embeds TEXTS to, by sentence-transformers where that
                     can, and by this file's reading of the model's own code where not

transformers computes the backbones. NV-Embed's latent attention is `Latent` below, a reading of
arXiv 2405.17428 §3.1 and of the released code in plain torch.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "models"))
import tiny_backbones  # noqa: E402
from tiny_backbones import CASES, TEXTS  # noqa: E402

# Whose own model_type transformers does not know -> what it is made of.
BASES = {"nvretriever": "mistral", "llama_bidirec": "llama"}


def backbone(name: str) -> torch.nn.Module:
    """transformers' model with the weights of a case."""
    case = CASES[name]
    content = dict(case["config"])
    kind = content.pop("model_type")
    kind = BASES.get(kind, kind)
    content |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind != "modernbert":
        content["is_causal"] = case["causal"]
    if name == "nv-embed":
        content["sliding_window"] = None  # its code's mask has no window
    for own in ("auto_map", "pooling"):
        content.pop(own, None)
    if kind == "qwen2_5_omni_text":
        from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

        config = omni.Qwen2_5OmniTextConfig(**content)
        model = omni.Qwen2_5OmniThinkerTextModel(config)
    else:
        config = transformers.AutoConfig.for_model(kind, **content)
        model = transformers.AutoModel.from_config(config, attn_implementation="eager")
    weights = {k: torch.tensor(v) for k, v in tiny_backbones.backbone_tensors(name).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    return model.eval()


class Latent:
    """NV-Embed's latent attention: token vectors look into trained latents."""

    def __init__(self, weights: dict[str, torch.Tensor], config: dict):
        self.weights, self.heads = weights, config["num_cross_heads"]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        w, functional = self.weights, torch.nn.functional
        block = "cross_attend_blocks."

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            scale, bias = w[f"{block}{name}.weight"], w[f"{block}{name}.bias"]
            return functional.layer_norm(x, scale.shape, scale, bias)

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

        query = norm(hidden, "0.norm") @ w[f"{block}0.fn.to_q.weight"].T
        both = norm(w["latents"], "0.norm_context") @ w[f"{block}0.fn.to_kv.weight"].T
        key, value = both.chunk(2, dim=-1)
        query, key, value = heads(query), heads(key), heads(value)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        mixed = (scores.softmax(-1) @ value).transpose(-3, -2).flatten(-2)
        hidden = hidden + mixed @ w[f"{block}0.fn.to_out.weight"].T
        first, second = f"{block}1.fn.net.0", f"{block}1.fn.net.2"
        x = norm(hidden, "1.norm") @ w[f"{first}.weight"].T + w[f"{first}.bias"]
        x, gate = x.chunk(2, dim=-1)
        x = (x * functional.gelu(gate)) @ w[f"{second}.weight"].T + w[f"{second}.bias"]
        return hidden + x


def layer_by_layer(model: torch.nn.Module, tokens: list[np.ndarray]) -> np.ndarray:
    """[layers, tokens of all texts, D]: hidden states through the final norm, texts one by one."""
    norm = getattr(model, "final_norm", None) or model.norm
    out = []
    with torch.no_grad():
        for ids in tokens:
            ids = torch.tensor(ids[None].astype(np.int64))
            got = model(input_ids=ids, output_hidden_states=True, use_cache=False)
            states = [norm(h)[0] for h in got.hidden_states[1:-1]]
            # transformers gives its last hidden state before the norm for some models.
            out.append(torch.stack([*states, got.last_hidden_state[0]]).numpy())
    return np.concatenate(out, axis=1)


def own_embedding(name: str, model: torch.nn.Module, ids: np.ndarray, skip: int) -> np.ndarray:
    """Pooling of a model that sentence-transformers cannot read without its own code."""
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor(ids[None].astype(np.int64))).last_hidden_state[0]
        latent = CASES[name].get("outer", {}).get("latent_attention_config")
        if latent:
            prefix = "latent_attention_model."
            weights = {
                k.removeprefix(prefix): torch.tensor(v)
                for k, v in tiny_backbones.tensors(name).items()
                if k.startswith(prefix)
            }
            hidden = Latent(weights, latent)(hidden)
        emb = hidden[skip:].mean(0)
        return (emb / emb.norm()).numpy()


def tokens_of(name: str, texts: list[str], prompt: str = "") -> list[np.ndarray]:
    """Token ids as the model's own code makes them: prompt and text joined, then the end token."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(json.dumps(tiny_backbones.tokenizer_json(name)))
    end = name == "nv-embed" or CASES[name].get("tokenizer", {}).get("add_eos_token")
    ids = [backend.encode(prompt + text).ids for text in texts]
    return [np.asarray(one + [backend.token_to_id("[SEP]")] * bool(end)) for one in ids]


def embeddings(name: str, folder: str, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What a case embeds TEXTS to as queries and as passages."""
    import sentence_transformers

    if name == "lateon-code":
        late = sentence_transformers.MultiVectorEncoder(folder, device="cpu")
        return {
            "query": np.concatenate(late.encode_query(TEXTS, convert_to_numpy=True)),
            "passage": np.concatenate(late.encode_document(TEXTS, convert_to_numpy=True)),
        }
    # (transformers puts a tokenizer of its own in the place of Qwen2's word list.)
    if "modernbert" in name or name == "qwen3-embedding":
        whole = sentence_transformers.SentenceTransformer(folder, device="cpu")
        emb = whole.encode(TEXTS)
        return {"query": emb, "passage": emb}
    out = {}
    for kind in ("query", "passage"):
        prompt = CASES[name].get("shared", {}).get("prompts", {}).get(kind, "")
        skip = len(tokens_of(name, [prompt])[0]) if prompt else 0
        if name == "nv-embed" and prompt:
            skip -= 2  # its code counts neither the first token nor the end
        tokens = tokens_of(name, TEXTS, prompt)
        if CASES[name].get("pooling") in ("lasttoken", "cls"):
            at = {"lasttoken": -1, "cls": 0}[CASES[name]["pooling"]]
            picked = [layer_by_layer(model, [ids])[-1, at] for ids in tokens]
            out[kind] = np.stack([x / np.linalg.norm(x) for x in picked])
        else:
            out[kind] = np.stack([own_embedding(name, model, ids, skip) for ids in tokens])
    return out


def golden(name: str) -> dict[str, np.ndarray]:
    """All of a case."""
    model = backbone(name)
    with tempfile.TemporaryDirectory() as folder:
        tiny_backbones.write(pathlib.Path(folder), name)
        out = embeddings(name, folder, model)
    out["hidden"] = layer_by_layer(model, tokens_of(name, TEXTS))
    return {key: np.asarray(value, np.float32) for key, value in out.items()}


def main() -> None:
    out = {f"{name}/{key}": value for name in CASES for key, value in golden(name).items()}
    np.savez_compressed(HERE / "backbones.npz", **out)


if __name__ == "__main__":
    main()
