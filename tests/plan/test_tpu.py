"""Compiling the search step for TPUs that are not there."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

from nvret_jax import plan
from nvret_jax.errors import InputError
from nvret_jax.search import memory, steps

pytest.importorskip("libtpu", reason="needs libtpu, which compiles for TPUs without one")


@pytest.fixture(scope="module")
def planned():
    mesh, chip = plan.topology_mesh("v5e:2x2")
    assert steps.platform_of(mesh) == "tpu"
    return plan.search_step(mesh, (100_000, 64), jnp.bfloat16, 100, 20, 1 << 28), chip


def test_flops_are_those_xla_counts(planned):
    step, _ = planned
    flops, moved = step.xla_counts()
    assert step.flops == 2.0 * 112 * 25_088 * 64
    # XLA also counts comparisons, which weigh most beside so narrow vectors.
    assert step.flops <= flops < 1.5 * step.flops
    assert step.hbm_bytes < moved


def test_memory_is_planned_no_lower_than_xla_needs(planned):
    step, _ = planned
    stats = step.compiled.memory_analysis()
    budgeted = memory.estimate((100_000, 64), jnp.bfloat16, 100, 20, 4, 1 << 28, platform="tpu")
    assert not budgeted.streams
    assert stats.temp_size_in_bytes <= budgeted.score_bytes
    assert step.peak <= budgeted.total


def test_the_program_is_a_tpus(planned):
    """bfloat16 goes into the product as it is, and no CPU tricks: no loop over pieces."""
    step, _ = planned
    text = step.compiled.as_text()
    assert "while" not in text
    assert "bf16[112,64]" in text


def test_the_report_names_what_binds_and_whether_it_fits(planned):
    step, chip = planned
    lines = plan.report(step, chip, "v5e:2x2", 4).splitlines()
    assert "4 chips, 1 hosts" in lines[0]
    assert any("HBM binds" in line for line in lines)
    assert lines[-1].startswith("fits: ")
    seconds = step.seconds(chip)
    assert seconds["FLOPs"] == pytest.approx(step.flops / 197e12)
    assert seconds["HBM"] == pytest.approx(step.hbm_bytes / 819e9)


@pytest.mark.parametrize("topology", ["v9:4x4", "v5e", "v5e:3x5"])
def test_an_unknown_topology_is_refused(topology):
    with pytest.raises(InputError, match=topology):
        plan.topology_mesh(topology)


def test_mistakes_on_the_command_line_take_one_line():
    for more, word in (
        (["--k=50", "--passages=10"], "k=50"),
        (["--k=1", "--passages=3000000000"], "2^31"),
        (["--k=1", "--passages=100", "--memory_gib=0.0000001"], "least is"),
    ):
        command = [sys.executable, "-m", "nvret_jax.plan", "--topology=v5e:2x2", "--width=4", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last.startswith("nvret_jax.plan: ")
        assert word in last
