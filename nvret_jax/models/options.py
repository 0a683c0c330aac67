"""The options of encoders."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from nvret_jax.options import check_arguments, choice, flag, many, number, option, path, text, whole

DTYPES = ("float32", "bfloat16")
INITS = ("pretrained", "random")
ATTENTION = ("auto", "xla", "cudnn", "splash")
REMAT = ("none", "attention", "dots", "full")
PROMPT_IN_POOLING = ("all", "none", "last")
POOLINGS = ("mean", "cls", "lasttoken", "latent", "tokens")
ALL = "all-linear"  # as a target of adapters: every kernel of the layers
MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # the default of teacher and student

LENGTH = whole(3, 1 << 20, "tokens", also={0: "the model's own"})
PROMPT = text("text", lines=True, longest=100_000, unset=True)
_MODEL = path("a folder, a weights package or a hub id", schemes=("vectors", "run"))
_POOLING = choice(*POOLINGS, unset=True)
_PROMPT_IN_POOLING = choice(*PROMPT_IN_POOLING, unset=True)
_BIDIRECTIONAL = flag(unset=True)
_TARGETS = many(text("the name of a module, such as q_proj or all-linear"), least=1)
_LORA = {
    "rank": whole(1, 1 << 16),
    "alpha": number(0, 1e6, above=True),
    "dropout": number(0, 1, "a rate", below=True),
    "targets": _TARGETS,
    "rslora": flag(),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which kernels are adapted, and how.

    Attributes:
        rank: r, the inner width.
        alpha: the adapter's output is multiplied by alpha / rank.
        dropout: rate on the adapter's input, in training.
        targets: modules of the Hugging Face model, see `lora.py`; or only 'all-linear'.
        rslora: divide alpha by sqrt(rank) instead (arXiv 2312.03732).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL,)
    rslora: bool = False

    def __post_init__(self):
        if isinstance(self.targets, list):
            object.__setattr__(self, "targets", tuple(self.targets))
        check_arguments("lora", vars(self), _LORA)

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True)
class TeacherOptions:
    """A teacher: an encoder that is not trained.

    Its vectors depend on these options together with the model's own folder; so their fingerprint
    is made where both are available.
    """

    model: str = option(
        MODEL,
        _MODEL,
        "A folder, the name of a pip-installed weights package, or a Hugging Face hub id. For a "
        "teacher also 'bm25:', 'random:', 'vectors:DIR' or 'run:FILE'.",
    )
    query_length: int = option(
        0, LENGTH, "Tokens kept of a query, special tokens included; 0: the model's own length."
    )
    passage_length: int = option(0, LENGTH, "The same for passages.")
    query_prompt: str | None = option(
        None, PROMPT, "Text put before every query; unset: the model's own prompt."
    )
    passage_prompt: str | None = option(None, PROMPT, "The same for passages.")
    pooling: str | None = option(
        None,
        _POOLING,
        "How token vectors become one vector; unset: from the model's own 1_Pooling.",
    )
    prompt_in_pooling: str | None = option(
        None,
        _PROMPT_IN_POOLING,
        "Which tokens of a prompt are pooled: all, none, or all but the last (NV-Embed); unset: "
        "as in the model.",
    )
    bidirectional: bool | None = option(
        None,
        _BIDIRECTIONAL,
        "Whether tokens of a decoder attend to later tokens; unset: as in the model.",
    )
    normalize: bool = option(
        True,
        flag(),
        "L2-normalise embeddings, so that scores are cosines, for which mining values and "
        "temperatures are meant. False: inner products of the pooled vectors.",
    )
    dtype: str = option(
        "float32",
        choice(*DTYPES),
        "Arithmetic of the encoder in training; bfloat16 is for accelerators. For embedding, see "
        "'embed.dtype'.",
    )
    param_dtype: str = option(
        "float32",
        choice(*DTYPES),
        "The dtype of stored weights. bfloat16 suits a teacher, or a student with only adapters "
        "trained.",
    )
    attention: str = option(
        "auto",
        choice(*ATTENTION),
        "How attention is computed: xla anywhere, cudnn on NVIDIA GPUs, splash on TPUs. auto: "
        "cudnn where it supports dtype, dropout and model, else xla.",
        counts=False,
    )
    adapter: str = option(
        "",
        path("a folder", empty=True),
        "A folder with an adapter in PEFT's format, applied to the model; a student trains it "
        "further.",
    )

    # What a student has options for.
    init: ClassVar[str] = "pretrained"
    remat: ClassVar[str] = "none"
    lora: ClassVar[LoraConfig | None] = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Their changes to the model's own spec; see `spec.read_spec`."""
        names = ("dtype", "param_dtype", "pooling", "normalize", "query_prompt", "passage_prompt")
        return {n: getattr(self, n) for n in (*names, "prompt_in_pooling", "bidirectional")}

    def length(self, kind: str) -> int:
        """Tokens kept of a 'query' or a 'passage'; 0: the model's own."""
        return self.query_length if kind == "query" else self.passage_length


@dataclasses.dataclass(frozen=True)
class EncoderOptions(TeacherOptions):
    """The student: an encoder that may be trained."""

    init: str = option("pretrained", choice(*INITS), "Start from its weights or from new ones.")
    projection: int = option(
        0,
        whole(0, 1 << 16, "0 for none"),
        "Width of a new linear layer after the pooling, trained with the rest and exported as a "
        "Dense module; 0: none. It lets vectors be fitted to a teacher of that width, and begins "
        "where they are nearest to the teacher's.",
    )
    remat: str = option(
        "none",
        choice(*REMAT),
        "What its layers recompute for the gradient instead of keeping it, from "
        "none (fastest) to full (least memory).",
        counts=False,
    )
    lora_rank: int = option(
        0,
        whole(0, 1 << 16, "0 to train all weights"),
        "Train LoRA adapters of this rank and freeze the weights; 0: train all weights.",
    )
    lora_alpha: float = option(
        32.0, number(0, 1e6, above=True), "The output of an adapter is scaled by alpha / rank."
    )
    lora_dropout: float = option(
        0.0, number(0, 1, "a share", below=True), "Share of an adapter's input dropped in training."
    )
    lora_targets: tuple[str, ...] = option(
        (ALL,),
        _TARGETS,
        "The modules that get an adapter, by their Hugging Face names, such as ('q_proj', "
        "'v_proj').",
    )

    @property
    def overrides(self) -> dict[str, Any]:
        """As a teacher's, with the new projection."""
        return super().overrides | ({"projection": self.projection} if self.projection else {})

    @property
    def lora(self) -> LoraConfig | None:
        """The new adapters of the encoder, or None."""
        if not self.lora_rank:
            return None
        return LoraConfig(
            rank=self.lora_rank,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            targets=tuple(self.lora_targets),
        )
