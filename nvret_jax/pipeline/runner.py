"""Runs the stages in order: skips those that are up to date, and says why others are not.

A stage declares its artefacts (`stage.py`); this file compares their fingerprints with those in the
workdir. A stage that is up to date is skipped, which is printed. Otherwise it is rebuilt, with the
reason. A stage that was not requested but is needed and out of date is an error, never silently
made or used.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

from nvret_jax import mesh as mesh_lib
from nvret_jax import options
from nvret_jax.artifacts import claim
from nvret_jax.artifacts.artifact import Artifact, Damaged
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.config import asked_stages, checks, overrides, stage_names
from nvret_jax.config.sets import MINING_STAGES
from nvret_jax.errors import InputError, from_system
from nvret_jax.files import paths
from nvret_jax.mesh import say
from nvret_jax.options import calls
from nvret_jax.pipeline import closing as closing_lib
from nvret_jax.pipeline import preflight, provenance, rounds, tracking, truncation
from nvret_jax.pipeline.inputs import MADE_BY
from nvret_jax.pipeline.result import Result
from nvret_jax.pipeline.stage import Stage
from nvret_jax.pipeline.stages import STAGES
from nvret_jax.pipeline.state import Run
from nvret_jax.processes import stops

_MENDINGS = 10  # of one stage; a disk that damages more than that is not usable for a run


_TAKES = {
    "config": options.Anything("a config, such as config.base(), or its file", (ConfigDict,)),
    "workdir": options.Anything("a folder", (str, os.PathLike)),
    "stages": options.many(options.text("the name of a stage")),
    "dry_run": options.flag(),
    "closing": options.flag(),
}


@calls.checked({"output_dir": "give workdir="})
def run(
    config: ConfigDict | str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    stages: str | Sequence[str] = (),
    dry_run: bool = False,
    closing: bool = True,
) -> Result:
    """Runs a config in a workdir.

    Args:
        config: `config.base()` or what a file in `configs/` returns; or the name of such a file,
            followed by ':smoke' or another argument.
        workdir: its folder; made if missing, continued if it holds an earlier run of the config.
        stages: only these, or this one; empty: all the config names.
        dry_run: print what would be done and why, and do nothing.
        closing: print at the end where the results are, and next steps.

    Returns:
        The results in the workdir: scores, history, paths.

    Raises:
        InputError: any mistake in the arguments; one line.
    """
    if isinstance(config, str | os.PathLike):
        config = overrides.read(os.fspath(config))
    stages = (stages,) if isinstance(stages, str) else stages
    options.check_arguments("pipeline.run", locals(), _TAKES)
    workdir = str(paths.local(workdir, "--workdir"))
    checks.validate(config)
    plan = stage_names(config)
    asked = asked_stages(config, stages)
    begun = time.perf_counter()
    with _files_errors(workdir):
        place = Workdir.open(workdir, config.to_dict(), write=False)
        if dry_run:
            if at_work := claim.holder(workdir):
                say(f"{workdir} is in use by {at_work}; its artefacts may change at any moment")
            _run_rounds(config, place, plan, asked, dry_run=True)
            return Result(place.path)
        with place.claimed() as claimed:
            state = _run_rounds(config, claimed, plan, asked, dry_run=False)
            if closing and state is not None:
                for line in closing_lib.lines(state, plan, asked, time.perf_counter() - begun):
                    say(line)
    return Result(place.path)


def _run_rounds(
    config: ConfigDict, place: Workdir, plan: Sequence[str], asked: Sequence[str], *, dry_run: bool
) -> Run | None:
    """Returns the last round; None if one does not exist yet, as in a dry run."""
    if "evaluate" in config.stages and "evaluate" not in plan:
        say("evaluate  skipped: data.test names no data set to evaluate on")
    for number in range(1, config.rounds + 1):
        last = number == config.rounds
        state = rounds.run_of(config, place, number)
        if state is None:
            say(
                f"round {number} mines with the student of round {number - 1}, which does not "
                f"exist yet"
            )
            return None
        if config.rounds > 1:
            say(f"round     {number} of {config.rounds}")
        of_round = asked if last else rounds.stages_of_round(asked)
        wrong = preflight.unfit(state, of_round)
        if wrong:
            raise InputError("; ".join(wrong))
        if dry_run:
            _print_plan(state, plan if last else rounds.stages_of_round(plan), of_round)
            for found in truncation.of_run(state):
                say(found.line())
            continue
        if number == 1:
            # Nothing is refused from here on; another run may have made an artefact meanwhile.
            Workdir.open(place.path, config.to_dict())
            say(
                f"devices: {jax.device_count()} × {jax.devices()[0].device_kind}, "
                f"{jax.process_count()} process(es)"
            )
        for name in of_round:
            _run_mending(state, name, of_round)
    if not dry_run and "evaluate" in asked:
        tracking.send_scores(state)
    return state


def mistakes(config: ConfigDict, workdir: str) -> list[str]:
    """All mistakes in a config, including those that only data, mesh and models show.

    Writes nothing.
    """
    wrong = checks.mistakes(config)
    if not checks.has_all_keys(config):
        return wrong
    sound = checks.with_defaults(config)  # values that are invalid by themselves are left out below
    if sound is None:
        return wrong
    try:
        asked = stage_names(sound)
        place = Workdir.open(workdir, sound.to_dict(), write=False)
        wrong += preflight.unfit(Run(sound, place), asked)
    except Exception as error:  # conflicting values may cause any exception
        if not wrong or isinstance(error, InputError):
            wrong.append(str(error))
    return list(dict.fromkeys(wrong))


def _artifacts(state: Run, name: str) -> Iterator[tuple[Run, Artifact]]:
    for set_run in preflight.set_runs(state, name):
        for item in STAGES[name].artifacts(set_run):
            yield set_run, item


def _run_mending(state: Run, name: str, asked: Sequence[str]) -> None:
    """Runs a stage; inputs that are found damaged when they are used are first rebuilt.

    Raises:
        Damaged: in a stage that was not requested, or repeatedly.
    """
    for _ in range(_MENDINGS):
        try:
            return _run_stage(state, name)
        except Damaged as error:
            maker = MADE_BY.get(error.kind)
            if maker not in asked or maker == name:
                raise
            say(f"{name:<9} stopped: {error.what}")
            _run_mending(state, maker, asked[: asked.index(maker) + 1])
    return _run_stage(state, name)


def _run_stage(state: Run, name: str) -> None:
    stage = STAGES[name]
    begun = time.perf_counter()
    pending = [(set_run, item, item.stale()) for set_run, item in _artifacts(state, name)]
    mesh_lib.barrier(f"checked {name}")  # no process writes before all have checked
    if not any(reason for *_, reason in pending):
        say(f"{name:<9} up to date")
        return
    if name not in MINING_STAGES:
        state.release_teachers()
    provenance.begin(state.workdir.path, name)
    for set_run, item, reason in pending:
        if reason:
            why = _noted(stage, set_run, item, reason)
            say(f"{name:<9} making {set_run.label}{item.name} ({why})")
            with stops.during(name):
                stage.bring(set_run, item)
    seconds = time.perf_counter() - begun
    provenance.end(state.workdir.path, name, seconds)
    say(f"{name:<9} done in {seconds:.1f} s")


def _noted(stage: Stage, run: Run, artifact: Artifact, reason: str) -> str:
    """The reason with what the stage adds to it, on the main process."""
    note = stage.note(run, artifact) if mesh_lib.is_main() else ""
    return f"{reason}; {note}" if note else reason


def _print_plan(state: Run, plan: Sequence[str], asked: Sequence[str]) -> None:
    for name in plan:
        for set_run, item in _artifacts(state, name):
            reason = item.stale()
            if reason is None:
                state_of = "up to date"
            elif name in asked:
                state_of = f"would be made: {_noted(STAGES[name], set_run, item, reason)}"
            else:
                state_of = f"out of date, not asked for: {reason}"
            say(f"{name:<9} {set_run.label + item.name:<44} {state_of}")


@contextlib.contextmanager
def _files_errors(workdir: str) -> Iterator[None]:
    """Turns errors of the file system, in any library, into one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        known = from_system(error, workdir)
        if known is None:
            raise
        raise known from error
