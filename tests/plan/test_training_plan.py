"""The planned training and embedding steps, on CPU devices that are there to compare with."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import plan_worker
import pytest
import tiny_backbones
import tiny_models
import virtual_devices

from nvret_jax import config as config_lib
from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.options import blocks
from nvret_jax.plan import models, steps, training
from nvret_jax.plan.chips import CHIPS
from nvret_jax.plan.report import advice
from nvret_jax.training.options import Training
from nvret_jax.training.step import make_step


def worker(folder: Path, *sizes: int) -> dict:
    environment = virtual_devices.environment(8)
    done = subprocess.run(
        [sys.executable, plan_worker.__file__, str(folder), *map(str, sizes)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def tiny_decoder(folder: Path) -> Path:
    return tiny_backbones.write(folder, "llama-nemotron-embed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("bert", (2, 2, 2)), ("decoder", (1, 4, 2))],
)
def test_the_plan_holds_what_the_real_training_state_holds(tmp_path, kind, sizes):
    """All weights of a BERT, and adapters of a decoder; the program runs on the real state."""
    folder = tmp_path / kind
    if kind == "bert":
        tiny_models.write(folder)
    else:
        tiny_decoder(folder)
    found = worker(folder, *sizes)
    assert found["planned parts"] == found["real parts"]
    # XLA adds the step's number, and may round an argument up.
    assert 0 <= found["arguments"] - sum(found["real parts"]) <= 64
    assert 0 < found["loss"] < 20
    assert 0 < found["temperature"] < 0.06
    assert "all-gather" in found["collectives"]
    assert "all-reduce" in found["collectives"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan") / "bert"
    tiny_models.write(folder)
    config = config_lib.base()
    config.student.model = str(folder)
    config.student.query_length = config.student.passage_length = 16
    config.train.batch_size, config.train.num_negatives = 4, 1
    return config


def planned(config, **changes):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    train = config.train.copy_and_resolve_references()
    train.update(changes)
    sketch = models.read(config.student, mesh, key="student")
    return training.train_step(sketch, blocks.read(Training, train), mesh), sketch


@pytest.mark.slow
def test_a_stage_of_epochs_may_warm_up_for_a_number_of_steps(small):
    step, _ = planned(small, steps=0, epochs=3.0, warmup=1000)
    assert step.flops == planned(small)[0].flops


@pytest.mark.slow
def test_chunks_are_computed_again_and_counted_so(small):
    """Three times the forward pass without chunks, four times with them: and the loss beside it."""
    whole, sketch = planned(small, chunk_tokens=-1)
    chunked, _ = planned(small, chunk_tokens=32)
    forward = sketch.shape.forward(4, 16) + sketch.shape.forward(8, 16)
    assert whole.needed == 3 * forward
    assert whole.flops.total == pytest.approx(3 * forward, rel=0.01)
    assert chunked.flops.total == pytest.approx(4 * forward, rel=0.01)
    assert chunked.looped
    assert "chunks of 2 queries and 2 passages" in chunked.notes[0]
    # XLA counts a loop's body once, and everything that is no product.
    assert chunked.xla_counts()[0] < chunked.flops.total


def test_the_planned_step_is_the_one_that_trains(small, monkeypatch):
    made = []
    monkeypatch.setattr(training, "make_step", lambda *a, **k: made.append(k) or make_step(*a, **k))
    planned(small, chunk_tokens=48, temperature=0.02)
    assert made[0]["chunk_tokens"] == 48
    assert made[0]["loss"].temperature == 0.02


def test_candidates_for_distillation_alone_are_encoded_like_negatives(small):
    kl = {"loss": {"distillation": "kl"}, "chunk_tokens": -1}
    more, sketch = planned(small, num_distilled=3, **kl)
    plain, _ = planned(small, **kl)
    forward = sketch.shape.forward
    assert more.needed - plain.needed == 3 * (forward(4 * 5, 16) - forward(4 * 2, 16))


def test_embedding_a_corpus_counts_its_batches(small):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    sketch = models.read(small.student, mesh, key="student")
    step = steps.embed_step(sketch, mesh, 1000, token_budget=128)
    assert step.items == (8, "passages")
    assert step.calls == 125
    assert step.needed == step.flops.total == sketch.shape.forward(8, 16)
    assert step.parts["weights"] <= step.memory.arguments


def test_a_model_that_is_not_here_is_known_or_refused(small):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    block = small.student.copy_and_resolve_references()
    block.model = "intfloat/e5-large-v2"
    sketch = models.read(block, mesh, key="student")
    assert sketch.from_table
    assert sketch.spec.width == 1024
    block.model = "nobody/nothing"
    with pytest.raises(InputError, match=r"teacher\.model=nobody/nothing: not on this machine"):
        models.read(block, mesh, key="teacher")


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _UNEVEN],
        env=virtual_devices.environment(8),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "train.batch_size=20 is not a multiple of the 8 devices" in done.stdout, done.stderr


_UNEVEN = """
from nvret_jax import config as config_lib, mesh as mesh_lib
from nvret_jax.options import blocks
from nvret_jax.training.options import Training
from nvret_jax.plan import models, steps, training
config = config_lib.base()
config.student.model = "sentence-transformers/all-MiniLM-L6-v2"
config.train.batch_size = 20
mesh = mesh_lib.make_mesh()
student = models.read(config.student, mesh, key="student")
try:
    training.train_step(student, blocks.read(Training, config.train), mesh)
except ValueError as error:
    print(error)
"""


def test_what_does_not_fit_is_told_by_its_largest_part(small):
    step, _ = planned(small, chunk_tokens=-1)
    many = taking(step, arguments=90e9, temporaries=10e9, parts={"optimizer": 60e9, "batch": 1e9})
    said = advice(many, chip_with(80e9))
    assert "100.0 of 80 GB per chip, 20.0 GB too many" in said
    assert "optimizer 60.0 GB" in said
    assert "mesh.fsdp" in said
    assert "lora_rank" in said
    wide = taking(step, arguments=1e9, temporaries=90e9, parts=step.parts)
    said = advice(wide, chip_with(80e9))
    assert "11.0 GB too many; most of it temporaries (90.0 GB" in said
    assert "train.chunk_tokens" in said
    assert "mesh.fsdp" not in said


def chip_with(hbm: float):
    return dataclasses.replace(CHIPS["h100"], hbm=hbm)


def taking(step, arguments: float, temporaries: float, parts: dict):
    taken = steps.Memory(int(arguments), int(temporaries), int(arguments + temporaries))
    return dataclasses.replace(step, memory=taken, held={}, parts=parts)
