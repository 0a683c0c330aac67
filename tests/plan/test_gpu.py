"""A training step compiled for GPUs that are not there, by JAX's CUDA plugin."""

import jax
import pytest
import tiny_backbones

from nvret_jax import config as config_lib
from nvret_jax.options import blocks
from nvret_jax.plan import chips, models, training
from nvret_jax.plan.report import fits, report
from nvret_jax.training.options import Training

pytest.importorskip(
    "jax_plugins.xla_cuda13", reason="needs JAX's CUDA plugin, which compiles for GPUs without one"
)


@pytest.mark.parametrize("topology", ["h100:8", "a100:8"])
def test_a_training_step_for_gpus_is_compiled_and_counted(topology, tmp_path):
    jax.config.update("jax_platforms", "cpu")
    mesh, chip = chips.topology_mesh(topology, fsdp=2, tensor=2)
    config = config_lib.base()
    config.student.model = str(tiny_backbones.write(tmp_path / "m", "llama-nemotron-embed"))
    config.student.query_length = config.student.passage_length = 16
    config.student.lora_rank, config.student.dtype = 2, "bfloat16"
    config.train.batch_size, config.train.num_negatives = 16, 1
    config.train.chunk_tokens = 32
    sketch = models.read(config.student, mesh, key="student")
    step = training.train_step(sketch, blocks.read(Training, config.train), mesh)
    assert fits(step, chip)
    assert not any("unknown length" in note for note in step.notes)
    assert {"all-gather", "all-reduce"} <= {c.kind for c in step.network}
    assert sum(step.parts.values()) <= step.memory.arguments
    assert "fits: " in report(step, chip)
