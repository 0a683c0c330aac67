"""How much each step does: on an accelerator, and with `--small` as a test of the steps."""

from __future__ import annotations

import dataclasses

MINILM = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
}
BERT_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
# The shape of Llama-3.2-1B: the decoder behind llama-nemotron-embed-1b.
DECODER_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
_NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


@dataclasses.dataclass(frozen=True)
class Training:
    """A batch: queries, each with 1 positive + 1 negative; all texts are `length` tokens long."""

    queries: int
    length: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the steps compute.

    Attributes:
        matmul: side of the square bfloat16 matrices behind the measured product rate.
        copy_bytes: of the array behind the measured copy bandwidth.
        passages, width, queries, k: of the search.
        models: sizes of the random models, by name, as fields of a Hugging Face config.
        texts: how many each model encodes per round.
        max_length: tokens that a text is cut to when it is encoded.
        training: batch of each trained model.
        attention_lengths: tokens at which attention kernels are compared.
        heads: (heads, key heads, head width) of that comparison.
        token_budgets, chunk_tokens: values that are swept.
        rounds: of every speed.
        seconds: within which the whole command ends.
    """

    matmul: int
    copy_bytes: int
    passages: int
    width: int
    queries: int
    k: int
    models: dict[str, dict[str, int]]
    texts: dict[str, int]
    max_length: int
    training: dict[str, Training]
    attention_lengths: tuple[int, ...]
    heads: tuple[int, int, int]
    token_budgets: tuple[int, ...]
    chunk_tokens: tuple[int, ...]
    rounds: int
    seconds: int


FULL = Sizes(
    matmul=8192,
    copy_bytes=2**30,
    passages=1_000_000,
    width=1024,
    queries=8192,
    k=100,
    models={"minilm": MINILM, "bert-base": BERT_BASE, "decoder-1b": DECODER_1B},
    texts={"minilm": 6000, "bert-base": 6000, "decoder-1b": 3000},
    max_length=512,
    training={"bert-base": Training(256, 512, 6), "decoder-1b": Training(64, 256, 6)},
    attention_lengths=(32, 100, 256, 512),
    heads=(12, 12, 64),
    token_budgets=(16_384, 65_536, 262_144),
    chunk_tokens=(8_192, 16_384, 65_536),
    rounds=3,
    seconds=480,
)
SMALL = Sizes(
    matmul=512,
    copy_bytes=2**24,
    passages=20_000,
    width=64,
    queries=256,
    k=10,
    models={
        "minilm": _NARROW | {"num_attention_heads": 4},
        "bert-base": _NARROW | {"num_attention_heads": 4},
        "decoder-1b": _NARROW
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    },
    texts={"minilm": 64, "bert-base": 64, "decoder-1b": 64},
    max_length=64,
    training={"bert-base": Training(8, 32, 2), "decoder-1b": Training(8, 32, 2)},
    attention_lengths=(32, 48),
    heads=(4, 2, 16),
    token_budgets=(512, 2_048),
    chunk_tokens=(256, 512),
    rounds=2,
    seconds=180,
)
