"""What a plan says, from made-up steps; and what a compiler that refuses a program says."""

import dataclasses
import re

import pytest

from nvret_jax.plan import report, steps
from nvret_jax.plan.chips import CHIPS
from nvret_jax.plan.flops import Flops
from nvret_jax.plan.hlo import Collective

V5P = CHIPS["v5p"]


class Compiled:
    def cost_analysis(self):
        return {"flops": 5e12, "bytes accessed": 1e11}


STEP = steps.Step(
    name="train: a model",
    stage="train",
    compiled=Compiled(),
    memory=steps.Memory(int(30e9), int(20e9), int(50e9)),
    calls=2,
    flops=Flops(fast=4.0 * 459e12, float32=459e12 / 6),
    needed=2.0 * 459e12,
    hbm_bytes=2765e9,
    network=(Collective("all-gather", 10, 6e11), Collective("all-reduce", 3, 6e11, True)),
    held={"weights as they were": int(10e9)},
    parts={"trained weights": int(10e9), "optimizer": int(20e9)},
    looped=True,
    items=(512, "queries"),
    at_once=8192,
    notes=("  a note",),
)


def test_times_are_work_over_what_the_chip_can_do():
    seconds = STEP.seconds(V5P)
    assert seconds["FLOPs"] == pytest.approx(2 * (4 + 1))
    assert seconds["HBM"] == pytest.approx(2 * 1)
    assert seconds["network"] == pytest.approx(2 * 2)
    assert STEP.mfu(V5P) == pytest.approx(2 / 5)
    assert STEP.peak == 60e9


def test_sorting_takes_the_vector_unit_and_may_bind():
    step = dataclasses.replace(STEP, sorting=6 * 8192 * 1.75e9)
    assert step.seconds(V5P)["sorting"] == pytest.approx(2 * 6)
    text = report.report(step, V5P)
    assert "12.000 s: sorting binds; FLOPs would take 10.000 s (83%)" in text
    assert re.search(r"sorting +1\.72e\+14 operations on elements per chip\n", text)
    for chip in CHIPS.values():  # about what a chip's float32 FLOP/s are
        assert chip.flops / 150 < chip.vector < chip.flops / 20


def test_the_report_names_what_binds_what_is_left_and_whether_it_fits():
    text = report.report(STEP, V5P)
    lines = text.splitlines()
    assert lines[:2] == ["train: a model", "  a note"]
    assert "FLOPs bind; network would take 4.000 s (40%), HBM would take 2.000 s (20%)" in text
    assert "done are 2.08 times that" in text
    assert re.search(r"all-gather +1\.2e\+12 bytes per chip in 20 calls\n", text)
    assert "in 6 calls, a loop of unknown length counted once" in text
    assert "40%; 102 queries/s at most" in text
    assert lines[-1] == "fits: 60.00 of 95 GB per chip (63%)"


def test_a_step_too_large_says_by_how_much_and_why():
    step = dataclasses.replace(STEP, memory=steps.Memory(int(30e9), int(80e9), int(110e9)))
    last = report.report(step, V5P).splitlines()[-1]
    assert last.startswith(
        "DOES NOT FIT: 120.0 of 95 GB per chip, 25.0 GB too many; most of it temp"
    )
    assert "lower train.chunk_tokens (a chip encodes 8,192 tokens at once; try 4,096)" in last
    assert "student.remat='full'" in last
    assert "remat" not in report.conclusion(dataclasses.replace(step, chosen={"remat"}), V5P)


@pytest.mark.parametrize(
    ("stage", "kept", "advised"),
    [
        ("embed", False, "embed.token_budget"),
        ("embed", True, "mesh.fsdp"),
        ("search", False, "search.memory_gib"),
        ("search", True, "stream the passages"),
    ],
)
def test_the_advice_is_for_the_stage(stage, kept, advised):
    sizes = (90e9, 10e9) if kept else (10e9, 90e9)
    taken = steps.Memory(*map(int, (*sizes, sum(sizes))))
    said = report.advice(dataclasses.replace(STEP, stage=stage, memory=taken), V5P)
    assert advised in said
    assert "train." not in said


def test_a_program_that_the_compiler_refuses_has_a_size_all_the_same():
    error = RuntimeError(
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (99.50G) exceeds available HBM (15.75G). HLO module: jit_f.\n"
        "See https://openxla.org/xla/errors/error_1000 for more details."
    )
    found = steps.refused(error, arguments=5)
    assert found.temporaries == int(99.5 * 2**30)
    assert found.peak == found.temporaries + 5
    assert "openxla.org" not in found.refused
    step = dataclasses.replace(STEP, compiled=None, memory=found, network=(), looped=True)
    text = report.report(step, CHIPS["v5e"])
    assert "roofline" not in text
    assert "DOES NOT FIT: 116.8 of 16 GB per chip, 100.8 GB too many; most of it temp" in text
    assert not report.fits(step, dataclasses.replace(V5P, hbm=1e15))
    assert steps.refused(RuntimeError("INTERNAL: a mistake"), 5) is None


def test_a_compiler_that_counts_nothing_is_not_quoted():
    class Silent:
        def cost_analysis(self):
            return None

    assert "XLA counts 1e+13, a loop's body once" in report.report(STEP, V5P)
    assert "XLA" not in report.report(dataclasses.replace(STEP, compiled=Silent()), V5P)


def test_a_program_that_cannot_be_read_back_says_so():
    text = report.report(dataclasses.replace(STEP, network=None), V5P)
    assert "unknown: JAX cannot read the program back" in text
