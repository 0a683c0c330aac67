"""The programs that read an export, their versions, and their restrictions.

The model card prints this table, and the log names the restrictions. tests/export/test_readers.py
runs sentence-transformers, transformers and PyLate on exports; the entries for
text-embeddings-inference (0d124dc, July 2026), vLLM (0.33) and llama.cpp are from their sources.
"""

from __future__ import annotations

from typing import Any

from nvret_jax.export.architecture import BERT_TYPES, known_to_old_readers, written_type

# Backbones that text-embeddings-inference supports only on NVIDIA GPUs.
_TEI_CUDA = ("mistral", "llama", "qwen2")
_TEI_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh")


def needs_version_5(spec: Any) -> str | None:
    """Why transformers 4 cannot compute this model; None if it can."""
    model_type = written_type(spec)
    if spec.pooling == "latent":
        return None
    if model_type == "modernbert" and not known_to_old_readers(spec.backbone):
        return "version 4 has no setting for its layers"
    if not getattr(spec.backbone, "causal", True):
        return "version 4 reads its attention as causal"
    if model_type == "modernbert" and _expands_past_window(spec):
        return "version 4 gives other vectors to mask tokens that see no token of the query"
    return None


def _expands_past_window(spec: Any) -> bool:
    """Whether a local layer can have a mask token with nothing of the query in its window.

    If mask tokens are not attended to, such a token sees no token at all: version 4 then spreads
    its attention over all tokens, version 5 and this package give zeros. The shortest query is its
    first and its last special token.
    """
    late, shape = spec.late, spec.backbone
    if late is None or late.expand_to is None or late.expand_attend:
        return False
    last = min(late.expand_to, spec.max_length) - 1
    return any(shape.layer_is_local) and last - 1 > shape.window


def describe(spec: Any) -> dict[str, str]:
    """How each program handles an export of `spec`, one sentence each."""
    if spec.pooling == "latent":
        return {
            "nvret_jax": "reads it; no other program knows latent attention without NV-Embed's code"
        }
    rows = {
        "sentence-transformers": _sentence_transformers(spec),
        "transformers": _transformers(spec),
        "text-embeddings-inference": _text_embeddings_inference(spec),
        "vLLM": _vllm(spec),
        "llama.cpp": _llama_cpp(spec),
    }
    if spec.late is not None:
        rows = {"PyLate": _pylate(spec)} | rows
    return rows


def _residual(spec: Any) -> bool:
    """Whether a residual remains that could not be merged into its kernel."""
    if spec.late is not None:
        return any(config.use_residual for config in spec.dense)
    return any(c.use_residual and c.activation_function != "Identity" for c in spec.dense)


def _version_5(spec: Any) -> str:
    reason = needs_version_5(spec)
    return "" if reason is None else f" with transformers 5 ({reason}, and refuses the tokenizer)"


def _sentence_transformers(spec: Any) -> str:
    if spec.late is not None:
        return (
            f"from 6.0, as `MultiVectorEncoder`{_version_5(spec)}; older versions refuse it, or "
            "warn and make one vector of all tokens"
        )
    if _residual(spec):
        return f"from 6.0{_version_5(spec)}: older versions know no residual Dense module"
    if needs_version_5(spec):
        return f"from 5.3{_version_5(spec)}{_truncated(spec)}{_prompt_end(spec)}"
    first = "from 2.7"
    if spec.dense:
        first = "from 3.4: older versions read no Dense module from safetensors"
    return first + _truncated(spec) + _prompt_end(spec)


def _truncated(spec: Any) -> str:
    """The condition for readers that keep all components."""
    if spec.truncate_dim is None:
        return ""
    return f"; before 6.0 with `truncate_dim={spec.truncate_dim}`"


def _prompt_end(spec: Any) -> str:
    """The first version that leaves out all of a prompt that is not pooled, if older ones do not.

    Old ones take its last token for an end token, which decoders may not have; later ones measure
    it without the whitespace at its end.
    """
    prompts = [prompt for prompt in (spec.query_prompt, spec.passage_prompt) if prompt]
    if spec.prompt_in_pooling == "all" or not prompts:
        return ""
    if any(prompt != prompt.rstrip() for prompt in prompts):
        first = "6.0"
    elif written_type(spec) not in (*BERT_TYPES, "modernbert"):
        first = "5.3"
    else:
        return ""
    return f"; before {first} it can pool the end of the prompt"


def _transformers(spec: Any) -> str:
    reason = needs_version_5(spec)
    versions = "4.57 and 5" if reason is None else f"from 5.0: {reason}, and refuses the tokenizer"
    return f"{versions} (only the backbone)"


def _pylate(spec: Any) -> str:
    late = spec.late
    if late.expand_to is not None and not (
        late.expand_fixed and late.expand_to == late.max_length("query", spec.max_length)
    ):
        return "no: it has no setting for the way this model expands queries"
    if late.expansion_token is not None:
        return "no: it expands queries only with the mask token"
    return f"from 1.6{_version_5(spec)}, as `pylate.models.ColBERT`"


def _text_embeddings_inference(spec: Any) -> str:
    refused = _tei_refuses(spec)
    if refused:
        return f"no: {refused}"
    model_type, shape = written_type(spec), spec.backbone
    served = "yes"
    if model_type in _TEI_CUDA:
        served = "only on NVIDIA GPUs, in float16 with Flash Attention"
    notes = []
    if spec.truncate_dim is not None:
        notes.append(f"ask for {spec.truncate_dim} `dimensions`")
    if spec.query_prompt or spec.passage_prompt:
        notes.append("name the prompt in each request with `prompt_name`")
    activation = getattr(shape, "hidden_act", None) or getattr(shape, "hidden_activation", "")
    if activation == "gelu":
        notes.append("it computes GELU by its tanh approximation")
    return "; ".join([served, *notes])


def _tei_refuses(spec: Any) -> str | None:
    """Why text-embeddings-inference must not serve it: it refuses it, or computes another model."""
    model_type, shape = written_type(spec), spec.backbone
    rope = getattr(shape, "rope", None)
    scaled = rope is not None and rope.kind != "default"
    activation = getattr(shape, "hidden_act", None) or getattr(shape, "hidden_activation", "gelu")
    odd = [c.activation_function for c in spec.dense]
    odd = [name for name in odd if name not in ("Tanh", "Identity")]
    split = getattr(shape, "num_attention_heads", 1) * getattr(shape, "head_dim", 0)
    reasons = (
        (spec.late is not None, "it has no late interaction, and would pool the first token"),
        (
            spec.pooling == "lasttoken" and model_type in (*BERT_TYPES, "modernbert"),
            "it has no last-token pooling for this backbone on CPUs",
        ),
        (bool(odd), f"it knows no Dense module with {' or '.join(odd)}"),
        (_residual(spec), "it would skip the residual of the Dense module"),
        (
            spec.prompt_in_pooling != "all" and bool(spec.query_prompt or spec.passage_prompt),
            "it would pool the tokens of the prompt, which this model leaves out",
        ),
        (spec.lowercase, "it would not lower-case texts"),
        (activation not in _TEI_ACTIVATIONS, f"it has no activation {activation}"),
        (scaled, "it does not scale rotary positions as this model does"),
        (
            model_type == "modernbert" and not known_to_old_readers(shape),
            "it has no setting for the layers of this model",
        ),
        (model_type == "llama" and (shape.qkv_bias or shape.mlp_bias), "it would skip the biases"),
        (
            model_type in _TEI_CUDA and split != shape.hidden_size,
            "it expects heads that are together as wide as the model",
        ),
    )
    return next((why for holds, why in reasons if holds), None)


def _vllm(spec: Any) -> str:
    model_type = written_type(spec)
    if spec.late is not None:
        if model_type != "modernbert" or len(spec.dense) > 1 or _residual(spec):
            return "no: it has late interaction for ModernBERT with one projection"
        return (
            'with `--hf-overrides \'{"architectures": ["ColBERTModernBertModel"]}\'`; the markers '
            "of queries and passages are up to the caller"
        )
    if _residual(spec):
        return "no: it would skip the residual of the Dense module"
    if spec.prompt_in_pooling != "all" and (spec.query_prompt or spec.passage_prompt):
        return "no: it would pool the tokens of the prompt, which this model leaves out"
    through = " through its Transformers backend" if model_type == "camembert" else ""
    prompts = ""
    if spec.query_prompt or spec.passage_prompt:
        prompts = "; write the prompt before each text"
    if spec.truncate_dim is not None:
        prompts += f"; ask for {spec.truncate_dim} `dimensions`"
    return f"yes{through}{prompts}"


def _llama_cpp(spec: Any) -> str:
    model_type = written_type(spec)
    if spec.late is not None and (len(spec.dense) > 1 or _residual(spec)):
        return "no: its conversion reads one projection, without a residual"
    if spec.late is None and spec.dense:
        return "no: its conversion leaves Dense modules out"
    if model_type == "mistral":
        return "no: its conversion does not know `MistralModel`"
    if not getattr(spec.backbone, "causal", True):
        return "no: its conversion makes the attention causal"
    if spec.prompt_in_pooling != "all" and (spec.query_prompt or spec.passage_prompt):
        return "no: it would pool the tokens of the prompt, which this model leaves out"
    return "its conversion knows this backbone and its pooling"
