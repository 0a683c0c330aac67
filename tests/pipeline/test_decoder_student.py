"""A decoder as teacher and student, adapters and all, through the real command."""

import json

import command
import numpy as np
import pytest
import safetensors.numpy
import tiny_backbones
import tiny_project

from nvret_jax.models.encoder import Encoder


@pytest.fixture(scope="module")
def project(compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    tiny_project.make(folder)
    tiny_backbones.write(folder / "decoder", "e5-mistral")
    return folder


def run(project, workdir, *changes):
    model = project / "decoder"
    return command.inside(
        command.CONFIG,
        f"--workdir={workdir}",
        *command.flags_of(project),
        f"--config.teacher.model={model}",
        f"--config.student.model={model}",
        *(c if c.startswith("--") else f"--config.{c}" for c in changes),
    )


@pytest.mark.slow
def test_adapters_of_a_decoder_are_trained_evaluated_and_exported(project):
    lora = ("lora_rank=2", "lora_dropout=0.1", "lora_targets=('q_proj','down_proj')")
    student = (*lora, "bidirectional=True", "pooling=mean", "prompt_in_pooling=none")
    student = (*student, "query_prompt=wing of ")
    changes = [f"student.{value}" for value in student]
    result = run(project, project / "w", *changes)
    assert result.status == 0, result.stderr[-3000:]
    out = project / "w" / "export" / "model.safetensors"
    written = safetensors.numpy.load_file(out)
    source = tiny_backbones.tensors("e5-mistral")
    changed = {key for key in source if not np.array_equal(written[key], source[key])}
    assert changed == {key for key in source if "q_proj" in key or "down_proj" in key}
    config = json.loads((out.parent / "config.json").read_text())
    assert (config["model_type"], config["is_causal"]) == ("mistral", False)
    spec = Encoder.from_pretrained(str(out.parent)).spec
    assert (spec.pooling, spec.prompt_in_pooling) == ("mean", "none")
    assert spec.query_prompt == "wing of "
    # Another direction makes another student: the trained one is out of date.
    changes.append("student.bidirectional=False")
    again = run(project, project / "w", *changes, "--stages=export")
    assert "out of date" in again.error


def test_a_trained_adapter_is_part_of_what_a_teacher_gives(project):
    from nvret_jax.models.encoder import LoraConfig

    lora = LoraConfig(rank=2, targets=("q_proj",))
    encoder = Encoder.from_pretrained(str(project / "decoder"), lora=lora)
    encoder.save_adapter(project / "adapter")
    changes = (f"teacher.adapter={project / 'adapter'}", "stages=('embed',)")
    result = run(project, project / "v", *changes)
    assert result.status == 0, result.stderr[-3000:]
    (project / "adapter" / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors: no such file" in run(project, project / "u", *changes).error
    missing = run(project, project / "u", "teacher.adapter=nowhere", "stages=('embed',)")
    assert "adapter_config.json: no such file" in missing.error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ("student.model={}/model", "student.lora_rank=2", "student.lora_targets=('q_proj',)"),
            "lora targets 'q_proj' match nothing in this model; its modules: "
            "attention.output.dense",
        ),
        (("student.lora_rank=2", "student.lora_targets=('x',)"), "lora targets 'x' match nothing"),
        (("teacher.lora_rank=2",), "teacher.lora_rank: no such key"),
        (("student.bidirectional=maybe",), "student.bidirectional='maybe'"),
        (("student.prompt_in_pooling=some",), "expected one of all, none, last"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(project, changes, words):
    workdir = project / "bad"
    result = run(project, workdir, *(c.format(project) for c in changes))
    assert words in result.error
    command.assert_only_whole_artefacts(workdir)
    assert not (workdir / "embeddings").exists()
