"""A student of one vector a token trains by MaxSim, by config alone, and is exported as one."""

import dataclasses
import json

import numpy as np
import pytest
import recipe_project
import tiny_backbones
import tiny_project

from nvret_jax import pipeline
from nvret_jax.api import Encoder
from nvret_jax.artifacts.workdir import Workdir
from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError
from nvret_jax.pipeline import train as train_stage
from nvret_jax.pipeline.state import Run


@pytest.fixture(scope="module", params=[pytest.param("seen", marks=pytest.mark.slow), "unseen"])
def late(pristine, tmp_path_factory, request):
    """(config, workdir) of a finished run whose student is a tiny LateOn-Code.

    Its queries are lengthened with mask tokens, which other tokens see or do not.
    """
    folder = tmp_path_factory.mktemp("late")
    tiny_backbones.write(folder / "student", "lateon-code")
    settings = folder / "student" / "config_sentence_transformers.json"
    shared = json.loads(settings.read_text())
    assert shared["query_length"] == 12
    shared["attend_to_expansion_tokens"] = request.param == "seen"
    settings.write_text(json.dumps(shared))
    config = recipe_project.config(pristine, temperature=1.0, steps=3)
    config.student.model = str(folder / "student")
    config.stages = ("embed", "search", "mine", "train", "export")
    config.train.loss.dims = (4, 8)
    pipeline.run(config, str(folder / "w"))
    return config, folder / "w"


def max_sim(query_td, passage_sd):
    return (query_td.astype(np.float64) @ passage_sd.astype(np.float64).T).max(1).sum()


def test_the_first_loss_is_that_of_max_sim_over_the_tokens_that_count(late):
    config, workdir = late
    config = config.copy_and_resolve_references()
    config.train.loss.dims = ()
    run = Run(config, Workdir.open(str(workdir), config.to_dict(), write=False))
    data = load_dataset(config.data.train)
    batch = train_stage.batches(train_stage.inputs_at(run), run.training_stages, "train").batch(0)
    encoder = run.student.encoder
    group = len(batch["passage_ids"]) // len(batch["query_lengths"])
    shown = {
        tuple(t[: len(t)]): q
        for q, t in zip(
            data.queries.ids,
            encoder.tokenize(data.queries.texts, kind="query", max_length=16),
            strict=True,
        )
    }
    queries = [
        shown[tuple(tokens[:length])]
        for tokens, length in zip(batch["query_tokens"], batch["query_lengths"], strict=True)
    ]
    query_texts = [data.queries.texts[data.queries.row[q]] for q in queries]
    rows = batch["passage_ids"]
    query_emb = encoder.encode_tokens(query_texts, kind="query", max_length=16)
    passage_emb = encoder.encode_tokens(
        [data.corpus.texts[max(r, 0)] for r in rows], kind="passage", max_length=24
    )
    judged = data.positives("train", 1)
    losses = []
    for b, query in enumerate(queries):
        scores = np.array([max_sim(query_emb[b], p) for p in passage_emb])
        own = b * group
        counts = [
            row >= 0 and (i == own or data.corpus.ids[row] not in judged[query])
            for i, row in enumerate(rows)
        ]
        losses.append(np.log(np.exp(scores[counts] - scores[own]).sum()))
    # The run's own first loss has two prefixes, so one without them is asked here.
    assert first_loss(run, workdir.parent / "plain") == pytest.approx(np.mean(losses), rel=1e-4)


def first_loss(run, workdir):
    config = run.config.copy_and_resolve_references()
    config.train.steps = 1
    config.stages = ("embed", "search", "mine", "train")
    pipeline.run(config, str(workdir))
    return next(line["loss"] for line in tiny_project.metrics(workdir) if "loss" in line)


def test_the_export_is_a_late_interaction_model_with_what_was_trained(late):
    config, workdir = late
    start, trained = (
        Encoder.from_pretrained(str(f)) for f in (config.student.model, workdir / "export")
    )
    assert trained.spec.late == dataclasses.replace(start.spec.late, passage_length=24)
    text = ["the wing of a body"]
    before, after = (encoder.encode_tokens(text)[0] for encoder in (start, trained))
    assert before.shape == after.shape
    assert np.abs(before - after).max() > 1e-4
    assert trained.spec.architecture["matryoshka_dimensions"] == [4, 8]
    assert trained.spec.architecture["is_matryoshka"] is True


def test_what_search_cannot_do_is_told_before(late, tmp_path):
    config, _ = late
    config = config.copy_and_resolve_references()
    config.stages = ("embed", "search", "mine", "train", "evaluate")
    with pytest.raises(InputError, match="evaluation does not support yet"):
        pipeline.run(config, str(tmp_path / "w"))
    config.stages = ("embed", "search", "mine", "train")
    config.teacher.model = config.student.model
    with pytest.raises(InputError, match="one vector per token, which search does not support"):
        pipeline.run(config, str(tmp_path / "w2"))
