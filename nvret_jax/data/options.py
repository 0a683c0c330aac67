"""The options of the data that a run reads."""

from __future__ import annotations

import dataclasses

from nvret_jax.data.dataset import MISSING
from nvret_jax.data.load import READERS
from nvret_jax.options import choice, flag, number, option, path, text, whole

SCHEMES = tuple(name for name in READERS if name != "pydocs")  # before a path
ROWS = whole(0, what="0 for all")
GRADE = whole(1, what="a grade")
SPLIT = text("the name of a split", longest=200, without="/")
_NO_SPLIT = text("the name of a split", longest=200, without="/", empty=True)
_DATA = path("a data set, such as beir:DIR or pydocs:", empty=True, schemes=SCHEMES)


@dataclasses.dataclass(frozen=True)
class Data:
    """The data sets for training and evaluation."""

    train: str = option(
        "pydocs:",
        _DATA,
        "The training data, such as 'beir:DIR' or 'pydocs:'; '': only the sets in 'sets'.",
    )
    train_split: str = option("train", SPLIT, "Its split for training.")
    dev_split: str = option(
        "dev", _NO_SPLIT, "A split of the same data for dev evaluation during training; '': none."
    )
    dev_share: float = option(
        0.0,
        number(0, 1, "a share", below=True),
        "Where the data have no such split, this share of the training queries is held out for it, "
        "with no passage and no near copy on both sides; 0: none.",
    )
    test: str = option(
        "pydocs:",
        _DATA,
        "The data for the evaluation before and after training; '': none, and 'evaluate' is "
        "skipped.",
    )
    test_split: str = option("test", SPLIT, "Its split for evaluation.")
    min_relevance: int = option(
        1,
        GRADE,
        "The lowest grade of a positive in training (evaluation is graded).",
    )
    allow_empty: bool = option(
        False, flag(), "Accept passages and queries without text; otherwise they are an error."
    )
    missing: str = option(
        "error",
        choice(*MISSING),
        "Judgments of passages or queries that do not exist: an error, or dropped and counted.",
    )
    max_queries: int = option(0, ROWS, "Use only the first n queries of a split; 0: all.")
    max_passages: int = option(
        0,
        ROWS,
        "Use only n passages: all judged ones, even if there are more, then others; 0: all.",
    )
