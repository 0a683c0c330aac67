"""`train`: a student on a data set, with any loss, schedule and optimizer; nothing is kept on disk.

Training that takes hours belongs in a run, which keeps checkpoints and continues after a stop.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax
from etils import epath

from nvret_jax import mesh as mesh_lib
from nvret_jax import options
from nvret_jax.api.encoder import Encoder
from nvret_jax.data.arguments import texts
from nvret_jax.data.dataset import Dataset, TextTable
from nvret_jax.data.load import load_dataset
from nvret_jax.data.options import GRADE, SPLIT
from nvret_jax.data.ragged import Ragged
from nvret_jax.errors import InputError
from nvret_jax.evaluation.dev import Dev
from nvret_jax.mining.negatives import GIVEN, RANDOM, Negatives
from nvret_jax.models import encoder as encoder_lib
from nvret_jax.options import blocks
from nvret_jax.report.history import History
from nvret_jax.training import loop
from nvret_jax.training.batches import tokenised
from nvret_jax.training.batches.mixture import Mixture, Source
from nvret_jax.training.initial import started
from nvret_jax.training.loss.options import Loss
from nvret_jax.training.loss.own import Function, Own
from nvret_jax.training.metric_writer import read_metrics
from nvret_jax.training.options import BEST, PICKS, Training

# Features that only a run has: several sets, stages, and a folder of checkpoints.
_OF_A_RUN = ("start", "sets", "shares", "share_unit", "batches", "checkpoint_every", "keep")
_OF_A_RUN += ("keep_best", "profile", "cluster_size")
_OTHERS = {
    **dict.fromkeys(_OF_A_RUN, "a run has it: nv.run(config)"),
    "num_train_epochs": "give epochs=",
    "num_epochs": "give epochs=",
    "per_device_train_batch_size": "give batch_size=, over all devices",
    "gradient_accumulation_steps": "give batch_size= and chunk_tokens=",
    "warmup_ratio": "give warmup=, a share of the steps",
    "warmup_steps": "give warmup=, a share of the steps or their number",
    "lr": "give learning_rate=",
    "lr_scheduler_type": "give schedule=",
    "scale": "give temperature=, which is 1 / scale",
    "max_grad_norm": "give clip_norm=",
    "output_dir": "nothing is kept on disk; nv.export(student, folder) writes a model",
    "bf16": "the student's own dtype counts, as in Encoder.from_pretrained(dtype='bfloat16')",
    "fp16": "the student's own dtype counts, as in Encoder.from_pretrained(dtype='float16')",
    "evaluator": "give dev=, a split",
    "eval_dataset": "give dev=, a split of the data",
    "train_dataset": "give the data second, as in train(student, data)",
}
_DEFAULT = Training()
_LENGTH = options.whole(1, what="tokens", unset=True)
_TAKES = {
    "split": SPLIT,
    "dev": options.text("a split", unset=True),
    "pick": options.choice(*PICKS),
    "query_length": _LENGTH,
    "passage_length": _LENGTH,
    "min_relevance": GRADE,
    "seed": options.SEED,
    "optimizer": options.Anything(
        "an optax optimizer", (optax.GradientTransformation,), unset=True
    ),
}


@blocks.keywords(Training, others=_OTHERS, leave_out=_OF_A_RUN, seed=0)
def train(
    student: Encoder,
    data: Dataset | tuple[Sequence[str], Sequence[str]] | str | os.PathLike,
    negatives: Negatives | None = None,
    *,
    loss: Loss | Function | None = None,
    optimizer: optax.GradientTransformation | None = None,
    split: str = "train",
    dev: str | None = "dev",
    pick: str = "last",
    query_length: int | None = None,
    passage_length: int | None = None,
    min_relevance: int = 1,
    **how: Any,
) -> Encoder:
    """Trains a student.

    Args:
        student: where it starts; it is not changed.
        data: a data set, or what `load_dataset` takes; or (queries, passages), two lists of texts
            to which `negatives` refers.
        negatives: from `mine`. None: those that come with the data; a query without any learns from
            the passages of the other queries of its batch.
        loss: `nv.Loss(…)`; or a function of queries [B, D], passages [B, G, D] and a dict of the
            batch's ids and teacher scores that returns a scalar, or a scalar and a dict of
            metrics: plain JAX, on any mesh. See `training.loss.own`. None: InfoNCE.
        optimizer: of optax, instead of AdamW with its schedule, decay and clipping.
        split: of the data set, with the training queries.
        dev: a split whose nDCG@10 is measured every `eval_every` steps; None: none. 'dev' is used
            only if the data set has it.
        pick: 'last', or 'best' for the best weights on dev.
        query_length, passage_length: tokens kept of a text; None: the student's own.
        min_relevance: the lowest judgment that makes a passage positive.
        epochs, steps, min_steps, max_steps: how long.
        batch_size: queries per step, over all devices.
        num_negatives: hard negatives per query in a batch.
        num_distilled: candidates per query in a batch that only distillation reads.
        temperature, in_batch_negatives: of the loss, if none is given.
        learning_rate, warmup: the highest rate, and the share or number of steps until it.
        schedule: 'linear', 'cosine' or 'constant'; or a function from the step's number, from 0, to
            its learning rate, as in optax.
        weight_decay, b1, b2, eps, clip_norm: of AdamW.
        dropout: share of activations dropped.
        chunk_tokens, recompute, gather: see docs/training.md; results do not depend on them.
        eval_every, log_every: steps between dev scores, and between lines of the history.
        dev_passages, dev_queries: largest numbers in a dev evaluation.
        seed: of the order of rows, and of dropout.

    Returns:
        The trained encoder; `.history` has the measurements, and `.history.plot()` draws them.

    Raises:
        InputError: invalid arguments, a loss that becomes non-finite; one line.
    """
    options.check_arguments("train", {**locals(), **how}, _TAKES)
    student = _student(student)
    dataset = _dataset(data)
    if mesh_lib.process_count() > 1:
        raise InputError("train: several processes train in a run, nv.run(config), not in train()")
    if negatives is None:
        negatives = _given(dataset, split, min_relevance)
    _check_negatives(negatives, dataset)
    rate, how = _schedule(how, optimizer)
    block, own = _block(how, loss, student)
    _check_distilled(negatives, block.num_distilled)
    if negatives.positive_targets is not None:
        block = dataclasses.replace(block, loss=block.loss.for_scores(cosines=False))
    lengths = {
        "query": query_length or student.spec.max_length,
        "passage": passage_length or student.spec.max_length,
    }
    scored = dev is not None and (dev != "dev" or dev in dataset.qrels)
    if pick == BEST and not scored:
        raise InputError("train: pick='best': there is no dev split to be best on")
    score = None
    if scored:
        dataset.split_qrels(dev)
        score = Dev(
            dataset,
            dev,
            min_relevance,
            block.dev_passages,
            block.dev_queries,
            lengths,
            "auto",
            lambda ids, depth: range(len(dataset.corpus)),
        ).score()
    made = own if own is not None else block.loss_for(student.width, tokens=_is_late(student))

    def batches() -> Mixture:
        examples = tokenised.examples(
            student,
            negatives,
            dataset.queries.texts,
            dataset.corpus.texts,
            block,
            loss=made if own is None else dataclasses.replace(own, scored=_one_scale(negatives)),
            lengths=lengths,
            num_negatives=block.num_negatives,
            seed=how["seed"],
        )
        mixture = Mixture.build(
            [Source("train", examples, 1.0)],
            batch_size=block.batch_size,
            num_negatives=block.num_negatives,
            seed=how["seed"],
            epochs=block.epochs,
            steps=block.steps,
            max_steps=block.max_steps,
        )
        if own is None:
            alone, rows = mixture.without_negatives(block.loss.in_batch and block.batch_size > 1)
            if alone == rows:
                raise InputError(
                    "train: no passage is a negative of any row, so there is nothing to learn "
                    "from; give negatives=mine(…), or a larger batch"
                )
        return mixture

    stage = loop.Stage("train", block, batches, loss=own, rate=rate, optimizer=optimizer)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = epath.Path(folder)
        places = loop.Places(path / "checkpoints", path / "metrics.jsonl", path / "tensorboard")
        trained = loop.train(student, [stage], places, score, needs_best=pick == BEST)
        if pick == BEST:
            trained = started(student, os.fspath(places.checkpoints), BEST)
        history = History(
            {name: value for name, value in line.items() if name != "stage"}
            for line in read_metrics(places.metrics)
        )
    return _with_history(trained, history)


def _student(student: Any) -> encoder_lib.Encoder:
    if not isinstance(student, encoder_lib.Encoder):
        made = f", as of Encoder.from_pretrained({student!r})" if isinstance(student, str) else ""
        raise InputError(
            f"train: student={options.shown(student)} ({type(student).__name__}): expected an "
            f"Encoder{made}"
        )
    return student


def _dataset(data: Any) -> Dataset:
    if isinstance(data, Dataset):
        return data
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str):
        tables = []
        for value, what in zip(data, ("queries", "passages"), strict=True):
            listed = texts(value, f"train: {what}")
            tables.append(TextTable(tuple(map(str, range(len(listed)))), listed))
        return Dataset("lists", tables[1], tables[0], {}, "")
    return load_dataset(data)


def _check_negatives(negatives: Any, data: Dataset) -> None:
    if not isinstance(negatives, Negatives):
        raise InputError(
            f"train: negatives={options.shown(negatives)} ({type(negatives).__name__}): expected "
            "what mine(data, teacher=…) gives"
        )
    for what, rows, table in (
        ("query", negatives.query_rows, data.queries),
        ("positive", negatives.positive_rows.values, data.corpus),
        ("negative", negatives.negative_rows.values, data.corpus),
    ):
        most = int(np.max(rows, initial=-1))
        if most >= len(table):
            raise InputError(
                f"train: the table of negatives has {what} row {most:,}, but the data set "
                f"{data.name!r} has {len(table):,} rows of that kind; it was mined for another one"
            )
    ids = data.corpus.ids
    for query, positives in zip(
        negatives.query_rows.tolist() if data.qrels else (), negatives.positive_rows, strict=False
    ):
        name = data.queries.ids[query]
        judged = [found[name] for found in data.qrels.values() if name in found]
        if len(positives) and not any(ids[p] in one for one in judged for p in positives):
            raise InputError(
                f"train: the table of negatives has other positives for query {name!r} than the "
                f"data set {data.name!r}; it was mined for another one"
            )


def _given(data: Dataset, split: str, min_relevance: int) -> Negatives:
    """Positives of a data set, with the negatives that come with it."""
    if not data.qrels:
        raise InputError("train: lists of texts need negatives=mine(queries, passages, …)")
    row = data.corpus.row
    positives = data.positives(split, min_relevance)
    given = data.given.get(split, {})
    positive_rows = Ragged.from_rows(
        [[row[p] for p in one] for one in positives.values()], np.int32
    )
    negative_rows = Ragged.from_rows(
        [[row[p] for p in given.get(q, ())] for q in positives], np.int32
    )

    def like(rows: Ragged, value: float, dtype: Any) -> Ragged:
        return rows.like(np.full(len(rows.values), value, dtype))

    return Negatives(
        query_rows=np.array([data.queries.row[q] for q in positives], np.int32),
        positive_rows=positive_rows,
        positive_scores=like(positive_rows, -np.inf, np.float32),
        judged_rows=positive_rows,
        negative_rows=negative_rows,
        negative_scores=like(negative_rows, -np.inf, np.float32),
        negative_ranks=like(negative_rows, 0, np.int32),
        teachers=(GIVEN,),
        negative_teachers=like(negative_rows, 0, np.int32),
        negative_ceilings=like(negative_rows, np.inf, np.float32),
        ceilings=np.full(len(positive_rows), np.inf, np.float32),
    )


def _check_distilled(negatives: Negatives, wanted: int) -> None:
    """Raises InputError if no row has as many candidates for distillation alone."""
    if not wanted or negatives.distilled_rows is None:  # None: an error of the examples
        return
    most = int(negatives.distilled_rows.counts.max(initial=0))
    if wanted > most:
        raise InputError(
            f"train: num_distilled={wanted}: the table has at most {most} candidates per query; "
            f"mine with num_distilled={wanted}"
        )


def _one_scale(negatives: Negatives) -> bool:
    """Whether all scores of a table are on one scale."""
    names = [name for name in negatives.teachers if name not in (RANDOM, GIVEN)]
    return negatives.positive_targets is not None or len(names) == 1


def _schedule(
    how: dict[str, Any], optimizer: Any
) -> tuple[Callable[[int], float] | None, dict[str, Any]]:
    """A schedule given as a function, and the other options."""
    rate = how["schedule"] if callable(how["schedule"]) else None
    how = how if rate is None else how | {"schedule": _DEFAULT.schedule}
    if optimizer is not None and rate is not None:
        raise InputError("train: optimizer and schedule are both given; an optimizer has its own")
    if rate is not None:
        first = rate(0)
        try:
            value = np.asarray(first, np.float64)
        except (TypeError, ValueError):
            value = np.array(np.nan)
        if value.shape or not np.isfinite(value) or isinstance(first, str):
            raise InputError(f"train: schedule(0) is {first!r}; expected a learning rate")
    return rate, how


def _block(how: dict[str, Any], loss: Any, student: Any) -> tuple[Training, Own | None]:
    """The options of the stage, and a caller's loss."""
    own = {name: value for name, value in how.items() if name != "seed"}
    flat = {name: own.pop(name) for name in ("temperature", "in_batch_negatives")}
    if loss is not None:
        default = {"temperature": _DEFAULT.loss.temperature, "in_batch_negatives": True}
        for name, value in flat.items():
            if value != default[name]:
                raise InputError(
                    f"train: {name}={value!r}: it belongs to the loss, and a loss is given"
                )
    brought = None
    if loss is None:
        made = Loss(temperature=flat["temperature"], in_batch=flat["in_batch_negatives"])
    elif isinstance(loss, Loss):
        made = loss
        if made.needs_guide:
            raise InputError(f"train: loss.{made.guided} needs a run, nv.run(config)")
    elif callable(loss) and not isinstance(loss, type):
        if _is_late(student):
            raise InputError("train: a loss that is a function needs one vector per text")
        brought, made = loss if isinstance(loss, Own) else Own(loss), Loss()
    else:
        raise InputError(
            f"train: loss={options.shown(loss)} ({type(loss).__name__}): expected nv.Loss(…), or a "
            "function of queries, passages and batch"
        )
    values = {**vars(_DEFAULT), **own, "loss": vars(made)}
    wrong = options.mistakes(Training, values, "train: ")
    if wrong:
        raise InputError("; ".join(wrong))
    return Training(**own, loss=made, checkpoint_every=0, keep=1), brought


def _is_late(student: Any) -> bool:
    return student.spec.late is not None


def _with_history(trained: encoder_lib.Encoder, history: History) -> Encoder:
    if not isinstance(trained, Encoder):
        trained = Encoder.of(trained)
    trained.history = history
    return trained
