"""Floating point operations that a model needs, and what chips can do of them.

They are counted from the model's shapes, by hand: two for each weight of a product and token,
attention's two products, three times that for training (forward, and two backward: for the input
and for the weight), twice for weights that are frozen, which have no gradient. Nothing is added for
what is computed again. It is the numerator of MFU (PaLM, arXiv 2204.02311, App. B). Attention is
counted whole, as it is computed, also where it is causal or local. Everything except matrix
products is left out.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from flax import nnx

FORWARD, FROZEN, TRAINED = 1, 2, 3

# Dense bfloat16 FLOP/s of a chip. TPUs: Google Cloud's pages of each version,
# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "Peak compute per chip (bf16)". GPUs: NVIDIA's data
# sheets of the SXM cards.
PEAKS = {
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
}
# What JAX calls their devices. A card of another form has other numbers, and is left out.
_KINDS = (
    (r"TPU v4", "v4"),
    (r"TPU v5 ?(lite|e)", "v5e"),
    (r"TPU v5p?", "v5p"),
    (r"TPU v6 ?(lite|e)", "v6e"),
    (r"NVIDIA A100-SXM4-\d+GB", "a100"),
    (r"NVIDIA H100 80GB HBM3", "h100"),
    (r"NVIDIA H200", "h200"),
)


def peak(kind: str) -> float | None:
    """bfloat16 FLOP/s of a device; None for one that is not in the table, such as a CPU.

    Args:
        kind: `jax.Device.device_kind`.
    """
    return next((PEAKS[name] for of, name in _KINDS if re.fullmatch(of, kind)), None)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What of a model's shape its operations depend on.

    Attributes:
        frozen, trained: numbers in the weights that each token is multiplied with.
        per_text: the same of what comes after the pooling.
        attention: layers times heads times head width.
        latents: R times heads times head width of NV-Embed's latent attention, or 0.
        weights: numbers in all weights; `trained_weights`: those that training changes.
    """

    frozen: int
    trained: int
    per_text: int
    attention: int
    latents: int
    weights: int
    trained_weights: int

    def forward(self, texts: int, tokens: Any) -> Any:
        """Operations of embedding `texts` texts of `tokens` tokens each; an array gives one."""
        return self._of(texts, tokens, FORWARD, FORWARD)

    def training(self, texts: int, tokens: Any) -> Any:
        """The same with what training adds: the backward pass, without any recomputation."""
        return self._of(texts, tokens, FROZEN, TRAINED)

    def _of(self, texts: int, tokens: Any, frozen: int, trained: int) -> Any:
        products = frozen * self.frozen + trained * self.trained
        attention = trained * 2 * (tokens * self.attention + self.latents)
        return 2.0 * texts * (tokens * (products + attention) + trained * self.per_text)


def shape_of(model: nnx.Module, trainable: Any) -> Shape:
    """Counts a model's weights.

    Args:
        model: an `EmbeddingModel`, abstract or not.
        trainable: filter of what training changes (`Encoder.trainable`).
    """
    config = model.backbone.config
    heads = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    is_trained = nnx.filterlib.to_predicate(trainable)
    counts = {"frozen": 0, "trained": 0, "per_text": 0, "weights": 0, "trained_weights": 0}
    latents = 0
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        size, changes = math.prod(variable.shape), is_trained(path, variable)
        counts["weights"] += size
        counts["trained_weights"] += size * changes
        name = str(path[-1])
        if path[0] == "latent" and name == "latents":
            rows = variable.shape[0]
            latents = rows * math.prod(model.latent.query_kernel.shape[1:])
        elif path[0] == "latent" and name == "kv_kernel":
            continue  # of the latents, not of the tokens
        elif path[0] == "dense" and model.pooling != "tokens":
            counts["per_text"] += size * name.endswith("kernel")
        elif name.endswith("kernel") or "_lora_" in name:
            counts["trained" if changes else "frozen"] += size
    return Shape(attention=heads, latents=latents, **counts)
