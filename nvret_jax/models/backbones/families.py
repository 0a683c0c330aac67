"""The backbone of each `model_type`, and how its checkpoints are read.

A family is found by the `model_type` of config.json, never by a model's name. Some embedders on
the hub bring their own code for what is a known architecture with bidirectional attention
(`own_code`): this package computes it instead of running that code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from nvret_jax.models.backbones import bert, decoder, decoder_config, modernbert
from nvret_jax.models.pretrained import weights


@dataclasses.dataclass(frozen=True)
class Family:
    """A backbone and its conversion.

    Attributes:
        config: class with `from_hf(config, where)`, `vocab_size`, `hidden_size`, `max_tokens`.
        backbone: class of the module, built as (config, options=, param_dtype=, rngs=).
        check_mesh: raises InputError where a mesh cannot cut it.
        table, prefixes, ignored: for `weights.load`.
        pooling, normalize, prompt_in_pooling: where the folder does not say.
        prompts, max_length: of queries and of passages, where no file could say them.
        own_code: whether `auto_map` names code that this package is instead of.
        class_name: of transformers' class, for a config.json that came without `architectures`.
        written_as: the plain `model_type` under which an export is written; empty: the same one.
    """

    config: Any
    backbone: Any
    check_mesh: Callable[..., None]
    table: weights.Table
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]
    pooling: str | None = None
    normalize: bool = False
    prompt_in_pooling: str = "all"
    prompts: tuple[str, str] | None = None
    max_length: int | None = None
    own_code: bool = False
    class_name: str = ""
    written_as: str = ""


_BERT = Family(
    config=bert.BertConfig,
    backbone=bert.Bert,
    check_mesh=bert.check_mesh,
    table=weights.BERT_TABLE,
    prefixes=weights.BERT_PREFIXES,
    ignored=weights.IGNORED,
)
_MODERNBERT = Family(
    config=modernbert.ModernBertConfig,
    backbone=modernbert.ModernBert,
    check_mesh=bert.check_mesh,
    table=modernbert.MODERNBERT_TABLE,
    prefixes=modernbert.MODERNBERT_PREFIXES,
    ignored=modernbert.MODERNBERT_IGNORED,
)
_DECODER = Family(
    config=decoder_config.DecoderConfig,
    backbone=decoder.Decoder,
    check_mesh=decoder_config.check_mesh,
    table=decoder.DECODER_TABLE,
    prefixes=decoder.DECODER_PREFIXES,
    ignored=decoder.DECODER_IGNORED,
)
_EMBEDDER = dataclasses.replace(_DECODER, pooling="mean", normalize=True, own_code=True)


def _as(family: Family, class_name: str) -> Family:
    return dataclasses.replace(family, class_name=class_name)


FAMILIES: dict[str, Family] = {
    "bert": _as(_BERT, "BertModel"),
    "roberta": _as(_BERT, "RobertaModel"),
    "xlm-roberta": _as(_BERT, "XLMRobertaModel"),
    "camembert": _as(_BERT, "CamembertModel"),
    "modernbert": _as(_MODERNBERT, "ModernBertModel"),
    "mistral": _as(_DECODER, "MistralModel"),
    "llama": _as(_DECODER, "LlamaModel"),
    "qwen2": _as(_DECODER, "Qwen2Model"),
    "qwen3": _as(_DECODER, "Qwen3Model"),
    # nvidia/llama-nemotron-embed-1b-v2, once llama-3.2-nv-embedqa-1b-v2. Its card gives the length,
    # and the prompts that NVIDIA's own tools take for this type where a folder names none.
    "llama_bidirec": dataclasses.replace(
        _EMBEDDER, prompts=("query: ", "passage: "), max_length=8192, written_as="llama"
    ),
    # nvidia/NV-Retriever-v1: instructions are left out of its mean (arXiv 2407.15831, App. B).
    "nvretriever": dataclasses.replace(_EMBEDDER, prompt_in_pooling="none", written_as="mistral"),
    # nvidia/NV-Embed-v2. Its code leaves as many tokens out as the instruction has, but begins
    # with the first of the text, which no instruction has: its last token stays in.
    "nvembed": dataclasses.replace(
        _as(_EMBEDDER, "NVEmbedModel"), pooling="latent", prompt_in_pooling="last"
    ),
    # nvidia/omni-embed-nemotron-3b and its base: the text side.
    "nvomniembed": dataclasses.replace(_EMBEDDER, written_as="qwen2"),
    **dict.fromkeys(
        ("qwen2_5_omni_thinker", "qwen2_5_omni"), dataclasses.replace(_DECODER, written_as="qwen2")
    ),
}


def written_type(model_type: str) -> str:
    """The `model_type` under which an export of this architecture is written."""
    family = FAMILIES.get(model_type)
    return (family.written_as if family else "") or model_type


def class_name(model_type: str) -> str:
    """The class that transformers loads a written `model_type` as, without a task's head."""
    family = FAMILIES.get(model_type)
    return (family.class_name if family else "") or f"{model_type.title()}Model"
