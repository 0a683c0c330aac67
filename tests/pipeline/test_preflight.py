"""What a run refuses at its start, its dry run refuses in the same line; nothing is made."""

import json
import shutil

import command
import pytest

from nvret_jax import pipeline
from nvret_jax.training.batches.length_groups import Groups, within

BM25 = "--config.teacher.model=bm25:"
REFUSED = {
    "terms": ("--config.train.loss.terms=x", "train.loss.terms=('x',): expected a tuple"),
    "score mask": ("--config.train.loss.score_mask=xyz", "train.loss.score_mask='xyz': expected"),
    "dims above the width": ("--config.train.loss.dims=(1024,)", "train.loss.dims=(1024,): the em"),
    "dims of words": ("--config.train.loss.dims=('a',)", "train.loss.dims=('a',): expected"),
    "mesh": ("--config.mesh.data=3", "data 3"),
    "kernel": ("--config.student.attention=cudnn", "student.attention='cudnn' needs an NVIDIA GPU"),
    "merged with a number": ("--config.result.merge_with=(1,)", "result.merge_with=(1,): expected"),
    "merged with None": ("--config.result.merge_with=None", "result.merge_with=None: cannot be un"),
    "a batch beyond the data": ("--config.train.batch_size=65536", "there are 24 rows to train on"),
    "steps beyond counting": (
        "--config.train.epochs=1e6 --config.train.steps=0 --config.train.batch_size=1"
        " --config.train.warmup=0 --config.data.max_queries=0",
        None,  # 24 million steps are many, and can be counted
    ),
    "grades that nothing reaches": (
        "--config.evaluation.min_relevance=9",
        "evaluation.min_relevance=9: dataset 'data' split 'test': none of 10 queries has",
    ),
    "too few to calibrate on": (
        "--config.mining.percent=auto",
        "mining.percent='auto': needs at least 100 training queries to calibrate on, and there are",
    ),
    "a length beyond the model's": (
        "--config.teacher.passage_length=41",
        "error: teacher.passage_length=41: the model takes at most 40 tokens",
    ),
    "a folder below a file": ("--workdir=/dev/null/w", "--workdir /dev/null/w cannot be written"),
    "a flag for a folder": ("--workdir=--stages", "--workdir=--stages: a flag instead of"),
    "export without evaluation": (
        "--stages=embed,search,mine,train,export",
        "evaluation/data.bm25.json is needed but not there yet; run --stages=evaluate first",
    ),
    "evaluate without training": ("--stages=evaluate", "checkpoints is needed but not there yet"),
    "copies without vectors": (
        f"{BM25} --config.mining.exclude.near_copy=0.9",
        "mining.exclude.near_copy=0.9 needs a teacher that is an encoder",
    ),
    "a guide without vectors": (
        f"{BM25} --config.train.loss.score_mask=margin --config.train.loss.mask_by=guide",
        "train.loss.mask_by='guide': needs a teacher that is an encoder",
    ),
    "vectors to fit, and none there": (
        f"{BM25} --config.train.loss.vectors=cosine",
        "train.loss.vectors='cosine': needs a teacher that is an encoder",
    ),
    "vectors of other lengths to fit": (
        "--config.train.loss.vectors=squared --config.teacher.normalize=False",
        "train.loss.vectors='squared': student.normalize=True and teacher.normalize=False, so "
        "lengths differ; set both alike, or use 'cosine'",
    ),
    "a risk without queries to fit it to": (
        "--config.mining.risk=auto",
        "mining.risk='auto': needs at least 100 training queries to fit, and there are 24",
    ),
    "clusters without vectors": (
        f"{BM25} --config.train.cluster_size=4",
        "train.cluster_size=4: the set 'train' needs a teacher that is an encoder",
    ),
    "a separator that no id has": (
        "--config.mining.exclude.document_separator=::",
        "no passage id has the document separator '::'",
    ),
    "adapters wider than the model": (
        "--config.student.lora_rank=64 --config.student.lora_targets=('query',)",
        "student.lora_rank=64: the model is 32 wide",
    ),
    "distillation from one passage": (
        "--config.train.num_negatives=0 --config.train.loss.distillation=kl",
        "train.loss.distillation='kl': compares the passages of a row",
    ),
    "best without dev scores": (
        "--config.data.dev_split=none --config.result.pick=best",
        "result.pick='best': needs dev scores, and data set data has no split 'none'",
    ),
    "a length beyond the positions": (
        "--config.student.query_length=100000",
        "student.query_length=100000: the model takes at most",
    ),
    "a ranker without its colon": ("--config.teacher.model=bm25", "write 'bm25:' for the ranker"),
    "a dev split without positives": (
        "--config.data.min_relevance=2",
        "no judgment of relevance >= 2",
    ),
}


def flags(pristine, tmp_path, more):
    argv = [command.CONFIG, f"--workdir={tmp_path / 'w'}", *command.flags_of(pristine)]
    return [*argv, *more.split()]


@pytest.mark.parametrize("name", REFUSED)
def test_a_dry_run_says_what_the_run_says(name, pristine, tmp_path):
    more, words = REFUSED[name]
    dry = command.inside(*flags(pristine, tmp_path, more), "--dry_run")
    if words is None:
        assert dry.status == 0, dry.stderr
        return
    assert words in dry.error, dry.error
    assert not (tmp_path / "w").exists()
    run = command.inside(*flags(pristine, tmp_path, more))
    assert run.error == dry.error
    assert not list((tmp_path / "w").glob("*/*"))


def test_a_path_that_is_wrong_is_named_once(pristine, tmp_path):
    for more, line in (
        ("--config.data.train=beir:/nowhere", "error: /nowhere: no such folder; expected"),
        ("--config.data.train=beir:gs://b/d", "error: config: data.train: gs://b/d: expected"),
    ):
        error = command.inside(*flags(pristine, tmp_path, more)).error
        assert error.startswith(line)
        assert error.count(more.rpartition(":")[2]) == 1


def test_an_audit_of_one_positive_each_is_refused_at_once(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "p")
    path = tmp_path / "p" / "data" / "qrels" / "train.tsv"
    lines = path.read_text().splitlines()
    kept = {line.split("\t")[0]: line for line in reversed(lines)}
    path.write_text("\n".join(reversed(kept.values())) + "\n")
    argv = flags(tmp_path / "p", tmp_path, "--config.stages=('embed','search','audit')")
    for dry in ((), ("--dry_run",)):
        result = command.inside(*argv, *dry)
        assert "audit: none of the 24 queries of 'data' has two positives" in result.error


def test_files_of_the_user_are_read_before_anything_is_embedded(pristine, tmp_path):
    verdict = {"query_id": "q999", "passage_id": "p1", "verdict": "drop"}
    (tmp_path / "v.jsonl").write_text(json.dumps(verdict) + "\n")
    (tmp_path / "t.run").write_text("q0 Q0 p999 1 0.5 t\n")
    (tmp_path / "map.tsv").write_text("p1\td1\tx\n")
    for more, words in (
        (f"--config.mining.verdicts={tmp_path / 'v.jsonl'}", "v.jsonl:1"),
        (f"--config.mining.exclude.document_map={tmp_path / 'map.tsv'}", "map.tsv:1"),
        (f"--config.teacher.model=run:{tmp_path / 't.run'}", "t.run:1"),
    ):
        dry = command.inside(*flags(pristine, tmp_path, more), "--dry_run")
        assert words in dry.error
        assert "'p999'" in dry.error or "'q999'" in dry.error or "2 columns" in dry.error


def test_values_are_unset_on_the_command_line(pristine, tmp_path):
    given = (
        "--config.mining.min_score=0.5 --config.mining.min_score=None"
        " --config.student.prompt_in_pooling=None --config.teacher.query_prompt=None"
        " --config.data.dev_split= --config.train.sets=()"
    )
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", lambda config, *args, **how: seen.append(config))
        assert command.inside(*flags(pristine, tmp_path, given)).status == 0
        last = given.replace("min_score=None", "min_score=0.25")
        assert command.inside(*flags(pristine, tmp_path, last)).status == 0
    assert seen[0].mining.min_score is None
    assert seen[0].student.prompt_in_pooling is None
    assert seen[0].teacher.query_prompt is None
    assert seen[0].data.dev_split == ""
    assert seen[0].train.sets == ()
    assert seen[1].mining.min_score == 0.25
    refused = command.inside(*flags(pristine, tmp_path, "--config.train.steps=None"))
    assert "train.steps=None: cannot be unset; expected a whole number from 0" in refused.error


@pytest.mark.parametrize(
    "given",
    [
        "train.steps=1_0",
        "train.steps=0x10",
        "audit.shifts=(0b1,)",
        "train.steps=١٢",
        "train.epochs=1_0.5",
        "audit.shifts=(1_0,)",
    ],
)
def test_numbers_are_plain_decimal_numbers(given, pristine, tmp_path):
    result = command.inside(*flags(pristine, tmp_path, f"--config.{given}"), "--dry_run")
    assert f"{given.split('=')[0]}=" in result.error
    assert "in plain decimal digits" in result.error


def test_a_batch_is_no_wider_than_the_model_has_positions():
    import numpy as np

    batch = {
        "query_tokens": np.zeros((2, 16)),
        "passage_tokens": np.zeros((4, 48)),
        "passage_real": np.zeros((4, 48)),
        "passage_groups": Groups((2, 2), (16, 48)),
        "passage_ids": np.zeros(4),
    }
    cut = within(batch, 40)
    assert cut["query_tokens"].shape == (2, 16)
    assert cut["passage_tokens"].shape == cut["passage_real"].shape == (4, 40)
    assert cut["passage_groups"].widths == (16, 40)
    assert batch["passage_groups"].widths == (16, 48)


def test_a_mistake_in_the_data_is_reported_once_and_under_no_key(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "p")
    with (tmp_path / "p" / "data" / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "p9999"\n')
    dry = command.inside(*flags(tmp_path / "p", tmp_path, ""), "--dry_run")
    assert dry.error.count("not valid JSON") == 1
    assert "min_relevance" not in dry.error


def test_data_that_are_not_named_are_reported_once_by_key(pristine, tmp_path):
    more = "--config.data.train= --config.data.test="
    dry = command.inside(*flags(pristine, tmp_path, more), "--dry_run")
    assert dry.error.count("name a data set") == dry.error.count("data.train=''") == 1
    assert "load_dataset" not in dry.error
    # Without data to evaluate on, 'evaluate' is skipped, unless nothing else is asked for.
    alone = command.inside(*flags(pristine, tmp_path, more), "--config.stages=('evaluate',)")
    assert alone.error.count("name a data set") == alone.error.count("data.test=''") == 1
