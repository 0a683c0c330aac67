"""Checks of a run before anything is made: mesh, models, data, and missing artefacts.

`config/checks.py` checks only the values of a config. Here they are checked against the devices,
the folders of the models and the data; a dry run reports the same as a run. Nothing is computed,
and no weights are loaded. What would be refused hours later, in the stage that needs it, is refused
here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nvret_jax import mesh as mesh_lib
from nvret_jax import options
from nvret_jax.config import sets
from nvret_jax.errors import InputError
from nvret_jax.evaluation import retrieval
from nvret_jax.mining import given
from nvret_jax.mining.audit import risk_fit
from nvret_jax.mining.audit.audit import check_any
from nvret_jax.mining.audit.calibrate import check_enough
from nvret_jax.mining.exclude import documents, verdicts
from nvret_jax.models import embedding_model
from nvret_jax.pipeline import ranked
from nvret_jax.pipeline.encoders import ConfiguredEncoder
from nvret_jax.pipeline.inputs import need
from nvret_jax.pipeline.stages import STAGES
from nvret_jax.pipeline.state import Run
from nvret_jax.search.rankers import teachers
from nvret_jax.training import trackers
from nvret_jax.training.loop import check_batch
from nvret_jax.training.loss.options import Loss
from nvret_jax.training.options import Training

MINING = ("embed", "search", "audit", "mine")
_STEPS = options.takes_of(Training)["steps"]
SMALL_BATCH = 1024  # a batch of at most this many queries may have more rows than there are queries
# The stages whose artefacts a stage reads, the nearest first.
_READS = {
    "search": ("embed",),
    "audit": ("search", "embed"),
    "mine": ("search", "embed"),
    "train": ("mine",),
    "evaluate": ("train",),
    "export": ("evaluate", "train"),
    "report": ("evaluate", "audit", "mine", "search", "train"),
}


def unfit(state: Run, asked: Sequence[str]) -> list[str]:
    """Mistakes in mesh, data and models of any stage, one line each.

    Args:
        state: the run.
        asked: stages that are to run.
    """
    wrong: list[str] = []

    def collect(check: Callable[[], Any]) -> None:
        try:
            check()
        except InputError as error:
            wrong.append(str(error))

    if set(asked) - {"report"}:
        collect(lambda: state.mesh)
        if wrong:
            return wrong
        for check in _checks(state, asked):
            collect(check)
    found = len(wrong)
    for name in asked:
        for set_run in set_runs(state, name):
            collect(functools.partial(STAGES[name].artifacts, set_run))
    if len(wrong) == found:  # an artefact without a name cannot be missing
        collect(lambda: _check_there(state, asked))
    return list(dict.fromkeys(wrong))


def set_runs(state: Run, name: str) -> list[Run]:
    """The runs that execute a stage: each set is mined separately, all else runs once."""
    return list(state.sets.values()) if name in sets.MINING_STAGES else [state]


def _checks(state: Run, asked: Sequence[str]) -> Iterator[Callable[[], Any]]:
    do = functools.partial
    if "train" in asked:
        yield do(trackers.check, state.config.track)
        for name, block in state.training_stages.items():
            at = f"train_stages.{name}" if state.config.train.stages else "train"
            yield do(check_batch, block, mesh_lib.shards(state.mesh, "batch"), at)
            yield do(_check_loss, state, block, at)
            yield do(_check_clusters, state, block, at)
            yield do(_check_length, state, block, at)
        yield do(_check_dev, state)
    yield do(_check_late, state, asked)
    yield state.served.check_length
    every = {
        name: encoder
        for set_run in state.sets.values()
        for name, encoder in set_run.encoders.items()
    }
    for encoder in (state.student, *every.values()):
        yield do(_check_encoder, encoder, state)
    for set_run in state.sets.values():
        for encoder in (set_run.student, *set_run.encoders.values()):
            yield encoder.check_prompts
        if set(asked) & set(MINING):
            yield from _mining_checks(set_run, asked)
    if "evaluate" in asked:
        yield do(_check_judgments, state)
        yield do(_check_teacher_passages, state)


def _mining_checks(set_run: Run, asked: Sequence[str]) -> Iterator[Callable[[], Any]]:
    do = functools.partial
    if {"search", "mine"} & set(asked):
        for name in set_run.scorer_names if "mine" in asked else set_run.teacher_names:
            yield do(_check_ranking, set_run, name)
    if {"audit", "mine"} & set(asked):
        yield do(_check_exclusions, set_run)
    if "mine" in asked:
        yield do(_check_calibration, set_run)
        yield do(_check_verdicts, set_run)
        yield do(_check_given, set_run)
    if "audit" in asked:
        yield do(_check_audit, set_run)


# --- the mesh and the models -----------------------------------------------------------------


def _check_encoder(encoder: ConfiguredEncoder, state: Run) -> None:
    at = encoder.name if encoder.name in ("teacher", "student") else f"teachers.{encoder.name}"
    try:
        encoder.check_kernel(state.config.embed.dtype)
    except InputError as error:  # begins with the key inside the block
        raise InputError(f"{at}.{error}") from None
    embedding_model.check_mesh(encoder.spec, state.mesh)
    width = encoder.spec.backbone.hidden_size
    if encoder.lora is not None and encoder.lora.rank > width:
        raise InputError(
            f"{at}.lora_rank={encoder.lora.rank}: the model is {width} wide, and adapters of "
            "a higher rank are no smaller than its weights"
        )


def _check_loss(state: Run, block: Training, at: str) -> None:
    spec = state.student.spec
    loss = block.loss_for(spec.width, tokens=spec.late is not None, at=at)
    if not loss.needs_guide:
        return
    for name in sets.sets_of(state.config, block.sets):
        set_run = state.sets[name]
        if not set_run.guide:
            use = "" if loss.vectors else "; use 'student'"
            raise InputError(f"{at}.loss.{loss.guided}: needs a teacher that is an encoder{use}")
        if loss.vectors:
            _check_vectors(state, loss, set_run.encoders[set_run.guide], at)


def _check_vectors(state: Run, loss: Loss, guide: ConfiguredEncoder, at: str) -> None:
    """Raises InputError if the student's vectors cannot be fitted to those of a teacher."""
    ours, theirs = state.student.spec, guide.spec
    if ours.width != theirs.width:
        raise InputError(
            f"{at}.loss.{loss.guided}: the student's vectors are {ours.width} wide, those of "
            f"{guide.name} {theirs.width}; set student.projection={theirs.width}"
        )
    if loss.vectors == "squared" and ours.normalize != theirs.normalize:
        raise InputError(
            f"{at}.loss.{loss.guided}: student.normalize={ours.normalize} and {guide.key_prefix}"
            f"normalize={theirs.normalize}, so lengths differ; set both alike, or use 'cosine'"
        )


def _check_teacher_passages(state: Run) -> None:
    if not state.config.evaluation.teacher_passages:
        return
    at = "evaluation.teacher_passages=True"
    if not state.guide:
        raise InputError(f"{at}: needs a teacher that is an encoder")
    ours, theirs = state.student.spec.width, state.encoders[state.guide].spec.width
    if ours != theirs:
        raise InputError(
            f"{at}: the student's vectors are {ours} wide, those of {state.guide} {theirs}; train "
            f"one with student.projection={theirs}"
        )


def _check_clusters(state: Run, block: Training, at: str) -> None:
    for name in sets.sets_of(state.config, block.sets) if block.cluster_size else ():
        if not state.sets[name].guide:
            raise InputError(
                f"{at}.cluster_size={block.cluster_size}: the set '{name}' needs a teacher that is "
                "an encoder; set 0 for batches at random"
            )


def _check_late(state: Run, asked: Sequence[str]) -> None:
    """Raises InputError if a search would need vectors of a multi-vector model."""
    searched = [name for set_run in state.sets.values() for name in set_run.encoders.items()]
    for name, encoder in dict(searched).items() if {"embed", "search"} & set(asked) else ():
        if encoder.spec.late is not None:
            raise InputError(
                f"{name}: {encoder.config.model} gives one vector per token, which search does not "
                f"support yet; mine with a model that pools"
            )
    if state.student.spec.late is None:
        return
    if "evaluate" in asked:
        raise InputError(
            f"student: {state.config.student.model} gives one vector per token, which evaluation "
            f"does not support yet; leave 'evaluate' out of stages"
        )
    if (
        any(b.start == "best" for b in state.training_stages.values())
        or state.config.result.pick == "best"
    ):
        raise InputError("'best' needs dev scores, and multi-vector models have none yet")


# --- the data --------------------------------------------------------------------------------


def _rows(set_run: Run) -> int:
    """The largest number of training rows that mining can make from a set."""
    found = set_run.positives()
    return sum(map(len, found.values())) if set_run.options.rule.anchor == "own" else len(found)


def _check_length(state: Run, block: Training, at: str) -> None:
    """Raises InputError for batches that the data cannot fill, and for too many steps."""
    names = sets.sets_of(state.config, block.sets)
    rows = {name: _rows(state.sets[name]) for name in names}
    total = sum(rows.values())
    most = max(SMALL_BATCH, total)
    if block.batch_size > most:
        raise InputError(
            f"{at}.batch_size={block.batch_size}: there are {total:,} rows to train on; expected "
            f"at most {most:,}"
        )
    if block.steps or block.max_steps:
        return
    weights = [1.0] * len(names)
    if block.share_unit == "epochs":
        weights = sets.shares_of(block, names)
    steps = block.epochs * math.fsum(w * rows[n] for w, n in zip(weights, names, strict=True))
    if steps / block.batch_size > _STEPS.high:
        raise InputError(
            f"{at}.epochs={options.shown(block.epochs)}: that is {steps / block.batch_size:.3g} "
            f"steps; expected at most {_STEPS.high:,}"
        )


def _check_dev(state: Run) -> None:
    if state.dev_split and state.student.spec.late is None:
        state.train_data.positives(state.dev_split, state.config.data.min_relevance)
        return
    named = state.config.train.stages
    asked = {
        f"train_stages.{n}.start" if named else "train.start": b.start
        for n, b in state.training_stages.items()
    }
    for key, value in (asked | {"result.pick": state.config.result.pick}).items():
        if value == "best" and state.student.spec.late is None:
            raise InputError(
                f"{key}='best': needs dev scores, and data set {state.train_data.name} has no "
                f"split '{state.config.data.dev_split}'; add one, or name another as data.dev_split"
            )


def _check_judgments(state: Run) -> None:
    data, split = state.test_data, state.config.data.test_split
    data.split_qrels(split)  # mistakes in the data themselves do not belong to the key below
    wanted = state.config.evaluation.min_relevance
    try:
        retrieval.scored_queries(data, split, wanted)
    except InputError as error:
        raise InputError(f"evaluation.min_relevance={wanted}: {error}") from None


def _check_ranking(set_run: Run, name: str) -> None:
    """Reads a teacher's file or folder for the training queries."""
    model = set_run.block(name).model
    kind = teachers.kind(model)
    if kind is not None and kind.place and ranked.artifact(set_run, name).stale() is not None:
        read_only = dataclasses.replace(ranked.task(set_run, name), dense=lambda *vectors: None)
        teachers.open_ranker(model, read_only)


def _check_exclusions(set_run: Run) -> None:
    exclude, corpus = set_run.exclusions, set_run.train_data.corpus
    if exclude.cosine and not set_run.guide:
        raise InputError(
            f"mining.exclude.near_copy={exclude.cosine} needs a teacher that is an encoder; use "
            "mining.exclude.minhash"
        )
    if exclude.document_separator:
        documents.by_separator(corpus.ids, exclude.document_separator)
    if exclude.document_map:
        path = exclude.document_map
        documents.by_map(corpus.ids, documents.read(path), str(path))


def _check_calibration(set_run: Run) -> None:
    count, limit = len(set_run.positives()), set_run.config.mining.calibration.queries
    used = min(count, limit or count)
    bound = "mining.calibration.queries" if used < count else ""
    for rule in set_run.calibrated:
        check_enough(rule, used, bound=bound)
    if how := set_run.config.mining.risk:
        several = sum(len(passages) > 1 for passages in set_run.positives().values())
        risk_fit.check_enough(how, used, min(several, limit or several), bound)


def _check_given(set_run: Run) -> None:
    given.check(set_run.mining.given, set_run.given_rows(), set_run.train_data.name)


def _check_verdicts(set_run: Run) -> None:
    mining, data = set_run.config.mining, set_run.train_data
    if mining.verdicts:
        verdicts.read_verdicts(mining.verdicts, data.queries, data.corpus)


def _check_audit(set_run: Run) -> None:
    found = set_run.positives().values()
    check_any(sum(len(passages) > 1 for passages in found), len(found), set_run.train_data.name)


# --- artefacts of earlier stages -------------------------------------------------------------


def _check_there(state: Run, asked: Sequence[str]) -> None:
    """Raises InputError if a stage would read an artefact that neither exists nor will be made."""
    for name in asked:
        if not any(
            item.stale() for set_run in set_runs(state, name) for item in _made(set_run, name)
        ):
            continue
        for needed in _READS.get(name, ()):
            if needed in asked or not _reads(state, name, needed):
                continue
            for set_run in set_runs(state, needed):
                for item in _made(set_run, needed):
                    need(item)


def _made(set_run: Run, stage: str) -> list[Any]:
    return STAGES[stage].artifacts(set_run)


def _reads(state: Run, name: str, needed: str) -> bool:
    """Whether a stage of this config reads what another one makes."""
    if needed == "train":
        return state.trains
    if needed == "evaluate":
        return state.evaluates
    if name == "report":
        return ("mine" if needed == "search" else needed) in state.config.stages
    return True
