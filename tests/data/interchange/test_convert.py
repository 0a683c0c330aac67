"""The command: what it says, what it refuses, and a workdir as a source."""

import json
import shutil
import subprocess
import sys

import pytest
from interchange_samples import jsonl, parquet

from nvret_jax import commands
from nvret_jax.commands import convert
from nvret_jax.data import interchange
from nvret_jax.errors import InputError


def test_a_conversion_says_what_is_lost_and_what_was_written(tmp_path):
    line = {
        "query_id": "1",
        "query": "q",
        "positive_passages": [{"docid": "d", "text": "a"}],
        "negative_passages": [{"docid": "e", "text": "b"}],
    }
    source, said = jsonl(tmp_path / "a.jsonl", line), []
    out = tmp_path / "deep" / "out.jsonl"
    convert.convert(f"tevatron:{source}", f"st-triplet:{out}", say=said.append)
    assert json.loads(out.read_text()) == {"anchor": "q", "positive": "a", "negative": "b"}
    assert said == [
        f"{out}: this format has no place for query ids (1); passage ids (2)",
        f"{out}: 1 record as st-triplet, from 1 row with 1 positive and 1 negative",
    ]


def test_what_was_written_is_counted_not_what_was_read(tmp_path):
    rows = [{"query": "q", "pos": ["p"], "neg": []}, {"query": "r", "pos": ["p"], "neg": ["n"]}]
    source, said = jsonl(tmp_path / "a.jsonl", *rows), []
    for form, left_out in (
        ("st-triplet", "a row without a negative is left out"),
        ("st-n-tuple", "n-tuple of 1 negatives: rows with fewer are left out (1)"),
    ):
        said.clear()
        out = tmp_path / f"{form}.jsonl"
        convert.convert(f"flagembedding:{source}", f"{form}:{out}", say=said.append)
        assert len(out.read_text().splitlines()) == 1
        assert any(left_out in line for line in said)
        assert said[-1] == f"{out}: 1 record as {form}, from 2 rows with 2 positives and 1 negative"


def test_runs_turn_into_runs(tmp_path):
    (tmp_path / "r.trec").write_text("q Q0 a 1 2 t\nq Q0 b 2 1 t\n")
    convert.convert(f"trec:{tmp_path}/r.trec", f"msmarco:{tmp_path}/r.tsv")
    assert (tmp_path / "r.tsv").read_text() == "q\ta\t1\nq\tb\t2\n"


def test_a_path_may_hold_a_colon(tmp_path):
    (tmp_path / "a:b").write_text("q\tp\t1\n")
    convert.convert(f"msmarco:{tmp_path}/a:b", f"trec:{tmp_path}/c:d")
    assert (tmp_path / "c:d").exists()


def test_the_source_may_be_the_target(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"query": "q", "pos": "a", "neg": "b"})
    convert.convert(f"flagembedding:{path}", f"flagembedding:{path}")
    assert json.loads(path.read_text()) == {"query": "q", "pos": ["a"], "neg": ["b"]}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["flagembedding:a"], "convert: TARGET missing"),
        (["a:b", "c:d", "e:f"], "unexpected argument 'e:f'; expected SOURCE TARGET"),
        (["--force", "a:b", "c:d"], "unknown option --force"),
        (["nothing", "trec:b"], "source 'nothing': expected format:path"),
        (["trec:", "trec:b"], "source 'trec:': expected format:path"),
        (["trec:a", "b"], "target 'b': expected format:path"),
        (["bad:a", "trec:b"], "unknown format 'bad'; known formats: flagembedding"),
        (["trec:a", "bad:b"], "unknown format 'bad'"),
        (["trec:a", "beir:b"], "a run has ids without texts"),
        (["workdir:a", "workdir:b"], "a workdir can only be a source"),
        (["workdir:/nowhere", "beir:b"], "/nowhere/config.json: no such file"),
        (["trec:a\0", "trec:b"], "a path cannot contain NUL"),
    ],
)
def test_wrong_words_are_answered_in_a_line(argv, expected):
    with pytest.raises(InputError) as caught:
        commands.run("convert", argv)
    assert expected in str(caught.value)


def test_help_has_a_line_for_every_format(capsys):
    assert commands.run("convert", ["--help"]) == 0
    lines = capsys.readouterr().out.split("\n")
    for name in (*interchange.FORMATS, "workdir"):
        assert sum(line.split()[:1] == [name] for line in lines) == 1


def test_the_module_runs_as_a_command_and_prints_its_error(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"query": "q", "pos": ["a"], "neg": []})
    command = [sys.executable, "-m", "nvret_jax", "convert", f"flagembedding:{path}"]
    done = subprocess.run([*command, f"tevatron:{tmp_path}/b"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 record as tevatron" in done.stdout
    done = subprocess.run([*command, f"st-triplet:{tmp_path}/c"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def workdir(tmp_path):
    """As the stage mine leaves it."""
    data = tmp_path / "data"
    jsonl(
        data / "corpus.jsonl",
        *({"_id": f"p{i}", "title": "T" * (i == 1), "text": f"text {i}"} for i in range(4)),
    )
    jsonl(data / "queries.jsonl", {"_id": "q0", "text": "zero"}, {"_id": "q1", "text": "one"})
    (data / "qrels").mkdir()
    (data / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp1\t1\n")
    run = tmp_path / "run"
    jsonl(run / "config.json", {"data": {"train": f"beir:{data}", "train_split": "train"}})
    parquet(
        run / "negatives" / "train.parquet",
        {
            "query_id": ["q1"],
            "positive_ids": [["p1"]],
            "positive_scores": [[0.7]],
            "negative_ids": [["p3", "p0"]],
            "negative_scores": [[0.3, 0.1]],
            "judged_ids": [["p1"]],
            "negative_ranks": [[1, 4]],
            "negative_teachers": [["t", "t"]],
            "negative_ceilings": [[0.6, 0.6]],
            "ceiling": [0.6],
        },
    )
    return run


def test_the_negatives_of_a_run_become_questions_for_a_judge(workdir, tmp_path):
    convert.convert(f"workdir:{workdir}", f"questions:{tmp_path}/judge.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert [(line["query_id"], line["passage_id"]) for line in lines] == [
        ("q1", "p3"),
        ("q1", "p0"),
    ]
    assert {line["verdict"] for line in lines} == {""}
    with pytest.raises(InputError, match="may hold answers"):
        convert.convert(f"workdir:{workdir}", f"questions:{tmp_path}/judge.jsonl")
    with pytest.raises(InputError, match="needs a workdir as its source"):
        convert.convert(f"trec:{tmp_path}/x.run", f"questions:{tmp_path}/other.jsonl")


def test_the_negatives_of_a_run_are_a_source(workdir, tmp_path):
    convert.convert(f"workdir:{workdir}", f"flagembedding:{tmp_path}/out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "query": "one",
        "pos": ["T text 1"],
        "neg": ["text 3", "text 0"],
        "pos_scores": [0.7],
        "neg_scores": [0.3, 0.1],
    }
    (workdir / "negatives" / "train.parquet").rename(workdir / "negatives" / "dev.parquet")
    convert.convert(f"workdir:{workdir}/negatives/dev.parquet", f"beir:{tmp_path}/b")
    assert len(interchange.read("beir", tmp_path / "b")) == 1


def test_a_run_of_several_sets_says_how_to_name_one(workdir, tmp_path):
    part = workdir / "sets" / "more"
    part.mkdir(parents=True)
    for name in ("config.json", "negatives"):
        source = workdir / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, part / name)
    said = []
    out = f"flagembedding:{tmp_path}/out.jsonl"
    convert.convert(f"workdir:{workdir}", out, say=said.append)
    assert said[0].endswith(f"negatives of data.train; further sets: workdir:{part}")
    (workdir / "negatives" / "train.parquet").unlink()
    with pytest.raises(InputError, match=f"name one of the sets of this run: workdir:{part}"):
        convert.convert(f"workdir:{workdir}", out)
    convert.convert(f"workdir:{part}", out)


def replace(workdir, **columns):
    whole = {
        "query_id": ["q1"],
        "positive_ids": [["p1"]],
        "positive_scores": [[0.7]],
        "negative_ids": [["p3"]],
        "negative_scores": [[0.3]],
        "judged_ids": [["p1"]],
        "negative_ranks": [[1]],
        "negative_teachers": [["t"]],
        "negative_ceilings": [[0.6]],
        "ceiling": [0.6],
    }
    parquet(workdir / "negatives" / "train.parquet", whole | columns)


WORKDIRS = [
    (lambda w: (w / "config.json").write_text("{"), "config.json: is not the config of a run"),
    (lambda w: (w / "config.json").write_text("{}"), "no key 'data'"),
    (
        lambda w: (w / "config.json").write_text('{"data": {"train": 1, "train_split": "a"}}'),
        "must be strings",
    ),
    (lambda w: (w / "negatives" / "train.parquet").unlink(), "run the stage mine"),
    (lambda w: replace(w, query_id=["zz"]), "query_id: id 'zz' is not in the data set"),
    (lambda w: replace(w, negative_ids=[["zz"]]), "negative_ids: id 'zz' is not in the data set"),
    (lambda w: replace(w, negative_scores=[[0.1, 0.2]]), "differ in length"),
    (lambda w: replace(w, negative_scores=[["a"]]), "not a table of negatives"),
    (lambda w: replace(w, negative_scores=[1.0]), "not a table of negatives"),
    (lambda w: replace(w, negative_scores=[None]), "not a table of negatives"),
]


@pytest.mark.parametrize(("damage", "expected"), WORKDIRS)
def test_a_workdir_that_does_not_fit_is_named(damage, expected, workdir, tmp_path):
    damage(workdir)
    with pytest.raises(InputError) as caught:
        convert.convert(f"workdir:{workdir}", f"flagembedding:{tmp_path}/out.jsonl")
    assert expected in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()
