"""The plan of a whole config, and that of a search, for the commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvret_jax import platforms
from nvret_jax.config import asked_stages, stages_of
from nvret_jax.config.sets import scorers, sets_of
from nvret_jax.data.dataset import Dataset
from nvret_jax.models.precision import embedding_dtype
from nvret_jax.options import blocks as blocks_lib
from nvret_jax.plan import lengths, models, steps, training
from nvret_jax.plan.chips import Chip, topology_mesh
from nvret_jax.plan.report import advice, fits, heading, report
from nvret_jax.plan.steps import Step
from nvret_jax.processes import log
from nvret_jax.search.index import checks, memory
from nvret_jax.search.rankers.teachers import is_encoder
from nvret_jax.training.options import Training

PASSAGES, QUERIES = 1_000_000, 4096  # default sizes of a search
UNFIT = 3  # exit status of a plan that does not fit


def leave_devices_alone() -> None:
    """Makes JAX plan on the CPU, on any machine; call it before a device is used.

    Programs for absent chips do not belong in the cache of compiled ones.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def run(
    config: ConfigDict,
    topology: str,
    *,
    stages: Sequence[str] = (),
    passages: int = 0,
    data: bool = False,
) -> int:
    """Compiles the steps of a config for a topology and prints their cost.

    Args:
        config: of a run; its mesh is mapped to the topology.
        topology: such as 'v5p:4x4x4' or 'h100:8'.
        stages: only these of the config; empty: all.
        passages: of the corpus; 0: `data.max_passages`, or 1,000,000.
        data: whether to read the config's data and plan training at its widths, too.

    Returns:
        0 if every step fits; `UNFIT` if one does not, after a line for each that does not.

    Raises:
        InputError: mistakes in config, topology or a model.
    """
    asked = asked_stages(config, stages) if stages else config.stages
    leave_devices_alone()
    mesh, chip = topology_mesh(topology, **config.mesh.to_dict())
    axes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"{heading(topology, mesh.size, chip)}; mesh {axes}")
    n = passages or config.data.max_passages or PASSAGES
    if not passages:
        said = "data.max_passages" if config.data.max_passages else "the default"
        print(f"a corpus of {n:,} passages ({said}; --plan_passages sets another number)")
    failed = []
    for step in planned(config, mesh, chip, n, data, asked):
        print(f"\n{report(step, chip)}", flush=True)
        if not fits(step, chip):
            failed.append(f"{step.name.split(':')[0]}: {advice(step, chip)}")
    return _end(topology, failed)


def _end(topology: str, failed: list[str]) -> int:
    """The exit status, after a line for each step that does not fit."""
    for line in failed:
        log.error(f"error: the plan does not fit {topology}: {line}")
    return UNFIT if failed else 0


def planned(
    config: ConfigDict,
    mesh: Mesh,
    chip: Chip,
    passages: int,
    data: bool = False,
    stages: Sequence[str] = (),
) -> Iterator[Step]:
    """The steps of these stages, or of all of a config's, each yielded when it is compiled."""
    stages = set(stages or config.stages)
    blocks = {
        name: config.teacher if name == "teacher" else config.teachers[name]
        for name in (_teachers(config) if stages - {"evaluate"} else ())
    }
    teachers = {
        name: models.read(block, mesh, key=_key(name))
        for name, block in blocks.items()
        if is_encoder(block.model)
    }
    trained = {name: blocks_lib.read(Training, one) for name, one in stages_of(config).items()}
    dropout = max(train.dropout for train in trained.values())
    student = models.read(config.student, mesh, key="student", dropout=dropout)
    student = _longest(student, config)
    for sketch in _apart([*teachers.values(), student]):
        if sketch.from_table:
            print(f"{sketch.name}: not found on this machine; using built-in sizes")
    budget = config.embed.token_budget
    if "train" in stages:
        guide = next((t.spec.width for t in teachers.values()), 0)
        known: dict[str, Dataset] = {}
        for name, train in trained.items():
            title = f"train {name}" if config.train.stages else "train"
            at_lengths = {"at the longest": None}
            if data:
                names = sets_of(config, train.sets)
                at_lengths["at usual lengths"] = lengths.read(config, student, names, known)
            for when, texts in at_lengths.items():
                yield training.train_step(
                    student,
                    train,
                    mesh,
                    title=f"{title}, {when}" if data else title,
                    guide_width=guide,
                    memory_bytes=int(chip.hbm),
                    lengths=texts,
                )
    embedders = dict(teachers) if "embed" in stages else {}
    if "evaluate" in stages or "train" in stages:
        embedders["student"] = student
    platform = platforms.of(mesh)
    embedders = {
        name: models.in_dtype(
            sketch, mesh, embedding_dtype(config.embed.dtype, sketch.spec.dtype, platform)
        )
        for name, sketch in embedders.items()
    }
    for names, sketch in _once(embedders):
        yield steps.embed_step(sketch, mesh, passages, token_budget=budget, who=names)
    searched = dict(teachers) if "search" in stages else {}
    if "evaluate" in stages:
        searched["student"] = student
    for width in dict.fromkeys(sketch.spec.width for sketch in searched.values()):
        yield _search(config, mesh, chip, (passages, width))


def _teachers(config: ConfigDict) -> tuple[str, ...]:
    """The teachers of all training sets, each once."""
    own = [name for block in config.sets.values() for name in block.teachers]
    return scorers(config, [*config.mining.teachers, *own])


def _key(name: str) -> str:
    return name if name == "teacher" else f"teachers.{name}"


def _longest(student: models.Sketch, config: ConfigDict) -> models.Sketch:
    """The student with the longest texts of any training set, if there are several sets."""
    lengths = {
        kind: max([length, *(block[f"{kind}_length"] or 0 for block in config.sets.values())])
        for kind, length in student.lengths.items()
    }
    return dataclasses.replace(student, lengths=lengths)


def _apart(sketches: list[models.Sketch]) -> list[models.Sketch]:
    return list({sketch.name: sketch for sketch in sketches}.values())


def _once(embedders: dict[str, models.Sketch]) -> Iterator[tuple[str, models.Sketch]]:
    """(names, sketch): encoders whose step is the same are planned once."""
    groups: dict[str, tuple[list[str], models.Sketch]] = {}
    for name, sketch in embedders.items():
        same = repr((sketch.spec, sketch.options, sketch.lora, sketch.lengths))
        groups.setdefault(same, ([], sketch))[0].append(name)
    for names, sketch in groups.values():
        yield ", ".join(names), sketch


def _search(config: ConfigDict, mesh: Mesh, chip: Chip, shape: tuple[int, int]) -> Step:
    budget = int(config.search.memory_gib * memory.GIB or memory.DEVICE_SHARE * chip.hbm)
    queries = config.data.max_queries or QUERIES
    k = min(config.search.depth, shape[0])
    # Encoders' vectors are stored in float32.
    dtype = "float32" if config.search.dtype == "auto" else config.search.dtype
    step = steps.search_step(mesh, shape, steps.DTYPES[dtype], queries, k, budget)
    return dataclasses.replace(step, calls=max(1, step.calls))


def run_search(
    topology: str,
    passages: int,
    width: int,
    *,
    dtype: str = "bfloat16",
    queries: int = QUERIES,
    k: int = 100,
    memory_gib: float = 0.0,
) -> int:
    """Compiles a search for a topology and prints its cost.

    Args:
        topology: such as 'v5e:4x4'.
        passages, width: N and D of the vectors.
        dtype: of the vectors.
        queries: searched at a time.
        k: hits per query.
        memory_gib: of a chip, for the search; 0: its free memory.

    Returns:
        0 if it fits, `UNFIT` if not.

    Raises:
        InputError: invalid sizes, or an unknown topology.
    """
    leave_devices_alone()
    shape, of = (passages, width), steps.DTYPES[dtype]
    checks.check_passages(jax.ShapeDtypeStruct(shape, of))
    checks.check_k(k, passages)
    mesh, chip = topology_mesh(topology)
    budget = int(memory_gib * memory.GIB or memory.DEVICE_SHARE * chip.hbm)
    step = steps.search_step(mesh, shape, of, queries, k, budget)
    print(heading(topology, mesh.size, chip))
    print(report(step, chip))
    return _end(topology, [] if fits(step, chip) else [f"search: {advice(step, chip)}"])
