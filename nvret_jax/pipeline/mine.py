"""mine: the hard negatives that a rule keeps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nvret_jax import mesh as mesh_lib
from nvret_jax.artifacts.artifact import Artifact, write_atomic
from nvret_jax.data.dataset import Dataset
from nvret_jax.data.ragged import Ragged, join_rows
from nvret_jax.errors import InputError
from nvret_jax.mesh import say
from nvret_jax.mining import distilled, given, positives, rescoring, risk, targets
from nvret_jax.mining.audit import estimate, risk_fit
from nvret_jax.mining.audit.calibrate import calibrate
from nvret_jax.mining.exclude import verdicts
from nvret_jax.mining.miner import MiningCounts, Teacher, mine
from nvret_jax.mining.negatives import RESCORER, Negatives
from nvret_jax.mining.options import Mining, Positives
from nvret_jax.mining.rules import VALUES, Rule
from nvret_jax.models import precision
from nvret_jax.options import parts_of
from nvret_jax.pipeline import exclusions
from nvret_jax.pipeline import parts as parts_lib
from nvret_jax.pipeline.chunks import Chunks
from nvret_jax.pipeline.exclusions import Excluder
from nvret_jax.pipeline.inputs import need
from nvret_jax.pipeline.ranked import mined_from, open_ranker, ranked, rescored, targets_from
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.state import Run, once
from nvret_jax.search.candidates import Candidates


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of mining.

    Attributes:
        data: the queries and the corpus.
        query_ids: of the queries mined for.
        teachers: the most accurate first.
        excluder: of passages that can never be negatives.
        auto: the rules whose value is chosen by calibration.
        given: for each query the negatives that come with the data, or None.
        ranks_mean: whether the first teacher's ranks say something, which random ones do not.
        targets: the teachers whose scores distillation fits, by name: they score lists of passage
            rows for queries with these numbers.
    """

    data: Dataset
    query_ids: Sequence[str]
    teachers: Sequence[Teacher]
    excluder: Excluder
    auto: Sequence[str] = ()
    given: Ragged | None = None
    ranks_mean: bool = True
    targets: Mapping[str, targets.Score] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Mined:
    """Negatives, and facts about how they were found, for JSON."""

    negatives: Negatives
    counts: dict[str, Any]


@once
def artifact(run: Run) -> Artifact:
    """The negatives that the rule kept."""
    parts, split, mining = mined_from(run), run.config.data.train_split, run.mining
    parts |= targets_from(run)
    parts |= parts_of(mining.positives, "mining.positives.")
    if run.options.risk:
        parts["mining.calibration.queries"] = mining.calibration.queries
        parts["seed"] = run.config.seed
    if run.train_data.given.get(split):
        parts["mining.given"] = mining.given
        if mining.given != "ignore":
            parts["given"] = parts_lib.given_part(run.train_data.given[split])
    if run.mining.targets:
        parts["seed"] = run.config.seed
    if run.calibrated:
        parts |= dict.fromkeys((f"mining.{VALUES[name]}" for name in run.calibrated), "auto")
        parts |= parts_of(mining.calibration, "mining.calibration.")
        parts["seed"] = run.config.seed
    return run.workdir.negatives(split, parts, run.about)


def read(run: Run) -> Negatives:
    """Finished negatives."""
    data = run.train_data
    return Negatives.read(need(artifact(run)).path, data.queries, data.corpus)


def _artifacts(run: Run) -> list[Artifact]:
    return [artifact(run)]


def _inputs(run: Run, artifact: Artifact) -> tuple[Inputs, Mining]:
    data = run.train_data
    found = [Teacher(name, *ranked(run, artifact, name)) for name in run.teacher_names]
    inputs = Inputs(
        data,
        data.queries.select(run.positives()).ids,
        found,
        exclusions.opened(run),
        run.calibrated,
        run.given_rows(),
        ranks_mean=not run.block(run.teacher_names[0]).model.startswith("random:"),
        targets={name: _scorer(run, artifact, name, found) for name in run.mining.targets},
    )
    return inputs, dataclasses.replace(run.mining, options=run.options)


def make(inputs: Inputs, options: Mining) -> Mined:
    """The negatives that a rule keeps.

    Args:
        inputs: candidates, and rankers for passages beyond them.
        options: how to mine.

    Raises:
        InputError: a judge's verdicts leave no query.
    """
    asked = [_with_risk(inputs, options, teacher) for teacher in inputs.teachers]
    chosen: list[dict[str, Any]] = []
    for number, teacher in enumerate(asked if inputs.auto else ()):
        rule, records = _calibrated(inputs, options, teacher)
        asked[number] = dataclasses.replace(teacher, rule=rule)
        chosen += records
    candidates, texts = asked[0].candidates, inputs.excluder.texts
    effect = inputs.excluder.effect(candidates)
    excluded = inputs.excluder.of(candidates.query_rows, candidates.positive_rows, effect)
    negatives, counts = mine(
        asked,
        options.options,
        excluded=excluded.rows,
        query_ids=inputs.query_ids,
        passage_ids=inputs.data.corpus.ids,
        texts=texts,
    )
    report: dict[str, Any] = dataclasses.asdict(counts) | {"excluded": excluded.counts()}
    if inputs.given is not None and len(inputs.given.values):
        negatives, of_given = given.combine(
            negatives,
            inputs.given,
            options.given,
            asked[0],
            excluded=excluded.rows,
            most=options.options.num_negatives,
            texts=texts,
        )
        report["given"] = dataclasses.asdict(of_given)
        _say_given(of_given, options.given)
    if options.options.risk:
        models = {teacher.name: (teacher.candidates, teacher.risk) for teacher in asked}
        found = risk.of_negatives(negatives, models, options.options.rule)
        negatives = dataclasses.replace(negatives, negative_risks=found)
        expected = float(np.mean(found.values)) if len(found.values) else 0.0
        report["expected_false"] = expected
        say(f"mine      {expected:.1%} of the negatives are expected to be false")
    report["false_negatives"] = _false_negatives(inputs, options, asked[0])
    if chosen:
        report["calibration"] = chosen
    if effect is not None:
        negatives = _promoted(negatives, effect, asked[0], candidates)
        report["verdicts"] = dataclasses.asdict(effect.counts)
        if not len(negatives):
            raise InputError(f"{options.judge.verdicts}: no query is left after the verdicts")
    if options.positives.max_rank:
        ranks = positives.ranks(candidates, excluded.rows)
        negatives, doubtful = positives.apply(negatives, candidates, ranks, options.positives)
        report["doubtful_positives"] = _described_doubtful(doubtful, inputs.data)
        _say_doubtful(doubtful, options.positives)
        if not len(negatives):
            raise InputError(
                f"mining.positives.max_rank={options.positives.max_rank}: no positive ranks as "
                "high; raise it, or set doubtful='weigh'"
            )
    if options.options.num_distilled:
        negatives = distilled.add(
            negatives, candidates, excluded.rows, options.options.num_distilled
        )
    if inputs.targets:
        numbers = candidates.numbers_of(negatives.query_rows)
        negatives, calibrations = targets.add(
            negatives,
            {name: targets.of_queries(score, numbers) for name, score in inputs.targets.items()},
            query_ids=[inputs.query_ids[number] for number in numbers],
            passage_ids=inputs.data.corpus.ids,
            seed=options.options.seed,
            texts=texts,
        )
        report["targets"] = [dataclasses.asdict(one) for one in calibrations]
        _say_targets(calibrations)
    copies = report["copies"] = 0 if texts is None else len(texts) - texts.count
    if copies:
        say(
            f"mine      {copies:,} of {len(texts):,} passages repeat the text of another; "
            "a text counts once, whatever its ids"
        )
    _say(counts)
    return Mined(negatives, report)


def _write(artifact: Artifact, inputs: Inputs, mined: Mined) -> None:
    if mesh_lib.is_main():
        path = artifact.path.parent / f"{artifact.path.stem}.counts.json"
        write_atomic(path, json.dumps(mined.counts, indent=1, allow_nan=False))
    data = inputs.data
    artifact.finish_file(lambda path: mined.negatives.write(path, data.queries, data.corpus))


def _with_risk(inputs: Inputs, options: Mining, teacher: Teacher) -> Teacher:
    """A teacher with the risk of its candidates, where that is asked for."""
    how = options.options.risk
    if not how:
        return teacher
    candidates = teacher.candidates

    def excluded(numbers: np.ndarray, positive_rows: Ragged) -> Ragged:
        return inputs.excluder.of(candidates.query_rows[numbers], positive_rows).rows

    model, queries = risk_fit.estimate(
        candidates,
        how,
        max_queries=options.calibration.queries,
        excluded=excluded,
        query_ids=inputs.query_ids,
        passage_ids=inputs.data.corpus.ids,
        seed=options.options.seed,
        texts=inputs.excluder.texts,
    )
    say(
        f"mine      {teacher.name}: the risk of negatives is fitted to the {model.method} of "
        f"{queries:,} queries; it is between {model.risk[0]:.1%} and {model.risk[-1]:.1%}"
    )
    return dataclasses.replace(teacher, risk=model)


def _described_doubtful(counts: positives.DoubtfulCounts, data: Dataset) -> dict[str, Any]:
    listed = [[data.queries.ids[q], data.corpus.ids[p], rank] for q, p, rank in counts.listed]
    return dataclasses.asdict(counts) | {"listed": listed}


def _say_doubtful(counts: positives.DoubtfulCounts, options: Positives) -> None:
    done = f"weigh {options.weight:g}" if options.doubtful == "weigh" else "are left out"
    more = f", and {counts.rows_dropped:,} rows with them" if counts.rows_dropped else ""
    say(
        f"mine      {counts.doubtful:,} of {counts.pairs:,} positives rank beyond "
        f"{options.max_rank} and {done}{more}; the counts file lists them"
    )


def _calibrated(
    inputs: Inputs, options: Mining, teacher: Teacher
) -> tuple[Rule, list[dict[str, Any]]]:
    """The rule with values chosen for a teacher where they are 'auto', and how they were chosen."""
    candidates, records, rule = teacher.candidates, [], options.options.rule

    def excluded(numbers: np.ndarray, positive_rows: Ragged) -> Ragged:
        return inputs.excluder.of(candidates.query_rows[numbers], positive_rows).rows

    for name in inputs.auto:
        choice = calibrate(
            candidates,
            teacher.ranker,
            dataclasses.replace(options.options, rule=rule),  # a second value sees the first
            name,
            target=options.calibration.target,
            max_queries=options.calibration.queries,
            excluded=excluded,
            query_ids=inputs.query_ids,
            passage_ids=inputs.data.corpus.ids,
            seed=options.options.seed,
            teacher=teacher.name,
            texts=inputs.excluder.texts,
        )
        rule = dataclasses.replace(rule, **{VALUES[name]: choice.value})
        records.append(choice.record)
        say(f"mine      {teacher.name}: {VALUES[name]} {choice.value:g}; {choice.record['why']}")
    return rule, records


def _false_negatives(inputs: Inputs, options: Mining, teacher: Teacher) -> dict[str, Any] | None:
    """How many of the first teacher's negatives may be relevant, for JSON; prints it."""
    if not inputs.ranks_mean or (inputs.given is not None and options.given == "only"):
        return None
    candidates = teacher.candidates

    def excluded(numbers: np.ndarray, positive_rows: Ragged) -> Ragged:
        return inputs.excluder.of(candidates.query_rows[numbers], positive_rows).rows

    found = estimate.estimate(
        candidates,
        dataclasses.replace(options.options, rule=teacher.rule or options.options.rule),
        excluded=excluded,
        query_ids=inputs.query_ids,
        passage_ids=inputs.data.corpus.ids,
        seed=options.options.seed,
        texts=inputs.excluder.texts,
    )
    if found is None:
        return None
    say(f"mine      {teacher.name}: {found}")
    return dataclasses.asdict(found)


def _promoted(
    negatives: Negatives, effect: verdicts.VerdictEffect, teacher: Teacher, candidates: Candidates
) -> Negatives:
    """The table without dropped queries, and with promoted passages among the positives."""
    numbers = candidates.numbers_of(negatives.query_rows)
    stay = np.flatnonzero(~effect.dropped_queries[numbers])
    negatives, numbers = negatives.take(stay), numbers[stay]
    more = effect.promoted.take(numbers)
    changes = {"judged_rows": join_rows(negatives.judged_rows, more)}
    if negatives.positive_rows.counts.sum() == negatives.judged_rows.counts.sum():
        # If each positive is its own anchor, a row has only that one.
        scores = more.like(teacher.ranker.score(numbers, more))
        changes["positive_rows"] = join_rows(negatives.positive_rows, more)
        changes["positive_scores"] = join_rows(negatives.positive_scores, scores)
    return dataclasses.replace(negatives, **changes)


def _scorer(run: Run, made: Artifact, name: str, mined_by: Sequence[Teacher]) -> targets.Score:
    """The scores of one of the teachers that distillation fits; one that mined is open."""
    for teacher in mined_by:
        if teacher.name == name and rescored(run, name) is None:
            return teacher.ranker.score
    if name != RESCORER:
        ranker = open_ranker(run, name)
        for remark in getattr(ranker, "remarks", ()):
            say(f"mine      target {name}: {remark}")
        return ranker.score
    chunks, config = Chunks(made), run.rescorer.config
    precision.say_cost("mine", config.dtype, run.platform, "rescorer.dtype")
    rows = np.array([run.train_data.queries.row[query] for query in run.positives()], np.int64)
    scorer = rescoring.Chunked(run.rescorer.score_pairs, chunks)
    return lambda numbers, pairs: scorer.score_lists(rows[numbers], pairs)


def _say_targets(calibrations: Sequence[targets.Calibration]) -> None:
    for one in calibrations:
        said = (
            f"scores times {one.factor:.4g}; a positive among random passages has the likelihood "
            f"{np.exp(one.log_likelihood):.3f}, by chance {np.exp(one.uniform):.3f}"
        )
        if not one.factor:
            said = "does not score the positives above random passages, and does not count"
        say(f"mine      target {one.teacher}: {said}")


def _say_given(counts: given.GivenCounts, mode: str) -> None:
    say(
        f"mine      {counts.queries:,} queries come with {counts.given:,} negatives "
        f"(mining.given='{mode}'): {counts.used:,} in the table, {counts.ruled_out:,} ruled out; "
        f"{counts.above:,} of those not ruled out are at or above the ceiling of the rule"
    )
    if mode == "only" and counts.without:
        say(f"mine      {counts.without:,} rows have no negative of the data set, and so none")


def _say(counts: MiningCounts) -> None:
    filled = counts.tasks - counts.short
    again = sum(c.searched_again for c in counts.teachers.values())
    found = sum(c.found_again for c in counts.teachers.values())
    unit = "queries" if counts.tasks == counts.queries else "pairs of query and positive"
    say(
        f"mine      {filled:,} of {counts.tasks:,} {unit} have all {counts.wanted} negatives; "
        f"{counts.total('above'):,} candidates were above the ceiling"
        + (f"; a second search below it found {found:,} for {again:,} left short" if again else "")
    )
    if counts.dropped or counts.filled_at_random:
        say(
            f"mine      {counts.dropped:,} dropped for lack of negatives, "
            f"{counts.filled_at_random:,} negatives filled in at random"
        )
    names = list(counts.teachers)
    for i, name in enumerate(names) if len(names) > 1 else ():
        row = "  ".join(f"{value:.3f}" for value in counts.overlap[i])
        say(f"mine      overlap of negatives (Jaccard)  {name:<16} {row}")


STAGE = Stage(_artifacts, _inputs, make, _write)
