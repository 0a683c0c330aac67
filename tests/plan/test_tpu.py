"""Steps compiled for TPUs that are not there, by libtpu."""

import subprocess
import sys

import jax.numpy as jnp
import pytest
import tiny_backbones

from nvret_jax import config as config_lib
from nvret_jax import platforms
from nvret_jax.errors import InputError
from nvret_jax.options import blocks
from nvret_jax.plan import chips, models, steps, training
from nvret_jax.plan.report import fits, report
from nvret_jax.search.index import memory
from nvret_jax.training.options import Training

pytest.importorskip("libtpu", reason="needs libtpu, which compiles for TPUs without one")


@pytest.fixture(scope="module")
def planned():
    mesh, chip = chips.topology_mesh("v5e:2x2")
    assert platforms.of(mesh) == "tpu"
    return steps.search_step(mesh, (100_000, 64), jnp.bfloat16, 100, 20, 1 << 28), chip


def test_flops_are_those_xla_counts(planned):
    step, _ = planned
    flops, moved = step.xla_counts()
    assert step.flops.fast == 2.0 * 112 * 25_088 * 64
    # XLA also counts comparisons, which weigh most beside so narrow vectors.
    assert step.flops.fast <= flops < 1.5 * step.flops.fast
    assert step.hbm_bytes < moved


def test_memory_is_planned_no_lower_than_xla_needs(planned):
    step, _ = planned
    budgeted = memory.estimate((100_000, 64), jnp.bfloat16, 100, 20, 4, 1 << 28, platform="tpu")
    assert not budgeted.streams
    assert step.memory.temporaries <= budgeted.score_bytes
    assert step.peak <= budgeted.total


@pytest.mark.parametrize(
    ("rows", "queries", "k"), [(4 * 125_056, 512, 100), (4 * 131_072, 512, 30)]
)
def test_scores_are_written_once_and_never_copied(rows, queries, k):
    """Product, maxima and scores are one operation; what selecting adds is a small share."""
    mesh, _ = chips.topology_mesh("v5e:2x2")
    step = steps.search_step(mesh, (rows, 1024), jnp.bfloat16, queries, k, 4 << 30)
    tile, scores = rows // 4, rows * queries  # bytes: 4 per score of a quarter of the rows
    assert scores <= step.memory.temporaries < 1.05 * scores
    read = 2 * 1024 * tile
    assert scores + read < step.hbm_bytes < 1.1 * (scores + read)


def test_the_program_is_a_tpus(planned):
    """bfloat16 goes into the product as it is, and no CPU tricks: no loop over pieces."""
    step, _ = planned
    text = step.compiled.as_text()
    assert "while" not in text
    assert "bf16[112,64]" in text


def test_the_report_names_what_binds_and_whether_it_fits(planned):
    step, chip = planned
    lines = report(step, chip).splitlines()
    assert any("sorting binds" in line for line in lines)
    assert lines[-1].startswith("fits: ")
    seconds = step.seconds(chip)
    assert seconds["FLOPs"] == pytest.approx(step.flops.fast / 197e12)
    assert seconds["HBM"] == pytest.approx(step.hbm_bytes / 819e9)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan") / "decoder"
    config = config_lib.base()
    config.student.model = str(tiny_backbones.write(folder, "llama-nemotron-embed"))
    config.student.query_length = config.student.passage_length = 16
    config.student.lora_rank, config.student.dtype = 2, "bfloat16"
    config.train.batch_size, config.train.num_negatives = 16, 1
    config.train.chunk_tokens = 32
    return config


def test_a_training_step_for_a_tpu_has_its_loops_counted(student):
    mesh, chip = chips.topology_mesh("v5e:2x2", fsdp=2)
    sketch = models.read(student.student, mesh, key="student")
    step = training.train_step(sketch, blocks.read(Training, student.train), mesh)
    assert fits(step, chip)
    assert step.looped
    assert not any("unknown length" in note for note in step.notes)
    arguments = sum(step.parts.values())
    # A TPU lays small arrays out in tiles: more bytes, never fewer.
    assert arguments <= step.memory.arguments
    gathers = next(c for c in step.network if c.kind == "all-gather")
    assert not gathers.per_iteration
    # In 2 layers and 2 chunks, forward and again, and backward.
    assert gathers.count > 2 * 2 * 3


def test_a_mesh_that_the_topology_has_no_sides_for_is_refused():
    with pytest.raises(InputError, match=r"fsdp=8.* product of some of its sides, 4 × 4 × 4"):
        chips.topology_mesh("v5p:4x4x4", fsdp=8)


def test_a_step_that_libtpu_refuses_is_planned_as_too_large(student):
    mesh, chip = chips.topology_mesh("v5e:2x2")
    student = student.copy_and_resolve_references()
    student.student.lora_rank = 0
    student.train.batch_size, student.train.chunk_tokens = 1 << 22, -1
    sketch = models.read(student.student, mesh, key="student")
    step = training.train_step(sketch, blocks.read(Training, student.train), mesh)
    assert step.compiled is None
    assert not fits(step, chip)
    last = report(step, chip).splitlines()[-1]
    assert "GB too many; most of it temporaries" in last
    assert "train.chunk_tokens" in last


@pytest.mark.parametrize("topology", ["v9:4x4", "v5e", "v5e:3x5"])
def test_an_unknown_topology_is_refused(topology):
    with pytest.raises(InputError, match=topology):
        chips.topology_mesh(topology)


def test_mistakes_on_the_command_line_take_one_line():
    for more, word in (
        (["--k=50", "--passages=10"], "k=50"),
        (["--k=1", "--passages=3000000000"], "2,147,483,647"),
        (["--k=1", "--passages=100", "--memory_gib=0.0000001"], "at least"),
    ):
        command = [sys.executable, "-m", "nvret_jax.plan", "--topology=v5e:2x2", "--width=4", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert word in last
