"""Options of the loss through the real command: each reaches the step; mistakes come together."""

import command
import pytest
import tiny_project

DISTILLED = "--config.mining.num_distilled=3"


@pytest.fixture(scope="module")
def project(compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")
    tiny_project.make(folder)
    done = command.inside(
        command.CONFIG,
        f"--workdir={folder / 'w'}",
        *command.flags_of(folder),
        "--stages=embed,search,mine",
        DISTILLED,
    )
    assert done.status == 0, done.stderr[-2000:]
    return folder


def trained(project, *options):
    """Trains two steps in the workdir that holds the negatives; the metrics of each step."""
    result = command.inside(
        command.CONFIG,
        f"--workdir={project / 'w'}",
        *command.flags_of(project),
        "--stages=train",
        DISTILLED,
        "--config.data.dev_split=",
        *(f"--config.train.{option}" for option in options),
    )
    assert result.status == 0, result.stderr[-2000:]
    return tiny_project.metrics(project / "w"), result


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (("loss.method=ring", "loss.terms=('query_to_passage','passage_to_query')"), {"loss"}),
        (
            (
                "loss.distillation=kl",
                "loss.teacher_temperature=0.05",
                "loss.dims=(32,16)",
                "num_distilled=3",
            ),
            {"contrastive", "distillation", "loss_16"},
        ),
        pytest.param(
            ("loss.score_mask=percent", "loss.mask_by=guide", "loss.num_positives=2"),
            {"masked_by_score"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("loss.temperature_learning_rate=0.01",), {"temperature"}, marks=pytest.mark.slow
        ),
    ],
)
def test_options_reach_the_step(options, keys, project):
    metrics, result = trained(project, *options)
    assert len(metrics) == 2
    assert keys <= metrics[0].keys()
    assert "(train.loss." in result.stdout or "not there yet" in result.stdout


def test_vectors_alone_need_no_negatives_and_are_those_of_the_same_texts(project):
    """The student starts as its own teacher, so only vectors of other texts would be far."""
    metrics, _ = trained(
        project,
        "loss.vectors=cosine",
        "loss.contrastive_weight=0.0",
        "num_negatives=0",
        "in_batch_negatives=False",
    )
    assert abs(metrics[0]["vectors"]) < 1e-5
    assert metrics[0]["loss"] == metrics[0]["vectors"]
    assert metrics[0]["accuracy"] == 1.0


def test_mistakes_come_together_before_anything_is_computed(project):
    result = command.inside(
        command.CONFIG,
        f"--workdir={project / 'w'}",
        *command.flags_of(project),
        "--config.train.loss.method=tree",
        "--config.train.loss.percent=0.0",
        "--config.train.loss.terms=('query_to_query',)",
    )
    for words in ("train.loss.method='tree'", "train.loss.percent=0.0", "must include 'query_to"):
        assert words in result.error
    result = command.inside(
        command.CONFIG,
        f"--workdir={project / 'w'}",
        *command.flags_of(project),
        "--config.train.loss.dims=(64,)",
    )
    assert "train.loss.dims=(64,): the embedding is 32 wide" in result.error


def test_clusters_reach_the_batches(project):
    plain, _ = trained(project)
    clustered, result = trained(project, "cluster_size=8")
    assert [line["loss"] for line in clustered] != [line["loss"] for line in plain]
    (line,) = [x for x in result.stdout.splitlines() if "two rows of a batch is" in x]
    assert "in-batch negatives are false: mask them with train.loss.score_mask" in line
    assert "train.cluster_size 0 → 8" in result.stdout  # the fingerprint covers it
