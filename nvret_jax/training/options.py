"""The options of training and of the trained student; `loss/options.py` has those of the loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nvret_jax.data.options import ROWS
from nvret_jax.errors import InputError
from nvret_jax.mining.options import MOST_NEGATIVES
from nvret_jax.options import (
    Either,
    block,
    choice,
    flag,
    many,
    number,
    option,
    path,
    text,
    whole,
)
from nvret_jax.search.options import MOST_TOKENS
from nvret_jax.training.loss.options import Loss

DRAWS = ("top", "uniform", "softmax", "simans")
SHARE_UNITS = ("epochs", "weight")
BATCHES = ("homogeneous", "mixed")
# Words for the start of a stage; anything else is a folder.
LAST, BEST, STUDENT = "last", "best", "student"
STARTS = (LAST, BEST, STUDENT)
GATHER = ("auto", "step", "layer")
SCHEDULES = ("linear", "cosine", "constant")
AUTO = "auto"
PICKS = (LAST, BEST, AUTO)
MERGES = ("average", "slerp")
NAME = text("a name", longest=200, without="/")
_EXACT = 1e-6  # tolerance for parts that must sum to 1
_SHARE = number(0, 1, "a share", below=True)
_EVERY = whole(0, what="steps, 0 for only at the end")
_STEPS = dataclasses.replace(whole(2, 10**9, "steps"), whole=False, integral=True)

Conflicts = Iterator[Iterable[tuple[str, str]]]


@dataclasses.dataclass(frozen=True)
class Draw:
    """Which of the mined negatives a step takes; see `batches/drawing.py`."""

    how: str = option(
        "top",
        choice(*DRAWS),
        "Which mined negatives a step takes: top, the best; or a new draw in each step: "
        "uniform; softmax, by the teacher's scores; simans, those that score about as the "
        "positive. Mine more than a step takes, such as mining.num_negatives=30.",
        counts=lambda own: own.how != "top",
    )
    pool: int = option(
        0,
        whole(0, MOST_NEGATIVES, "negatives, 0 for all that are mined"),
        "How many of the best a draw chooses from; 0: all that are mined.",
        counts=lambda own: own.how != "top" and own.pool > 0,
    )
    temperature: float = option(
        0.05,
        number(1e-6, 1e6),
        "softmax: divides the teacher's scores; smaller prefers the best.",
        counts=lambda own: own.how == "softmax",
    )
    a: float = option(
        100.0,
        number(0, 1e9),
        "simans: how fast the probability falls with the distance, exp(-a distance²).",
        counts=lambda own: own.how == "simans",
    )
    b: float = option(
        -0.05,
        number(-1e6, 1e6),
        "simans: where it is highest, as the distance from the positive's score.",
        counts=lambda own: own.how == "simans",
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """One stage of training."""

    start: str = option(
        LAST,
        path(f"one of {', '.join(STARTS)}, or a folder"),
        "Initial weights of a stage: last (the end of the previous stage; the student for the "
        "first), best (the previous stage's best step on dev), student, or a folder of a model or "
        "of another run's checkpoints.",
    )
    sets: tuple[str, ...] = option(
        (),
        many(NAME, distinct=True),
        "The training sets, by name: 'train' is data.train, others are in 'sets'; (): all.",
    )
    shares: tuple[float, ...] = option(
        (),
        many(number(0, 1e6, above=True)),
        "One number per set: with unit epochs the passes over it per epoch, with weight its part "
        "of all examples (they sum to 1); (): once each.",
    )
    share_unit: str = option("epochs", choice(*SHARE_UNITS), "The unit of 'shares'.")
    batches: str = option(
        "homogeneous",
        choice(*BATCHES),
        "homogeneous: all rows of a batch are from one set; mixed: from any.",
    )
    cluster_size: int = option(
        0,
        whole(2, 1 << 20, "queries", also={0: "for batches at random"}),
        "Fills batches with clusters of this many similar queries, by the vectors of the first "
        "teacher that is an encoder: a divisor or a multiple of batch_size. In-batch negatives are "
        "harder, and more of them false; loss.score_mask removes those. 0: batches at random.",
        counts=lambda own: own.cluster_size > 0,
    )
    epochs: float = option(
        1.0,
        number(0, 1e6),
        "Passes over the training queries, unless 'steps' is set.",
        counts=lambda own: not own.steps,
    )
    steps: int = option(
        0,
        whole(0, 10**9, "0 for the length of the epochs"),
        "Length of training in steps; 0: as given by 'epochs'.",
        counts=lambda own: own.steps > 0,
    )
    min_steps: int = option(
        0,
        whole(0, 10**9, "0 for no bound"),
        "At least this many steps, however few the epochs make; 0: no bound.",
        counts=lambda own: own.min_steps > 0 and not own.steps,
    )
    max_steps: int = option(
        0,
        whole(0, 10**9, "0 for no bound"),
        "Upper bound on the steps that the epochs give; 0: no bound.",
        counts=lambda own: own.max_steps > 0 and not own.steps,
    )
    batch_size: int = option(32, whole(1, 1 << 20), "Queries per step, over the whole mesh.")
    num_negatives: int = option(
        4,
        whole(0, MOST_NEGATIVES),
        "Hard negatives per query in a batch; rows with fewer are masked.",
    )
    num_distilled: int = option(
        0,
        whole(0, MOST_NEGATIVES),
        "Candidates per query in a batch, of mining.num_distilled, that the distillation compares "
        "with the row's other passages, and whose vectors are fitted; they are never negatives.",
        counts=lambda own: own.num_distilled > 0,
    )
    draw: Draw = block(Draw)
    loss: Loss = block(
        Loss, beside={"in_batch": "in_batch_negatives", "temperature": "temperature"}
    )
    learning_rate: float = option(
        2e-5, number(0, 100, above=True), "The highest learning rate of AdamW."
    )
    warmup: float = option(
        0.1,
        Either((number(0, 1, "a share of the steps", below=True), _STEPS)),
        "Share of the steps over which the learning rate rises, or their number (2 or more).",
    )
    schedule: str = option(
        "linear", choice(*SCHEDULES), "How the learning rate falls after the warm-up."
    )
    weight_decay: float = option(0.01, number(0, 100), "Decay of AdamW.")
    b1: float = option(0.9, _SHARE, "AdamW's decay of the mean of gradients.")
    b2: float = option(0.999, _SHARE, "AdamW's decay of the mean of their squares.")
    eps: float = option(1e-8, number(0, 1, above=True), "AdamW's term against division by 0.")
    clip_norm: float = option(
        1.0, number(0, 1e6, "0 for no clipping"), "Largest global gradient norm; 0: no clipping."
    )
    dropout: float = option(
        0.0, _SHARE, "Share of activations dropped; 0 suits short contrastive training."
    )
    chunk_tokens: int = option(
        0,
        whole(1, MOST_TOKENS, "tokens", also={-1: "the whole batch", 0: "a device-specific value"}),
        "Tokens that a device encodes at a time in a step, and again for the gradient; 0: chosen "
        "for the device; -1: the whole batch at once.",
        counts=False,
    )
    recompute: bool = option(
        True,
        flag(),
        "Encode chunks again for their gradient, which bounds memory for any batch. False: keep "
        "what student.remat keeps, for the whole batch.",
        counts=False,
    )
    gather: str = option(
        "auto",
        choice(*GATHER),
        "When trained weights split along mesh.fsdp are gathered, and their gradients reduced: "
        "once per step, with the least network traffic, or per layer and chunk, with the least "
        "memory. auto: once per step where the whole weights and "
        "gradients take at most a third of a device's memory.",
        counts=False,
    )
    checkpoint_every: int = option(
        100, _EVERY, "Steps between checkpoints; 0: only at the end.", counts=False
    )
    eval_every: int = option(
        50, _EVERY, "Steps between dev evaluations; 0: only at the end.", counts=False
    )
    log_every: int = option(
        1, _EVERY, "Steps between logged lines; 0: only at the end.", counts=False
    )
    profile: tuple[int, ...] = option(
        (),
        many(whole(1, 10**9)),
        "First and last step of the stage that are traced for xprof, such as (10, 13), into "
        "profile/ of the workdir; (): none.",
        counts=False,
    )
    keep: int = option(
        2, whole(1, 10**6), "Number of checkpoints to keep per stage, the last ones.", counts=False
    )
    keep_best: bool = option(True, flag(), "Also keep the best checkpoint on dev.", counts=False)
    dev_passages: int = option(
        2000,
        ROWS,
        "Largest number of passages in a dev evaluation: the positives, then those the teacher "
        "ranks high, then others; 0: the whole corpus.",
        counts=False,
    )
    dev_queries: int = option(
        200, ROWS, "Largest number of queries in a dev evaluation; 0: all.", counts=False
    )

    def loss_for(self, width: int, *, tokens: bool = False, at: str = "train") -> Loss:
        """The loss for embeddings of a model.

        Args:
            width: of the embeddings.
            tokens: whether there is one vector per token, and a score is their MaxSim.
            at: the key of these options, for messages.

        Raises:
            InputError: prefixes longer than the embedding; vectors of tokens that would be fitted
                to those of texts.
        """
        if self.loss.vectors and tokens:
            raise InputError(
                f"{at}.loss.{self.loss.guided}: the student has one vector per token; expected "
                "one per text, as a guide has"
            )
        if max(self.loss.dims, default=0) > width:
            raise InputError(
                f"{at}.loss.dims={self.loss.dims}: the embedding is {width} wide; give prefixes "
                f"up to that"
            )
        return dataclasses.replace(self.loss, scores="maxsim" if tokens else "inner")

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Conflicts:
        """See `options.mistakes`."""
        checks = (_no_negatives, _nothing_to_fit, _clusters, _no_end, _bounds, _all_warmup, _span)
        return (check(values) for check in checks)


# The options that decide which checkpoint is best.
BEST_KEYS = ("eval_every", "keep_best", "dev_passages", "dev_queries")


def _no_negatives(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    loss = values["loss"]
    if values["num_negatives"] == 0 and not loss["in_batch"] and loss["contrastive_weight"]:
        yield "loss.in_batch", "leaves no negatives, because num_negatives=0"


def _nothing_to_fit(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    loss = values["loss"]
    if values["num_distilled"] and not (loss["distillation"] or loss["vectors"]):
        what = "is read by distillation alone; set loss.distillation or loss.vectors"
        yield "num_distilled", what
    others = values["num_negatives"] or values["num_distilled"]
    if not others and loss["distillation"] and loss["num_positives"] == 1:
        what = "compares the passages of a row, but num_negatives=0 leaves only one"
        yield "loss.distillation", what


def _clusters(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    size, batch = values["cluster_size"], values["batch_size"]
    if size and batch % size and size % batch:
        yield "cluster_size", f"expected a divisor or a multiple of batch_size={batch}"
    if size and not values["loss"]["in_batch"]:
        what = "makes in-batch negatives harder, but in_batch_negatives is false"
        yield "cluster_size", what


def _no_end(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not values["steps"] and not values["epochs"]:
        yield "epochs", "expected a number above 0, or steps"


def _bounds(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if 0 < values["max_steps"] < values["min_steps"] and not values["steps"]:
        yield "min_steps", f"expected at most max_steps={values['max_steps']}"


def _span(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    steps = values["profile"]
    if steps and (len(steps) != 2 or steps[0] > steps[1]):
        yield "profile", "expected two numbers, the first step and the last, or () for none"


def _all_warmup(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if values["steps"] and values["warmup"] >= values["steps"]:
        yield "warmup", f"there are {values['steps']} steps"


@dataclasses.dataclass(frozen=True)
class Result:
    """The weights of the trained student."""

    pick: str = option(
        LAST,
        choice(*PICKS),
        "Which weights of the last stage: the last, or the best on dev, which are those it started "
        "from where training did not help; auto: the best where there are dev scores.",
        counts=lambda own: own.pick != LAST,
    )
    merge_last: int = option(
        1,
        whole(1, 1000),
        "Merge the last n checkpoints of the stage; 1: no merging.",
        counts=lambda own: own.merges,
    )
    merge_with: tuple[str, ...] = option(
        (),
        many(path("a folder")),
        "Folders of other models or checkpoints to merge with.",
        counts=False,  # their content does
    )
    merge: str = option(
        "average", choice(*MERGES), "How models are merged.", counts=lambda own: own.merges
    )
    merge_weights: tuple[float, ...] = option(
        (),
        many(number(-10, 10)),
        "One weight per merged model, which sum to 1; (): equal ones.",
        counts=lambda own: own.merges,
    )

    @property
    def merges(self) -> bool:
        """Whether several models are merged."""
        return self.merge_last > 1 or bool(self.merge_with)

    def settled(self, has_best: bool) -> Result:
        """These options without 'auto'; `has_best`: whether a best checkpoint is kept."""
        if self.pick != AUTO:
            return self
        return dataclasses.replace(self, pick=BEST if has_best and self.merge_last == 1 else LAST)

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Conflicts:
        """See `options.mistakes`."""
        return (check(values) for check in (_best_and_last, _merge_weights))


def _best_and_last(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if values["merge_last"] > 1 and values["pick"] == BEST:
        yield "pick", "merge_last merges the last checkpoints"


def _merge_weights(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    weights = tuple(values["merge_weights"])
    count = values["merge_last"] + len(values["merge_with"])
    if weights and len(weights) != count:
        yield "merge_weights", f"{len(weights)} for {count} models"
    elif weights:
        total = math.fsum(weights)
        if abs(total - 1) > _EXACT:
            yield "merge_weights", f"sum to {total:g}, not 1"
