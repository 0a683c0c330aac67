"""A student whose new projection is fitted to the vectors of a wider teacher, by the command."""

import json
import pathlib

import command
import numpy as np
import pytest
import safetensors.numpy
import tiny_models
import tiny_project

import nvret_jax as nv
from nvret_jax import config as config_lib
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.evaluation import retrieval
from nvret_jax.models import projection
from nvret_jax.pipeline import rounds

WIDE = 48


@pytest.fixture(scope="module")
def project(compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("projection")
    tiny_project.make(folder)
    tiny_models.write(folder / "wide", seed=1, hidden_size=WIDE)
    return folder


def flags(project, *more):
    given = (
        f"teacher.model={project / 'wide'}",
        "train.loss.vectors=cosine",
        "train.loss.contrastive_weight=0.0",
        "train.num_negatives=0",
        "train.steps=8",
        "train.checkpoint_every=4",
        "train.schedule=constant",
        "train.warmup=0",
        "train.learning_rate=1e-2",
        "data.dev_split=",
        "result.pick=last",
        "evaluation.bm25=off",
        "evaluation.teacher_passages=True",
        "student.lora_rank=2",
    )
    return [
        command.CONFIG,
        *command.flags_of(project),
        *(f"--config.{one}" for one in (*given, *more)),
    ]


@pytest.fixture(scope="module")
def finished(project):
    workdir = project / "w"
    argv = flags(project, f"student.projection={WIDE}")
    stages = "--stages=embed,search,mine,train,evaluate,export,report"
    done = command.inside(*argv, f"--workdir={workdir}", stages)
    assert done.status == 0, done.stderr[-2000:]
    (workdir / "printed").write_text(done.stdout)
    return workdir


def kernel(workdir: pathlib.Path) -> np.ndarray:
    weights = safetensors.numpy.load_file(workdir / "export/2_Dense/model.safetensors")
    return weights["linear.weight"].T


def test_other_widths_are_refused_with_the_option_to_set(project):
    dry = command.inside(*flags(project), f"--workdir={project / 'none'}", "--dry_run")
    assert (
        "train.loss.vectors='cosine': the student's vectors are 32 wide, those of teacher 48; set "
        "student.projection=48"
    ) in dry.error
    assert (
        "evaluation.teacher_passages=True: the student's vectors are 32 wide, those of teacher 48"
    ) in dry.error
    words = command.inside(
        command.CONFIG,
        *command.flags_of(project),
        f"--workdir={project / 'none'}",
        "--config.teacher.model=bm25:",
        "--config.evaluation.teacher_passages=True",
        "--dry_run",
    )
    assert "evaluation.teacher_passages=True: needs a teacher that is an encoder" in words.error
    assert not (project / "none").exists()


def test_the_projection_is_trained_and_exported(finished):
    metrics = tiny_project.metrics(finished)
    assert metrics[-1]["vectors"] < 0.9 * metrics[0]["vectors"]
    encoder = nv.Encoder.from_pretrained(finished / "export")
    assert encoder.width == WIDE


def test_the_projection_begins_nearest_to_the_teachers_vectors(project, finished):
    """Of queries and passages of training, with the lengths that each has there."""
    data = nv.load_dataset(f"beir:{project / 'data'}")
    queries = data.split_queries("train").texts
    ours, theirs = (
        np.concatenate(
            [
                encoder.encode(queries, kind="query", max_length=16),
                encoder.encode(data.corpus.texts, max_length=24),
            ]
        )
        for encoder in map(nv.Encoder.from_pretrained, (project / "model", project / "wide"))
    )
    unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    start = projection.nearest(unit, theirs)
    cosines = np.sum(unit @ start * theirs, axis=1)
    printed = (finished / "printed").read_text()
    assert f"nearest to those of teacher: mean cosine {cosines.mean():.3f}" in printed
    first = tiny_project.metrics(finished)[0]["vectors"]
    assert first < 1 - cosines.mean() + 0.1  # of the texts of one batch
    assert 1e-3 < np.abs(kernel(finished) - start).max() < 0.2


def test_queries_are_scored_with_the_teachers_passages_too(project, finished):
    """Against an evaluation of both encoders' vectors here."""
    found = json.loads((finished / "evaluation/data.json").read_text())
    data = nv.load_dataset(f"beir:{project / 'data'}")
    ids, _ = retrieval.scored_queries(data, "test", 1)
    student = nv.Encoder.from_pretrained(finished / "export")
    teacher = nv.Encoder.from_pretrained(project / "wide")
    texts = [data.queries.texts[data.queries.row[query]] for query in ids]
    expected = retrieval.evaluate_vectors(
        data,
        "test",
        teacher.encode(data.corpus.texts, max_length=24),
        student.encode(texts, kind="query"),
        width=WIDE,
        mesh=student.mesh,
    )
    assert found["asymmetric"] == pytest.approx(expected.metrics, abs=1e-6)
    assert found["per_query_asymmetric"].keys() == found["per_query"].keys()
    assert found["asymmetric"]["ndcg_cut_10"] != found["ndcg_cut_10"]
    low, high = found["ndcg_cut_10_asymmetric_interval"]
    assert low <= found["asymmetric"]["ndcg_cut_10"] - found["ndcg_cut_10"] <= high
    assert f"teacher's passages: by {project / 'wide'}, cut at 24" in found["measured"]
    score = f"{found['asymmetric']['ndcg_cut_10']:.4f}"
    printed = (finished / "printed").read_text()
    assert score in next(line for line in printed.splitlines() if "nDCG@10 " in line)
    for file in ("report.html", "export/README.md"):
        page = (finished / file).read_text()
        assert "teacher's passages" in page or "teacher&#39;s passages" in page
        assert score in page
    assert (finished / "evaluation/data.asymmetric.trec").exists()


def test_before_is_the_model_without_it(finished):
    widths = {
        role: json.loads((path / "zarr.json").read_text())["shape"][1]
        for role in ("student", "student-start")
        for path in (finished / "embeddings" / role / "data").glob("passages*")
    }
    assert widths == {"student": WIDE, "student-start": 32}


def test_a_training_that_goes_on_later_ends_like_one_that_did_not_stop(project, finished):
    argv = [*flags(project, f"student.projection={WIDE}"), f"--workdir={project / 'stopped'}"]
    half = command.inside(*argv, "--config.train.steps=4", "--stages=embed,search,mine,train")
    assert half.status == 0, half.stderr[-2000:]
    done = command.inside(*argv, "--stages=train,evaluate,export")
    assert done.status == 0, done.stderr[-2000:]
    assert len(tiny_project.metrics(project / "stopped")) == 8
    np.testing.assert_array_equal(kernel(project / "stopped"), kernel(finished))


def test_a_round_goes_on_with_the_projection_that_the_one_before_exported(tmp_path):
    config = config_lib.base()
    config.rounds, config.student.projection = 3, WIDE
    workdir = Workdir.open(tmp_path, config.to_dict(), write=False)
    first = rounds.run_of(config, workdir, 1)
    export = tmp_path / "rounds/1/export"
    export.mkdir(parents=True)
    (export / "modules.json").write_text("[]")
    second = rounds.run_of(config, workdir, 2)
    assert first.config.student.projection == WIDE
    assert second.config.student.projection == 0
    assert second.config.student.model == str(export)
