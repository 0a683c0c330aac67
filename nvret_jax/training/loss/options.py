"""The options of the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nvret_jax import options
from nvret_jax.options import choice, flag, many, number, option, whole

TERMS = ("query_to_passage", "passage_to_query", "query_to_query", "passage_to_passage")
SCORES = ("inner", "maxsim")
METHODS = ("gather", "ring")
PARTITIONS = ("joint", "separate")
POSITIVES = ("each", "pooled")
SCORE_MASKS = ("", "margin", "percent")
JUDGES = ("student", "guide")
DISTILLATIONS = ("", "kl", "margin_mse")
VECTORS = ("", "cosine", "squared")
_TEMPERATURE = number(1e-6, 1e6)
_WEIGHT = number(0, 1e6)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The options of the loss. The defaults: InfoNCE, one positive, hard and in-batch negatives.

    Attributes:
        temperature: divides the scores; the initial value if it is learned.
        temperature_learning_rate: of Adam on log(1 / temperature); 0: fixed.
        temperature_min: lower bound of a learned temperature.
        in_batch: contrast with other rows, too; False: only with own hard negatives.
        terms: pairs between rows, of `contrast.TERMS`; 'query_to_passage' is always one.
        partition: 'joint': one softmax over all terms (GTE, Li et al. 2023, section 3.3);
            'separate': the mean of one over the query's terms and one over the passage's.
        num_positives: P, slots of a row that hold positives.
        positives: 'each': the mean over a row's positives, each against the negatives only;
            'pooled': the probability of all of them together.
        mask_own_duplicates: a row's own passage that also belongs to another row is not a negative
            a second time.
        score_mask: '' none; 'margin': no in-batch negative scores anchor - margin or more;
            'percent': anchor - |anchor| · (1 - percent) or more. The anchor is the row's lowest
            positive. These are the rules of mining, within the batch.
        margin, percent: of the score mask; a negative margin admits scores above the anchor.
        mask_by: whose scores: 'student': its own in this step, 'guide': those of stored vectors.
        mask_hard: the score mask also covers the row's own hard negatives.
        hardness: h; the N negatives of a row weigh N softmax(h · score / temperature) in the
            denominator, where all weigh 1 otherwise (Robinson et al. 2021, arXiv 2010.04592).
        weights: a hard negative counts in the denominator, and a row in the mean, by the weight
            that the batch has for it.
        method: 'gather' or 'ring'; see ring.py.
        tile_pairs: token pairs in a tile of the ring; 0: chosen for the device.
        scores: 'inner', or 'maxsim' for one vector per token.
        dims: Matryoshka: prefixes of the embedding that are trained; (): only the whole embedding.
        dim_weights: one per prefix; (): equal. The loss is the weighted mean.
        distillation: '' none; 'kl': KL(teacher || student) over a row's passages;
            'margin_mse': squared error of the score differences positive - negative.
        contrastive_weight, distillation_weight: of the two parts; 0 leaves one out.
        teacher_temperature: divides the teacher's scores. None: the student's divisor, at the
            initial temperature, which suits a teacher whose scores are also cosines.
        student_temperature: divides the student's in distillation; 0: the loss's temperature for
            'kl', 1 for 'margin_mse'.
        vectors: fits the student's vectors to the guide's stored ones, text by text, without
            negatives. '' none; 'cosine': 1 - their cosine; 'squared': |student - guide|² (LEAF,
            Vujanic and Rueckstiess 2025). Half is the mean over the queries of rows with a
            positive, half the mean over the passages of these rows, for distillation alone or not:
            queries count as much as passages, however many passages a row has. Prefixes (`dims`)
            have no part in it: whole vectors are compared, once.
        vectors_weight: of that part.
    """

    temperature: float = option(0.05, _TEMPERATURE, "Divides the cosine; smaller is sharper.")
    temperature_learning_rate: float = option(
        0.0,
        number(0, 100, "0 for a fixed temperature"),
        "Above 0: the temperature is learned at this rate.",
    )
    temperature_min: float = option(0.01, _TEMPERATURE, "Lower bound of a learned temperature.")
    in_batch: bool = option(
        True, flag(), "Also contrast with the passages of all other queries in the global batch."
    )
    terms: tuple[str, ...] = option(
        ("query_to_passage",),
        many(choice(*TERMS), least=1, distinct=True),
        "Pairs between rows that are contrasted; must include query_to_passage.",
    )
    partition: str = option(
        "joint",
        choice(*PARTITIONS),
        "joint: one softmax over all terms; separate: one over the query's and one over the "
        "passage's.",
    )
    num_positives: int = option(1, whole(1, 1024), "Positives of a query in a batch.")
    positives: str = option(
        "each",
        choice(*POSITIVES),
        "How several positives count: each against the negatives only, or pooled into one.",
    )
    mask_own_duplicates: bool = option(
        False, flag(), "A hard negative that also belongs to another row counts once.", key=""
    )
    score_mask: str = option(
        "",
        choice(*SCORE_MASKS),
        "Masks in-batch negatives that score within a margin, or above a percentage, of the "
        "positive; '': none.",
    )
    margin: float = option(
        0.0,
        number(-2, 2, "a distance between cosines"),
        "Of the score mask: a distance from the positive's score.",
    )
    percent: float = option(
        0.95,
        number(0, 2, "a share of the positive's score", above=True),
        "Of the score mask: a share of the positive's score.",
    )
    mask_by: str = option(
        "student",
        choice(*JUDGES),
        "Whose scores the mask reads: the student's, or those of the guide, the first teacher "
        "that is an encoder.",
    )
    mask_hard: bool = option(
        False, flag(), "The score mask also covers a row's own hard negatives."
    )
    hardness: float = option(
        0.0,
        number(0, 10, "0 for equal weights"),
        "Above 0: the harder a negative is for the student, the more it counts, in proportion to "
        "exp(hardness · score / temperature). False negatives then count most.",
        counts=lambda own: own.hardness > 0,
    )
    weights: bool = option(
        False,
        flag(),
        "Weigh by what mining stored: a hard negative counts in the denominator by 1 - its risk "
        "(mining.risk), and a row in the mean by the weight of its positive (mining.positives).",
        counts=lambda own: own.weights,
    )
    method: str = option(
        "gather",
        choice(*METHODS),
        "gather: all passages on every device; ring: passages are sent from device to device, in "
        "tiles.",
    )
    tile_pairs: int = option(
        0,
        whole(0, what="0 for a device-specific value"),
        "ring: token pairs per tile; 0: chosen for the device.",
        key="",
    )
    scores: str = option("inner", choice(*SCORES), key="", counts=False)
    dims: tuple[int, ...] = option(
        (),
        many(whole(1, 1 << 20), distinct=True),
        "Matryoshka: prefixes of the embedding that are trained; (): only the whole embedding.",
    )
    dim_weights: tuple[float, ...] = option(
        (), many(_WEIGHT), "One weight per prefix; (): equal ones."
    )
    distillation: str = option(
        "",
        choice(*DISTILLATIONS),
        "Also fit the teacher's scores of a row: kl or margin_mse; '': off.",
    )
    contrastive_weight: float = option(
        1.0, _WEIGHT, "Weight of the contrastive part; 0 leaves it out."
    )
    distillation_weight: float = option(
        1.0, _WEIGHT, "Weight of the distillation; 0 leaves it out."
    )
    teacher_temperature: float | None = option(
        None,
        number(1e-6, 1e6, unset=True),
        "Divides the teacher's scores. Unset: kl divides cosines like the student's, and other "
        "scores (logits, BM25) by 1; margin_mse divides by 1.",
    )
    student_temperature: float = option(
        0.0,
        number(1e-6, 1e6, also={0: "the temperature of the loss, 1 for margin_mse"}),
        "Divides the student's scores in the distillation; 0: the temperature of the loss, 1 for "
        "margin_mse.",
    )
    vectors: str = option(
        "",
        choice(*VECTORS),
        "Also fit the vectors of the guide, the first teacher that is an encoder, text by text: "
        "cosine (1 - cosine) or squared (the squared distance); '': off.",
        counts=lambda own: bool(own.vectors),
    )
    vectors_weight: float = option(
        1.0,
        _WEIGHT,
        "Weight of the fit to the guide's vectors; 0 leaves it out.",
        counts=lambda own: bool(own.vectors),
    )

    def __post_init__(self):
        """Raises InputError that names all mistakes in the options."""
        options.check(self, "loss.")
        for name in ("terms", "dims", "dim_weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Iterable[tuple[str, str]]]:
        """See `options.mistakes`."""
        return (check(values) for check in (_temperatures, _terms, _in_batch, _dims, _weights))

    @property
    def learned(self) -> bool:
        """Whether the temperature is learned."""
        return self.temperature_learning_rate > 0

    @property
    def contrasts(self) -> bool:
        """Whether there is a contrastive part."""
        return self.contrastive_weight > 0

    @property
    def compares(self) -> bool:
        """Whether a passage is compared with others, as contrast and distillation do."""
        return self.contrasts or bool(self.distillation)

    @property
    def needs_teacher_scores(self) -> bool:
        return bool(self.distillation)

    def for_scores(self, *, cosines: bool) -> Loss:
        """The loss with a teacher temperature that suits the kind of scores, unless it has one.

        Cosines are close together: divided by 1, the best passage hardly differs from the worst.
        """
        if self.distillation != "kl" or self.teacher_temperature is not None:
            return self
        value = float(self.student_temperature or self.temperature) if cosines else 1.0
        return dataclasses.replace(self, teacher_temperature=value)

    @property
    def masks_by_guide(self) -> bool:
        """Whether the score mask reads the guide's scores."""
        return bool(self.score_mask) and self.mask_by == "guide"

    @property
    def guided(self) -> str:
        """The option, with its value, that reads the guide's vectors; '' if none does."""
        if self.vectors:
            return f"vectors={self.vectors!r}"
        return "mask_by='guide'" if self.masks_by_guide else ""

    @property
    def needs_guide(self) -> bool:
        return bool(self.guided)

    @property
    def scale(self) -> float:
        """1 / temperature."""
        return 1.0 / self.temperature


def _temperatures(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    start = values["temperature"]
    if values["temperature_learning_rate"] and values["temperature_min"] > start:
        yield "temperature_min", f"is above temperature={start:g}, the initial value"


def _terms(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "query_to_passage" not in values["terms"]:
        yield "terms", "must include 'query_to_passage'"


def _in_batch(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if values["in_batch"]:
        return
    if len(values["terms"]) > 1:
        yield "terms", "terms between rows need in-batch negatives, which are off"
    if values["score_mask"] and not values["mask_hard"]:
        yield "score_mask", "has no effect: in-batch negatives and mask_hard are off"


def _dims(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    weights, dims = values["dim_weights"], values["dims"]
    if weights and len(weights) != len(dims):
        yield "dim_weights", f"expected one for each of {len(dims)} dims"
    elif weights and not sum(weights) > 0:
        yield "dim_weights", "must not all be 0"


def _weights(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if values["contrastive_weight"]:
        return
    parts = ("distillation", "vectors")
    weights = [values[f"{name}_weight"] if values[name] else 0 for name in parts]
    if not any(weights):
        yield "contrastive_weight", "the loss would be empty"
    elif values["dims"] and not weights[0]:
        yield "dims", "has no effect: only whole vectors are fitted (vectors)"
